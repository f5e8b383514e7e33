"""One recommendation out of what was measured. What differs by less than the spread of processes does not differ.

The law: nothing that was measured is faster than what is recommended by more than the spread; and where the recipe as
it is written is among the fastest in that sense, it stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeslm import statistics, units
from edgeslm.measurement import Measurement
from edgeslm.statistics import Ratio
from edgeslm.training_cost.grid import Point


@dataclass(frozen=True)
class Candidate:
    """`seconds`: of the whole training, one value a process. `peak_bytes`: of the rank that needs most."""

    point: Point
    seconds: Measurement
    peak_bytes: float | None


@dataclass(frozen=True)
class Choice:
    """`faster`: how many times as fast as the recipe as it is; None where that was not measured or is what is chosen.
    `level`: the other points that none is faster than."""

    point: Point
    faster: Ratio | None
    level: tuple[Point, ...]
    processes: int
    peak_bytes: float | None


def choose(candidates: Sequence[Candidate], own: Point) -> Choice | None:
    """Of all that nothing is faster than by more than the spread: the recipe as it is, else the one of fewest changes
    to it, of the least memory, the fastest. None where nothing was measured."""
    if not candidates:
        return None
    level = [c for c in candidates if not any(slower(c, other) for other in candidates)]  # the fastest always is
    as_is = next((c for c in candidates if c.point == own), None)

    def order(c: Candidate) -> tuple[int, float, float, str]:
        peak = float("inf") if c.peak_bytes is None else c.peak_bytes
        return c.point.changes(own), peak, middle(c.seconds), c.point.label

    stays = as_is is not None and any(c is as_is for c in level)
    taken = as_is if stays and as_is is not None else min(level, key=order)
    faster = None
    if as_is is not None and not stays:
        faster = statistics.ratio(as_is.seconds, taken.seconds, paired=True)
    others = tuple(c.point for c in sorted(level, key=order) if c is not taken)
    return Choice(taken.point, faster, others, taken.seconds.n, taken.peak_bytes)


def middle(m: Measurement) -> float:
    found = statistics.interval(m)
    return m.median if found is None else found.estimate


def slower(one: Candidate, other: Candidate) -> bool:
    """Whether the whole training takes longer, by more than the spread."""
    ratio = statistics.ratio(one.seconds, other.seconds, paired=True)
    return ratio is not None and ratio.verdict == "higher"


def sentence(choice: Choice, own: Point, own_why: str | None = None) -> str:
    """`own_why`: why the recipe as it is was not measured, where it was not."""
    if choice.point == own:
        said = f"Keep the recipe as it is ({own.label}): nothing else that was measured is faster by more than the "
        said += f"spread of {_processes(choice.processes)}"
    elif choice.faster is None:
        said = f"Take {choice.point.label}: the recipe as it is was not measured ({own_why or 'it failed'})"
    else:
        said = f"Take {choice.point.label}: it is {times(choice.faster)} as fast as the recipe as it is ({own.label})"
    if choice.level:
        names = "; ".join(point.label for point in choice.level)
        said += f". As fast within the spread: {names}"
    if choice.peak_bytes is not None:
        said += f". It needs {units.byte_count(choice.peak_bytes)} of memory"
        said += " a process" if choice.point.ranks > 1 else ""
    return said + "."


def times(ratio: Ratio) -> str:
    if ratio.low is None or ratio.high is None:
        return f"{ratio.estimate:.2f} times (one process: no spread is known)"
    return f"{ratio.estimate:.2f} times ({ratio.low:.2f} to {ratio.high:.2f})"


def _processes(count: int) -> str:
    return f"{count} processes" if count > 1 else "one process, of which none is known"
