"""Scale search for table formats: candidates are judged by what they explain, the best is settled by least squares.

For given levels q the weighted squared error of a step s is sum(u w w) - 2 s a + s s b with a = sum(u w q) and
b = sum(u q q) (u: importance); its minimum is at s = a / b, where the error has fallen by the gain a a / b.
Shape letters: n blocks, k weights in a block, g groups in a block, m groups in all, j weights in a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeslm.formats.base import Scales
from edgeslm.formats.levels import Levels
from edgeslm.formats.minifloats import (
    MOST_E4M3,
    MOST_E8M0,
    from_e4m3_half,
    from_e8m0_half,
    to_e4m3_half,
)
from edgeslm.formats.search import to_float16
from edgeslm.formats.sweep import inverse, usable

# The level that the weight of largest magnitude is put at, either sign: beyond the last one it is clipped, which pays
# where importance is spiky. Denser lists gain less than a hundredth.
BELOW = (-100, -106, -112, -117, -121, -125, -128, -131, -135, -140, -148, -160, -180, -210, -250)
ABOVE = (84, 92, 98, 103, 107, 111, 115, 119, 124, 132, 144, 165, 190, 225)
ROUNDS = 2
SUPER_STEPS = 32  # candidates for the scale of scales
EXPONENTS = (-2, -1, 0, 1)  # around the one that puts max |w| at level 8 to 16
NEIGHBOURS = range(-7, 8)  # E4M3 numbers around the one that puts max |w| at the last level


def fit_step(w: Tensor, importance: Tensor | None, table: Levels) -> Tensor:
    """iq4_nl: w [n, k] -> step float16 [n, 1] of either sign."""
    u = _weights(w, importance)
    return to_float16(_scan(w, u, table)[0])


def fit_six_bits(w: Tensor, importance: Tensor | None, table: Levels, groups: int = 8) -> Scales:
    """iq4_xs: w [n, k] -> {d float16 [n, 1], sc int8 [n, groups]}: a step for each group, then their common scale."""
    n = w.shape[0]
    x, u = w.reshape(n * groups, -1), _weights(w, importance)
    u = None if u is None else u.reshape(x.shape)
    step, weight = (part.reshape(n, groups) for part in _scan(x, u, table))
    d = _common_scale(step, weight)
    sc = torch.round(step * inverse(d))
    for _ in range(ROUNDS):
        sc, a, b = _best_multiple(x, u, table, d, sc.clamp_(-32, 31))
        square = (sc * sc * b).sum(1, keepdim=True)
        d = to_float16(torch.where(square > 0, (sc * a).sum(1, keepdim=True) / square, d)).float()
    sc = _best_multiple(x, u, table, d, sc)[0]
    return {"d": to_float16(d), "sc": sc.to(torch.int8)}


def fit_power_of_two(w: Tensor, importance: Tensor | None, table: Levels) -> Tensor:
    """mxfp4: w [n, k] -> exponent byte [n, 1]."""
    start = torch.frexp(w.abs().amax(1, keepdim=True))[1] + 124  # ggml: floor(log2(max)) - 2 + 127
    trials = [(start + more).clamp_(0, MOST_E8M0).to(torch.uint8) for more in EXPONENTS]
    return _best_byte(w, _weights(w, importance), table, trials, from_e8m0_half)


def fit_e4m3(w: Tensor, importance: Tensor | None, table: Levels, group: int = 16) -> Tensor:
    """nvfp4: w [n, k] -> scale bytes [n, k / group]."""
    x, u = w.reshape(-1, group), _weights(w, importance)
    u = None if u is None else u.reshape(x.shape)
    start = to_e4m3_half(x.abs().amax(1, keepdim=True) / max(table.values)).to(torch.int32)
    trials = [(start + more).clamp_(0, MOST_E4M3).to(torch.uint8) for more in NEIGHBOURS]
    return _best_byte(x, u, table, trials, from_e4m3_half).reshape(w.shape[0], -1)


def _weights(w: Tensor, importance: Tensor | None) -> Tensor | None:
    return None if importance is None else usable(w, importance)


def _sums(x: Tensor, u: Tensor | None, q: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b), each [m, 1]. Overwrites q."""
    weighted = q if u is None else u * q
    a = (weighted * x).sum(1, keepdim=True)
    return a, q.mul_(weighted).sum(1, keepdim=True)


def _scan(x: Tensor, u: Tensor | None, table: Levels) -> tuple[Tensor, Tensor]:
    """Groups [m, j] -> the step of least error and its b, both [m, 1]."""
    extreme = inverse(x.gather(1, x.abs().argmax(1, keepdim=True)))
    step, weight, gain = (x.new_zeros(x.shape[0], 1) for _ in range(3))
    trials: list[float | None] = [*BELOW, *ABOVE, *[None] * ROUNDS]
    for target in trials:
        per_step = inverse(step) if target is None else extreme * target
        a, b = _sums(x, u, table.rounded(x, per_step))
        found = torch.where(b > 0, a / b, 0.0)
        better = a * found > gain
        step, weight = torch.where(better, found, step), torch.where(better, b, weight)
        gain = torch.where(better, a * found, gain)
    return step, weight


def _common_scale(step: Tensor, weight: Tensor) -> Tensor:
    """Steps [n, g] -> the d [n, 1] whose multiples -32 .. 31 lie nearest to them, each weighed by its b."""
    largest = step.gather(1, step.abs().argmax(1, keepdim=True))
    best, least = to_float16(largest / -32).float(), torch.full_like(largest, torch.inf)
    for i in range(SUPER_STEPS):
        d = to_float16(largest / (-32 + 0.5 * i)).float()
        sc = torch.round(step * inverse(d)).clamp_(-32, 31)
        error = ((sc * d - step).square_() * weight).sum(1, keepdim=True)
        better = error < least
        best, least = torch.where(better, d, best), torch.where(better, error, least)
    return best


def _best_multiple(x: Tensor, u: Tensor | None, table: Levels, d: Tensor, sc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of sc - 1, sc, sc + 1 [n, g] the one of least error for each group, with its sums a and b."""
    found = [torch.full_like(sc, -torch.inf), sc, sc, sc]
    for more in (0, -1, 1):
        trial = (sc + more).clamp_(-32, 31)
        step = trial * d
        a, b = (s.reshape(sc.shape) for s in _sums(x, u, table.rounded(x, inverse(step).reshape(-1, 1))))
        fallen = (2 * a - step * b) * step
        better = fallen > found[0]
        found = [torch.where(better, new, old) for new, old in zip((fallen, trial, a, b), found, strict=True)]
    return found[1], found[2], found[3]


def _best_byte(x: Tensor, u: Tensor | None, table: Levels, trials: list[Tensor], step_of) -> Tensor:
    """The scale byte [m, 1] of least error."""
    best, most = trials[0], torch.full((x.shape[0], 1), -torch.inf, device=x.device)
    for trial in trials:
        step = step_of(trial)
        a, b = _sums(x, u, table.rounded(x, inverse(step)))
        fallen = (2 * a - step * b) * step
        better = fallen > most
        best, most = torch.where(better, trial, best), torch.where(better, fallen, most)
    return best
