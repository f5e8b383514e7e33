"""Rounding with feedback where a code stands for several weights: v columns at a time, all v errors fed back.

With V the next v columns and U_VV their corner of U (feedback.py), rounding them to q loses |e|^2 with e U_VV = w - q,
and the later columns make good w_i -= e U_Vi: GPTQ's recursion, v steps of it in one (van Baalen et al., GPTVQ,
arXiv:2402.15319). In a sweep of descent (descent.py) moving q_V by s changes the error by s^T H_VV s - 2 s^T P_V, so
the best place is the one nearest to q_V + H_VV^-1 P_V in the measure of H_VV. Both times that is the vector g of levels
for which |R (g - x)| is least, looked for among the entries nearest to x, with the signs of x.
Shape letters: K columns, r rows, g groups in a block, v weights in a vector, m candidates, c columns at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeslm.formats.base import BlockFormat
from edgeslm.formats.codebooks import BOOKS
from edgeslm.formats.codesearch import EvenLattice, FineCells, lowest

CANDIDATE_BITS = 5  # of a number that holds an error and, in its lowest bits, whose it is


@dataclass(frozen=True)
class Vectors:
    """A codebook format's counterpart of a Ladder: what a column is on is its level itself, float32."""

    form: BlockFormat
    search: FineCells | EvenLattice
    kind = torch.float32

    @property
    def even(self) -> bool:
        return BOOKS[self.form.name].even

    @property
    def size(self) -> int:
        return self.search.entries.shape[0]

    def index(self, codes: Tensor) -> Tensor:
        """Codes [n, k / per_code] -> levels [n, k]."""
        assert self.form.levels is not None
        return self.form.levels(codes)

    def levels_of(self, index: Tensor) -> Tensor:
        return index

    def codes_of(self, index: Tensor) -> Tensor:
        """Levels [n, k] -> codes [n, k / per_code]."""
        book, n = BOOKS[self.form.name], len(index)
        d = index.new_full((n, 1), 1 / book.unit, dtype=torch.float16)  # a step of 1
        sc = torch.zeros(n, book.groups, dtype=torch.uint8, device=index.device)
        return self.form.nearest(index, {"d": d, "sc": sc}, None)

    def odd(self, index: Tensor, at: int, rounded: int) -> Tensor | None:
        """Where the vector that begins at column `at` of `index` [K, r] must have an odd number of negative levels, [r]
        or None, so that its eight columns have an even one; the first `rounded` columns are known."""
        start = at - at % 8
        others = [j for j in range(start, start + 8, self.size) if j != at]
        if not self.even or any(j >= rounded for j in others):
            return None
        odd = torch.zeros(index.shape[1], dtype=torch.bool, device=index.device)
        for j in others:
            odd ^= (index[j : j + self.size] < 0).sum(0) % 2 == 1
        return odd

    def nearest(self, x: Tensor, root: Tensor, odd: Tensor | None) -> Tensor:
        """x [v, r] in steps, root R [v, v] -> levels g [v, r] with |R (g - x)| least among the entries around x. `odd`
        [r] says where an odd number of them must be negative, in the others an even one; None: any number."""
        entries, u = self.search.entries, root.square().sum(0)[:, None].expand_as(x)
        sign = torch.where(x < 0, -1.0, 1.0)
        if odd is not None:
            wrong = torch.where(odd, -1.0, 1.0) * sign.prod(0)  # -1 where one sign has to turn
            turned = (u * x.abs()).argmin(0, keepdim=True)  # loses least by it, as in codebookfit.sizes_and_signs
            sign.scatter_(0, turned, sign.gather(0, turned) * wrong)
        size = x * sign
        index = self.search.around(size, u)  # [m, r]
        rest = entries.index_select(1, index.view(-1)).view(len(x), *index.shape)
        rest = rest.sub_(size[:, None]).mul_(sign[:, None])
        error = (root @ rest.view(len(x), -1)).square_().sum(0).view_as(index)
        whose = torch.arange(len(index), dtype=torch.int32, device=x.device)[:, None]
        best = lowest(error, whose, CANDIDATE_BITS).amin(0).bitwise_and_((1 << CANDIDATE_BITS) - 1)
        return entries.index_select(1, index.gather(0, best[None].long())[0]).mul_(sign)


def vectors(form: BlockFormat, device: torch.device) -> Vectors:
    return Vectors(form, BOOKS[form.name].search(device))


def round_columns(
    left: Tensor, index: Tensor, first: int, root: Tensor, step: Tensor, inverse: Tensor, lazy: int, rungs: Vectors
) -> None:
    """Rounds the columns of the block that begins at `first` of `left` [K, r]; fills `index`. step, 1 / step [g, r]."""
    block, size = rungs.form.block, rungs.size
    group, eye = block // len(step), torch.eye(size, device=root.device)
    for at in range(first, first + block, lazy):
        till = at + lazy
        errors = left.new_empty(lazy, left.shape[1])
        for j in range(at, till, size):
            part, place = slice(j, j + size), (j - first) // group
            own = torch.linalg.solve_triangular(root[part, part], eye, upper=True).T  # e = own (w - q), as columns
            index[part] = rungs.nearest(left[part] * inverse[place], own, rungs.odd(index, j, rounded=j))
            error = errors[j - at : j - at + size]
            torch.mm(own, left[part] - index[part] * step[place], out=error)
            left[j + size : till].addmm_(root[part, j + size : till].T, error, alpha=-1)
        left[till:].addmm_(root[at:till, till:].T, errors, alpha=-1)


def sweep_columns(
    index: Tensor, pull: Tensor, first: int, hessian: Tensor, step: Tensor, inverse: Tensor, lazy: int, rungs: Vectors
) -> None:
    """Every vector of the block that begins at `first` once; updates `index`, `pull` [K, r]. step, 1 / step [g, r]."""
    block, size = rungs.form.block, rungs.size
    group = block // len(step)
    for at in range(first, first + block, lazy):
        columns = slice(at, at + lazy)
        near, own = hessian[columns, columns], pull[columns].clone()
        moved = torch.empty_like(own)
        for j in range(0, lazy, size):
            part, place = slice(j, j + size), (at + j - first) // group
            corner, level = near[part, part], index[at + j : at + j + size]
            root = torch.linalg.cholesky(corner, upper=True)
            wanted = torch.cholesky_solve(own[part], root, upper=True).mul_(inverse[place]).add_(level)
            chosen = rungs.nearest(wanted, root, rungs.odd(index, at + j, rounded=len(index)))
            move = (chosen - level).mul_(step[place])
            better = (move * (corner @ move - 2 * own[part])).sum(0) < 0
            level.copy_(torch.where(better, chosen, level))
            torch.mul(move, better, out=moved[part])
            own[j + size :].addmm_(near[part, j + size :].T, moved[part], alpha=-1)
        pull.addmm_(hessian[:, columns], moved, alpha=-1)
