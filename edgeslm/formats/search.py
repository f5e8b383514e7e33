"""Scales of blocks that stand alone: searched by lattice.py, then chosen as the file stores them, never as they were.

Shape letters as in base.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgeslm.formats.base import Scales
from edgeslm.formats.lattice import SHARES, Columns, by_slices, columns_of, relative, unit_of


def to_float16(d: Tensor) -> Tensor:
    return d.clamp(-65504.0, 65504.0).to(torch.float16)


def fit_step(
    w: Tensor,
    importance: Tensor | None,
    low: int,
    high: int,
    *,
    signed: bool = True,
    shares: tuple[float, ...] = SHARES,
    store: Callable[[Tensor], Tensor] = to_float16,
    nudges: tuple[float, ...] = (1.0,),
) -> Scales:
    """`d` [n, 1] of least (weighted) squared error for w = d * level. Steps are positive unless `signed`.

    `nudges` are factors worth trying where `store` keeps so few bits that the nearest number need not be the best.
    """

    def fit(w: Tensor, importance: Tensor | None) -> Scales:
        columns, unit = _columns(w, importance, low, high)
        step = columns.search_symmetric(shares, signed)[:, None] * unit
        largest = w.gather(1, w.abs().argmax(1, keepdim=True))
        plain = largest / low if signed else largest.abs() / high
        return _best(columns, unit, [{"d": store(d)} for d in (plain, *(step * nudge for nudge in nudges))])

    return by_slices(fit, w, importance)


def fit_step_and_minimum(w: Tensor, importance: Tensor | None, high: int) -> Scales:
    """`d` and `m` [n, 1] of least (weighted) squared error for w = d * level + m; `m` of either sign."""

    def fit(w: Tensor, importance: Tensor | None) -> Scales:
        columns, unit = _columns(w, importance, 0, high)
        step, minimum = (x[:, None] * unit for x in columns.search(free=True))
        bottom, top = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
        pairs = ((top - bottom) / high, bottom), (step, -minimum)
        return _best(columns, unit, [{"d": to_float16(d), "m": to_float16(m)} for d, m in pairs])

    return by_slices(fit, w, importance)


def _columns(w: Tensor, importance: Tensor | None, low: int, high: int) -> tuple[Columns, Tensor]:
    """The blocks in units [n, 1] of their own power of two, and those units."""
    unit, size = unit_of(w), w.shape[1]
    u = None if importance is None else columns_of(relative(importance), size)
    return Columns(columns_of(w / unit, size), u, low, high), unit


def _best(columns: Columns, unit: Tensor, trials: list[Scales]) -> Scales:
    """The stored scales that leave the least error, block by block."""
    # where float16 has no small enough numbers, nothing is better than zeros
    best = {key: torch.zeros_like(x) for key, x in trials[0].items()}
    least = (columns.ux * columns.x).sum(0)
    for trial in trials:
        error = _error(columns, unit, trial)
        won = error < least
        best = {key: torch.where(won[:, None], x, best[key]) for key, x in trial.items()}
        least = torch.where(won, error, least)
    return best


def _error(columns: Columns, unit: Tensor, scales: Scales) -> Tensor:
    minimum = -(scales["m"].float() / unit).reshape(-1) if "m" in scales else None
    return columns.error((scales["d"].float() / unit).reshape(-1), minimum)
