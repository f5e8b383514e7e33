"""Sixteen uneven levels: from code to level and from weight to nearest code, each by one look into a table.

The levels are whole numbers, so the halfway points between neighbours are multiples of one half: cutting the line into
cells of one half leaves no halfway point inside a cell, and the cell alone names the nearest level.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Levels:
    """`values[code]` is the level; `reach` is a power of two at or above the largest magnitude."""

    values: tuple[int, ...]
    reach: int

    def of(self, codes: Tensor) -> Tensor:
        """uint8 codes -> float32 levels of the same shape."""
        flat = codes.reshape(-1).to(torch.int32)
        return _values(self, codes.device).index_select(0, flat).reshape(codes.shape)

    def nearest(self, w: Tensor, per_step: Tensor) -> Tensor:
        """Codes uint8 of the levels nearest to w * per_step (1 / step, broadcast)."""
        return _codes(self, w.device).index_select(0, self._cells(w, per_step)).reshape(w.shape)

    def rounded(self, w: Tensor, per_step: Tensor) -> Tensor:
        """The nearest levels themselves, float32."""
        return _nearest(self, w.device).index_select(0, self._cells(w, per_step)).reshape(w.shape)

    def _cells(self, w: Tensor, per_step: Tensor) -> Tensor:
        """Cell numbers below 4 reach. NaN, which a diverged training can hold, must not become a wild index."""
        most = 4 * self.reach - 1
        x = torch.mul(w, per_step * 2).add_(2 * self.reach).clamp_(0, most)
        return x.to(torch.int32).bitwise_and_(most).reshape(-1)


@functools.cache
def _values(levels: Levels, device: torch.device) -> Tensor:
    return torch.tensor(levels.values, dtype=torch.float32, device=device)


@functools.cache
def _codes(levels: Levels, device: torch.device) -> Tensor:
    """[4 reach] the code of the level nearest to each cell's middle; of two codes of one level the first."""
    middles = (torch.arange(4 * levels.reach) - 2 * levels.reach + 0.5) / 2
    distance = (middles[:, None] - torch.tensor(levels.values)).abs()
    return distance.argmin(dim=1).to(torch.uint8).to(device)


@functools.cache
def _nearest(levels: Levels, device: torch.device) -> Tensor:
    return levels.of(_codes(levels, device))


# ggml-common.h kvalues_iq4nl: levels that suit weights of a bell-shaped density
IQ4 = Levels((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), 128)
# kvalues_fp4: the E2M1 numbers of the OCP microscaling standard, doubled; code 8 is minus zero
FP4 = Levels((0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12), 16)
