"""Scales of ggml's K formats: steps and minima of sub-blocks, then `d` and `dmin` that keep them in few bits.

1. Every sub-block alone: the step and minimum of least weighted squared error (lattice.py).
2. `d`: candidates are judged by what rounding `step / d` costs, knowing how much each sub-block's error bends at its
   optimum (the curvature that least squares leaves after the minimum has adapted). `dmin` likewise, the minima having
   adapted to the rounded steps.
3. Rounds of: the neighbours of every integer `sc` and `m`, judged by true error after rounding the weights; then `d`
   and `dmin` by least squares for the codes that result, kept where they are better *as float16*.

Compare ggml-quants.c `quantize_row_q4_K_impl`, `make_qp_quants`. What is returned is what the file stores.

Shape letters: n super-blocks of k weights, g sub-blocks in each, c = n * g columns of s = k / g weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from edgeslm.formats.base import Scales
from edgeslm.formats.lattice import SINGULAR, Columns, by_slices, columns_of, inverse, relative, unit_of

CANDIDATES = 12  # of `d`, around the one that gives the largest sub-scale its largest integer
SQUEEZES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)  # of `d`, after the best for sub-blocks as they are
ROUNDS = 2
LARGEST, SMALLEST = 65504.0, 2.0**-24  # float16


@dataclass(frozen=True)
class SubGrid:
    """What a K format stores of a sub-block."""

    size: int  # weights
    low: int  # smallest and largest level
    high: int
    bottom: int  # smallest and largest integer `sc`
    top: int
    deepest: int = 0  # largest integer `m`; 0: the format has no minimum


class State(NamedTuple):
    """Scales in units of the slice, integers as float32. `dmin` and `m` are None in formats without a minimum."""

    d: Tensor  # [n, 1]
    sc: Tensor  # [n, g]
    dmin: Tensor | None
    m: Tensor | None

    @property
    def step(self) -> Tensor:
        return (self.d * self.sc).reshape(-1)

    @property
    def minimum(self) -> Tensor | None:
        return None if self.dmin is None or self.m is None else (self.dmin * self.m).reshape(-1)


def fit(w: Tensor, importance: Tensor | None, grid: SubGrid) -> Scales:
    """w [n, k], importance [n, k] or None -> `d`, `sc` (and `dmin`, `m`) of least (weighted) squared error."""
    return by_slices(lambda part, u: _SuperBlocks(part, u, grid).fit(), w, importance)


class _SuperBlocks:
    """The fit of one slice. All numbers are in units of each super-block's own power of two."""

    def __init__(self, w: Tensor, importance: Tensor | None, grid: SubGrid):
        self.grid, self.n = grid, w.shape[0]
        self.unit = unit_of(w)
        u = None if importance is None else columns_of(relative(importance), grid.size)
        self.columns = Columns(columns_of(w / self.unit, grid.size), u, grid.low, grid.high)

    def fit(self) -> Scales:
        state, error = self._start()
        for _ in range(ROUNDS):
            state, error = self._refit(*self._neighbours(state, error))
        kind = torch.int8 if self.grid.bottom < 0 else torch.uint8
        scales = {"d": self._float16(state.d), "sc": state.sc.to(kind)}
        if state.dmin is not None and state.m is not None:
            scales |= {"dmin": self._float16(state.dmin), "m": state.m.to(torch.uint8)}
        return scales

    def _start(self) -> tuple[State, Tensor]:
        """Sub-blocks alone, then the best of several `d` by true error: a small one cuts the coarsest sub-blocks."""
        grid, columns = self.grid, self.columns
        step, minimum = columns.search() if grid.deepest else (columns.search_symmetric(), None)
        q, qq, _ = columns.sums(columns.nearest(step, minimum))
        mean = q / columns.su
        bend = qq - q * mean if grid.deepest else qq
        widest = _unit_of(self._rows(step), self._rows(bend), grid.bottom, grid.top)
        trials = []
        for squeeze in SQUEEZES:
            d = self._stored(widest * squeeze)
            sc = _integers(self._rows(step), d, grid.bottom, grid.top)
            dmin = m = None
            if minimum is not None:
                adapted = (self._rows(minimum) + self._rows(mean) * (d * sc - self._rows(step))).clamp_(min=0)
                dmin = self._stored(_unit_of(adapted, self._rows(columns.su), 0, grid.deepest))
                m = _integers(adapted, dmin, 0, grid.deepest)
            trials.append(State(d, sc, dmin, m))
        best, error = trials[0], self._error(trials[0])
        for state in trials[1:]:
            trial = self._error(state)
            won = _total(trial) < _total(error)
            best, error = _where(won, state, best), torch.where(won, trial, error)
        return best, error

    def _neighbours(self, state: State, error: Tensor) -> tuple[State, Tensor]:
        """Integers one up or down where that lowers the error of their sub-block."""
        grid, best = self.grid, state
        for i, j in product((0, -1, 1), (0, -1, 1) if grid.deepest else (0,)):
            if i == j == 0:
                continue
            m = None if state.m is None else (state.m + j).clamp_(0, grid.deepest)
            moved = State(state.d, (state.sc + i).clamp_(grid.bottom, grid.top), state.dmin, m)
            trial = self._error(moved)
            won = trial < error
            best, error = _where(won, moved, best), torch.where(won, trial, error)
        return best, error

    def _refit(self, state: State, error: Tensor) -> tuple[State, Tensor]:
        """Least squares for `d` and `dmin`, the codes being what they are; kept where it helps."""
        columns, sc = self.columns, state.sc
        q, qq, qx = (self._rows(x) for x in columns.sums(columns.nearest(state.step, state.minimum)))
        aa, ax = _total(sc * sc * qq), _total(sc * qx)
        if state.dmin is None or state.m is None:
            new = state._replace(d=self._stored(ax * inverse(aa)))
        else:
            m, su, sux = state.m, self._rows(columns.su), self._rows(columns.sux)
            ab, bb, bx = _total(sc * m * q), _total(m * m * su), -_total(m * sux)
            determinant = aa * bb - ab * ab
            regular = determinant > SINGULAR * aa * bb
            d = torch.where(regular, (bb * ax + ab * bx) / determinant, state.d)
            dmin = torch.where(regular, (aa * bx + ab * ax) / determinant, state.dmin)
            new = State(self._stored(d), sc, self._stored(dmin), m)
        trial = self._error(new)
        won = _total(trial) < _total(error)
        return _where(won, new, state), torch.where(won, trial, error)

    def _error(self, state: State) -> Tensor:
        """Weighted squared error of every sub-block after rounding, [n, g]."""
        return self._rows(self.columns.error(state.step, state.minimum))

    def _rows(self, x: Tensor) -> Tensor:
        return x.view(self.n, -1)

    def _float16(self, d: Tensor) -> Tensor:
        return (d * self.unit).to(torch.float16)

    def _stored(self, d: Tensor) -> Tensor:
        """The number that float16 keeps of d. One that is not 0 stays so: its integers can make up for its size."""
        d = d * self.unit
        size = d.abs().clamp_(SMALLEST, LARGEST)
        return torch.where(d == 0, d, torch.copysign(size, d)).to(torch.float16).float() / self.unit


