"""Whether a point fits into memory, by estimate: edgeslm.training_memory, and what eager attention keeps besides.

Letters: b bytes of a number in the type of computing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgeslm import cost, training_memory
from edgeslm.pipeline.stage import SHARE
from edgeslm.training_cost.grid import Point
from edgeslm.training_memory import FLOAT


@dataclass(frozen=True)
class Needs:
    """An estimate. `on_one_device`: of all ranks where they share a memory (CPU), of one where each has its own."""

    per_rank_bytes: float
    on_one_device: float

    def fits(self, there: float | None) -> bool:
        """True where nobody knows how much memory there is: then it is tried."""
        return there is None or self.on_one_device <= SHARE * there


def needs(
    student: Mapping[str, Any],
    teacher: Mapping[str, Any] | None,
    point: Point,
    step: training_memory.Step,
    peers: int = 1,
) -> Needs:
    """`step`: of one rank. `peers`: students that train together (online distillation)."""
    step = replace(step, ranks=point.ranks, cut=point.parallel == "fsdp2")
    held = dict(training_memory.parts(student, teacher, step))
    beside = held.pop("teacher", 0.0)
    one = peers * (sum(held.values()) + (eager_bytes(student, step) if point.attention == "eager" else 0.0)) + beside
    return Needs(one, one if step.gpu else one * point.ranks)


def eager_bytes(shape: Mapping[str, Any], step: training_memory.Step) -> float:
    """What the backward pass reads again of transformers' eager attention and not of a fused one: of each pair of
    positions the probability, in float32 as the softmax leaves it and as a copy in the type of computing; of each
    position keys and values again for every head that shares them, less the fused kernel's sum."""
    heads, b = int(shape["num_attention_heads"]), step.number_bytes
    shared = heads - int(shape.get("num_key_value_heads") or heads)
    pairs = step.rows * step.length**2 * heads * (FLOAT + (b if b != FLOAT else 0))
    layers = 1 if step.recompute else int(shape["num_hidden_layers"])
    return float(layers * (pairs + step.tokens * (2 * b * shared * cost.head_dim(shape) - FLOAT * heads)))
