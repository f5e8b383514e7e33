"""Which grids onnxruntime's block operators hold exactly, worked out from each format's own verbs.

    w = (u - zero) * step      u and zero whole numbers of 2, 4 or 8 bits, step float32, blocks of 16, 32, 64, ...

A grid fits when its levels are whole numbers that one width can count and nothing is subtracted after the product.
Tables of whole numbers (iq4_nl, mxfp4, ...) fit in 8 bits. A float minimum (q4_1, q4_k, ...) does not: (q - m/d) d is
not bitwise q d - m, although the product itself takes a float zero point. It would take a second product (zero point
0, minus block sums of the input times the minima, 6 bits for q4_k), which is not built. Widths, blocks and zero points
were tried on the CPU kernels of onnxruntime 1.31. Free of the onnx package: `check` asks without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from edgeslm.formats import FORMATS

WIDTHS = (2, 4, 8)
LEAST_BLOCK = 16
SCALE_BITS = 32


@dataclass(frozen=True)
class Box:
    """How a grid's codes become the operators': u = level + shift, in `bits` bits, one step for `block` weights.

    `zeros` says what is subtracted: the operators' "middle" 2^(bits-1), a "constant" (= shift), or the format's "own"
    whole number in every block.
    """

    bits: int
    block: int
    shift: int
    zeros: Literal["middle", "constant", "own"]
    needed: int  # bits the levels would take by themselves

    @property
    def int8(self) -> bool:
        """Whether accuracy_level 4 really computes with 8-bit activations; where not, the kernel stays in float32."""
        return self.bits > 2 or 32 <= self.block <= 128

    @property
    def stored_bits(self) -> float:
        """Bits per weight in the file, float32 scales and zero points included."""
        return self.bits + (SCALE_BITS + (0 if self.zeros == "middle" else self.bits)) / self.block


@cache
def box(name: str) -> Box | str:
    """How the operators hold a block format, or why they cannot: a reason that continues "... cannot hold it: "."""
    form = FORMATS[name]
    if form.levels is None or form.spread is None:
        return "it can be read but not written"
    if form.per_code > 1:
        return "a code stands for several weights, and the operators want one for each"
    # bytes all 0, all 1, ... all 255 reach the lowest and the highest code of every layout, random ones those between
    same = torch.arange(256, dtype=torch.uint8)[:, None].expand(256, form.bytes)
    mixed = torch.randint(256, same.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    codes, scales = form.unpack(torch.cat([same, mixed]))
    levels = form.levels(codes)
    step, minimum = form.spread(scales)
    own = "z" in scales
    if minimum is not None and not own:
        return "it subtracts a float minimum after the product"
    if not torch.equal(levels, levels.round()):
        return "its levels are no whole numbers"
    block = form.block // step.shape[1]
    if block < LEAST_BLOCK or block & (block - 1):
        return f"{block} weights share a scale, and the operators want 16, 32, 64, ..."
    low, high = int(levels.min()), int(levels.max())
    needed = math.ceil(math.log2(levels.unique().numel()))
    for bits in WIDTHS:
        middle = 1 << (bits - 1)
        if own and low >= 0 and high < 1 << bits:
            return Box(bits, block, 0, "own", needed)
        if not own and -middle <= low and high < middle:
            return Box(bits, block, middle, "middle", needed)
        if not own and low <= 0 and high - low < 1 << bits:
            return Box(bits, block, -low, "constant", needed)
    return f"its levels run from {low} to {high}, more than 8 bits count"


def need_box(name: str) -> Box:
    """The box of a format that is known to fit."""
    found = box(name)
    assert isinstance(found, Box), f"{name}: {found}"
    return found
