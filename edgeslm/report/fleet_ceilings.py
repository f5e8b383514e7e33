"""What devices could do at most, what was predicted, what fits, and how long speed lasts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from edgeslm.fleet import Fleet, Row, at_of
from edgeslm.measurement import Measurement, percentile
from edgeslm.meters.fits import Footprint, fits
from edgeslm.report.blocks import ABSENT, Block, Chart, Note, Table, missing, percent
from edgeslm.report.fleet_charts import Curve, curves
from edgeslm.report.fleet_deltas import label
from edgeslm.report.fleet_tables import figure, named, ran, shown
from edgeslm.statistics import by_process
from edgeslm.units import byte_count, count

BUDGETS = tuple(float(n) for n in (128e6, 256e6, 512e6, 1e9, 2e9, 4e9, 8e9))
AGAINST = {"memory": "vm_hwm"}  # predicted_memory is weights, cache and all else a process holds
EDGE = 0.1  # of a curve: what counts as its beginning and its end


@dataclass(frozen=True)
class Beside:
    """A modelled figure (a bound or a prediction) beside the measured one it is about."""

    row: Row
    model: Measurement
    measured: Measurement

    @property
    def share(self) -> float:
        """Of the bound that was reached."""
        return self.measured.median / self.model.median

    @property
    def error(self) -> float:
        """Of a prediction: +0.10 is a tenth too high."""
        return self.model.median / self.measured.median - 1

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model.metric,
            "metric": self.measured.metric,
            "at": at_of(self.measured),
            "device": self.row.device_id,
            "artifact": self.row.artifact,
            "runtime": self.row.runtime,
            "threads": self.row.threads,
            "unit": self.measured.unit,
            "modelled": self.model.median,
            "measured": self.measured.median,
            **({"share": self.share} if self.model.metric.endswith("_bound") else {"error": self.error}),
        }


def bounds(fleet: Fleet) -> list[Beside]:
    """`X_bound` beside X taken at the same length."""
    return _beside(fleet, lambda metric: metric.removesuffix("_bound") if metric.endswith("_bound") else "")


def predictions(fleet: Fleet) -> list[Beside]:
    def about(metric: str) -> str:
        name = metric.removeprefix("predicted_")
        return AGAINST.get(name, name) if name != metric else ""

    return _beside(fleet, about)


def _beside(fleet: Fleet, about: Any) -> list[Beside]:
    found = []
    for row in fleet.rows:
        for model in (m for m in row.measurements if m.kind == "modelled" and about(m.metric)):
            alike = [m for m in row.all(about(model.metric)) if m.kind == "measured" and m.unit == model.unit]
            at = at_of(model)
            same = [m for m in alike if at_of(m) == at] if at is not None else alike if len(alike) == 1 else []
            found += [Beside(row, model, m) for m in same if m.median > 0 and model.median > 0]
    return found


def bound_blocks(fleet: Fleet) -> list[Block]:
    """The ceilings themselves, then each figure with the share of its bound."""
    names = fleet.names()
    ceilings = tuple(
        (names[device], m.metric.replace("_", " "), shown(m), f"{m.where.threads}", m.note or ABSENT)
        for device, found in fleet.ceilings.items() if device in names for m in found
    )  # fmt: skip
    blocks: list[Block] = []
    if ceilings:
        columns = ("Device", "Ceiling", "Measured", "Threads", "How")
        blocks.append(Table("Ceilings of the devices", columns, ceilings, frozenset({2, 3})))
    found = bounds(fleet)
    if not found:
        return [*blocks, missing("Shares of a bound", "no bound was modelled, since no ceiling was measured")]
    heads = ("Measured", "Bound (modelled)", "Share of the bound")
    blocks += _tables(
        fleet, "Share of the bound on", found, heads, lambda b: (b.measured, b.model, percent(b.share, 0))
    )
    over = [b for b in found if b.share > 1]
    return blocks + [
        Note(f"{b.row.artifact} on {names[b.row.device_id]} exceeds its bound: {b.model.note}.", "estimate")
        for b in over
    ]


def prediction_blocks(fleet: Fleet) -> list[Block]:
    heads = ("Predicted (modelled)", "Measured", "Error of the prediction")
    return _tables(
        fleet, "Predicted on", predictions(fleet), heads, lambda b: (b.model, b.measured, f"{100 * b.error:+.0f} %")
    )


def _tables(
    fleet: Fleet,
    title: str,
    found: Sequence[Beside],
    heads: tuple[str, ...],
    cells: Callable[[Beside], tuple[Measurement, Measurement, str]],
) -> list[Block]:
    """One a device: two figures, what they come to, and how the modelled one came about."""
    blocks: list[Block] = []
    for device, name in fleet.names().items():
        lines = []
        for b in (b for b in found if b.row.device_id == device):
            one, other, said = cells(b)
            what = label(b.measured.metric, at_of(b.measured))
            values = (figure(m.median, m.unit) for m in (one, other))
            lines.append((named(b.row, fleet.of(device)), what, *values, said, b.model.note))
        if lines:
            columns = ("File", "Figure", *heads, "How it was modelled")
            blocks.append(Table(f"{title} {name}", columns, tuple(lines), frozenset({2, 3, 4})))
    return blocks


def footprint(row: Row) -> Footprint | str:
    """Weights, cache for a token and the rest of a process, from what was measured; or why that cannot be told."""
    weights = row.file.get("weight_bytes") or row.file.get("bytes")
    resident, cache, swap = row.get("vm_hwm"), row.get("kv_cache"), row.get("swap_peak")
    context = resident.where.job.get("context") if resident else None
    if not weights:
        return "no source says how large its tensors are"
    if resident is None or not context:
        return "the system there did not tell its highest resident size"
    if cache is None or not cache.extra.get("computed_bytes"):
        return "the runtime did not tell the shape of its cache"
    if swap is not None and max(swap.values) > 0:
        return "part of it was in swap, so nobody knows what it needs"
    rest = max(0.0, resident.median - weights - cache.median)
    return Footprint(row.artifact, float(weights), cache.extra["computed_bytes"] / context, rest)


def room(row: Row) -> list[dict[str, Any]]:
    """For each budget: whether it fits with an empty cache, and the longest context there is room for."""
    one = footprint(row)
    if isinstance(one, str):
        return []
    found = [(budget, fits(budget, one, 1)) for budget in BUDGETS]
    return [
        {"device": row.device_id, "artifact": row.artifact, "runtime": row.runtime, "threads": row.threads,
         "budget_bytes": budget, "fits": fit.fits, "longest_context": fit.longest_context if fit.fits else 0,
         "weights_bytes": one.weights_bytes, "kv_bytes_per_token": one.kv_bytes_per_token,
         "buffers_bytes": one.buffers_bytes}
        for budget, fit in found
    ]  # fmt: skip


def fit_blocks(fleet: Fleet) -> list[Block]:
    blocks: list[Block] = []
    for device, name in fleet.names().items():
        lines, why = [], []
        for row in fleet.of(device):
            one = footprint(row)
            if isinstance(one, str):
                why.append(missing(f"What {row.artifact} needs on {name}", row.why or one))
                continue
            parts = (one.weights_bytes, one.buffers_bytes, one.kv_bytes_per_token * 1000)
            cells = (_longest(r) for r in room(row))
            lines.append((named(row, fleet.of(device)), *(byte_count(p) for p in parts), *cells))
        budgets = (byte_count(b).replace(".0", "") for b in BUDGETS)
        heads = ("File", "Weights", "Buffers", "1,000 tokens of cache", *budgets)
        if lines:
            title = f"Tokens of context that fit on {name} (modelled)"
            blocks.append(Table(title, heads, tuple(lines), frozenset(range(1, len(heads)))))
        blocks += why
    return blocks


def _longest(place: dict[str, Any]) -> str:
    if not place["fits"]:
        return "no"
    return "any" if place["longest_context"] is None else count(place["longest_context"])


def sustained_blocks(fleet: Fleet) -> list[Block]:
    blocks: list[Block] = []
    for number_, (device, name) in enumerate(fleet.names().items()):
        rows = [row for row in fleet.of(device) if row.get("sustained_decode")]
        if not rows:
            continue
        lines, drawn, legend = [], [], []
        for colour, row in enumerate(rows):
            m = row.all("sustained_decode")[0]
            parts = _parts(m)
            first, last, heat = _ends(m)
            said = f"{row.artifact}: {figure(first, m.unit)} at first, {figure(last, m.unit)} at the end"
            drawn += [Curve(colour, part, said) for part in parts]
            legend.append((drawn[-1].kind, named(row, rows)))
            lines.append((named(row, rows), ran(row), f"{max(m.extra['at_s'], default=0):.0f} s", figure(first, m.unit),
                          figure(last, m.unit), f"{100 * (last / first - 1):+.0f} %", heat))  # fmt: skip
        title = f"Sustained decode on {name}"
        heads = ("File", "Runtime", "Lasted", "First tenth", "Last tenth", "Change", "Temperature")
        shown_table = Table(title, heads, tuple(lines), frozenset({2, 3, 4, 5}))
        svg = curves(f"sustained-{number_}", title, drawn, "seconds since the process began to decode", "tokens/s")
        blocks.append(Chart(title, svg, shown_table, tuple(legend), "a falling line is throttling"))
    return blocks


def _parts(m: Measurement) -> list[list[tuple[float, float]]]:
    """(seconds, tokens/s) of each process."""
    parts, start = [], 0
    for values in by_process(m):
        times: Sequence[float] = m.extra["at_s"][start : start + len(values)]
        parts.append(list(zip(times, values, strict=True)))
        start += len(values)
    return parts


def _ends(m: Measurement) -> tuple[float, float, str]:
    """Medians of the first and the last tenth of the time, over processes, and the degrees there."""
    heat = m.extra.get("celsius") or []
    times = m.extra["at_s"]
    longest = max(times, default=0.0)
    sides = [[i for i, t in enumerate(times) if inside(t)] for inside in (
        lambda t: t <= EDGE * longest, lambda t: t >= (1 - EDGE) * longest)]  # fmt: skip
    first, last = (percentile([m.values[i] for i in side], 50) for side in sides)
    degrees = [[heat[i] for i in side if i < len(heat) and heat[i] is not None] for side in sides]
    known = all(degrees)
    return first, last, f"{max(degrees[0]):.0f} to {max(degrees[1]):.0f} °C" if known else "no sensor"
