"""The one optimiser step: every scheme is a loop around it.

Shape letters: B rows, T positions, N predictions, D hidden width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from edgeslm.compute import local
from edgeslm.data.batch import Batch
from edgeslm.errors import EdgeSLMError
from edgeslm.knowledge.base import Layer
from edgeslm.models.blocks import reading
from edgeslm.models.view import CAUSAL, View
from edgeslm.parallel.engine import Alone, Engine
from edgeslm.quantize.masters import Master, Masters
from edgeslm.schemes.head_loss import HeadInput, head_loss
from edgeslm.schemes.loss_weights import LossWeights
from edgeslm.schemes.objective import Objective, masked_mean
from edgeslm.schemes.terms import feature
from edgeslm.teachers.base import Dense, Need, Signals, Teacher

ANSWERS = -1  # among counts: predictions of what an assistant says


@dataclass(frozen=True)
class StepSettings:
    micro_rows: int
    clip: float
    weight_decay: float
    betas: tuple[float, float]
    refit_every: int | None  # None: scales stay as first fitted
    scale_lr: float | None = None  # of learned scales, as a share of the weights' learning rate; None: not learned
    activations: Callable[[Tensor], Tensor] | None = None  # what the runtime does to the head's input
    own_share: float = 1.0  # learning rate of weights that belong to losses, as a share of the weights' learning rate
    exits: tuple[int, ...] = ()  # layers whose own predictions are taught by the last one's (deep to shallow)
    shares: Mapping[str, float] = field(default_factory=dict)  # weight's name -> its share of the learning rate, or 1
    hold_codes: bool = False  # of what lies on a grid only scales are trained
    lr_key: str = "distill.train.lr"  # what the recipe calls the learning rate, for the sentence about divergence


@dataclass(frozen=True)
class StepLog:
    loss: float
    terms: dict[str, float]
    grad_norm: float


class Diverged(EdgeSLMError):
    """The loss became NaN or infinite."""


class Step:
    """Holds the optimiser; `__call__` takes a batch and a learning rate and leaves new weights in the module."""

    def __init__(
        self,
        model: nn.Module,
        masters: Masters,
        objective: Objective,
        settings: StepSettings,
        view: View = CAUSAL,
        base: Teacher | None = None,
        stages: Sequence[Objective] = (),
        engine: Engine | None = None,
    ):
        """`base`: an earlier student whose logits this one's are added to (residual distillation). `stages`: objectives
        that some calls will be given instead of `objective`. `engine`: what trains it on many processes."""
        self.model, self.masters, self.objective, self.settings = model, masters, objective, settings
        self.view, self.base, self.stages, self.engine = view, base, tuple(stages), engine or Alone()
        self.own = LossWeights((objective, *stages), settings.betas)
        factors = [] if settings.scale_lr is None else masters.learn_scales(hold_codes=settings.hold_codes)
        moved = [m for m in masters.items if m.held is None]
        matrices = [m.value for m in moved if m.value.dim() > 1]
        vectors = [m.value for m in moved if m.value.dim() == 1]
        groups = _groups(moved, settings)
        if factors:
            groups.append({"params": factors, "weight_decay": 0.0, "share": settings.scale_lr or 0.0})
        self.optimiser = torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, fused=True)
        self.parameters = matrices + vectors + factors
        self.clipped = matrices + vectors  # factors have their own scale: they must not steer the weights' clipping

    def __call__(
        self,
        batch: Batch,
        teacher: Teacher | None,
        *,
        lr: float,
        grid: bool,
        index: int,
        only: frozenset[str] | None = None,
        objective: Objective | None = None,
    ) -> StepLog:
        """One update. `index` is the number of updates done; `refit_every` counts them. `grid` says whether the weights
        left in the module lie on the plan's grid. `only`: names of the tensors that may move, all by default."""
        objective = objective or self.objective
        total, sums = self._backward(batch, teacher, objective)
        if not math.isfinite(total):
            raise Diverged(f"the loss is {total} at step {index}; lower {self.settings.lr_key} or look at the data")
        if only is not None:
            self._hold(only)
        norm = torch.nn.utils.clip_grad_norm_(self.clipped, self.settings.clip)
        if self.settings.scale_lr is not None and grid:
            self.masters.scale_gradients()
        for group in self.optimiser.param_groups:
            group["lr"] = lr * group["share"]
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.own.step(lr * self.settings.own_share)
        every = self.settings.refit_every
        self.masters.set_weights(grid=grid, refit=every is not None and (index + 1) % every == 0)
        return StepLog(total, dict(zip(objective.labels, sums.tolist(), strict=True)), _number(norm))

    def _backward(self, batch: Batch, teacher: Teacher | None, objective: Objective) -> tuple[float, Tensor]:
        """(loss, each term's mean) of the step, with gradients left on the masters."""
        counts, passes = self._counts(batch), self.engine.ranks.passes(batch, self.settings.micro_rows)
        total, sums = 0.0, torch.zeros(len(objective.terms), dtype=torch.float64)
        for at, part in enumerate(passes, start=1):
            given = part, teacher, objective, counts
            loss, terms = self.engine.forward(self._forward, *given, last=at == len(passes))
            loss.backward()
            total += float(loss.detach())
            sums += terms.cpu()
        self.engine.collect()
        return (total, sums) if self.engine.ranks.size == 1 else self._over_ranks(total, sums)

    def _over_ranks(self, total: float, sums: Tensor) -> tuple[float, Tensor]:
        """The losses of all ranks, and on each of them the gradients of weights that belong to losses."""
        add_up, held = self.engine.ranks.add_up, list(self.own.named.values())
        used = torch.tensor([float(value.grad is not None) for value in held])
        add_up([used] if held else [])
        for value, some in zip(held, used.tolist(), strict=True):
            if some and value.grad is None:
                value.grad = torch.zeros_like(value)
        add_up(value.grad for value in held if value.grad is not None)
        losses = torch.cat([torch.tensor([total], dtype=torch.float64), sums])
        add_up([losses])
        return float(losses[0]), losses[1:]

    @property
    def held_bytes(self) -> int:
        """Of weights, masters, scales and the optimiser's moments, as far as they lie on this process."""
        found = [local(t) for m in self.masters.items for t in (m.weight.data, m.value.data, *m.scales.values())]
        found += [m.held for m in self.masters.items if m.held is not None]
        found += [local(t) for state in self.optimiser.state.values() for t in state.values()]
        return sum(t.numel() * t.element_size() for t in found)

    def release(self) -> None:
        """Lets masters, gradients and moments go, once they are frozen: no step can follow. Judging, which comes then,
        takes their memory for float32 copies."""
        self.optimiser.state.clear()
        for master in self.masters.items:
            master.value = nn.Parameter(torch.empty(0))
            master.held = master.learned = None
        for group in self.optimiser.param_groups:
            group["params"] = []
        self.parameters, self.clipped = [], []

    def _counts(self, batch: Batch) -> dict[int, float]:
        """What means are taken over, by the number of dimensions of the values: predictions, rows, tokens; and answers,
        of which a step may hold none."""
        predictions, answers = float(self.view.truth(batch)[1].sum()), batch.answers
        spoken = 0.0 if answers is None else float(answers.sum())
        return {0: predictions, 1: float(len(batch)), 2: float(batch.mask.sum()), ANSWERS: max(1.0, spoken)}

    def _forward(
        self, batch: Batch, teacher: Teacher | None, objective: Objective, counts: dict[int, float]
    ) -> tuple[Tensor, Tensor]:
        need = objective.need
        signals = teacher(batch, need) if teacher is not None and objective.needs_teacher else Signals(None)
        wants = dict(objective.wants)
        for layer in self.settings.exits:
            wants[layer] = wants.get(layer, frozenset()) | {"hidden"}
        with reading(self.model, wants) as layers:
            states = self.view.states(self.model, batch)
        if self.settings.activations is not None:
            states = self.settings.activations(states)
        loss, sums = torch.zeros((), device=states.device), torch.zeros(0, dtype=torch.float64)
        if objective.responses:
            loss, sums = self._response(states, layers, signals, batch, counts, objective)
        found = []
        for term in objective.features:
            mean = self._mean(feature(term, layers, signals.layers[term.teacher], batch.mask), batch, counts)
            loss = loss + term.weight * mean
            found.append(float(mean.detach()))
            if term.loss.judge is not None:
                judged = feature(term, _detached(layers), signals.layers[term.teacher], batch.mask, judged=True)
                self._mean(judged, batch, counts).backward()
        return loss, torch.cat([sums.cpu(), torch.tensor(found, dtype=torch.float64)])

    def _mean(self, values: Tensor, batch: Batch, counts: dict[int, float]) -> Tensor:
        mask = batch.mask if values.dim() == 2 else torch.ones_like(values)
        return masked_mean(values, mask, counts[values.dim()])

    def _response(
        self,
        states: Tensor,
        layers: Mapping[int, Layer],
        signals: Signals,
        batch: Batch,
        counts: dict[int, float],
        objective: Objective,
    ) -> tuple[Tensor, Tensor]:
        (targets, mask), terms, count = self.view.truth(batch), objective.responses, counts[0]
        answers = None if batch.answers is None else batch.answers * (count / counts[ANSWERS])
        head, teacher = self.view.head(self.model), signals.output
        base = None if self.base is None else self.base(batch, Need()).output
        given = HeadInput(targets, mask, count, teacher, base, signals.foreign, answers)
        if not self.settings.exits:
            return head_loss(states, head, given, terms)
        # the last layer follows the text or an outer teacher, and every exit the last layer (BYOT, arXiv:1905.08094)
        own = Dense(states.detach(), head.detach())
        loss, sums = head_loss(states, head, replace(given, teacher=teacher or own), terms)
        for layer in self.settings.exits:
            hidden = layers[layer].hidden
            assert hidden is not None
            early = self.view.exit(self.model, hidden)
            part, _ = head_loss(early, head, HeadInput(targets, mask, count, own, answers=answers), terms)
            loss = loss + part / len(self.settings.exits)
        return loss, sums

    def _hold(self, only: frozenset[str]) -> None:
        """Gradients of all other tensors are put away: with no gradient the optimiser leaves a tensor as it is."""
        for master in self.masters.items:
            if master.name not in only:
                master.value.grad = None


def _groups(masters: Sequence[Master], settings: StepSettings) -> list[dict[str, Any]]:
    """Matrices decay, vectors do not; each by its share of the learning rate. What a matrix loses by decay in a step,
    learning rate times decay, is the same whatever its share."""
    found: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for master in masters:
        found.setdefault((master.value.dim() == 1, settings.shares.get(master.name, 1.0)), []).append(master.value)
    return [
        {"params": values, "weight_decay": 0.0 if vector else settings.weight_decay / share, "share": share}
        for (vector, share), values in sorted(found.items(), key=lambda item: item[0][0])
    ]


def _number(norm: Tensor) -> float:
    """Of the gradient; where ranks share it, each has a part of the norm."""
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def _detached(layers: Mapping[int, Layer]) -> dict[int, Layer]:
    def free(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.detach()

    return {
        index: Layer(free(x.hidden), free(x.attention), free(x.query), free(x.key), free(x.value))
        for index, x in layers.items()
    }
