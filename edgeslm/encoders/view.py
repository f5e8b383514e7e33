"""How the one step sees an encoder: its logits are the states and the head is the identity, so that every loss on an
output distribution serves classes and spans as it serves vocabularies.

Shape letters: B rows, T positions, V outcomes, N predictions: B of classes, 2 B of spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeslm.data.batch import Batch
from edgeslm.encoders.model import OUT_OF_REACH
from edgeslm.teachers.base import Dense, Need, Signals, Teacher


def inputs(model: nn.Module, batch: Batch) -> list[Tensor]:
    """The fields of a row that this model reads; teacher and student may read different ones."""
    own = {"ids": batch.ids, "mask": batch.mask, **batch.fields}
    found = [own[name] for name in model.body.reads]  # type: ignore[union-attr]
    return [x.long() if name in ("ids", "types") else x for name, x in zip(model.body.reads, found, strict=True)]  # type: ignore[union-attr, arg-type]


@dataclass(frozen=True)
class EncoderView:
    """`classes` of every task of the recipe; `tasks`: the places of those that this model has a head for. A row's
    outcomes are its own task's classes: all others are out of reach."""

    task: str
    length: int
    classes: tuple[int, ...] = ()
    tasks: tuple[int, ...] = ()

    def states(self, model: nn.Module, batch: Batch) -> Tensor:
        made = model(*inputs(model, batch))
        if self.task == "span":
            return made.reshape(-1, self.length)  # [B, 2, T] -> [2 B, T]
        if self.task == "similarity":
            return made[:, :1]  # no distribution: losses read layers
        width = sum(self.classes)
        full = made.new_zeros(len(made), width).index_copy(1, self._columns(self.tasks, made.device), made)
        return full.masked_fill(~self._reach(batch), -OUT_OF_REACH)

    def head(self, model: nn.Module) -> Tensor:
        width = {"span": self.length, "similarity": 1}.get(self.task, sum(self.classes))
        return torch.eye(width, device=next(model.parameters()).device)

    def truth(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Targets below 0: nothing is known of the row, and a loss on the truth is 0 there."""
        if self.task == "similarity":
            return torch.zeros(len(batch), dtype=torch.long, device=batch.ids.device), torch.ones_like(batch.mask[:, 0])
        if self.task == "span":
            targets = torch.stack([batch.fields["start"], batch.fields["end"]], dim=1).reshape(-1).long()
        else:
            label = batch.fields["label"].long()
            first = torch.tensor([sum(self.classes[:t]) for t in range(len(self.classes))], device=label.device)
            targets = torch.where(label < 0, label, label + first[batch.fields["task"].long()])
        return targets, torch.ones_like(targets, dtype=torch.float32)

    def exit(self, model: nn.Module, hidden: Tensor) -> Tensor:
        raise NotImplementedError("recipes of encoders name no exits")

    def _columns(self, tasks: Sequence[int], device: torch.device) -> Tensor:
        """Places of the classes of some tasks among all."""
        first = [sum(self.classes[:t]) for t in range(len(self.classes))]
        return torch.tensor([first[t] + c for t in tasks for c in range(self.classes[t])], device=device)

    def _reach(self, batch: Batch) -> Tensor:
        """bool [B, V]"""
        owner = torch.tensor([t for t, count in enumerate(self.classes) for _ in range(count)], device=batch.ids.device)
        return owner[None] == batch.fields["task"].long()[:, None]


class ByTask:
    """Every row is taught by the teacher of its task: `owner[task]` is that teacher's place."""

    def __init__(self, teachers: Sequence[Teacher], owner: Sequence[int]):
        self.teachers, self.owner = list(teachers), torch.tensor(owner)

    def __call__(self, batch: Batch, need: Need) -> Signals:
        owner = self.owner.to(batch.ids.device)[batch.fields["task"].long()]
        states: Tensor | None = None
        head: Tensor | None = None
        for place, teacher in enumerate(self.teachers):
            rows = (owner == place).nonzero().squeeze(1)
            if not len(rows):
                continue
            given = teacher(_some(batch, rows), Need(need.output)).output
            assert isinstance(given, Dense)
            head = given.head
            states = given.states.new_zeros(len(batch), given.states.shape[1]) if states is None else states
            states[rows] = given.states
        assert states is not None and head is not None
        return Signals(Dense(states, head))


def _some(batch: Batch, rows: Tensor) -> Batch:
    fields = {name: value[rows] for name, value in batch.fields.items()}
    places = None if batch.rows is None else batch.rows[rows.to(batch.rows.device)]
    return Batch(batch.ids[rows], batch.mask[rows], places, fields)
