"""Weights that belong to losses: projections and translators learn with the student, adversaries against it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgeslm.schemes.objective import Objective


class LossWeights:
    """Two optimisers, one for weights that help the student and one for its adversaries."""

    def __init__(self, objectives: Sequence[Objective], betas: tuple[float, float]):
        self.named: dict[str, Tensor] = {}
        sides: dict[bool, list[Tensor]] = {False: [], True: []}
        for stage, objective in enumerate(objectives):
            for label, term in zip(objective.labels, (*objective.responses, *objective.features), strict=True):
                for index, params in enumerate(term.params):
                    for name, value in params.items():
                        self.named[f"{stage}|{label}|{index}|{name}"] = value
                        sides[term.loss.judge is not None].append(value)
        self.optimisers = [
            torch.optim.AdamW(values, lr=0.0, betas=betas, weight_decay=0.0) for values in sides.values() if values
        ]

    def step(self, lr: float) -> None:
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = lr
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Weights and optimiser moments by name, for a checkpoint."""
        flat = {f"own|{name}": value for name, value in self.named.items()}
        for name, value in self.named.items():
            for key, moment in self._moments(value).items():
                flat[f"own-optimiser|{name}|{key}"] = moment
        return flat

    def load_state(self, flat: dict[str, Tensor]) -> None:
        for name, value in self.named.items():
            value.data.copy_(flat[f"own|{name}"])
            prefix = f"own-optimiser|{name}|"
            kept = {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}
            if kept:
                self._owner(value).state[value] = {
                    key: moment if key == "step" else moment.to(value.device) for key, moment in kept.items()
                }

    def _owner(self, value: Tensor) -> torch.optim.Optimizer:
        return next(o for o in self.optimisers if any(value is p for g in o.param_groups for p in g["params"]))

    def _moments(self, value: Tensor) -> dict[str, Tensor]:
        return dict(self._owner(value).state.get(value, {}))
