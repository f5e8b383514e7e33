"""What an energy sensor is: what to sample on the device, and what the sampled text means.

Sampling keeps raw text and happens on the device; everything here is pure and happens afterwards. A device's small
files are looked at below a root folder: "/" on this machine, a copied tree of another one, a fixture in a test.
Outputs of commands lie in such a tree under `edgeslm/`, named by the command's words joined with "-".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeslm.measurement import Kind

Texts = Sequence[str | None]  # of each file, then of each command, None for one that could not be read


@dataclass(frozen=True)
class Sample:
    """One reading. A power, a counter of energy, or a counter of charge with a voltage; `refused` is a sentence
    that says why readings like this must not be used. `raw` keeps what the device said."""

    watts: float | None = None
    joules: float | None = None  # cumulative
    coulombs: float | None = None  # left in the battery
    volts: float | None = None
    amps: float | None = None  # drawn, never negative
    full_coulombs: float | None = None  # of the battery when it is full
    refused: str = ""
    raw: Mapping[str, str] = field(default_factory=dict)


Timed = tuple[float, Sample]  # monotonic seconds of the device


@dataclass(frozen=True)
class Recording:
    """A program of the device that records by itself while answers are timed: `argv` with `stdin` writes `output`."""

    argv: tuple[str, ...]
    stdin: str
    output: str


@dataclass(frozen=True)
class Sensor:
    """`read` is pure. `settle` looks at a whole run and returns (samples, note, why not). `most_w` is the greatest
    plausible power: more than that is garbage. `wraps_j` is where a counter begins again, 0 for one that never does.
    `held` sensors repeat an old reading until they have a new one, so only changes count as readings."""

    name: str
    covers: str
    read: Callable[[Texts], Sample | None]
    files: tuple[str, ...] = ()
    commands: tuple[tuple[str, ...], ...] = ()
    most_w: float = 1000.0
    wraps_j: float = 0.0
    held: bool = False
    settle: Callable[[list[Timed]], tuple[list[Timed], str, str]] | None = None
    recording: Recording | None = None
    kind: Kind = "measured"
    note: str = ""


Look = Callable[[Path], tuple[list[Sensor], str]]  # root -> (sensors, why there is none)


def text(path: Path) -> str:
    """A small file, stripped; empty when it is not there or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\x00\n ")
    except OSError:
        return ""


def said(root: Path, *argv: str) -> str:
    """What a command of the device answered when its tree was copied, empty when it was not asked."""
    return text(root / "edgeslm" / "-".join(argv))


def number(raw: str | None) -> float | None:
    """A finite decimal number, None for anything else; an underscore, `nan` or `inf` is no number of a sensor."""
    try:
        value = float(raw) if raw is not None and "_" not in raw else float("nan")
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None


def microjoules(raw: str | None) -> float | None:
    """Joules of a counter of whole microjoules (a microwatt second is one too); None for anything longer than 64 bits
    can be, or not made of digits alone."""
    return int(raw) / 1e6 if raw and raw.isdecimal() and len(raw) <= 20 else None


def on_device(path: Path, root: Path) -> str:
    """The path that a file below `root` has on the device itself."""
    return "/" + path.relative_to(root).as_posix()
