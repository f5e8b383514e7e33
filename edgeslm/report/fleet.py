"""One page for several devices: `render(fleet, folder)` writes fleet.html, fleet.json and fleet.csv. Pure otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeslm.errors import DataError
from edgeslm.fleet import Fleet, Row, at_of, usual
from edgeslm.report import fleet_choices, fleet_figures
from edgeslm.report.blocks import (
    ABSENT,
    Block,
    Note,
    Section,
    Table,
    Tile,
    Tiles,
    missing,
    plain_key,
    plain_value,
    role,
    times,
)
from edgeslm.report.fleet_bars import energy_charts, memory_charts, speed_charts
from edgeslm.report.fleet_ceilings import bound_blocks, fit_blocks, prediction_blocks, sustained_blocks
from edgeslm.report.fleet_deltas import HEADLINES, Deltas, beside, label, teachers
from edgeslm.report.fleet_tables import (
    DAGGER,
    energy,
    figure,
    kinds_of_memory,
    latency,
    memory,
    named,
    ran,
    speed,
    why_not,
)
from edgeslm.report.page import html
from edgeslm.statistics import BAND, CONFIDENCE

HIDDEN = ("id", "name", "stand_in", "simd", "bandwidth_counts")  # facts that need no line of their own
MOST_TILES = 8
ORDER = ("size", *HEADLINES)


@dataclass(frozen=True)
class FleetFiles:
    html: Path
    json: Path
    csv: Path


def render(fleet: Fleet, folder: Path) -> FleetFiles:
    """The same fleet gives the same bytes. Raises DataError when the folder cannot be written."""
    from edgeslm import __version__

    out = FleetFiles(folder / "fleet.html", folder / "fleet.json", folder / "fleet.csv")
    pairs = compared(fleet)
    data = fleet_figures.document(fleet, [found for *_, found in pairs], __version__)
    facts = {"edgeslm": __version__, "source": "from bench documents alone. Raw values: fleet.json."}
    page = html("fleet", facts, sections(fleet, pairs))
    table = fleet_figures.as_csv([*data["figures"], *data["quality"], *data["stand_ins"]])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        out.html.write_text(page, encoding="utf-8")
        text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
        out.json.write_text(text + "\n", encoding="utf-8")
        out.csv.write_text(table, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}); give --out another place") from error
    return out


Pair = tuple[Row, Row, Deltas]


def compared(fleet: Fleet) -> list[Pair]:
    """(teacher, student, all that differs)."""
    return [(t, s, beside(t, s, paired=t.source == s.source)) for t, s in teachers(fleet)]


def sections(fleet: Fleet, pairs: Sequence[Pair]) -> list[Section]:
    """In the order a reader wants them; those without content are left out."""
    sure = f"with {CONFIDENCE:.0%} intervals over fresh processes"
    made = [
        headline(fleet, pairs),
        Section("problems", "What went wrong", [Note(line, "problem") for line in fleet.problems]),
        Section("choices", "What to choose", [*fleet_choices.charts(fleet), *fleet_choices.notes(fleet)],
                "Large, joined points are a device's Pareto front: nothing else there is at least as good in both. "
                "Each device has its own, and so has what no sensor gave."),
        Section("teacher", "Student beside teacher", teacher_blocks(fleet, pairs),
                "Within one device, runtime and job. A factor comes from the medians of fresh processes (round by "
                f"round where both ran in the same rounds), with its {CONFIDENCE:.0%} interval; where that holds 1, or "
                f"lies within {BAND:.0%} of it, there is no difference."),
        Section("speed", "Speed", [*speed_charts(fleet), *speed(fleet), *latency(fleet)],
                f"Medians, {sure}. {DAGGER} marks a run that something disturbed."),
        Section("memory", "Memory", [*memory_charts(fleet), kinds_of_memory(), *memory(fleet)],
                f"Peaks of the process that runs the model, {sure}."),
        Section("energy", "Energy", [*energy_charts(fleet), *energy(fleet)],
                "What a figure covers is part of it: figures of different coverage or kind are no alternatives."),
        Section("sustained", "Speed that lasts", sustained_blocks(fleet), "Decoding on without a pause."),
        Section("bounds", "Share of what is possible", bound_blocks(fleet),
                "A ceiling is measured on the device; a bound is modelled from it and from what a token needs."),
        Section("predictions", "Predicted and measured", prediction_blocks(fleet),
                "From ceilings, bytes and operations alone, before anything was run."),
        Section("fits", "What fits", fit_blocks(fleet),
                "Modelled from measured memory: weights, buffers, and how many tokens of cache the rest has room for. "
                "A model may have been made for fewer."),
        Section("devices", "The devices", device_blocks(fleet)),
        Section("stand-ins", "Stand-ins", stand_in_blocks(fleet),
                "Emulated, or fed with recorded sensors. These figures say nothing about the device; they enter no "
                "picture and no comparison."),
        Section("figures", "Every figure", figure_blocks(fleet),
                "The same as fleet.csv; fleet.json has the raw values too."),
    ]  # fmt: skip
    return [section for section in made if section.blocks]


def headline(fleet: Fleet, pairs: Sequence[Pair]) -> Section:
    at, names = usual(fleet.rows, "decode"), fleet.names()
    best = {device: row for device in names if (row := fastest(fleet.of(device), at)) is not None}
    tiles = [_tile(names[device], row, at, pairs) for device, row in list(best.items())[:MOST_TILES]]
    rest = [] if len(best) <= MOST_TILES else [Note(f"{len(best) - MOST_TILES} more devices are in the tables.")]
    files = len({row.sha256 for row in fleet.rows})
    said = f"{_counted(files, 'file')} on {_counted(len(names), 'device')}"
    if best:
        speeds = sorted(
            (m.median, names[d].partition(",")[0])
            for d, row in best.items()
            if (m := row.get("decode", at)) is not None
        )
        (slow, slowest), (fast, quickest) = speeds[0], speeds[-1]
        unit = "tokens/s"
        said += (f", decoding at {figure(slow, unit)} ({slowest}) to {figure(fast, unit)} ({quickest})"
                 if len(speeds) > 1 else f", decoding at {figure(fast, unit)}")  # fmt: skip
    blocks: list[Block] = [Tiles(tuple(tiles)), *rest] if tiles else [missing("Decode", "no source has a speed")]
    more = f"From {_counted(len(fleet.sources), 'source')}: {', '.join(fleet.sources)}."
    return Section("headline", "Fleet", blocks, f"{said}.", more)


def _speed(row: Row, at: int | str | None) -> float:
    return next(m.median for m in row.all("decode") if at is None or at_of(m) == at)


def _counted(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"


def fastest(rows: Sequence[Row], at: int | str | None) -> Row | None:
    """Of the students, or of all where there is none."""
    timed = [(m.median, row) for row in rows if (m := row.get("decode", at)) is not None and m.kind == "measured"]
    students = [pair for pair in timed if role(pair[1].artifact) == "student"]
    return max(students or timed, key=lambda pair: pair[0], default=(0.0, None))[1]


def _tile(name: str, row: Row, at: int | str | None, pairs: Sequence[Pair]) -> Tile:
    m = row.get("decode", at)
    assert m is not None
    detail, shares = [named(row)], None
    for teacher, student, found in pairs:
        d = next((d for d in found.deltas if (d.metric, d.at) == ("decode", at)), None)
        if student is row and d is not None and d.factor is not None:
            top = max(d.left_value, d.right_value)
            shares = (d.right_value / top, d.left_value / top)
            said = "about" if d.verdict == "no difference" else times(d.factor.estimate)
            unsure = " (undecided)" if d.verdict == "undecided" else ""
            detail.append(f"{said} the speed of {teacher.artifact}{unsure}")
            break
    memory_, energy_ = row.get("pss_peak") or row.get("vm_hwm"), row.get("energy_per_token", "decode")
    detail += [f"{figure(memory_.median, 'bytes')} of memory"] if memory_ else []
    detail += [f"{figure(energy_.median, energy_.unit)} ({energy_.kind})"] if energy_ else []
    value, _, unit = figure(m.median, m.unit).partition(" ")
    return Tile(name, value, f"{unit}, {label('decode', at)}", "; ".join(detail), shares)


def teacher_blocks(fleet: Fleet, pairs: Sequence[Pair]) -> list[Block]:
    """One table a teacher and device: its figures, and what each student is beside it."""
    blocks: list[Block] = []
    by_teacher: dict[int, list[Pair]] = {}
    for pair in pairs:
        by_teacher.setdefault(id(pair[0]), []).append(pair)
    for mine in by_teacher.values():
        teacher = mine[0][0]
        found = [{d.label: d for d in one.deltas if d.metric in ORDER} for *_, one in mine]
        first = {name: d for by in reversed(found) for name, d in by.items()}
        lines = tuple(
            (name if d.kind == "measured" else f"{name} ({d.kind})", figure(d.left_value, d.unit),
             *(by[name].words if name in by else ABSENT for by in found))
            for name, d in sorted(first.items(), key=lambda item: ORDER.index(item[1].metric))
        )  # fmt: skip
        heads = ("Figure", named(teacher), *(named(student) for _, student, _ in mine))
        title = f"Beside {teacher.artifact} on {fleet.names()[teacher.device_id]} ({ran(teacher)})"
        blocks.append(Table(title, heads, lines, frozenset({1})))
    refused = dict.fromkeys(s for *_, one in pairs for s in one.refused)
    return [*blocks, *(Note(f"Not compared: {s}", "missing") for s in refused)]


def device_blocks(fleet: Fleet) -> list[Block]:
    """One column a device: what it is, and how warm it was."""
    names = fleet.names()
    keys = dict.fromkeys(k for facts in fleet.devices.values() for k in facts if k not in HIDDEN)
    lines = [(plain_key(k), *(_fact(k, facts.get(k)) for facts in fleet.devices.values())) for k in keys]
    warm = {row.device_id: m.where.temperature_c for row in fleet.rows for m in row.measurements}
    if any(t is not None for t in warm.values()):
        degrees: Callable[[str], str] = lambda d: f"{t:.0f} °C" if (t := warm.get(d)) is not None else "no sensor"  # noqa: E731
        lines.append(("warmest at a start", *(degrees(d) for d in names)))
    return [Table("The devices", ("", *names.values()), tuple(lines))] if lines else []


def _fact(key: str, value: Any) -> str:
    if value is None or value == "":
        return "-"
    if key == "clusters" and isinstance(value, list):
        return "; ".join(
            f"{len(c.get('cpus') or [])} x {c.get('core') or 'core'}"
            + (f" up to {c['max_khz'] / 1e6:.2f} GHz" if c.get("max_khz") else "")
            for c in value if isinstance(c, dict)
        )  # fmt: skip
    return plain_value(key, value)


def stand_in_blocks(fleet: Fleet) -> list[Block]:
    blocks: list[Block] = []
    by_name: dict[str, list[Row]] = {}
    for row in fleet.stand_ins:
        by_name.setdefault(str(row.device.get("name") or row.device_id), []).append(row)
    for name, rows in by_name.items():
        blocks += [fleet_figures.table(f"Stand-in: {name}", fleet_figures.of_rows(rows)), *why_not(rows)]
    return blocks


def figure_blocks(fleet: Fleet) -> list[Block]:
    blocks: list[Block] = []
    every = [*fleet_figures.of_devices(fleet), *fleet_figures.of_rows(fleet.rows)]
    for device, name in fleet.names().items():
        mine = [f for f in every if f["device_id"] == device]
        if mine:
            blocks.append(fleet_figures.table(f"Figures of {name}", mine))
    judged = fleet_figures.of_files(fleet.rows)
    return [*blocks, fleet_figures.table("Quality of the files", judged)] if judged else blocks
