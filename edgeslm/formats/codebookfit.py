"""Rounding to ggml's codebook formats, and the search of their scales: the step of a group is d * unit * (2 sc + 1).

1. Every group alone: trial steps round its vectors to entries of the book; least squares gives the best step for those
   entries, and the trial that explains most wins (as in tablefit.py).
2. `d`: candidates judged by what whole numbers `sc` cost, knowing how much each group's error bends; then the best of
   some around it by true error.
3. Rounds of: the neighbours of every `sc` by true error; then `d` by least squares for the entries that result, kept
   where it is better *as float16*.

Which entry is nearest depends on the importance of the weights inside a vector, so `encode` takes it too. Compare
ggml-quants.c `quantize_row_iq3_s_impl`, `quantize_row_iq2_s_impl`.
Shape letters: n super-blocks, g groups in each, p times eight weights in a group; m vectors of v weights, as columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeslm.formats.base import Scales
from edgeslm.formats.codesearch import EvenLattice, FineCells, cheapest
from edgeslm.formats.lattice import by_slices, relative, unit_of
from edgeslm.formats.search import to_float16
from edgeslm.formats.sweep import inverse

SECOND, SIGNS = 9, 18  # first bits of the second index and of the signs in a code
TOP = 15  # largest `sc`
SLICE_WEIGHTS = 1 << 17  # rounded at a time: vectors, entries and errors share a core's cache
# the share of the book's largest level that the largest weight of a group is put at; beyond 1 it is cut, which pays
# where importance is spiky
SHARES = (0.55, 0.65, 0.75, 0.85, 0.95, 1.05, 1.15, 1.3, 1.5, 1.8, 2.2, 2.8)
MOVES = (1.0, 0.96, 1.04)  # of the best step, each followed by least squares
UNITS = tuple(0.6 + 0.025 * i for i in range(25))  # of the `d` that gives the largest step its largest whole number
SQUEEZES = (1.0, 0.95, 0.9, 0.82, 1.06)  # of the best of those, by true error
ROUNDS = 2


@dataclass(frozen=True)
class Book:
    """How a format keeps vectors: `groups` in a block, the unit of their steps, and what finds the nearest entry."""

    groups: int
    unit: float
    even: bool  # whether of eight signs an even number is negative: the file keeps seven
    search: Callable[[torch.device], FineCells | EvenLattice]

    def step(self, scales: Scales) -> Tensor:
        """float32 [n, g]; the products are exact in any order."""
        return scales["d"].float() * self.multiple(scales["sc"].float())

    def multiple(self, sc: Tensor) -> Tensor:
        return (2 * sc + 1).mul_(self.unit)

    def nearest_sc(self, step: Tensor, d: Tensor) -> Tensor:
        """The whole numbers, as float32, whose steps lie nearest to `step`."""
        return (step * inverse(d)).div_(self.unit).sub_(1).div_(2).round_().clamp_(0, TOP)


def gather(step: Tensor, minimum: Tensor | None, scales: Scales, book: Book) -> Scales:
    """Whole numbers `sc` for steps [n, g]; `d` stays."""
    return {"d": scales["d"], "sc": book.nearest_sc(step, scales["d"].float()).to(torch.uint8)}


def encode(w: Tensor, scales: Scales, importance: Tensor | None, book: Book) -> Tensor:
    """w [n, 256] -> codes int32 [n, 32]: indices in the lowest bits, then eight signs (codebooks.py)."""
    rows = SLICE_WEIGHTS // w.shape[1] if w.device.type == "cpu" else max(1, w.shape[0])
    step, found = book.step(scales), []
    for at in range(0, max(1, w.shape[0]), rows):
        cut = slice(at, at + rows)
        found.append(_encode(w[cut], step[cut], None if importance is None else importance[cut], book))
    return torch.cat(found)


def _encode(w: Tensor, step: Tensor, importance: Tensor | None, book: Book) -> Tensor:
    search, n = book.search(w.device), w.shape[0]
    x = _columns((w.reshape(*step.shape, -1) * inverse(step)[:, :, None]).reshape(w.shape))
    u = None if importance is None else _columns(relative(importance))
    size, signs = sizes_and_signs(x, u, book.even)
    index = search.nearest(_vectors(size, search), None if u is None else _vectors(u, search)).view(-1, size.shape[1])
    codes = signs.bitwise_left_shift_(SIGNS)
    for part, bits in zip(index, (0, SECOND), strict=False):
        codes.bitwise_or_(part << bits)
    return codes.view(n, -1)


def sizes_and_signs(x: Tensor, u: Tensor | None, even: bool) -> tuple[Tensor, Tensor]:
    """x, u [8, m] -> sizes [8, m] and signs int32 [m], bit j of them of weight j.

    Where an `even` number of signs must be negative and is not, the weight that loses least by it gets the wrong sign:
    its size becomes negative. It loses 4 u |x| level, and all such weights end on the lowest level.
    """
    size, negative = x.abs(), (x < 0).to(x.dtype)
    if even:
        odd = negative.sum(0).remainder_(2)
        flip = cheapest(size.clone() if u is None else size * u)[None].long()
        negative.scatter_(0, flip, (negative.gather(0, flip) - odd).abs_())
        size.scatter_(0, flip, size.gather(0, flip) * (1 - 2 * odd))
    bits = x.new_tensor([1 << j for j in range(8)])
    return size, (bits @ negative).to(torch.int32)


def _columns(x: Tensor) -> Tensor:
    """[n, 256] -> [8, n * 32]"""
    return x.reshape(-1, 8).t().contiguous()


def _vectors(x: Tensor, search: FineCells | EvenLattice) -> Tensor:
    """[8, m] -> [v, m * 8 / v]: where v is 4, the first halves of all, then the second."""
    size = len(search.entries)
    return x if size == 8 else x.view(8 // size, size, -1).transpose(0, 1).reshape(size, -1)


def fit(w: Tensor, importance: Tensor | None, book: Book) -> Scales:
    """w [n, 256], importance [n, 256] or None -> `d` [n, 1] and `sc` [n, g] of least (weighted) squared error."""
    return by_slices(lambda part, u: _SuperBlocks(part, u, book).fit(), w, importance)


class _SuperBlocks:
    """The fit of one slice. All numbers are in units of each super-block's own power of two."""

    def __init__(self, w: Tensor, importance: Tensor | None, book: Book):
        self.book, self.n, self.search = book, w.shape[0], book.search(w.device)
        self.unit = unit_of(w)
        u = None if importance is None else _columns(relative(importance))
        # which sign is wrong for the sake of an even number does not depend on the step
        size, _ = sizes_and_signs(_columns(w / self.unit), u, book.even)
        self.x = _vectors(size, self.search)
        self.u = None if u is None else _vectors(u, self.search)
        self.ux = self.x if self.u is None else self.u * self.x
        self.halves, self.p = 8 // len(self.search.entries), w.shape[1] // 8 // book.groups
        self.most = float(self.search.entries.max())

    def fit(self) -> Scales:
        step, bend = self._steps()
        d, sc, fallen = self._start(step, bend)
        for _ in range(ROUNDS):
            sc, product, square = self._neighbours(d, sc)
            count = self.book.multiple(sc)
            new = self._stored((count * product).sum(1, keepdim=True) * inverse((count * count * square).sum(1, True)))
            trial = self._fallen(new, sc)[0].sum(1, keepdim=True)
            now = (2 * product - d * count * square).mul_(d * count).sum(1, keepdim=True)
            d, fallen = torch.where(trial > now, new, d), torch.maximum(trial, now)
        d = torch.where(fallen > 0, d, 0.0)  # where float16 has no small enough numbers, nothing is better than zeros
        return {"d": to_float16(d * self.unit), "sc": sc.to(torch.uint8)}

    def _steps(self) -> tuple[Tensor, Tensor]:
        """The step of least error of every group alone, and how much that error bends, [n, g]."""
        largest = self.x.amax(0).view(self.halves, self.n, -1, self.p).amax(3).amax(0)
        step, bend, most = (torch.zeros_like(largest) for _ in range(3))
        trials = [*((largest / self.most, 1 / share) for share in SHARES), *((None, move) for move in MOVES)]
        for start, factor in trials:
            trial = (step if start is None else start) * factor
            product, square = self._sums(trial)
            found = product * inverse(square)
            gain = product * found
            better = gain > most
            step, bend = torch.where(better, found, step), torch.where(better, square, bend)
            most = torch.maximum(gain, most)
        return step, bend

    def _start(self, step: Tensor, bend: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        book = self.book
        widest = step.amax(1, keepdim=True) / (book.unit * (2 * TOP + 1))
        best, least = widest, torch.full_like(widest, torch.inf)
        for share in UNITS:
            d = widest * share
            error = (book.multiple(book.nearest_sc(step, d)) * d - step).square_().mul_(bend).sum(1, True)
            best, least = torch.where(error < least, d, best), torch.minimum(error, least)
        found, kept, most = best, torch.zeros_like(step), torch.full_like(widest, -torch.inf)
        for squeeze in SQUEEZES:
            d = self._stored(best * squeeze)
            sc = book.nearest_sc(step, d)
            fallen = self._fallen(d, sc)[0].sum(1, keepdim=True)
            better = fallen > most
            found, kept = torch.where(better, d, found), torch.where(better, sc, kept)
            most = torch.maximum(fallen, most)
        return found, kept, most

    def _neighbours(self, d: Tensor, sc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of sc, sc - 1, sc + 1 [n, g] the one of least error for each group, with its sums."""
        best = sc
        fallen, product, square = self._fallen(d, sc)
        for more in (-1, 1):
            trial = (sc + more).clamp_(0, TOP)
            gained, a, b = self._fallen(d, trial)
            better = gained > fallen
            best, fallen = torch.where(better, trial, best), torch.maximum(gained, fallen)
            product, square = torch.where(better, a, product), torch.where(better, b, square)
        return best, product, square

    def _fallen(self, d: Tensor, sc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """By how much the error of every group [n, g] is below that of zeros, and the sums of the entries taken."""
        step = d * self.book.multiple(sc)
        product, square = self._sums(step)
        return (2 * product - step * square) * step, product, square

    def _sums(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Of every group [n, g]: sum(u |w| q) and sum(u q q), q the entries taken with steps [n, g]."""
        per_vector = inverse(step)[None, :, :, None].expand(self.halves, -1, -1, self.p).reshape(-1)
        entries = self.search.entries.index_select(1, self.search.nearest(self.x * per_vector, self.u))
        product = self._total(self.ux * entries)
        square = entries.mul_(entries) if self.u is None else entries.mul_(entries).mul_(self.u)
        return product, self._total(square)

    def _total(self, x: Tensor) -> Tensor:
        """[v, m] -> sums [n, g]"""
        return x.sum(0).view(self.halves, self.n, -1, self.p).sum(3).sum(0)

    def _stored(self, d: Tensor) -> Tensor:
        """The number that float16 keeps of d. One that is not 0 stays so."""
        stored = to_float16(d * self.unit).float()
        return torch.where((stored == 0) & (d > 0), 2.0**-24, stored) / self.unit
