"""The entry of a codebook that lies nearest to a vector of weights, without looking at the whole book.

Signs are free, so a search is among magnitudes: x >= 0 in steps, entries of few levels. A coarse look at x names a
cell, a table made once holds the entries nearest to the cell's middle, and the best of those is taken by true error,
weighted where asked. An entry lies in the middle of its own cell and so is found from itself: encoding what was
decoded changes nothing. The idea is that of ggml-quants.c `iq3xs_init_impl` (kmap and neighbours).

Squared error lost to exhaustive search, on weights of a bell-shaped density with fitted scales: at most 0.01 dB, and
with importance that spans four orders of magnitude 0.02 to 0.05 dB in books of eight weights, 0.16 in those of four.
Shape letters: m vectors of v weights, e entries. Vectors are columns ([v, m]), along which the processor runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

ENTRY_BITS = 10  # of a number that holds an error and, in its lowest bits, whose it is
CHUNK = 4096  # cells whose distances to all entries are computed at once
HALVES = 2  # cells per level of a book of four weights
FEW, MANY = 4, 8  # of their candidates: without importance, with it
FAR_FEW, FAR_MANY = 16, 24  # of those of a point that is no entry of a book of eight weights


@dataclass(frozen=True)
class FineCells:
    """Books of four weights whose levels rise evenly: cells of half a level, the candidates nearest to each."""

    entries: Tensor  # [v, e]
    lowest: float  # level, and the width of a cell
    width: float
    count: int  # cells in one direction
    candidates: Tensor  # int32 [MANY, cells]

    @classmethod
    def of(cls, book: Tensor) -> FineCells:
        """book [e, 4]"""
        levels = book.unique()
        lowest, width = float(levels[0]), float(levels[1] - levels[0]) / HALVES
        middles = torch.stack([levels, torch.cat([(levels[1:] + levels[:-1]) / 2, levels[-1:]])], dim=1).reshape(-1)
        middles = middles[:-1]  # level, halfway, level, ...
        candidates = _nearest_entries(torch.cartesian_prod(*[middles] * book.shape[1]), book, MANY)
        return cls(book.t().contiguous(), lowest, width, len(middles), candidates)

    def to(self, device: torch.device) -> FineCells:
        return replace(self, entries=self.entries.to(device), candidates=self.candidates.to(device))

    def nearest(self, x: Tensor, u: Tensor | None) -> Tensor:
        """x [v, m], importance u [v, m] or None -> int32 [m]. A negative x had to take the wrong sign, and wants the
        lowest level. NaN gives some entry."""
        return _best(self.entries, self.candidates[: FEW if u is None else MANY], self._cell(x), x, u)

    def around(self, x: Tensor, u: Tensor) -> Tensor:
        """The entries worth looking at, int32 [candidates, m]."""
        return self.candidates.index_select(1, self._cell(x))

    def _cell(self, x: Tensor) -> Tensor:
        places = (x - self.lowest).mul_(1 / self.width).round_().clamp_(0, self.count - 1)
        return _number(places, self.count).to(torch.int32).clamp_(0, self.candidates.shape[1] - 1)


@dataclass(frozen=True)
class EvenLattice:
    """ggml's books of eight weights: three levels, and in every entry the level numbers 0, 1, 2 have an even sum.

    The nearest such point is found as in the lattice D8 (Conway and Sloane, Fast quantizing and decoding, 1982): every
    weight to its nearest level, and where the sum is odd the weight that loses least to its second. In iq2_s it is an
    entry for five of six vectors, and nothing is nearer. The others look at the entries nearest to it.
    """

    entries: Tensor  # [8, e]
    levels: tuple[float, float, float]
    entry_of: Tensor  # int32 [3^8] the entry that a point is, -1 where it is none
    candidates: Tensor  # int32 [FAR_MANY, 3^8]

    @classmethod
    def of(cls, book: Tensor) -> EvenLattice:
        """book [e, 8]"""
        levels = book.unique()
        points = torch.cartesian_prod(*[levels] * book.shape[1])
        candidates = _nearest_entries(points, book, FAR_MANY)
        first = candidates[0]
        member = (book.index_select(0, first) == points).all(1)
        return cls(
            book.t().contiguous(),
            (float(levels[0]), float(levels[1]), float(levels[2])),
            torch.where(member, first, -1).to(torch.int32),
            candidates,
        )

    def to(self, device: torch.device) -> EvenLattice:
        moved = {key: getattr(self, key).to(device) for key in ("entries", "entry_of", "candidates")}
        return replace(self, **moved)

    def nearest(self, x: Tensor, u: Tensor | None) -> Tensor:
        """As FineCells.nearest."""
        cell = self._point(x, u)
        found = self.entry_of.index_select(0, cell)
        rest = (found < 0).nonzero().squeeze(1)
        if len(rest):
            some = None if u is None else u.index_select(1, rest)
            candidates = self.candidates[: FAR_FEW if u is None else FAR_MANY]
            best = _best(self.entries, candidates, cell.index_select(0, rest), x.index_select(1, rest), some)
            found.index_copy_(0, rest, best)
        return found

    def around(self, x: Tensor, u: Tensor) -> Tensor:
        """As FineCells.around."""
        return self.candidates.index_select(1, self._point(x, u))

    def _point(self, x: Tensor, u: Tensor | None) -> Tensor:
        """The nearest point of even sum, as a number of base three, int32 [m]."""
        low, middle, high = self.levels
        first, second = (low + middle) / 2, (middle + high) / 2  # where a weight changes its level
        between = second - first
        places = x.new_tensor([3**i for i in reversed(range(8))])
        number = (x - (first - between / 2)).mul_(1 / between).round_().clamp_(0, 2)
        odd = number.sum(0).remainder_(2)
        # error that the second nearest level adds, over two
        loss = torch.minimum((x - first).abs_().mul_(middle - low), (x - second).abs_().mul_(high - middle))
        if u is not None:
            loss.mul_(u)
        second_best = cheapest(loss)
        at = x.gather(0, second_best[None].long())[0]
        upper = (middle - low) * first + (high - middle) * second  # where both changes lose the same
        change = torch.where(at * (high - low) < upper, first, second).sub_(at).sign_()
        cell = _number(number, 3).add_(odd.mul_(change).mul_(places.index_select(0, second_best)))
        return cell.to(torch.int32).clamp_(0, len(self.entry_of) - 1)


def _nearest_entries(points: Tensor, book: Tensor, count: int) -> Tensor:
    """points [cells, v], book [e, v] -> int32 [count, cells], nearest first; of equals the earlier entry."""
    square, twice = book.square().sum(1), 2 * book.t()
    found = []
    for some in points.split(CHUNK):
        distance = (square - some @ twice).add_(some.square().sum(1, keepdim=True))
        # whole numbers in steps of a quarter at least, so that equals are equal and the order is that of the book
        ranked = (distance * 4).round_().to(torch.int64) * len(book) + torch.arange(len(book), device=book.device)
        found.append(ranked.topk(count, dim=1, largest=False).values % len(book))
    return torch.cat(found).t().to(torch.int32).contiguous()


def _best(entries: Tensor, candidates: Tensor, cell: Tensor, x: Tensor, u: Tensor | None) -> Tensor:
    """The candidate of least (weighted) squared error for each x [v, m] in its `cell` [m], int32 [m]."""
    best = torch.full_like(cell, torch.iinfo(torch.int32).max)
    for row in candidates:
        index = row.index_select(0, cell)
        rest = entries.index_select(1, index).sub_(x)
        square = rest.mul_(rest) if u is None else rest.mul_(rest).mul_(u)
        best = torch.minimum(best, lowest(square.sum(0), index, ENTRY_BITS))
    return best.bitwise_and_((1 << ENTRY_BITS) - 1)


def _number(digits: Tensor, base: int) -> Tensor:
    """Digits [v, m], the highest first -> [m]. Not by a matrix product, which a GPU may round to ten bits."""
    found = digits[0].clone()
    for digit in digits[1:]:
        found.mul_(base).add_(digit)
    return found


def cheapest(error: Tensor) -> Tensor:
    """error [8, m] >= 0 -> which of the eight is least, int32 [m]. Overwrites them."""
    return lowest(error, torch.arange(8, dtype=torch.int32, device=error.device)[:, None], 3).amin(0).bitwise_and_(7)


def lowest(error: Tensor, whose: Tensor, bits: int) -> Tensor:
    """Errors >= 0 whose lowest bits say whose they are, int32: the least of these is found with its owner in one go,
    several times as fast as by comparing and choosing. Numbers that are not negative order like their bits. Overwrites
    the errors."""
    return error.view(torch.int32).bitwise_and_(-(1 << bits)).bitwise_or_(whose)
