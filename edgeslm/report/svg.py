"""Marks, scales and frames of the charts: numbers in, SVG text out. Colours live in style.css, never here.

Pixels: every drawing is W wide; the page scales it, so that 12 px text stays readable on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

W = 440
RIGHT = W - 10
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def drawing(key: str, title: str, description: str, height: float, marks: Iterable[str]) -> str:
    """One accessible <svg>; `key` must be unique on the page."""
    k = escape(key)
    return Markup(
        f'<svg class="chart" role="img" viewBox="0 0 {W} {height:.0f}" aria-labelledby="{k}-t {k}-d">'
        f'<title id="{k}-t">{escape(title)}</title><desc id="{k}-d">{escape(description)}</desc>'
        f"{''.join(marks)}</svg>"
    )


def text(x: float, y: float, words: str, kind: str = "label", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def rect(x: float, y: float, width: float, height: float, kind: str, hover: str = "", radius: float = 2) -> str:
    """`hover` is shown by the browser on pointing and read by screen readers."""
    tip = f"<title>{escape(hover)}</title>" if hover else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}" rx="{radius}" '
        f'class="{kind}">{tip}</rect>'
    )


def dot(x: float, y: float, radius: float, kind: str, hover: str = "") -> str:
    tip = f"<title>{escape(hover)}</title>" if hover else ""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" class="{kind}">{tip}</circle>'


def path(points: Sequence[tuple[float, float]], kind: str, closed: bool = False) -> str:
    steps = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
    return f'<path d="{steps}{" Z" if closed else ""}" class="{kind}"/>'


def round_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Multiples of 1, 2 or 5 x 10^k inside [low, high], about `about` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 x 10^k inside [low, high]; only powers of ten when that would be crowded."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    full = [f * 10.0**d for d in decades for f in (1, 2, 5) if low * 0.999 <= f * 10.0**d <= high * 1.001]
    tens = [t for t in full if abs(math.log10(t) - round(math.log10(t))) < 1e-9]
    return full if len(full) <= 6 or len(tens) < 2 else tens


def short(value: float) -> str:
    """A tick's text: `2000` -> `2k`, `0.05` -> `0.05`, `1e-5` -> `10⁻⁵`."""
    if 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        power = "10" + str(int(exponent)).translate(SUPERSCRIPT)
        return power if mantissa == "1.0" else f"{mantissa}·{power}"
    for scale, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}"


def unit_scale(top: float, unit: str) -> tuple[float, str]:
    """(divisor, name) so that an axis reaching `top` has short tick texts."""
    table = {
        "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
        "bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")),
        "J/token": ((1.0, "J/token"), (1e-3, "mJ/token")),
    }.get(unit)
    if table is None:
        return 1.0, "" if unit == "1" else unit
    return next(((s, n) for s, n in table if top >= s), table[-1])


@dataclass(frozen=True)
class Frame:
    """A data window [x0, x1] x [y0, y1] inside the pixels left..right, top..bottom."""

    x0: float
    x1: float
    y0: float
    y1: float
    top: float = 14
    bottom: float = 200
    left: float = 44
    right: float = RIGHT
    log_y: bool = False

    def x(self, value: float) -> float:
        span = (self.x1 - self.x0) or 1.0
        return self.left + (value - self.x0) / span * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high, v = self.y0, self.y1, value
        if self.log_y:
            low, high, v = math.log(low), math.log(high), math.log(max(value, self.y0))
        return self.bottom - (v - low) / ((high - low) or 1.0) * (self.bottom - self.top)

    def grid(self, x_name: str, y_name: str, x_ticks: Sequence[tuple[float, str]] | None = None) -> list[str]:
        """Horizontal grid lines with their values, a bottom axis with its ticks, and both axes' names."""
        marks = []
        for tick in log_ticks(self.y0, self.y1) if self.log_y else round_ticks(self.y0, self.y1):
            marks.append(line(self.left, self.y(tick), self.right, self.y(tick), "grid"))
            marks.append(text(self.left - 6, self.y(tick) + 4, short(tick), "tick", "end"))
        marks.append(line(self.left, self.bottom, self.right, self.bottom, "axis"))
        for value, words in x_ticks or [(t, short(t)) for t in round_ticks(self.x0, self.x1, 5)]:
            marks.append(text(self.x(value), self.bottom + 16, words, "tick", "middle"))
        marks.append(text(self.right, self.bottom + 34, x_name, "tick", "end"))
        if y_name:
            marks.append(text(self.left - 38, self.top - 12, y_name, "tick"))
        return marks
