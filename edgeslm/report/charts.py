"""The report's charts: pure functions from figures to SVG. Each has a title, a description and texts to point at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgeslm.measurement import percentile
from edgeslm.report.svg import (
    Frame,
    W,
    dot,
    drawing,
    line,
    path,
    rect,
    round_ticks,
    short,
    text,
    unit_scale,
)

END = W - 1  # bars end here, so that a line at the largest value is not cut
MAX_DOTS = 60  # raw values drawn per bar; more would be a smear
MAX_POINTS = 220  # buckets of a training curve: two pixels each


@dataclass(frozen=True)
class Bar:
    """One row: its raw values, the text beside it, and a ceiling to draw (same unit) where there is one."""

    label: str
    values: Sequence[float]
    kind: str  # "student", "teacher", with " estimated" appended where no sensor gave it
    shown: str
    bound: float | None = None


@dataclass(frozen=True)
class Stack:
    """One row of parts laid end to end: (kind, value, text), and a mark that is no part of the sum."""

    label: str
    parts: Sequence[tuple[str, float, str]]
    shown: str
    mark: float | None = None


def bars(key: str, title: str, unit: str, groups: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    """Median bars with p10-p90 whiskers and raw values as dots, under one heading per group, on one scale from zero."""
    every = [bar for _, rows in groups for bar in rows]
    x, axis = _scale([v for b in every for v in (*b.values, b.bound or 0.0)], unit)
    marks: list[str] = []
    y = 0.0
    for heading, rows in groups:
        y = _heading(marks, heading, y)
        for bar in rows:
            middle = percentile(bar.values, 50)
            marks += [text(0, y + 14, bar.label), text(W, y + 14, bar.shown, "value", "end")]
            marks.append(rect(0, y + 21, END, 16, "track"))
            marks.append(rect(0, y + 21, x(middle), 16, f"bar {bar.kind}", f"{bar.label}: {bar.shown}"))
            marks += _spread(bar.values, x, y + 29)
            if bar.bound is not None:
                marks.append(line(x(bar.bound), y + 17, x(bar.bound), y + 41, "bound"))
            y += 46
    said = "; ".join(f"{b.label} {b.shown}" for b in every)
    return drawing(key, title, f"Medians with 10th to 90th percentile: {said}.", y + 28, [*marks, *axis(y + 4)])


def _heading(marks: list[str], heading: str, y: float) -> float:
    if not heading:
        return y
    y += 8 if y else 0
    marks.append(text(0, y + 14, heading, "group"))
    return y + 22


def _scale(values: Sequence[float], unit: str) -> tuple[Callable[[float], float], Callable[[float], list[str]]]:
    """(value -> pixel, y -> axis marks) for a horizontal axis from zero to the largest value."""
    top = max([*values, 0.0]) or 1.0
    divisor, name = unit_scale(top, unit)
    ticks = [t for t in round_ticks(0, top / divisor, 5) if t * divisor <= top]

    def x(value: float) -> float:
        return value / top * END

    def axis(y: float) -> list[str]:
        marks = [line(0, y, END, y, "axis")]
        for i, tick in enumerate(ticks):
            words = f"{short(tick)} {name}".strip() if i == len(ticks) - 1 else short(tick)
            place = x(tick * divisor)
            anchor = "start" if i == 0 else "end" if place > W - 60 else "middle"
            marks += [line(place, y, place, y + 4, "axis"), text(place, y + 18, words, "tick", anchor)]
        return marks

    return x, axis


def _spread(values: Sequence[float], x: Callable[[float], float], y: float) -> list[str]:
    """Whisker from p10 to p90 and the raw values; nothing for a single value, which has no spread."""
    if len(values) < 2:
        return []
    low, high = x(percentile(values, 10)), x(percentile(values, 90))
    step = max(1, -(-len(values) // MAX_DOTS))
    dots = [dot(x(v), y + (i % 3 - 1) * 4.5, 1.7, "dot") for i, v in enumerate(values[::step])]
    return [line(low, y, high, y, "whisker"), *dots]


def stacks(key: str, title: str, unit: str, groups: Sequence[tuple[str, Sequence[Stack]]]) -> str:
    """Stacked bars on one scale from zero."""
    every = [s for _, rows in groups for s in rows]
    totals = [sum(v for _, v, _ in s.parts) for s in every]
    x, axis = _scale([*totals, *(s.mark or 0.0 for s in every)], unit)
    marks: list[str] = []
    y = 0.0
    for heading, rows in groups:
        y = _heading(marks, heading, y)
        for stack in rows:
            marks += [text(0, y + 14, stack.label), text(W, y + 14, stack.shown, "value", "end")]
            start = 0.0
            for kind, value, words in stack.parts:
                marks.append(rect(x(start), y + 21, x(start + value) - x(start), 16, f"bar {kind}", words, 0))
                start += value
            if stack.mark is not None:
                marks.append(line(x(stack.mark), y + 17, x(stack.mark), y + 41, "mark"))
            y += 46
    said = "; ".join(f"{s.label}: {', '.join(w for _, _, w in s.parts)}" for s in every)
    return drawing(key, title, f"{said}.", y + 28, [*marks, *axis(y + 4)])


def columns(key: str, title: str, values: Sequence[tuple[str, float, str, str]], x_name: str, y_name: str) -> str:
    """Upright bars: (label under it, value, kind, text to point at)."""
    n = len(values)
    frame = Frame(0, n, min(0.0, *(v for _, v, _, _ in values)), 1.06 * max(v for _, v, _, _ in values) or 1.0, top=30)
    every = max(1, -(-n // 8))
    ticks = [(i + 0.5, label) for i, (label, _, _, _) in enumerate(values) if i % every == 0]
    marks = frame.grid(x_name, y_name, ticks)
    wide = (frame.right - frame.left) / n
    for i, (_, value, kind, words) in enumerate(values):
        top = min(frame.y(value), frame.y(0))
        height = max(abs(frame.y(value) - frame.y(0)), 1.0)
        marks.append(rect(frame.x(i) + wide * 0.12, top, wide * 0.76, height, f"bar {kind}", words, 1))
    return drawing(key, title, "; ".join(w for _, _, _, w in values) + ".", 242, marks)


def histogram(key: str, title: str, edges: Sequence[float], shares: Sequence[float], x_name: str,
              marked: Sequence[tuple[float, str]] = ()) -> str:  # fmt: skip
    """`shares` of bins between `edges`, every bin equally wide whatever its edges (they may be logarithmic).

    `marked` values get a line and a word.
    """
    n = len(shares)
    frame = Frame(0, n, 0, 100 * max(*shares, 1e-9), top=34, bottom=200)
    marks = frame.grid(x_name, "% of tokens", [(i, short(edges[i])) for i in _edge_ticks(edges)])
    wide = (frame.right - frame.left) / n
    for i, share in enumerate(shares):
        words = f"{short(edges[i])} to {short(edges[i + 1])}: {100 * share:.1f} % of tokens"
        marks.append(
            rect(frame.x(i) + 0.5, frame.y(100 * share), wide - 1, 200 - frame.y(100 * share), "bar student", words, 0)
        )
    for i, (value, word) in enumerate(marked):
        place = frame.x(_bin_position(edges, value))
        marks.append(line(place, 26 + 11 * (i % 2), place, 200, "mark"))
        marks.append(text(place, 22 + 11 * (i % 2), word, "tick", "middle" if place < W - 40 else "end"))
    most = max(range(n), key=lambda i: shares[i])
    said = f"Most tokens lie between {short(edges[most])} and {short(edges[most + 1])}."
    return drawing(key, title, said, 242, marks)


def _edge_ticks(edges: Sequence[float]) -> list[int]:
    """Which edges get a text: powers of ten where there are some, else every few, evenly."""
    tens = [i for i, e in enumerate(edges) if e > 0 and abs(math.log10(e) - round(math.log10(e))) < 1e-6]
    if len(tens) >= 3:
        return tens[:: max(1, -(-len(tens) // 7))]
    return list(range(0, len(edges), max(1, len(edges) // 6)))


def _bin_position(edges: Sequence[float], value: float) -> float:
    if value <= edges[0]:
        return 0.0
    for i in range(len(edges) - 1):
        if value <= edges[i + 1]:
            return i + (value - edges[i]) / ((edges[i + 1] - edges[i]) or 1.0)
    return float(len(edges) - 1)


def curve(key: str, title: str, points: Sequence[tuple[float, float]], held_out: Sequence[tuple[float, float, str]],
          grid_on: float | None, x_name: str, y_name: str) -> str:  # fmt: skip
    """A loss by step: bucket means as a line inside their min-max band, held-out points, and where the grid began."""
    buckets = _buckets(points)
    lows = [low for _, _, low, _ in buckets] + [y for _, y, _ in held_out]
    highs = [high for *_, high in buckets] + [y for _, y, _ in held_out]
    log = min(lows) > 0 and max(highs) / min(lows) > 8
    right = max([points[-1][0], *(x for x, _, _ in held_out)])
    frame = Frame(points[0][0], right, min(lows) if log else 0.0, max(highs) or 1.0, top=30, log_y=log)
    marks = frame.grid(x_name, f"{y_name}{', log scale' if log else ''}")
    if len(buckets) > 1:
        band = [(frame.x(x), frame.y(high)) for x, _, _, high in buckets]
        band += [(frame.x(x), frame.y(low)) for x, _, low, _ in reversed(buckets)]
        marks.append(path(band, "band", closed=True))
        marks.append(path([(frame.x(x), frame.y(mean)) for x, mean, _, _ in buckets], "curve"))
    else:
        marks.append(dot(frame.x(buckets[0][0]), frame.y(buckets[0][1]), 3, "point student"))
    if grid_on is not None:
        place = frame.x(grid_on)
        marks.append(line(place, frame.top, place, frame.bottom, "bound"))
        end = place > W / 2
        words = f"grid on at step {grid_on:.0f}"
        marks.append(text(place + (-5 if end else 5), frame.top + 10, words, "tick", "end" if end else "start"))
    marks += [dot(frame.x(x), frame.y(y), 4, "point held", words) for x, y, words in held_out]
    said = f"From {buckets[0][1]:.4g} at step {points[0][0]:.0f} to {buckets[-1][1]:.4g} at step {points[-1][0]:.0f}."
    return drawing(key, title, said, 242, marks)


def _buckets(points: Sequence[tuple[float, float]]) -> list[tuple[float, float, float, float]]:
    """(mean x, mean y, min y, max y) of at most MAX_POINTS runs of neighbouring points."""
    size = -(-len(points) // MAX_POINTS)
    out = []
    for start in range(0, len(points), size):
        xs, ys = zip(*points[start : start + size], strict=True)
        out.append((sum(xs) / len(xs), sum(ys) / len(ys), min(ys), max(ys)))
    return out


def scatter(key: str, title: str, points: Sequence[tuple[str, float, float, str, str]], x_name: str,
            y_name: str) -> str:  # fmt: skip
    """Named points (label, x, y, kind, text to point at); x starts at zero, y does not have to."""
    ys = [y for _, _, y, _, _ in points]
    room = (max(ys) - min(ys)) * 0.25 or abs(ys[0]) * 0.1 or 1.0
    frame = Frame(0, max(x for _, x, _, _, _ in points) * 1.12 or 1.0, min(ys) - room, max(ys) + room, top=22)
    marks = frame.grid(x_name, y_name)
    spots = [(frame.x(x), frame.y(y)) for _, x, y, _, _ in points]
    taken = [(x - 7, x + 7, y - 6, y + 6) for x, y in spots]  # boxes that a label must not touch
    for (label, _, _, kind, words), (px, py) in sorted(zip(points, spots, strict=True), key=lambda p: p[1][::-1]):
        marks.append(dot(px, py, 5.5, f"point {kind}", words))
        left, base = _free_place(label, px, py, taken, frame)
        taken.append((left, left + _width(label), base - 10, base + 3))
        marks.append(text(left, base, label))
    return drawing(key, title, "; ".join(w for *_, w in points) + ".", 242, marks)


def _width(label: str) -> float:
    return 7.0 * len(label)  # an upper estimate for 12.5 px


def _free_place(label: str, x: float, y: float, taken: Sequence[tuple[float, float, float, float]],
                frame: Frame) -> tuple[float, float]:  # fmt: skip
    """(left, baseline) beside a point: right, left, above, below, then further out, where nothing else is."""
    wide = _width(label)
    middle = min(max(x - wide / 2, frame.left + 2), frame.right - wide)
    places = [(x + 10, y + 4), (x - 10 - wide, y + 4)]
    places += [(left, y + down) for down in (-11, 20, -25, 34, -39, 48) for left in (middle, x + 10, x - 10 - wide)]
    for left, base in places:
        inside = left >= frame.left and left + wide <= W and frame.top - 4 <= base - 10 and base + 3 <= frame.bottom
        if inside and all(left > r or left + wide < le or base + 3 < t or base - 10 > b for le, r, t, b in taken):
            return left, base
    return middle, y - 11
