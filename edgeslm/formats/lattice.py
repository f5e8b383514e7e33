"""Search of the step and the minimum of short blocks: many trials, each polished by least squares.

Weighted squared error as a function of (step, minimum) is a patchwork of parabolas, one for every way the weights can
round. A trial rounds (chooses a patch), then jumps to the bottom of that patch; the lowest bottom wins. Trials are a
coarse grid of clipped ranges, then moves of both ends of the best range by fractions of a level. The idea is that of
ggml-quants.c `make_qkx3_quants` and `make_qx_quants`; here both ends are free, and the winner's neighbours are tried.

Shape letters: s weights in a block, c blocks. A block is a column ([s, c]): what belongs to a block is then a vector
along which the processor runs, and a sum over a block is a sum of vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from edgeslm.formats.base import Scales

ENDS = (1.0, 0.85, 0.7, 0.5)  # shares of the way from the middle to the extremes that an affine grid spans
SHARES = tuple(1.1 - 0.05 * i for i in range(14))  # shares of the largest weight that a symmetric grid reaches
MOVES = (1.0, 0.5, 0.25)  # levels by which the ends of the best grid so far are moved
SINGULAR = 1e-6  # relative determinant below which all weights of a block count as rounded to one code
SLICE_WEIGHTS = 1 << 17  # the arrays of a search over so many share a core's cache

Found = tuple[Tensor, Tensor, Tensor | None]  # error less its constant part, step, minimum, each [c]


def inverse(x: Tensor) -> Tensor:
    """1/x, and 0 where x is 0 (ggml: `id = d ? 1.0f/d : 0.0f`)."""
    return torch.where(x == 0, 0.0, 1.0 / x)


def by_slices(fit: Callable[..., Scales], w: Tensor, importance: Tensor | None) -> Scales:
    """fit(w [n, k], importance [n, k] or None) on as many blocks at a time as a processor's cache holds."""
    rows = SLICE_WEIGHTS // w.shape[1] if w.device.type == "cpu" else w.shape[0]
    cuts = [slice(at, at + rows) for at in range(0, w.shape[0], rows)]
    parts = [fit(w[cut], None if importance is None else importance[cut]) for cut in cuts]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def unit_of(w: Tensor) -> Tensor:
    """[n, 1] powers of two that scale w [n, k] to below 2, so that no sum of squares under- or overflows."""
    _, exponent = torch.frexp(w.abs().amax(1, keepdim=True))
    return torch.ldexp(torch.ones_like(w[:, :1]), (exponent - 1).clamp(min=-100))


def relative(importance: Tensor) -> Tensor:
    """Importance [n, k] over its mean in the block. The floor gives weights that never matter a scale as well."""
    mean = importance.mean(1, keepdim=True)
    return torch.where(mean > 0, importance / mean, 1.0).clamp_(min=1e-6)


def columns_of(x: Tensor, size: int) -> Tensor:
    """[n, k] -> [size, n * k / size]: block by block, weights downwards."""
    return x.reshape(-1, size).t().contiguous()


class Columns:
    """Weights x [s, c] of importance u [s, c] on the levels low..high: w = step * level - minimum."""

    def __init__(self, x: Tensor, u: Tensor | None, low: int, high: int):
        self.x, self.low, self.high = x, low, high
        self.u = torch.ones_like(x) if u is None else u
        self.ux = self.u * x
        self.su, self.sux = self.u.sum(0), self.ux.sum(0)
        self._q, self._t = torch.empty_like(x), torch.empty_like(x)

    def nearest(self, step: Tensor, minimum: Tensor | None) -> Tensor:
        """Nearest levels [s, c], float32, in a buffer that the next call overwrites."""
        per_weight = inverse(step)
        torch.mul(self.x, per_weight, out=self._q)
        if minimum is not None:
            self._q.add_(minimum * per_weight)
        return self._q.round_().clamp_(self.low, self.high)

    def error(self, step: Tensor, minimum: Tensor | None) -> Tensor:
        """Weighted squared error [c] after rounding."""
        rest = self.nearest(step, minimum).mul_(step).sub_(self.x)
        if minimum is not None:
            rest.sub_(minimum)
        return torch.mul(rest, rest, out=self._t).mul_(self.u).sum(0)

    def sums(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """sum(u q), sum(u q q), sum(u q x), each [c]: all that least squares needs to know of levels q."""
        qx = torch.mul(q, self.ux, out=self._t).sum(0)
        weighted = torch.mul(q, self.u, out=self._t)
        return weighted.sum(0), weighted.mul_(q).sum(0), qx

    def polish(self, step: Tensor, minimum: Tensor | None, free: bool) -> Found:
        """Rounds, then least squares. Unless `free`, a minimum never gets below 0 (K formats cannot store one)."""
        q, qq, qx = self.sums(self.nearest(step, minimum))
        alone = qx * inverse(qq)
        if minimum is None:
            return -alone * qx, alone, None
        determinant = self.su * qq - q * q
        regular = determinant > SINGULAR * self.su * qq
        new = torch.where(regular, (self.su * qx - q * self.sux) / determinant, step)
        offset = (new * q - self.sux) / self.su
        if not free:
            new = torch.where(regular & (offset < 0), alone.clamp_(min=0), new)
            offset.clamp_(min=0)
        error = new * (new * qq - 2 * (qx + offset * q)) + offset * (offset * self.su + 2 * self.sux)
        return error, new, offset

    def search(self, free: bool = False) -> tuple[Tensor, Tensor]:
        """Step >= 0 and minimum [c] of least error for an affine grid (low is 0)."""
        low, high = self.x.amin(0), self.x.amax(0)
        if not free:
            low.clamp_(max=0)
        # weights lie around 0 far more often than around the middle of their range
        middle = torch.where((low < 0) & (high > 0), 0.0, (low + high) / 2)
        found: Found | None = None
        for down, up in product(ENDS, ENDS):
            bottom, top = torch.lerp(middle, low, down), torch.lerp(middle, high, up)
            found = self._better(found, (top - bottom).clamp_(min=0) / self.high, -bottom, free)
        assert found is not None
        for move in MOVES:
            _, step, minimum = found
            assert minimum is not None
            for down, up in product((-move, 0.0, move), repeat=2):
                found = self._better(found, step * (1 + (up - down) / self.high), minimum - step * down, free)
        assert found[2] is not None
        return found[1], found[2]

    def search_symmetric(self, shares: tuple[float, ...] = SHARES, signed: bool = True) -> Tensor:
        """Step [c] of least error for a grid around 0. A `signed` step may point the longer side, `low`, upwards."""
        low, high = self.x.amin(0), self.x.amax(0)
        largest = torch.where(high > -low, high, low if signed else -low)
        found: Found | None = None
        for share, end in product(shares, (self.low if signed else -self.low, self.high)):
            found = self._better(found, largest * (share / end), None)
        assert found is not None
        for move in MOVES:
            step = found[1]
            for change in (-move, 0.0, move):
                found = self._better(found, step * (1 + change / self.high), None)
        return found[1]

    def _better(self, found: Found | None, step: Tensor, minimum: Tensor | None, free: bool = True) -> Found:
        if minimum is not None and not free:
            minimum = minimum.clamp(min=0)
        trial = self.polish(step, minimum, free)
        if found is None:
            return trial
        won = trial[0] < found[0]
        error, step = torch.where(won, trial[0], found[0]), torch.where(won, trial[1], found[1])
        if trial[2] is None or found[2] is None:
            return error, step, None
        return error, step, torch.where(won, trial[2], found[2])
