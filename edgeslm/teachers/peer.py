"""Copies of a student as they were a while ago, on other machines or here (codistillation, arXiv:1804.03235).

Shape letter: N predictions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from edgeslm.data.batch import Batch
from edgeslm.models.view import CAUSAL, View
from edgeslm.teachers.base import Need, Signals, Teacher
from edgeslm.teachers.ensemble import Ensemble
from edgeslm.teachers.live import LiveTeacher

PEERS = -1  # the place of peers among the teachers of an objective: the recipe's own count from 0


class Shelf:
    """Modules that hold peers' weights, one for each state that is in use, however many groups use it."""

    def __init__(self, like: nn.Module):
        self.like, self.spare = like, list[nn.Module]()
        self.held: dict[str, nn.Module] = {}
        self.wanted: dict[int, set[str]] = {}  # group -> states it may use again

    def teacher(self, sha256: str, weights: Callable[[], dict[str, Tensor]]) -> Teacher:
        """The state of that digest; `weights` are read where it is not on the shelf."""
        if sha256 not in self.held:
            model = self.spare.pop() if self.spare else copy.deepcopy(self.like).requires_grad_(False)
            found = weights()
            with torch.no_grad():
                for name, value in model.named_parameters():
                    value.copy_(found[name])
            self.held[sha256] = model
        return LiveTeacher(self.held[sha256])

    def keep(self, group: int, states: set[str]) -> None:
        """`group` may use these again; what no group wants gives its module to the next state that comes."""
        self.wanted[group] = states
        for sha256 in set(self.held) - set().union(*self.wanted.values()):
            self.spare.append(self.held.pop(sha256))


class Beside:
    """The mean of peers' predictions as teacher `PEERS`, beside the recipe's own teacher where that one teaches."""

    def __init__(self, outer: Teacher | None, peers: Sequence[Teacher], view: View = CAUSAL):
        self.outer, self.view = outer, view
        self.peers: Teacher = peers[0] if len(peers) == 1 else Ensemble(peers, [1.0] * len(peers))

    def __call__(self, batch: Batch, need: Need) -> Signals:
        given = Signals(None) if self.outer is None else self.outer(batch, need)
        output = self.peers(batch, Need()).output
        assert output is not None
        known = torch.ones_like(self.view.truth(batch)[1])  # [N]
        return replace(given, foreign={**given.foreign, PEERS: (output, known)})
