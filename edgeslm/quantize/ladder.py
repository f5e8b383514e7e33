"""The levels of a format in ascending order, so that one column of a block can be rounded without the rest of it.

Every trainable grid says decode = levels(codes) * step - minimum, column by column once the scales are fixed
(formats/base.py). What codes there are is read off the format itself: those a file can hold and `encode` returns.
Shape letters: n blocks, k weights in a block, m codes, r rows of a weight.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeslm.errors import FormatError
from edgeslm.formats.base import BlockFormat

CPU = torch.device("cpu")
PROBES = 1024  # random blocks: each of at most 256 codes is in them but for a chance of e^-100 and less


@dataclass(frozen=True)
class Ladder:
    """`codes` [m] and what they count, `levels` float32 [m], ascending. `gap` is the distance of neighbours where it
    is one and the same, else None; `between` [m - 1] are then the midpoints."""

    codes: Tensor
    levels: Tensor
    gap: float | None
    between: Tensor
    kind = torch.uint8  # of an index

    def nearest(self, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """wanted float32 [r], in steps -> (index [r] into `codes`, level [r]) of the nearest level."""
        if self.gap is None:
            index = torch.bucketize(wanted, self.between)
            return index, self.levels[index]
        low = float(self.levels[0])
        index = ((wanted - low) / self.gap).round_().clamp_(0, len(self.levels) - 1)
        return index, index * self.gap + low

    def levels_of(self, index: Tensor) -> Tensor:
        return self.levels[index.long()]

    def codes_of(self, index: Tensor) -> Tensor:
        return self.codes[index.long()]

    def index(self, codes: Tensor) -> Tensor:
        """Codes of any shape -> their places on the ladder, uint8."""
        places = torch.zeros(256, dtype=torch.uint8, device=codes.device)
        places[self.codes.long() % 256] = torch.arange(len(self.codes), dtype=torch.uint8, device=codes.device)
        return places[codes.long() % 256]


@functools.cache
def ladder(form: BlockFormat, device: torch.device = CPU) -> Ladder:
    """Raises FormatError for a format that cannot be trained."""
    if form.fit is None or form.encode is None or form.levels is None or form.spread is None:
        raise FormatError(f"{form.name} has no levels to round to; choose a format that can be trained")
    if form.per_code > 1:
        raise FormatError(f"{form.name} has no levels of single weights; its vectors are rounded by vectors.py")
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 256, (PROBES, form.bytes), generator=generator, dtype=torch.uint8)
    codes = form.unpack(data)[0].unique()
    full = codes[:, None].expand(-1, form.block).contiguous()  # one block full of each code
    scales = form.fit(torch.randn(full.shape, generator=generator))
    kept = (form.encode(form.decode(full, scales), scales) == full).all(1)
    levels, order = form.levels(full[kept])[:, 0].sort()
    gaps = levels.diff()
    same = bool((gaps == gaps[0]).all())
    between = (levels[1:] + levels[:-1]) / 2
    return Ladder(
        codes[kept][order].to(device), levels.to(device), float(gaps[0]) if same else None, between.to(device)
    )
