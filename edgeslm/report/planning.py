"""The formats chosen for a size: a grid of layers by kinds coloured by bits, and predicted KL against bytes. Before
them, where a recipe moves scales of channels, how much of rounding's loss that spares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgeslm.report.blocks import Block, Chart, Note, Section, Table
from edgeslm.report.folder import Run
from edgeslm.report.svg import RIGHT, Frame, W, dot, drawing, path, rect, text, unit_scale
from edgeslm.units import byte_count

LEVELS = 8  # colours; a format of b bits takes the one nearest to b
LEFT = 92  # pixels for the names of kinds
ROW = 22


def formats(run: Run) -> Section | None:
    """Nothing for a recipe that names its formats itself and moves no scales."""
    plan, moved = run.plan, run.equalised
    made: list[Block] = [_moved(moved)] if moved.get("sites") else []
    if plan:
        made += [_grid(plan), _frontier(plan), _kinds(plan), _told(plan)]
    title = "Formats chosen for the size" if plan else "Scales of channels"
    return Section("formats", title, made) if made else None


def _moved(moved: Mapping[str, Any]) -> Table:
    """By what the channels come out of: a norm, the values, the units of a feed-forward part."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for source, site in moved["sites"].items():
        kinds.setdefault(source.rpartition(".")[2], []).append(site)
    rows = []
    for kind, found in kinds.items():
        used = [site for site in found if site["strength"]]
        left = sorted(site["left"] for site in used)
        middle = f"{left[len(left) // 2]:.0%} ({left[0]:.0%} to {left[-1]:.0%})" if left else "-"
        rows.append((kind, f"{len(found)}", f"{len(used)}", middle))
    columns = ("Channels out of", "Places", "With other scales", "Rounding loss left there: median (least to most)")
    return Table(
        "Scales of channels moved before rounding, tried on a sample with iq4_nl",
        columns,
        tuple(rows),
        frozenset({1, 2, 3}),
        half=True,
    )


def _level(bits: float) -> int:
    return min(LEVELS, max(1, math.floor(bits + 0.5)))


