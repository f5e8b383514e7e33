"""ggml's smallest plain blocks: one bit and two bits a weight beside a float16 scale.

    q1_0  | d f16 | qs 16 x uint8 |    18 bytes for 128 weights, 1.125 bits    w = d or -d
    q2_0  | d f16 | qs 16 x uint8 |    18 bytes for 64 weights, 2.25 bits      w = (q - 1) d, q in 0..3

    runs: weight j of q1_0 is bit j % 8 of byte j / 8 (1 is d, 0 is -d), of q2_0 bits 2 (j % 4) of byte j / 4

Layout and arithmetic: ggml-quants.c `dequantize_row_q1_0`, `dequantize_row_q2_0`. ggml's quantiser of q2_0 takes
d = max |w| and so never uses the level 2; here d may have either sign, so that level 2 serves the longer side, and
`fit` looks for the scale of least squared error (sweep.py). Shape letters as in base.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgeslm.formats.base import BlockFormat, Scales
from edgeslm.formats.bits import as_bytes, float16_at, pack_runs, unpack_runs
from edgeslm.formats.one_scale import one_scale
from edgeslm.formats.sweep import binary_scale, inverse, lopsided_scale


def _lowest(
    name: str,
    bits: int,
    block: int,
    ggml_type: int,
    best: Callable[[Tensor, Tensor | None], Tensor],
    encode: Callable[[Tensor, Scales], Tensor],
    levels: Callable[[Tensor], Tensor],
) -> BlockFormat:
    def pack(codes: Tensor, scales: Scales) -> Tensor:
        return torch.cat([as_bytes(scales["d"]), pack_runs(codes, bits)], dim=1)

    def unpack(data: Tensor) -> tuple[Tensor, Scales]:
        return unpack_runs(data[:, 2:], bits), {"d": float16_at(data, 0)}

    return one_scale(
        name,
        block=block,
        size=18,
        ggml_type=ggml_type,
        best=best,
        encode=encode,
        levels=levels,
        pack=pack,
        unpack=unpack,
    )


def _encode_1(w: Tensor, scales: Scales) -> Tensor:
    return (w >= 0).eq_(scales["d"] >= 0).view(torch.uint8)


def _levels_1(codes: Tensor) -> Tensor:
    return codes.to(torch.float32).mul_(2).sub_(1)


def _encode_2(w: Tensor, scales: Scales) -> Tensor:
    q = torch.mul(w, inverse(scales["d"].float())).round_()
    return q.clamp_(-1, 2).add_(1).to(torch.uint8)


def _levels_2(codes: Tensor) -> Tensor:
    return codes.to(torch.float32).sub_(1)


Q1_0 = _lowest("q1_0", 1, 128, 41, binary_scale, _encode_1, _levels_1)
Q2_0 = _lowest("q2_0", 2, 64, 42, lopsided_scale, _encode_2, _levels_2)
