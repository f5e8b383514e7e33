"""How the passes of one step, on one process or many, become one gradient on the masters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from edgeslm.parallel.ranks import ALONE, Ranks


class Engine(Protocol):
    ranks: Ranks

    def forward(self, run: Callable[..., Any], *inputs: Any, last: bool) -> Any:
        """run(*inputs), the forward of a pass. `last`: of the passes of its step."""

    def collect(self) -> None:
        """After the backward of the last pass: masters hold the gradient of the whole batch. One that no pass of no
        rank gave a gradient has none."""

    def twin(self, model: nn.Module) -> nn.Module:
        """A copy of the student's module with the weights that it has, held as the student is."""

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """All weights of the student's module or of a twin, whole, on the first rank; elsewhere too, or none. All ranks
        call."""


class Whole:
    """A process that holds the whole student."""

    def twin(self, model: nn.Module) -> nn.Module:
        return copy.deepcopy(model)

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        return dict(model.named_parameters())


class Alone(Whole):
    """One process: modules' gradients go to their masters by themselves."""

    ranks = ALONE

    def forward(self, run: Callable[..., Any], *inputs: Any, last: bool) -> Any:
        return run(*inputs)

    def collect(self) -> None:
        return
