"""A teacher of more tokens than its student: the student's tokens are some of its own, so it reads them as they are,
and what it gives to a token that the student lacks goes to the one that the student would begin to spell it with.

Legend: C predictions of a chunk, V the teacher's tokens, K the student's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgeslm.data.batch import Batch
from edgeslm.teachers.base import Need, Output, Signals, Teacher, dense

ROWS = 32  # predictions of [V] float32 handled together: they stay in the cache
SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Folded:
    """log of the sums of an output's probabilities over all tokens that go to the same one."""

    inner: Output
    kept: Tensor  # [K] the teacher's ids
    into: Tensor  # [V] places in `kept`

    def rows(self, part: slice, targets: Tensor) -> Tensor:
        logits = dense(self.inner.rows(part, self.kept[targets]))
        made = torch.zeros(len(logits), len(self.kept), device=logits.device)
        step = ROWS if logits.device.type == "cpu" else max(1, len(logits))
        for at in range(0, len(logits), step):
            p = torch.softmax(logits[at : at + step].float(), dim=-1)
            made[at : at + step].index_add_(1, self.into[: p.shape[1]], p[:, : len(self.into)])
        return made.clamp_min_(SMALLEST).log_()


class FoldedTeacher:
    """`teacher` speaks all its tokens; `kept` [K] are the student's as its ids, `into` [V] what becomes of each."""

    def __init__(self, teacher: Teacher, kept: Tensor, into: Tensor):
        self.teacher, self.kept, self.into = teacher, kept, into

    def __call__(self, batch: Batch, need: Need) -> Signals:
        given = self.teacher(replace(batch, ids=self.kept[batch.ids]), need)
        output = None if given.output is None else Folded(given.output, self.kept, self.into)
        return replace(given, output=output)