def _where(won: Tensor, a: State, b: State) -> State:
    """a where it won, else b: by super-block [n, 1], or by sub-block [n, g] where `d` and `dmin` are the same."""
    dmin = b.dmin if a.dmin is b.dmin or a.dmin is None or b.dmin is None else torch.where(won, a.dmin, b.dmin)
    m = None if a.m is None or b.m is None else torch.where(won, a.m, b.m)
    d = b.d if a.d is b.d else torch.where(won, a.d, b.d)
    return State(d, torch.where(won, a.sc, b.sc), dmin, m)


def _total(x: Tensor) -> Tensor:
    return x.sum(-1, keepdim=True)


def _integers(x: Tensor, unit: Tensor, low: int, high: int) -> Tensor:
    return (x * inverse(unit)).round_().clamp_(low, high)


def _unit_of(x: Tensor, bend: Tensor, low: int, high: int) -> Tensor:
    """The unit [n, 1] in which integers low..high tell x [n, g] best: least sum of bend * (x - unit * integer)^2."""
    largest = x.gather(1, x.abs().argmax(1, keepdim=True)).t()
    x, bend = x.t().contiguous(), bend.t().contiguous()  # [g, n]: sums run along n
    reach = torch.linspace(0.75, 1 + 1 / high, CANDIDATES, device=x.device)
    ends = torch.cat([reach * high, reach * low]) if low < 0 else reach * high
    unit = largest / ends[:, None, None]  # [candidates, 1, n]
    for _ in range(2):
        q = _integers(x, unit, low, high)
        weighted = q * bend
        product = (weighted * x).sum(1, keepdim=True)
        unit = product * inverse(weighted.mul_(q).sum(1, keepdim=True))
    error = _integers(x, unit, low, high).mul_(unit).sub_(x).square_().mul_(bend).sum(1)
    return unit[:, 0].gather(0, error.argmin(0, keepdim=True)).t()
