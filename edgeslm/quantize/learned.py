"""Scales that are trained: learned step size quantisation (LSQ, Esser et al., arXiv:1902.08153).

A weight on the grid is levels(q) * step - minimum with q the nearest level to x = (w + minimum) / step. Passing the
gradient straight through the rounding gives, with G the gradient of the decoded weight,

    dL/dstep    = sum over the group of G * (level - x)   where x is within the grid, G * level where it is clipped
    dL/dminimum = sum over the group of -G                where clipped, else 0   (LSQ+, arXiv:2004.09576)

What is trained is a factor on the fitted step (and for affine grids on the fitted minimum), so that one learning rate
suits all blocks. Where steps are small integers of a float16, one factor more moves that float16 and all steps with it:
integers alone, of four or six bits, are too coarse to follow a small change. After every update the file's own rounding
is applied (`BlockFormat.gather`): float16, six bits of a float16, a power of two. The gradient passes straight through
that rounding too.

Shape letters: n blocks, k weights in a block, g groups (sub-blocks with a scale of their own) in a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeslm.formats.base import BlockFormat, Scales
from edgeslm.formats.search import to_float16

ZERO = "z"  # of n-bit products: minimum = zero point * step
OUTER = {"d": "sc", "dmin": "m"}  # of steps, of minima: the float16 of a block, and the integers it is multiplied by


@dataclass
class LearnedScales:
    """Factors on the fitted scales of one tensor. `base` are the scales as fitted."""

    step: nn.Parameter  # [n, g] around 1
    minimum: nn.Parameter | None  # [n, g] around 1, of affine grids; without it the minimum moves with the step
    outer: dict[str, nn.Parameter]  # [n, 1] around 1: of the scales of scales, by their name
    base: Scales
    low: float  # smallest and largest level of the grid
    high: float

    @classmethod
    def around(cls, grid: BlockFormat, scales: Scales, hold_codes: bool = False) -> LearnedScales:
        """Factors of 1: training starts from the fitted scales. `hold_codes`: codes will stay, and so must integer zero
        points, which are codes too: one that moves takes its whole block a step further."""
        step, minimum = grid.spread(scales)  # type: ignore[misc]
        own = None
        if minimum is not None and not (hold_codes and ZERO in scales):
            own = nn.Parameter(torch.ones_like(minimum))
        base = {key: value.clone() for key, value in scales.items()}
        outer = {
            key: nn.Parameter(torch.ones_like(base[key], dtype=torch.float32))
            for key, integers in OUTER.items()
            if key in base and integers in base
        }
        return cls(nn.Parameter(torch.ones_like(step)), own, outer, base, *extremes(grid, scales))

    @torch.no_grad()
    def restart(self, grid: BlockFormat, scales: Scales) -> None:
        """Factors of 1 on newly fitted scales; the optimiser's moments stay, they are of the same kind."""
        self.base = {key: value.clone() for key, value in scales.items()}
        for parameter in self.parameters:
            parameter.fill_(1.0)

    @property
    def parameters(self) -> list[nn.Parameter]:
        inner = [self.step] if self.minimum is None else [self.step, self.minimum]
        return [*inner, *self.outer.values()]

    @torch.no_grad()
    def scales(self, grid: BlockFormat) -> Scales:
        """What the factors stand for, on the grid the file stores."""
        base = self.base | {key: to_float16(self.base[key].float() * factor) for key, factor in self.outer.items()}
        step, minimum = grid.spread(base)  # type: ignore[misc]
        moved = None if minimum is None else minimum * (self.step if self.minimum is None else self.minimum)
        return grid.gather(step * self.step, moved, base)  # type: ignore[misc]

    @torch.no_grad()
    def gradients(
        self, grid: BlockFormat, w: Tensor, grad: Tensor, scales: Scales, part: slice, importance: Tensor | None = None
    ) -> list[Tensor]:
        """Of the factors of blocks `part`: w, grad [n, k] and `scales`, with which the weights were decoded, are
        those blocks', and so is the `importance` [n, k] they were encoded with. One tensor for each of
        `parameters`."""
        step, minimum = grid.spread(scales)  # type: ignore[misc]
        n, groups = step.shape
        x = w.reshape(n, groups, -1)
        if minimum is not None:
            x = x + minimum[:, :, None]
        x = x * torch.where(step == 0, 0.0, 1.0 / step)[:, :, None]
        level = grid.levels(grid.nearest(w, scales, importance)).reshape(x.shape)  # type: ignore[misc]
        clipped = (x < self.low) | (x > self.high)
        g = grad.reshape(x.shape)
        of_step = (g * (level - x.masked_fill_(clipped, 0.0))).sum(2)
        return self._of_factors(grid, of_step, -(g * clipped).sum(2), scales, part)

    @torch.no_grad()
    def gradients_of_held(
        self, grid: BlockFormat, codes: Tensor, grad: Tensor, scales: Scales, part: slice
    ) -> list[Tensor]:
        """As `gradients`, of codes [n, k] that do not depend on the scales: of levels(codes) * step - minimum."""
        g = grad.reshape(*grid.spread(scales)[0].shape, -1)  # type: ignore[misc]
        of_step = (g * grid.levels(codes).reshape(g.shape)).sum(2)  # type: ignore[misc]
        return self._of_factors(grid, of_step, -g.sum(2), scales, part)

    def _of_factors(
        self, grid: BlockFormat, of_step: Tensor, of_minimum: Tensor, scales: Scales, part: slice
    ) -> list[Tensor]:
        """Gradients of steps and minima [n, g] -> those of `parameters`."""
        base = grid.spread({key: value[part] for key, value in self.base.items()})  # type: ignore[misc]
        now = grid.spread(scales)  # type: ignore[misc]
        found, outer = list[Tensor](), list[Tensor]()
        for key, gradient, fitted, moved in zip(OUTER, (of_step, of_minimum), base, now, strict=True):
            if fitted is None or moved is None:
                continue
            if key not in self.outer:
                found.append(gradient * fitted)
                continue
            factor = self.outer[key].data[part]
            found.append(gradient * fitted * factor)
            outer.append((gradient * moved).sum(1, keepdim=True) / factor)
        if self.minimum is None and len(found) == 2:
            found = [found[0] + found[1]]
        return [*found, *outer]


def extremes(grid: BlockFormat, scales: Scales) -> tuple[float, float]:
    """Smallest and largest level: what weights far outside are rounded to."""
    some = {key: value[:4096] for key, value in scales.items()}
    step, minimum = grid.spread(some)  # type: ignore[misc]
    if not len(step):  # this process has none of the tensor's rows
        return 0.0, 0.0
    reach = step.abs() if minimum is None else step.abs() + minimum.abs()
    far = (1e4 * reach).repeat_interleave(grid.block // step.shape[1], dim=1)
    found = [grid.levels(grid.encode(side, some)) for side in (-far, far)]  # type: ignore[misc]
    return min(float(f.min()) for f in found), max(float(f.max()) for f in found)
