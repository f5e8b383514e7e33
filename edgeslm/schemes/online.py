"""Online distillation: students that teach each other while they learn (DML, arXiv:1706.00384). One is shipped, at the
cost of one.

`mean`: each learns from the mean of the others. `ensemble`: from the mean of all, itself included (ONE,
arXiv:1806.04606). `leader`: from the peer whose loss on the text is lowest of late (after arXiv:1912.00350); the leader
itself from the mean of the others. With a share of an outer teacher that teacher joins the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edgeslm.data.batch import Batch
from edgeslm.schemes.loop import Loop, turns
from edgeslm.schemes.measure import row_distance
from edgeslm.schemes.objective import Objective
from edgeslm.schemes.step import Step, StepLog
from edgeslm.teachers.base import Teacher
from edgeslm.teachers.ensemble import Ensemble
from edgeslm.teachers.live import LiveTeacher

MEMORY = 0.9  # of the running loss that decides who leads


def run(steps: Sequence[Step], teacher: Teacher | None, loop: Loop, part: Any) -> None:
    peers = [LiveTeacher(step.model) for step in steps]
    losses = torch.zeros(len(steps), dtype=torch.float64)  # running means, 0 before the first
    apart = loop.train.steps // len(steps)  # peers read the same rows at different times, or nothing would part them
    for turn in turns(loop, steps, {"losses": losses}):
        logs, notes = [], []
        for me, step in enumerate(steps):
            guides = _guides(me, peers, losses, part.learn_from)
            weights = [(1.0 - part.outer_share) / len(guides)] * len(guides)
            if teacher is not None and part.outer_share:
                guides, weights = [*guides, teacher], [*weights, part.outer_share]
            other = steps[(me + 1) % len(steps)].model  # what a peer writes is kept where these two differ most
            index = (turn.index + me * apart) % loop.train.steps
            batch, objective, said = loop.read_or_written(index, step, partial(_from, other))
            log = step(batch, Ensemble(guides, weights), **turn.how, objective=objective)
            if batch.rows is not None:  # who wrote a text reads it best
                loss = _of_text(objective, log)
                losses[me] = MEMORY * losses[me] + (1 - MEMORY) * loss if losses[me] else loss
            logs.append(log)
            notes.append(said)
        turn.log = logs[0]
        turn.notes = {"peer_losses": [log.loss for log in logs], "leader": int(losses.argmin()), **notes[0]}


def _from(other: nn.Module, student: nn.Module, text: Batch) -> Tensor:
    return row_distance(student, other, text)


def _of_text(objective: Objective, log: StepLog) -> float:
    """The loss of the terms that look at the text alone; of all where every term has a teacher."""
    named = zip(objective.labels, objective.responses, strict=False)  # labels of responses come first
    alone = [t.weight * log.terms[label] for label, t in named if not getattr(t.loss, "needs_teacher", True)]
    return sum(alone) if alone else log.loss


def _guides(me: int, peers: Sequence[Teacher], losses: torch.Tensor, learn_from: str) -> list[Teacher]:
    others = [p for index, p in enumerate(peers) if index != me]
    if learn_from == "ensemble":
        return list(peers)
    leader = int(losses.argmin())
    return [peers[leader]] if learn_from == "leader" and leader != me else others
