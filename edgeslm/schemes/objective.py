"""The weighted terms of a recipe and the project's only reduction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeslm.knowledge import LOSSES
from edgeslm.knowledge.base import Response


def masked_mean(values: Tensor, mask: Tensor, count: Tensor | float) -> Tensor:
    """sum(values where mask) / count. `count` is the number of unmasked tokens of the whole optimiser step, so that
    micro-batches add up to the mean of the step whatever their size."""
    return (values * mask).sum() / count


@dataclass(frozen=True)
class Term:
    """One loss with its weight and options."""

    name: str
    weight: float
    options: Mapping[str, Any]

    @property
    def loss(self) -> Response:
        return LOSSES[self.name]

    def value_and_grad(self, student: Tensor, teacher: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Nats per token [N] and gradient on the student's logits [N, V], float32, weight not applied."""
        if self.loss.fused is not None:
            return self.loss.fused(student, teacher, targets, **self.options)
        with torch.enable_grad():
            leaf = student.detach().float().requires_grad_()
            value = self.loss.fn(leaf, teacher, targets, **self.options)
            (grad,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), grad


@dataclass(frozen=True)
class Objective:
    """Sum of weighted terms over the output distribution."""

    terms: tuple[Term, ...]

    @property
    def needs_teacher(self) -> bool:
        return any(t.loss.needs_teacher for t in self.terms)

    @classmethod
    def build(cls, terms: Sequence[Mapping[str, Any]]) -> Objective:
        """From a recipe's list of `{loss, weight, **options}`."""
        return cls(
            tuple(
                Term(
                    t["loss"], float(t.get("weight", 1.0)), {k: v for k, v in t.items() if k not in ("loss", "weight")}
                )
                for t in terms
            )
        )
