"""What a report is made of: plain data that the web page and the Markdown file both print, so that they cannot differ.

A section holds blocks in reading order. A cell is a finished string; numbers become text once, where a block is built.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from edgeslm.units import byte_count

ABSENT = "not measured"  # a cell without a figure; the line under the table says why
TIMES = "\u00d7"
Role = Literal["student", "teacher"]


@dataclass(frozen=True)
class Table:
    """`numeric` columns are set right; `first` is the index of the column that names the row."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    mark: frozenset[int] = frozenset()  # rows about the student
    half: bool = False  # short enough to stand beside a chart


@dataclass(frozen=True)
class Note:
    """One line. "missing": a figure there is not, and why; "estimate": a figure that no sensor gave."""

    text: str
    kind: Literal["missing", "estimate", "problem", "plain"] = "plain"


@dataclass(frozen=True)
class Chart:
    """A drawing (finished, escaped SVG) and the table that holds the same figures; Markdown prints the table."""

    title: str
    svg: str
    table: Table
    legend: tuple[tuple[str, str], ...] = ()  # (swatch class, text)
    hint: str = ""  # "lower is better"


@dataclass(frozen=True)
class Tile:
    """One headline figure. `bars` are the student's and the teacher's share (0..1) of the larger of the two."""

    label: str
    value: str
    word: str
    detail: str
    bars: tuple[float, float] | None = None


@dataclass(frozen=True)
class Tiles:
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Answer:
    name: str
    role: Role
    text: str
    tokens: int | None = None


@dataclass(frozen=True)
class Dialogue:
    """One prompt and what each model wrote to it."""

    prompt: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Code:
    language: str
    text: str


Block = Table | Note | Chart | Tiles | Dialogue | Code


@dataclass(frozen=True)
class Section:
    key: str  # anchor
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)
    lead: str = ""
    more: str = ""  # a second, quieter paragraph


def role(artifact: str) -> Role:
    """By the name that export gives: "teacher-f16.gguf" is a teacher, everything else was made here."""
    return "teacher" if artifact.startswith("teacher") else "student"


def missing(what: str, why: str) -> Note:
    return Note(f"{what}: not measured: {why}", "missing")


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def times(factor: float) -> str:
    """`7.38` -> `7.4` and a times sign; near one the second digit matters: `1.04`."""
    return f"{factor:.{2 if factor < 2 else 1 if factor < 100 else 0}f}{TIMES}"


def plain_value(key: str, value: Any) -> str:
    """A fact of a device or a job as a person reads it; the unit is in the key's ending."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and key.endswith("bytes_per_s"):
        return f"{byte_count(value)}/s"
    if number and key.endswith("bytes"):
        return byte_count(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return ", ".join(value)
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def plain_key(key: str) -> str:
    """`memory_bytes` -> `memory`: the unit stands with the value."""
    return key.removesuffix("_bytes_per_s").removesuffix("_bytes").replace("_", " ")


def facts(data: Mapping[str, Any], limit: int = 60) -> str:
    """`{"prompt_tokens": 128, "seed": 0}` -> `prompt tokens 128, seed 0`; nested and long values are left out."""
    short = [(k, plain_value(k, v)) for k, v in data.items() if not isinstance(v, dict | list) and v is not None]
    return ", ".join(f"{plain_key(k)} {v}" for k, v in short if len(v) <= limit)
