"""What a meter is: it says what a worker shall sample, and what the samples mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from edgeslm.measurement import Kind


@dataclass(frozen=True)
class Reading:
    """A measurement without its place: `benchmark` adds the `Where`."""

    metric: str
    unit: str
    values: tuple[float, ...]
    warmups: tuple[float, ...] = ()
    kind: Kind = "measured"
    covers: str = "process"
    better: Literal["higher", "lower"] = "lower"
    note: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Meter:
    """`ask(options)` -> fields that join the bench job; `read(results, options)` -> readings of all processes' results
    of one artifact. A sensor that is not there gives no reading, never 0. `options` come from `benchmark`:
    {"sysfs": Path | None, "watts_per_core": float | None}."""

    name: str
    ask: Callable[[dict[str, Any]], dict[str, Any]]
    read: Callable[[list[dict[str, Any]], dict[str, Any]], list[Reading]]
