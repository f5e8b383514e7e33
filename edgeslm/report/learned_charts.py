"""Charts of what students learned: lines of several runs, and a passage shaded by what is kept of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeslm.report.svg import Frame, W, dot, drawing, path, rect, text

SHADES = 5  # of style.css's cells; darker ones would hide the words
LETTER, SIGN, ROW = 7.2, 13.0, 21.0  # upper estimates of a letter's and a Chinese sign's width; from line to line


@dataclass(frozen=True)
class Line:
    """`kind`: classes of style.css ("r1", "r2 dashed"). Points are (x, y, text to point at)."""

    kind: str
    points: Sequence[tuple[float, float, str]]


def lines(key: str, title: str, drawn: Sequence[Line], x_name: str, y_name: str) -> str:
    """Several lines on one frame whose y starts at zero."""
    right = max(x for line in drawn for x, _, _ in line.points)
    top = max(y for line in drawn for _, y, _ in line.points)
    frame = Frame(0, right or 1.0, 0, 1.06 * top or 1.0, top=30)
    marks = frame.grid(x_name, y_name)
    for line in drawn:
        spots = [(frame.x(x), frame.y(y)) for x, y, _ in line.points]
        marks.append(path(spots, f"line {line.kind}"))
        marks += [dot(x, y, 3.5, f"point {line.kind}", p[2]) for (x, y), p in zip(spots, line.points, strict=True)]
    said = "; ".join(line.points[-1][2] for line in drawn)
    return drawing(key, title, f"At the end: {said}.", 242, marks)


def passage(key: str, title: str, said: str, blocks: Sequence[tuple[str, Sequence[tuple[str, float, str]]]]) -> str:
    """The same text under one heading a run: tokens (as they read, strength from 0 to 1, text to point at), shaded by
    strength."""
    marks: list[str] = []
    y = 0.0
    for heading, tokens in blocks:
        marks.append(text(0, y + 14, heading, "group"))
        x, y = 0.0, y + 22
        for token, strength, hover in tokens:
            shown = token.strip().replace("\n", "⏎") or ("⏎" if "\n" in token else "·")
            x += 4 if token[:1].isspace() else 0
            wide = sum(SIGN if ord(c) > 0x2000 else LETTER for c in shown)
            if x + wide > W and x > 0:
                x, y = 0.0, y + ROW
            shade = min(SHADES, int(strength * SHADES) + 1) if strength > 0 else 0
            marks.append(rect(x, y, wide, ROW - 3, f"cell b{shade}" if shade else "track", hover))
            marks.append(text(x + wide / 2, y + 13.5, shown, "label", "middle"))
            x += wide + 1
        y += ROW + 10
    return drawing(key, title, said, y, marks)
