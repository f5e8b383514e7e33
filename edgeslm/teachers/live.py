"""A teacher that runs beside the student."""

from __future__ import annotations

import torch
from torch import nn

from edgeslm.data.batch import Batch
from edgeslm.models.blocks import reading
from edgeslm.models.view import CAUSAL, View
from edgeslm.teachers.base import Dense, Need, Signals


class LiveTeacher:
    """Calls a model on the batch, without gradients; `index` is its place among several teachers."""

    def __init__(self, model: nn.Module, view: View = CAUSAL, index: int = 0):
        self.model, self.view, self.index = model.eval(), view, index

    @torch.no_grad()
    def __call__(self, batch: Batch, need: Need) -> Signals:
        wants = need.layers.get(self.index, {})
        with reading(self.model, wants) as layers:
            states = self.view.states(self.model, batch)
        return Signals(Dense(states, self.view.head(self.model).detach()), {self.index: layers} if wants else {})
