"""The chart of the token curve of `benchmarks.students`: held-out loss, less the teacher's own, against tokens trained,
both on log scales. Points joined for the pruned student are trainings of their own, each with its learning rate brought
down; those of the student from scratch lie on the way of one, but for the last."""

from __future__ import annotations

import math
from typing import Any

from benchmarks import chart, record
from benchmarks.students_table import of_last_run

OUT = record.RESULTS / "students.svg"
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 760, 380, 64, 46, 34, 190
# arm -> (label, light colour, dark colour)
ARMS = {
    "scratch": ("from scratch, on its way", "#8a4f9e", "#c58ad8"),
    "pruned_text": ("pruned, text alone", "#b5762a", "#e0a458"),
    "pruned": ("pruned, taught", "#0b7a75", "#3fb8af"),
}
STYLE = ".d{stroke:#888;stroke-dasharray:4 4}.l{fill:none;stroke-width:2}"
Point = tuple[float, float]


def curves(records: list[dict[str, Any]]) -> dict[str, list[Point]]:
    """{arm: (tokens, held-out KL)}: loss less the teacher's, which is what loss less KL leaves."""
    _, done = of_last_run(records)
    figures = [r for r in done if r["purpose"] == "figure"]
    found: dict[str, list[Point]] = {}
    for arm in ARMS:
        rows = sorted((r for r in figures if r["arm"] == arm), key=lambda r: r["tokens"])
        points = [(float(r["tokens"]), float(r["kl"])) for r in rows]
        if arm == "scratch" and rows:
            floor = rows[-1]["loss"] - rows[-1]["kl"]
            points = [(float(tokens), loss - floor) for tokens, loss in rows[-1]["held_out"]] + points[-1:]
        if points:
            found[arm] = points
    return found


def draw(records: list[dict[str, Any]]) -> str:
    found = curves(records)
    if "scratch" not in found:
        return ""
    every = [point for points in found.values() for point in points]
    x0, x1 = math.floor(math.log10(min(x for x, _ in every))), math.ceil(math.log10(max(x for x, _ in every)))
    y0, y1 = math.log10(min(y for _, y in every) * 0.9), math.log10(max(y for _, y in every) * 1.1)
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(x: float, y: float) -> str:
        across = LEFT + (math.log10(x) - x0) / (x1 - x0) * wide
        return f"{across:.1f} {TOP + (y1 - math.log10(y)) / (y1 - y0) * high:.1f}"

    marks = [f'<text class="h" x="{LEFT}" y="20">held-out loss above the teacher\'s own, nats a token</text>']
    for power in range(x0, x1 + 1):
        x, _ = at(10.0**power, 10.0**y0).split()
        marks.append(
            f'<path class="g" d="M{x} {TOP}V{TOP + high}"/><text x="{x}" y="{TOP + high + 18}">1e{power}</text>'
        )
    for level in (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 2.0):
        if y0 <= math.log10(level) <= y1:
            _, y = at(10.0**x0, level).split()
            marks.append(f'<path class="g" d="M{LEFT} {y}H{LEFT + wide}"/><text x="30" y="{y}">{level:g}</text>')
    last = found["scratch"][-1]
    start, end = at(10.0**x0, last[1]).split(), at(*last).split()
    marks.append(f'<path class="d" d="M{start[0]} {end[1]}H{end[0]}"/>')
    for number, (arm, points) in enumerate(found.items()):
        line = "L".join(at(*point) for point in points)
        marks.append(f'<path class="l s{number}" d="M{line}"/>')
        for tokens, loss in points:
            cx, cy = at(tokens, loss).split()
            words = f"{ARMS[arm][0]}: {tokens:,.0f} tokens, {loss:.4f}"
            marks.append(f'<circle class="s{number}" cx="{cx}" cy="{cy}" r="3.5"><title>{words}</title></circle>')
        marks.append(f'<circle class="s{number}" cx="{LEFT + wide + 16}" cy="{TOP + 8 + 20 * number}" r="4"/>')
        marks.append(f'<text x="{LEFT + wide + 26}" y="{TOP + 12 + 20 * number}">{ARMS[arm][0]}</text>')
    marks.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">tokens trained</text>')
    css = chart.style([ARMS[arm][1:] for arm in found], STYLE)
    return chart.page("Loss against tokens trained", (WIDTH, HEIGHT), css, marks)
