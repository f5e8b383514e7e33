"""The one optimiser step: every scheme is a loop around it.

Shape letters: B rows, T positions, N = B (T - 1) predictions, D hidden width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeslm.errors import EdgeSLMError
from edgeslm.models.forward import head_weight, hidden_states, predictions
from edgeslm.quantize.masters import Masters
from edgeslm.schemes.head_loss import HeadInput, head_loss
from edgeslm.schemes.objective import Objective
from edgeslm.teachers.base import Signals


@dataclass(frozen=True)
class Batch:
    """Rows of one optimiser step. `mask[b, t]` says whether token t counts as a target (position 0 never does)."""

    ids: Tensor  # [B, T] int64
    mask: Tensor  # [B, T] float32


@dataclass(frozen=True)
class StepSettings:
    micro_rows: int
    clip: float
    weight_decay: float
    betas: tuple[float, float]
    refit_every: int | None  # None: scales stay as first fitted
    scale_lr: float | None = None  # of learned scales, as a share of the weights' learning rate; None: not learned
    activations: Callable[[Tensor], Tensor] | None = None  # what the runtime does to the head's input


@dataclass(frozen=True)
class StepLog:
    loss: float
    terms: dict[str, float]
    grad_norm: float


class Diverged(EdgeSLMError):
    """The loss became NaN or infinite."""


class Step:
    """Holds the optimiser; `__call__` takes a batch and a learning rate and leaves new weights in the module."""

    def __init__(self, model: nn.Module, masters: Masters, objective: Objective, settings: StepSettings):
        self.model, self.masters, self.objective, self.settings = model, masters, objective, settings
        matrices = [m.value for m in masters.items if m.value.dim() > 1]
        vectors = [m.value for m in masters.items if m.value.dim() == 1]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        factors = [] if settings.scale_lr is None else masters.learn_scales()
        if factors:
            groups.append({"params": factors, "weight_decay": 0.0})
        self.optimiser = torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, fused=True)
        self.parameters = matrices + vectors + factors
        self.clipped = matrices + vectors  # factors have their own scale: they must not steer the weights' clipping

    def __call__(
        self, batch: Batch, teacher: Callable[[Tensor], Signals] | None, *, lr: float, grid: bool, index: int
    ) -> StepLog:
        """One update. `index` is the number of updates done; `refit_every` counts them.
        `grid` says whether the weights left in the module lie on the plan's grid."""
        count = float(batch.mask[:, 1:].sum())
        total, sums = 0.0, torch.zeros(len(self.objective.terms), dtype=torch.float64)
        for at in range(0, batch.ids.shape[0], self.settings.micro_rows):
            part = slice(at, at + self.settings.micro_rows)
            loss, terms = self._forward(batch.ids[part], batch.mask[part], teacher, count)
            loss.backward()
            total += float(loss.detach())
            sums += terms.cpu()
        if not math.isfinite(total):
            raise Diverged(f"the loss is {total} at step {index}; lower distill.train.lr or look at the data")
        norm = torch.nn.utils.clip_grad_norm_(self.clipped, self.settings.clip)
        if self.settings.scale_lr is not None and grid:
            self.masters.scale_gradients()
        shares = (1.0, 1.0, self.settings.scale_lr or 0.0)
        for group, share in zip(self.optimiser.param_groups, shares, strict=False):
            group["lr"] = lr * share
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        every = self.settings.refit_every
        self.masters.set_weights(grid=grid, refit=every is not None and (index + 1) % every == 0)
        names = [t.name for t in self.objective.terms]
        return StepLog(total, dict(zip(names, sums.tolist(), strict=True)), float(norm))

    def _forward(
        self, ids: Tensor, mask: Tensor, teacher: Callable[[Tensor], Signals] | None, count: float
    ) -> tuple[Tensor, Tensor]:
        signals = teacher(ids) if teacher is not None and self.objective.needs_teacher else None
        hidden = hidden_states(self.model, ids)
        batch = HeadInput(
            targets=ids[:, 1:].reshape(-1),
            mask=mask[:, 1:].reshape(-1),
            count=count,
            teacher_hidden=None if signals is None else predictions(signals.hidden),
            teacher_head=None if signals is None else signals.head,
        )
        states = predictions(hidden)
        if self.settings.activations is not None:
            states = self.settings.activations(states)
        return head_loss(states, head_weight(self.model), batch, self.objective)
