"""What a teacher gives for a batch, and what it is asked for.

Shape letters: B rows, T positions, N predictions, C predictions of a chunk, D hidden width, V vocabulary, K kept
outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from edgeslm.data.batch import Batch
from edgeslm.knowledge.base import Layer
from edgeslm.models.blocks import Wants


@dataclass(frozen=True)
class Sparse:
    """A few outcomes that stand for a teacher's distribution at `temperature`. `weights` are probabilities. `tail` [C]:
    what is left beside them, one bucket; None where the weights are a sample of the whole distribution, sum to 1 and
    may hold an outcome more than once. `entropy` [C] of the whole, in nats, is known of such a sample only."""

    ids: Tensor  # [C, K] int64
    weights: Tensor  # [C, K] float32
    tail: Tensor | None
    entropy: Tensor | None
    temperature: float

    def part(self, rows: slice) -> Sparse:
        tail, entropy = (None if x is None else x[rows] for x in (self.tail, self.entropy))
        return Sparse(self.ids[rows], self.weights[rows], tail, entropy, self.temperature)


def dense(given: Tensor | Sparse) -> Tensor:
    """Logits, where the recipe's check left nothing else."""
    assert isinstance(given, Tensor), "a recorded teacher has no whole distribution"
    return given


class Output(Protocol):
    """A distribution over outcomes for each of N predictions, made chunk by chunk, never whole."""

    def rows(self, part: slice, targets: Tensor) -> Tensor | Sparse:
        """Logits [C, V] or a sparse stand-in, of the predictions in `part`, whose true outcomes are `targets` [C]."""


@dataclass(frozen=True)
class Dense:
    """Logits from final states and a head. states [N, D], head [V, D]."""

    states: Tensor
    head: Tensor

    def rows(self, part: slice, targets: Tensor) -> Tensor:
        return self.states[part] @ self.head.T


@dataclass(frozen=True)
class Need:
    """`output`: whether the distribution is wanted. `layers`: for each teacher (0 where there is one) what its layers
    are asked for."""

    output: bool = True
    layers: Mapping[int, Wants] = field(default_factory=dict)


@dataclass(frozen=True)
class Signals:
    """`layers`: for each teacher that was asked {layer: what it holds}. `foreign`: for each teacher of another
    vocabulary its distribution, and a mask [N] of the predictions that it has one for."""

    output: Output | None
    layers: Mapping[int, Mapping[int, Layer]] = field(default_factory=dict)
    foreign: Mapping[int, tuple[Output, Tensor]] = field(default_factory=dict)


class Teacher(Protocol):
    def __call__(self, batch: Batch, need: Need) -> Signals: ...
