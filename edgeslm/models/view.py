"""What of a row a model reads, and what it predicts from it: so that one step serves every kind of model, and teacher
and student may read different fields of the same row.

Shape letters: B rows, T positions, N predictions, D hidden width, V outcomes.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from edgeslm.data.batch import Batch
from edgeslm.models.forward import head_weight, hidden_states, predictions


class View(Protocol):
    def states(self, model: nn.Module, batch: Batch) -> Tensor:
        """[N, D]: one state for each prediction, from the model's own forward."""

    def head(self, model: nn.Module) -> Tensor:
        """[V, D]: logits are `states @ head.T`."""

    def truth(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(targets [N] int64, mask [N] 1.0 where the prediction counts)."""

    def exit(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """hidden [B, T, D] of an inner layer -> [N, D]: what the head would see if the model ended there."""


class Causal:
    """Every position predicts the next token."""

    def states(self, model: nn.Module, batch: Batch) -> Tensor:
        return predictions(hidden_states(model, batch.ids))

    def head(self, model: nn.Module) -> Tensor:
        return head_weight(model)

    def truth(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.ids[:, 1:].reshape(-1), batch.mask[:, 1:].reshape(-1)

    def exit(self, model: nn.Module, hidden: Tensor) -> Tensor:
        norm = getattr(model.base_model, "norm", getattr(model.base_model, "ln_f", None))
        return predictions(hidden if norm is None else norm(hidden))


CAUSAL = Causal()