def _grid(plan: Mapping[str, Any]) -> Chart:
    tensors = plan["tensors"]
    kinds = list(dict.fromkeys(t["kind"] for t in tensors.values()))
    layers = sorted({t["layer"] for t in tensors.values() if t["layer"] is not None})
    wide = (RIGHT - LEFT) / max(1, len(layers))
    marks = []
    for row, kind in enumerate(kinds):
        marks.append(text(0, row * ROW + 15, kind))
        for name, t in tensors.items():
            if t["kind"] != kind:
                continue
            words = f"{name}: {t['format']}, {t['bits']:.3g} bits, {byte_count(t['bytes'])}"
            column = layers.index(t["layer"]) if t["layer"] is not None else 0
            width = wide if t["layer"] is not None else RIGHT - LEFT
            x = LEFT + column * wide
            marks.append(rect(x + 0.5, row * ROW + 1, width - 1, ROW - 3, f"cell b{_level(t['bits'])}", words, 1))
    bottom = len(kinds) * ROW + 14
    for index in range(0, len(layers), max(1, -(-len(layers) // 10))):
        marks.append(text(LEFT + (index + 0.5) * wide, bottom, str(layers[index]), "tick", "middle"))
    marks.append(text(RIGHT, bottom + 16, "layer", "tick", "end"))
    used = sorted({(t["bits"], t["format"]) for t in tensors.values()})
    legend = tuple(
        (f"cell b{level}", ", ".join(f"{name} {bits:.4g}" for bits, name in used if _level(bits) == level))
        for level in sorted({_level(bits) for bits, _ in used})
    )
    title = "Format of every tensor"
    said = f"{len(tensors)} matrices on {len(used)} formats, {plan['bits']:.2f} bits a weight over all."
    table = Table(
        title,
        ("Tensor", "Format", "Bits", "Bytes", "Predicted KL"),
        tuple(
            (n, t["format"], f"{t['bits']:.4g}", byte_count(t["bytes"]), f"{plan['joint'] * t['kl'][t['format']]:.3g}")
            for n, t in tensors.items()
        ),
        frozenset({2, 3, 4}),
    )
    return Chart(title, drawing("plan-grid", title, said, bottom + 24, marks), table, legend, "bits a weight")


def _frontier(plan: Mapping[str, Any]) -> Chart:
    """The least predicted KL of every size, what one format for all would give, and where this plan lies."""
    points = [(float(size), float(kl)) for size, kl in plan["frontier"] if kl > 0]
    uniform = [u for u in plan["uniform"] if u["kl"] > 0]
    sizes = [s for s, _ in points] + [u["bytes"] for u in uniform]
    both = [(plan["predicted_kl"], "student", "predicted"), (plan["measured_kl"], "held", "measured")]
    shown = [row for row in both if row[0] > 0]  # the axis is logarithmic
    kls = [k for _, k in points] + [u["kl"] for u in uniform] + [kl for kl, _, _ in shown]
    divisor, unit = unit_scale(max(sizes), "bytes")
    frame = Frame(min(sizes) / divisor, max(sizes) / divisor, min(kls), max(kls), top=22, log_y=True)
    marks = frame.grid(f"{unit} of weights", "KL, nats per token, log scale")
    marks.append(path([(frame.x(s / divisor), frame.y(k)) for s, k in points], "curve"))
    for u in uniform:
        x, y = frame.x(u["bytes"] / divisor), frame.y(u["kl"])
        marks.append(dot(x, y, 4, "point teacher", f"all {u['format']}: {byte_count(u['bytes'])}, KL {u['kl']:.3g}"))
        worst = max((v for v in uniform if v["bytes"] == u["bytes"]), key=lambda v: v["kl"])
        if u is worst:  # dots of one size stand above each other: the topmost has room for all their names
            same = sorted((v for v in uniform if v["bytes"] == u["bytes"]), key=lambda v: v["kl"])
            marks.append(text(*_beside(x, y, ", ".join(v["format"] for v in same)), "tick"))
    here = frame.x(plan["bytes"] / divisor)
    for kl, kind, word in shown:
        marks.append(dot(here, frame.y(kl), 5, f"point {kind}", f"this plan, {word}: KL {kl:.3g}"))
    title = "Predicted KL against size"
    rows = [("this plan, predicted", byte_count(plan["bytes"]), f"{plan['predicted_kl']:.4g}")]
    rows += [("this plan, measured", byte_count(plan["bytes"]), f"{plan['measured_kl']:.4g}")]
    rows += [(f"all {u['format']}, predicted", byte_count(u["bytes"]), f"{u['kl']:.4g}") for u in uniform]
    step = max(1, len(points) // 12)
    rows += [("best of this size, predicted", byte_count(s), f"{k:.4g}") for s, k in points[::step]]
    table = Table(title, ("Choice", "Bytes", "KL, nats per token"), tuple(rows), frozenset({1, 2}))
    legend = [("curve", "best choice of each size"), ("student", "this plan"), ("held", "measured")]
    legend += [("teacher", "one format for all")] if uniform else []
    said = f"This plan: {byte_count(plan['bytes'])}, KL {plan['predicted_kl']:.3g}, measured {plan['measured_kl']:.3g}."
    return Chart(title, drawing("plan-curve", title, said, 242, marks), table, tuple(legend), "before training")


def _beside(x: float, y: float, words: str) -> tuple[float, float, str]:
    """Above and to the right of a point, further left where the drawing ends."""
    return min(x + 5, W - 6.5 * len(words)), y - 7, words


def _kinds(plan: Mapping[str, Any]) -> Table:
    """Costs from gradients against the KL of a whole kind on its first choice, and the factor they were taken times."""
    rows: Sequence[tuple[str, ...]] = [
        (kind, f"{k['predicted']:.3g}", f"{k['measured']:.3g}", f"{k['factor']:.2f}")
        for kind, k in plan["kinds"].items()
    ]
    columns = ("Kind", "KL predicted", "KL measured", "Factor")
    return Table("All tensors of a kind", columns, tuple(rows), frozenset({1, 2, 3}), half=True)


def _told(plan: Mapping[str, Any]) -> Note:
    tokens, fed = plan["tokens"], plan.get("left_by_feedback")
    rounded = " Both with nearest rounding; the plan was chosen for rounding with feedback." if fed else ""
    return Note(
        f"KL is to the float student before training. Sensitivity was measured on {tokens['sensitivity']:,} tokens of "
        f"training text, the plan on {tokens['measured_kl']:,} others: {plan['measured_kl']:.4g} nats a token, where "
        f"{plan['predicted_kl']:.4g} were predicted.{rounded}"
    )
