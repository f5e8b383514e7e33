"""A teacher that runs beside the student."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeslm.models.forward import head_weight, hidden_states
from edgeslm.teachers.base import Signals


class LiveTeacher:
    """Calls a frozen transformers model on the student's own ids."""

    def __init__(self, model: nn.Module):
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Signals:
        """ids [B, T] -> hidden [B, T, D] and head [V, D]."""
        return Signals(hidden_states(self.model, ids), head_weight(self.model).detach())
