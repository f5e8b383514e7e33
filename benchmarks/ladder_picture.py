"""The chart of quality_ladder: KL to the float student (log scale) against bits per weight of the shipped file."""

from __future__ import annotations

import math
from typing import Any
from xml.sax.saxutils import escape

from benchmarks import chart, record

OUT = record.RESULTS / "quality_ladder.svg"
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 860, 460, 60, 46, 34, 190
# side -> (label, light colour, dark colour); ours last, so that it lies on top
SIDES = {
    "llama.cpp": ("llama.cpp", "#b6c2cf", "#56626e"),
    "llama.cpp imatrix": ("llama.cpp, imatrix", "#5b7a99", "#8fb0d0"),
    "auto-round": ("auto-round", "#b5762a", "#e0a458"),
    "gptq": ("GPTQ", "#8a4f9e", "#c58ad8"),
    "torchao": ("torchao QAT", "#b03a48", "#ee7a86"),
    "onnxruntime-genai": ("onnxruntime-genai", "#6b8e23", "#a9cf5a"),
    "ours": ("ours", "#0b7a75", "#3fb8af"),
}
FLAGGED = "hollow: on, or holding, the grid its teacher's file had"


def side(row: dict[str, Any]) -> str:
    if row.get("kind") == "ours":
        return "ours"
    weighted = row["rival"] == "llama.cpp" and row["name"].endswith("imatrix")
    return "llama.cpp imatrix" if weighted else str(row["rival"])


def draw(model: str, rows: list[dict[str, Any]]) -> str:
    """Every scored row is a dot; its title names the file."""
    scored = [r for r in rows if r.get("kl", 0) > 0]
    if not scored:
        return ""
    x0, x1 = math.floor(min(r["bits"] for r in scored)), math.ceil(max(r["bits"] for r in scored) + 1e-9)
    y0, y1 = (f(math.log10(g(r["kl"] for r in scored))) for f, g in ((math.floor, min), (math.ceil, max)))
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(bits: float, kl: float) -> tuple[float, float]:
        x, y = (bits - x0) / max(1, x1 - x0), (math.log10(kl) - y0) / max(1, y1 - y0)
        return LEFT + x * wide, TOP + (1 - y) * high

    marks = [f'<text class="h" x="{LEFT}" y="20">{escape(model)}: KL to the float model, nats a token</text>']
    for bits in range(x0, x1 + 1):
        x, _ = at(bits, 10.0**y0)
        marks.append(f'<path class="g" d="M{x:.0f} {TOP}V{TOP + high}"/>')
        marks.append(f'<text x="{x - 4:.0f}" y="{TOP + high + 18}">{bits}</text>')
    for power in range(y0, y1 + 1):
        _, y = at(x0, 10.0**power)
        marks.append(f'<path class="g" d="M{LEFT} {y:.0f}H{LEFT + wide}"/>')
        marks.append(f'<text x="6" y="{y + 4:.0f}">{10.0**power:g}</text>')
    marks.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">bits per weight of the whole file; {FLAGGED}</text>')
    order = list(SIDES)
    for row in sorted(scored, key=lambda r: order.index(side(r))):
        x, y = at(row["bits"], row["kl"])
        flagged = row.get("uses_source_grid") or row.get("inherits_source_grid")
        kind = f"s{order.index(side(row))}{' o' if flagged else ''}"
        words = escape(f"{side(row)}: {row['name']}: {row['bits']:.2f} bits, {row['kl']:.4f}")
        marks.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{words}</title></circle>')
    present = {side(r) for r in scored}
    for place, name in enumerate(n for n in order if n in present):
        y = TOP + 12 + 20 * place
        marks.append(f'<circle class="s{order.index(name)}" cx="{LEFT + wide + 18}" cy="{y - 4}" r="4"/>')
        marks.append(f'<text x="{LEFT + wide + 28}" y="{y}">{escape(SIDES[name][0])}</text>')
    css = chart.style([(light, dark) for _, light, dark in SIDES.values()], ".o{fill:none}")
    return chart.page(f"Quality against size, {model}", (WIDTH, HEIGHT), css, marks)
