"""What fits into a budget of memory: weights, the cache for a context, and the buffers measured beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeslm import units
from edgeslm.meters.memory import peak


@dataclass(frozen=True)
class Footprint:
    """`buffers_bytes` is what a process held besides weights and cache: compute buffers, repacked copies, libraries,
    an interpreter. It grows with threads and batch, so it belongs to the job it was measured with."""

    name: str
    weights_bytes: float
    kv_bytes_per_token: float
    buffers_bytes: float

    def needs(self, context: int) -> float:
        return self.weights_bytes + self.kv_bytes_per_token * context + self.buffers_bytes


@dataclass(frozen=True)
class Fit:
    """`longest_context` is what the rest of the budget has room for, 0 when not even the weights fit."""

    name: str
    fits: bool
    needs_bytes: float
    spare_bytes: float  # negative: so much too large
    longest_context: int | None  # None: the cache costs nothing
    why: str


def footprint(name: str, result: dict[str, Any], weights_bytes: float) -> Footprint | None:
    """From one result of the task `bench`: the resident peak less what is known. None when the kernel told no peak,
    when part of it was in swap, or when the runtime told no shape."""
    engine = result.get("engine", {})
    shape = [engine.get(key) for key in ("layers", "kv_heads", "head_dim", "kv_element_bytes")]
    resident = peak([result], "vm_hwm")
    if not resident or not all(shape) or max(peak([result], "vm_swap"), default=0.0) > 0:
        return None
    per_token = 2.0 * shape[0] * shape[1] * shape[2] * shape[3]
    cache = result.get("kv_cache_bytes") or per_token * engine.get("context", 0)
    # a mapped input table is resident only as far as it was read: then nothing is left over, and 0 is the least
    return Footprint(name, float(weights_bytes), per_token, max(0.0, resident[0] - weights_bytes - cache))


def fits(budget_bytes: float, one: Footprint, context: int) -> Fit:
    """Whether a model with a cache for `context` positions fits into `budget_bytes`, with the numbers."""
    needs = one.needs(context)
    spare = budget_bytes - needs
    room = budget_bytes - one.needs(0)
    longest = None if one.kv_bytes_per_token == 0 else max(0, int(room // one.kv_bytes_per_token))
    parts = (
        f"{units.byte_count(one.weights_bytes)} of weights + "
        f"{units.byte_count(one.kv_bytes_per_token * context)} of cache for {context} tokens + "
        f"{units.byte_count(one.buffers_bytes)} of buffers = {units.byte_count(needs)}"
    )
    verdict = "fits into" if spare >= 0 else "does not fit into"
    return Fit(one.name, spare >= 0, needs, spare, longest, f"{verdict} {units.byte_count(budget_bytes)}: {parts}")


@dataclass(frozen=True)
class TeacherPlan:
    """`precision` is the one to measure, "" when none fits; `why` has the numbers of all that were looked at."""

    precision: str
    why: str


def teacher_plan(
    memory_bytes: float, weights: Mapping[str, float], kv_bytes_per_token: float, context: int, buffers_bytes: float
) -> TeacherPlan:
    """The first of `weights` (precision -> bytes, as in {"float32": ..., "float16": ...}, the most exact first) that
    fits into a device's memory; a teacher that fits in none is a row that says so."""
    looked = []
    for precision, size in weights.items():
        fit = fits(memory_bytes, Footprint(precision, size, kv_bytes_per_token, buffers_bytes), context)
        looked.append(f"{precision} {fit.why}")
        if fit.fits:
            return TeacherPlan(precision, "; ".join(looked))
    return TeacherPlan("", "; ".join(looked))
