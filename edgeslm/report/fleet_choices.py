"""What to choose: quality against size, speed, memory and energy, with the Pareto front of each device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgeslm.fleet import Fleet, Row, front, usual
from edgeslm.measurement import Measurement
from edgeslm.report.blocks import Chart, Note, Table
from edgeslm.report.fleet_charts import COLOURS, Choice, choices
from edgeslm.report.fleet_deltas import label
from edgeslm.report.fleet_tables import figure, named
from edgeslm.report.svg import unit_scale

QUALITY = {"kl": "KL from the teacher, nats/token", "perplexity": "perplexity"}
FILES = -1  # group of a choice that no device has a say in


@dataclass(frozen=True)
class Axis:
    """What quality is set against. `find` gives the figure of a row, None where it has none."""

    key: str
    title: str
    unit: str
    better: str
    at: int | str | None
    find: Callable[[Row], Measurement | float | None]


@dataclass(frozen=True)
class Point:
    """A row on one axis. Points of one `rivals` are alternatives: one device, one kind, one coverage."""

    row: Row
    quality: float
    value: float
    kind: str
    covers: str
    rivals: tuple[str, ...]
    on_front: bool = False

    def to_json(self, axis: Axis) -> dict[str, Any]:
        return {
            "axis": axis.key,
            "at": axis.at,
            "device": "" if axis.key == "size" else self.row.device_id,
            "artifact": self.row.artifact,
            "sha256": self.row.sha256,
            "runtime": "" if axis.key == "size" else self.row.runtime,
            "quality": self.quality,
            "value": self.value,
            "unit": axis.unit,
            "better": axis.better,
            "kind": self.kind,
            "covers": self.covers,
            "on_front": self.on_front,
        }


def axes(fleet: Fleet) -> list[Axis]:
    rows = fleet.rows
    found = [Axis("size", "size on disk", "bytes", "lower", None, lambda row: row.file.get("bytes"))]
    for metric, unit, better in (("decode", "tokens/s", "higher"), ("prefill", "tokens/s", "higher")):
        at = usual(rows, metric)
        found.append(Axis(metric, label(metric, at), unit, better, at, _figure(metric, at)))
    kept = Counter(metric for row in rows for metric in ("pss_peak", "vm_hwm") if row.get(metric))
    memory = "pss_peak" if kept["pss_peak"] >= kept["vm_hwm"] else "vm_hwm"  # PSS counts shared pages by their share
    found.append(Axis("memory", label(memory), "bytes", "lower", None, _figure(memory, None)))
    found.append(Axis("energy", "energy per decoded token", "J/token", "lower", "decode",
                      _figure("energy_per_token", "decode")))  # fmt: skip
    return found


def _figure(metric: str, at: int | str | None) -> Callable[[Row], Measurement | None]:
    return lambda row: row.get(metric, at)


def quality_metric(fleet: Fleet) -> tuple[str, Any]:
    """(metric, job) that most files were judged by; KL where several are equally common. ("", None) without any."""
    files = {row.sha256: row.quality for row in fleet.rows}
    count: Counter[tuple[str, str]] = Counter()
    jobs: dict[str, Any] = {}
    for by in files.values():
        for metric in QUALITY:
            if metric in by:
                job = repr(by[metric].where.job)
                jobs[job] = by[metric].where.job
                count[metric, job] += 1
    if not count:
        return "", None
    metric, job = max(count, key=lambda one: (count[one], one[0] == "kl"))
    return metric, jobs[job]


def points(fleet: Fleet, axis: Axis) -> list[Point]:
    """Rows with quality and this figure, the front of each set of rivals marked. Size has nothing to do with devices:
    there each file counts once."""
    metric, job = quality_metric(fleet)
    found: list[Point] = []
    for row in fleet.rows:
        judged, value = row.quality.get(metric), axis.find(row)
        if judged is None or value is None or judged.where.job != job:
            continue
        if isinstance(value, Measurement):
            rivals: tuple[str, ...] = (row.device_id, value.kind, value.covers)
            point = Point(row, judged.median, value.median, value.kind, value.covers, rivals)
        else:
            point = Point(row, judged.median, float(value), "measured", "file", ("size",))
        if axis.key != "size" or all(p.row.sha256 != row.sha256 for p in found):
            found.append(point)
    higher = (axis.better == "higher", False)
    best: set[int] = set()
    for rivals in {p.rivals for p in found}:
        mine = [i for i, p in enumerate(found) if p.rivals == rivals]
        best |= {mine[i] for i in front([(found[i].value, found[i].quality) for i in mine], higher)}
    return [replace(p, on_front=i in best) for i, p in enumerate(found)]


def charts(fleet: Fleet) -> list[Chart]:
    """One an axis; devices beyond the six colours there are go to a further one."""
    metric, _ = quality_metric(fleet)
    drawn = []
    order = list(fleet.devices)
    for axis in axes(fleet) if metric else []:
        found = points(fleet, axis)
        parts = [found] if axis.key == "size" else [
            [p for p in found if p.row.device_id in order[i : i + COLOURS]] for i in range(0, len(order), COLOURS)
        ]  # fmt: skip
        drawn += [_chart(fleet, axis, part, metric, i) for i, part in enumerate(parts) if part]
    return drawn


def _chart(fleet: Fleet, axis: Axis, found: Sequence[Point], metric: str, part: int) -> Chart:
    names, order = fleet.names(), list(fleet.devices)
    scale, unit = unit_scale(max(p.value for p in found), axis.unit)

    def choice(p: Point) -> Choice:
        place = "" if axis.key == "size" else f" on {names[p.row.device_id]}"
        kind = "" if p.kind == "measured" else f", {p.kind}"
        hover = f"{p.row.artifact}{place}: {figure(p.value, axis.unit)}{kind}, {metric} {p.quality:.4g}"
        group = 0 if axis.key == "size" else order.index(p.row.device_id)
        return Choice(
            p.row.artifact.removesuffix(".gguf"),
            group,
            p.value / scale,
            p.quality,
            p.on_front,
            p.kind == "measured",
            hover,
        )

    title = f"{'KL' if metric == 'kl' else 'Perplexity'} against {axis.title}"
    svg = choices(f"choice-{axis.key}-{part}", title, [choice(p) for p in found], f"{axis.title}, {unit}",
                  QUALITY[metric])  # fmt: skip
    rows, middle = [], () if axis.key == "size" else ("Device", "Runtime")
    for p in found:
        ran_on = (names[p.row.device_id], p.row.runtime) if middle else ()
        figures = (f"{p.quality:.4g}", figure(p.value, axis.unit), p.kind, "on the front" if p.on_front else "")
        rows.append((named(p.row, fleet.of(p.row.device_id)), *ran_on, *figures))
    columns = ("File", *middle, metric if metric == "perplexity" else "KL", axis.title.capitalize(), "Kind", "Pareto")
    numeric = frozenset({len(middle) + 1, len(middle) + 2})
    legend = [] if axis.key == "size" else [(f"r{order.index(i) % COLOURS + 1}", names[i]) for i in order
                                            if any(p.row.device_id == i for p in found)]  # fmt: skip
    if any(p.kind != "measured" for p in found):
        legend.append(("estimated", "estimated or modelled, on a front of its own"))
    hint = f"down and to the {'right' if axis.better == 'higher' else 'left'} is better"
    return Chart(title, svg, Table(title, columns, tuple(rows), numeric), tuple(legend), hint)


def notes(fleet: Fleet) -> list[Note]:
    """Who is not in the pictures, and why."""
    metric, job = quality_metric(fleet)
    if not metric:
        return [Note("Quality: not measured: no run folder and no results.json that judged these files was given, so "
                     "there is nothing to set against size, speed, memory and energy", "missing")]  # fmt: skip
    said: dict[str, None] = {}
    for row in fleet.rows:
        if metric not in row.quality:
            other = f"there is no {metric.replace('kl', 'KL')} of it"
            said.setdefault(f"{row.artifact} is in none of these pictures: {other}")
        elif row.quality[metric].where.job != job:
            said.setdefault(f"{row.artifact} is in none of these pictures: it was judged on another text")
    return [Note(line, "missing") for line in said]
