"""Points of the grid: the ways in which one and the same training can be run, and which of them are tried."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from edgeslm.errors import DataError

ATTENTION = ("sdpa", "eager", "flash")  # flash: the package flash_attn, through transformers' flash_attention_2
PARALLEL = ("ddp", "fsdp2")
BACKENDS = ("gloo", "nccl")
ALONE = "-"  # parallel and back end of a point of one process
SWITCH = {"on": True, "off": False}


@dataclass(frozen=True)
class Point:
    """`micro_rows` run at once in each process. `parallel` and `backend` say nothing where there is one process."""

    attention: str
    micro_rows: int
    compile: bool = False
    ranks: int = 1
    parallel: str = ALONE
    backend: str = ALONE

    @property
    def label(self) -> str:
        said = f"{self.attention}, {self.micro_rows} row{'s' if self.micro_rows > 1 else ''} at once"
        said += ", compiled" if self.compile else ""
        return said + (f", {self.ranks} processes ({self.parallel}, {self.backend})" if self.ranks > 1 else "")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def changes(self, other: Point) -> int:
        """In how many axes two points differ; processes and what joins them are one."""
        axes = ("attention", "micro_rows", "compile")
        return sum(getattr(self, a) != getattr(other, a) for a in axes) + (self._joined != other._joined)

    @property
    def _joined(self) -> tuple[int, str, str]:
        return self.ranks, self.parallel, self.backend


@dataclass(frozen=True)
class Asked:
    """Axes as the command line gives them; None for an axis that is not varied."""

    attention: tuple[str, ...] | None = None
    micro_rows: tuple[int, ...] | None = None
    compile: tuple[bool, ...] | None = None
    ranks: tuple[int, ...] | None = None
    parallel: tuple[str, ...] | None = None
    backend: tuple[str, ...] | None = None


def asked(attention: str, micro_rows: str, compiled: str, ranks: str, parallel: str, backend: str) -> Asked:
    """Lists such as `sdpa,eager`, each "" where an option was left out. Raises DataError, naming the option."""
    return Asked(
        names("--attention", attention, ATTENTION),
        numbers("--micro-rows", micro_rows),
        None if (found := names("--compile", compiled, tuple(SWITCH))) is None else tuple(SWITCH[x] for x in found),
        numbers("--ranks", ranks),
        names("--parallel", parallel, PARALLEL),
        names("--backend", backend, BACKENDS),
    )


def names(option: str, text: str, known: Sequence[str]) -> tuple[str, ...] | None:
    parts = [part.strip() for part in text.split(",")] if text else []
    if wrong := [part for part in parts if part not in known]:
        raise DataError(f"{option} {text}: '{wrong[0]}' is none of {', '.join(known)}")
    return tuple(dict.fromkeys(parts)) or None


def numbers(option: str, text: str) -> tuple[int, ...] | None:
    parts = [part.strip() for part in text.split(",")] if text else []
    if any(not part.isdecimal() or int(part) < 1 for part in parts):
        raise DataError(f"{option} {text}: is no list of numbers from 1, such as 1,2,4")
    return tuple(dict.fromkeys(map(int, parts))) or None


def points(own: Point, wanted: Asked, batch_rows: int, joined: tuple[str, str]) -> list[Point]:
    """The grid, the recipe's own point first: every combination of the axes that are asked for, the others as in `own`.
    Where none is, `around(own)`. `joined`: parallel and back end of several processes unless others are asked for."""
    if wanted == Asked():
        return around(own, batch_rows, joined)
    found = [
        _point(attention, rows, compiled, ranks, parallel, backend, batch_rows)
        for attention, rows, compiled, ranks, parallel, backend in product(
            wanted.attention or (own.attention,),
            wanted.micro_rows or (own.micro_rows,),
            (own.compile,) if wanted.compile is None else wanted.compile,
            wanted.ranks or (own.ranks,),
            wanted.parallel or joined[:1],
            wanted.backend or joined[1:],
        )
    ]
    return unique([own, *found])


def around(own: Point, batch_rows: int, joined: tuple[str, str]) -> list[Point]:
    """The recipe's own point and those that differ from it in one axis: another attention, a quarter and twice the
    micro-batch, compiled or not, two processes."""
    other = "eager" if own.attention == "sdpa" else "sdpa"
    found = [own, replace(own, attention=other)]
    found += [replace(own, micro_rows=rows) for rows in (max(1, own.micro_rows // 4), 2 * own.micro_rows)]
    found += [replace(own, compile=not own.compile)]
    found += [replace(own, ranks=2, parallel=joined[0], backend=joined[1])]
    return unique(replace(point, micro_rows=min(point.micro_rows, batch_rows)) for point in found)


def _point(
    attention: str, rows: int, compiled: bool, ranks: int, parallel: str, backend: str, batch_rows: int
) -> Point:
    joined = (parallel, backend) if ranks > 1 else (ALONE, ALONE)
    return Point(attention, min(rows, batch_rows), compiled, ranks, *joined)


def unique(found: Iterable[Point]) -> list[Point]:
    return list(dict.fromkeys(found))
