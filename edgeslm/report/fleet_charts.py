"""The fleet's own drawings: choices with their Pareto fronts, and speed over minutes. Figures in, SVG out.

Shape says what a point is, so that nothing depends on colour alone: large and joined by a line, it is on its device's
front; small, something else on that device is at least as good in both; hollow and dashed, no sensor gave it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgeslm.report.svg import Frame, W, dot, drawing, log_ticks, path, short, text

COLOURS = 6  # of style.css: r1 to r6
WIDE = 20.0  # an axis whose ends differ by more is logarithmic
LETTER = 6.6  # an upper estimate of a letter's width
MOST_POINTS = 160  # of a curve; more would lie on the same pixels


@dataclass(frozen=True)
class Choice:
    """A file on a device. `group` (a device's number) gives the colour; `on_front` as `fleet.front` says."""

    name: str
    group: int
    x: float
    y: float
    on_front: bool
    sensed: bool
    hover: str

    @property
    def colour(self) -> str:
        return f"r{self.group % COLOURS + 1}"


@dataclass(frozen=True)
class Curve:
    """`colour`: its place among style.css's; points are (seconds, value) of one process."""

    colour: int
    points: Sequence[tuple[float, float]]
    said: str

    @property
    def kind(self) -> str:
        return f"r{self.colour % COLOURS + 1}{' dashed' if self.colour >= COLOURS else ''}"


def choices(key: str, title: str, found: Sequence[Choice], x_name: str, y_name: str) -> str:
    """Every choice as a point; those on a front are joined, front by front. A name stands once: a file has one quality,
    so its points on other devices lie on the same level."""
    xs, ys = [c.x for c in found], [c.y for c in found]
    log = min(xs) > 0 and max(xs) / min(xs) > WIDE
    low, high = (math.log10(min(xs)) - 0.12, math.log10(max(xs)) + 0.2) if log else (0.0, 1.12 * max(xs) or 1.0)
    room = (max(ys) - min(ys)) * 0.18 or abs(ys[0]) * 0.1 or 1.0
    bottom = min(ys) - room
    frame = Frame(low, high, max(bottom, 0.0) if min(ys) >= 0 else bottom, max(ys) + room, top=24, bottom=236)
    ticks = [(math.log10(t), short(t)) for t in log_ticks(10**low, 10**high)] if log else None
    marks = frame.grid(f"{x_name}{', log scale' if log else ''}", y_name, ticks)

    def spot(c: Choice) -> tuple[float, float]:
        return frame.x(math.log10(c.x) if log else c.x), frame.y(c.y)

    taken = [(x - 7, x + 7, y - 6, y + 6) for x, y in map(spot, found)]
    for group in dict.fromkeys(c.group for c in found):
        for sensed in (True, False):
            joined = sorted({spot(c) for c in found if (c.group, c.sensed, c.on_front) == (group, sensed, True)})
            if len(joined) > 1:
                colour = f"r{group % COLOURS + 1}{'' if sensed else ' dashed'}"
                marks.append(path(joined, f"line {colour}"))
                taken += [box for a, b in pairwise(joined) for box in _along(a, b)]
    for c in sorted(found, key=lambda c: (c.on_front, spot(c)[1])):
        x, y = spot(c)
        kind = f"point {c.colour}" if c.sensed else f"bar {c.colour} estimated"
        marks.append(dot(x, y, 6 if c.on_front else 3.4, kind, c.hover))
    for name in dict.fromkeys(c.name for c in found if c.on_front):
        here = sorted((spot(c) for c in found if c.on_front and c.name == name), reverse=True)
        placed = next((p for x, y in here if (p := _place(name, x, y, taken, frame)) is not None), None)
        if placed is not None:  # where all is full the text to point at and the table remain
            taken.append((placed[0], placed[0] + LETTER * len(name), placed[1] - 10, placed[1] + 3))
            marks.append(text(*placed, name, "tick"))
    said = "; ".join(c.hover for c in found if c.on_front)
    return drawing(key, title, f"On the front: {said}.", 278, marks)


def _along(a: tuple[float, float], b: tuple[float, float]) -> list[tuple[float, float, float, float]]:
    """Boxes on a line that a name must not cover."""
    steps = max(1, int(math.dist(a, b) / 8))
    spots = [(a[0] + (b[0] - a[0]) * i / steps, a[1] + (b[1] - a[1]) * i / steps) for i in range(steps + 1)]
    return [(x - 1, x + 1, y - 1, y + 1) for x, y in spots]


def _place(
    name: str, x: float, y: float, taken: Sequence[tuple[float, float, float, float]], frame: Frame
) -> tuple[float, float] | None:
    """(left, baseline) beside a point where nothing else is, or None."""
    wide = LETTER * len(name)
    middle = min(max(x - wide / 2, frame.left + 2), frame.right - wide)
    places = [(x + 10, y + 4), (x - 10 - wide, y + 4)]
    places += [(left, y + down) for down in (-11, 20, -24, 33) for left in (middle, x + 8, x - 8 - wide)]
    for left, base in places:
        inside = left >= frame.left and left + wide <= W and frame.top - 6 <= base - 10 and base + 3 <= frame.bottom
        if inside and all(left > r or left + wide < le or base + 3 < t or base - 10 > b for le, r, t, b in taken):
            return left, base
    return None


def curves(key: str, title: str, found: Sequence[Curve], x_name: str, y_name: str) -> str:
    """Speed over time, from zero, so that a fall looks as large as it is."""
    right = max(x for c in found for x, _ in c.points)
    top = max(y for c in found for _, y in c.points)
    frame = Frame(0, right or 1.0, 0, 1.08 * top or 1.0, top=24, bottom=200)
    marks = frame.grid(x_name, y_name)
    for c in found:
        marks.append(path([(frame.x(x), frame.y(y)) for x, y in thinned(c.points)], f"line {c.kind}"))
    return drawing(key, title, "; ".join(c.said for c in found) + ".", 242, marks)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS means of neighbours, over time."""
    size = -(-len(points) // MOST_POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]
