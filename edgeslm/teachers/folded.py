"""A teacher of more tokens than its student: the student's tokens are some of its own, so it can read them as they are,
and what it gives to a token that the student lacks goes to the one that the student would begin to spell it with. Or it
reads the text in its own tokens, as it learned to, and is heard where one of them ends. Inside, the text speaks for it:
the student hears there what follows as often as it does follow, and where a token ends what the teacher gives to all
that may come, so that both together weigh what begins alike as the teacher does. That holds for losses whose gradient
on a certain teacher is cross-entropy's: CERTAIN.

Legend: N predictions, C of a chunk, V the teacher's tokens, K the student's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from edgeslm.data.batch import Batch
from edgeslm.teachers.base import Need, Output, Signals, Teacher, dense
from edgeslm.teachers.foreign import ForeignTeacher
from edgeslm.teachers.live import LiveTeacher

CERTAIN = ("forward_kl", "soft_cross_entropy")
ROWS = 32  # predictions of [V] float32 handled together: they stay in the cache
SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Folded:
    """log of the sums of an output's probabilities over all tokens that go to the same one. Where the teacher is not
    `heard`, all goes to the true outcome."""

    inner: Output
    kept: Tensor  # [K] the teacher's ids
    into: Tensor  # [V] places in `kept`
    heard: Tensor | None = None  # [N] bool; None: everywhere

    def rows(self, part: slice, targets: Tensor) -> Tensor:
        logits = dense(self.inner.rows(part, self.kept[targets]))
        made = torch.zeros(len(logits), len(self.kept), device=logits.device)
        step = ROWS if logits.device.type == "cpu" else max(1, len(logits))
        for at in range(0, len(logits), step):
            p = torch.softmax(logits[at : at + step].float(), dim=-1)
            made[at : at + step].index_add_(1, self.into[: p.shape[1]], p[:, : len(self.into)])
        if self.heard is not None:
            heard = self.heard[part, None]
            made.mul_(heard).scatter_add_(1, targets[:, None], (~heard).float())
        return made.clamp_min_(SMALLEST).log_()


class FoldedTeacher:
    """`teacher` speaks all its tokens; `kept` [K] are the student's as its ids, `into` [V] what becomes of each."""

    def __init__(self, teacher: Teacher, kept: Tensor, into: Tensor):
        self.teacher, self.kept, self.into = teacher, kept, into

    def __call__(self, batch: Batch, need: Need) -> Signals:
        given = self.teacher(replace(batch, ids=self.kept[batch.ids]), need)
        output = None if given.output is None else Folded(given.output, self.kept, self.into)
        return replace(given, output=output)


class OwnTokensTeacher(ForeignTeacher):
    """Reads the text in its own tokens. Inside one that the student spells the text speaks for it."""

    def __init__(self, model: Any, own: Any, student: Any, index: int, kept: Tensor, into: Tensor):
        super().__init__(model, own, student, index)
        self.kept, self.into, self.ids = kept, into, kept.tolist()
        self.special = set(student.all_special_ids)  # they stand for no text, and are the same for both

    def __call__(self, batch: Batch, need: Need) -> Signals:
        output, heard = super().__call__(batch, need).foreign[self.index]
        return Signals(Folded(output, self.kept, self.into, heard.bool()))

    def _row(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        own, places = list[int](), list[int]()
        for special, run in groupby(ids, self.special.__contains__):
            some = list(run)
            found, at = ([self.ids[i] for i in some], range(len(some))) if special else super()._row(some)
            places += [len(own) + place if place >= 0 else -1 for place in at]
            own += found
        return own, places


@dataclass(frozen=True)
class Folding:
    """How teachers of more tokens teach. `tokenizers`: (theirs, the student's) where they read their own."""

    kept: Tensor
    into: Tensor
    tokenizers: tuple[Any, Any] | None = None

    def teacher(self, model: Any, index: int) -> Teacher:
        if self.tokenizers is None:
            return FoldedTeacher(LiveTeacher(model, index=index), self.kept, self.into)
        return OwnTokensTeacher(model, *self.tokenizers, index, self.kept, self.into)
