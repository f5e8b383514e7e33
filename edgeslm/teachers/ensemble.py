"""Several teachers as one (survey arXiv:2006.05525, 5.2). All share a vocabulary; probabilities are mixed, not logits,
so that a mixture is a distribution whatever the scale of each teacher's logits.

Shape letters: N predictions, C predictions of a chunk, B rows, V vocabulary, M teachers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeslm.data.batch import Batch
from edgeslm.models.view import CAUSAL, View
from edgeslm.teachers.base import Need, Output, Signals, Teacher, dense

ROWS = 32  # predictions of [V] float32 handled together: they stay in the cache
# weights of teachers: (log-probabilities [M, C, V], targets [C], constant weights [M]) -> log-weights [M, C]
Weigh = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Mixture:
    """log of the weighted mean of the teachers' probabilities. `row_weights` [M, N] where weights were decided for
    whole rows beforehand."""

    outputs: Sequence[Output]
    weights: Tensor  # [M]
    weigh: Weigh
    row_weights: Tensor | None = None

    def rows(self, part: slice, targets: Tensor) -> Tensor:
        given = [dense(output.rows(part, targets)) for output in self.outputs]
        width = min(g.shape[1] for g in given)
        made = torch.empty(len(targets), width, dtype=torch.float32, device=targets.device)
        step = ROWS if targets.device.type == "cpu" else max(1, len(targets))
        for at in range(0, len(targets), step):
            some = slice(at, at + step)
            logs = torch.stack([torch.log_softmax(g[some, :width].float(), dim=-1) for g in given])
            if self.row_weights is None:
                weights = self.weigh(logs, targets[some], self.weights)
            else:
                weights = self.row_weights[:, part][:, some]
            made[some] = torch.logsumexp(logs + weights[:, :, None], dim=0)
        return made


def constant(logs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The same for every prediction."""
    return (weights / weights.sum()).log()[:, None].expand(logs.shape[:2])


def by_token(logs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Every prediction is taught by the teacher that gives the true outcome the highest probability."""
    truth = logs.gather(2, targets[None, :, None].expand(len(logs), -1, 1))[:, :, 0] + weights.log()[:, None]
    best = torch.nn.functional.one_hot(truth.argmax(0), len(logs)).T.to(logs.dtype)
    return best.log()


class Ensemble:
    """`combine`: `weighted` (a mean where weights are equal), `sample` (each row weighs teachers by how well they
    predict it, softmax of minus their mean loss), `token` (the best teacher for each prediction)."""

    def __init__(
        self, teachers: Sequence[Teacher], weights: Sequence[float], combine: str = "weighted", view: View = CAUSAL
    ):
        self.teachers, self.combine, self.view = list(teachers), combine, view
        self.weights = torch.tensor(weights, dtype=torch.float32)

    def __call__(self, batch: Batch, need: Need) -> Signals:
        given = [teacher(batch, need) for teacher in self.teachers]
        layers = {index: found for signals in given for index, found in signals.layers.items()}
        if not need.output:
            return Signals(None, layers)
        outputs = [s.output for s in given if s.output is not None]
        weights = self.weights.to(batch.ids.device)
        by_row = self._row_weights(outputs, batch, weights) if self.combine == "sample" else None
        weigh = by_token if self.combine == "token" else constant
        return Signals(Mixture(outputs, weights, weigh, by_row), layers)

    @torch.no_grad()
    def _row_weights(self, outputs: Sequence[Output], batch: Batch, weights: Tensor) -> Tensor:
        """log-weights [M, N], equal within a row."""
        targets, mask = self.view.truth(batch)
        losses = torch.zeros(len(outputs), len(targets), device=targets.device)
        for index, output in enumerate(outputs):
            for at in range(0, len(targets), ROWS):
                part = slice(at, at + ROWS)
                logits = dense(output.rows(part, targets[part]))
                losses[index, part] = torch.nn.functional.cross_entropy(logits.float(), targets[part], reduction="none")
        by_row = (losses * mask).reshape(len(outputs), len(batch), -1).sum(2)  # [M, B]
        mean = by_row / mask.reshape(len(batch), -1).sum(1).clamp(min=1.0)
        chosen = torch.log_softmax(-mean + weights.log()[:, None], dim=0)
        return chosen.repeat_interleave(len(targets) // len(batch), dim=1)
