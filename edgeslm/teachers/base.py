"""What a teacher gives for a batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Signals:
    """A final hidden state with its head: log-probabilities are made from them chunk by chunk, never whole.

    hidden [B, T, D], head [V, D].
    """

    hidden: Tensor
    head: Tensor
