"""ggml's smallest plain blocks: one bit and two bits a weight beside a float16 scale.

    q1_0  | d f16 | qs 16 x uint8 |    18 bytes for 128 weights, 1.125 bits    w = d or -d
    q2_0  | d f16 | qs 16 x uint8 |    18 bytes for 64 weights, 2.25 bits      w = (q - 1) d, q in 0..3

    runs: weight j of q1_0 is bit j % 8 of byte j / 8 (1 is d, 0 is -d), of q2_0 bits 2 (j % 4) of byte j / 4

Layout and arithmetic: ggml-quants.c `dequantize_row_q1_0`, `dequantize_row_q2_0`. ggml's quantiser of q2_0 takes
d = max |w| and so never uses the level 2; here d may have either sign, so that level 2 serves the longer side, and
`fit` looks for the scale of least squared error (sweep.py). Shape letters as in base.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeslm.formats.base import BlockFormat, Scales
from edgeslm.formats.bits import as_bytes, float16_at, pack_runs, unpack_runs
from edgeslm.formats.search import to_float16
from edgeslm.formats.sweep import binary_scale, inverse, lopsided_scale


def _spread(scales: Scales) -> tuple[Tensor, Tensor | None]:
    return scales["d"].float(), None


def _gather(step: Tensor, minimum: Tensor | None, scales: Scales) -> Scales:
    return {"d": to_float16(step)}


def _q1_0() -> BlockFormat:
    def fit(w: Tensor, importance: Tensor | None = None) -> Scales:
        return {"d": to_float16(binary_scale(w, importance))}

    def encode(w: Tensor, scales: Scales) -> Tensor:
        return (w >= 0).eq_(scales["d"] >= 0).view(torch.uint8)

    def levels(codes: Tensor) -> Tensor:
        return codes.to(torch.float32).mul_(2).sub_(1)

    def decode(codes: Tensor, scales: Scales) -> Tensor:
        return levels(codes).mul_(scales["d"].float())

    def pack(codes: Tensor, scales: Scales) -> Tensor:
        return torch.cat([as_bytes(scales["d"]), pack_runs(codes, 1)], dim=1)

    def unpack(data: Tensor) -> tuple[Tensor, Scales]:
        return unpack_runs(data[:, 2:], 1), {"d": float16_at(data, 0)}

    return BlockFormat(
        name="q1_0",
        block=128,
        bytes=18,
        ggml_type=41,
        decode=decode,
        pack=pack,
        unpack=unpack,
        fit=fit,
        encode=encode,
        levels=levels,
        spread=_spread,
        gather=_gather,
        source="ggml-quants.c",
    )


def _q2_0() -> BlockFormat:
    def fit(w: Tensor, importance: Tensor | None = None) -> Scales:
        return {"d": to_float16(lopsided_scale(w, importance))}

    def encode(w: Tensor, scales: Scales) -> Tensor:
        d = scales["d"].float()
        q = torch.mul(w, inverse(d)).round_()
        return q.clamp_(-1, 2).add_(1).to(torch.uint8)

    def levels(codes: Tensor) -> Tensor:
        return codes.to(torch.float32).sub_(1)

    def decode(codes: Tensor, scales: Scales) -> Tensor:
        return levels(codes).mul_(scales["d"].float())

    def pack(codes: Tensor, scales: Scales) -> Tensor:
        return torch.cat([as_bytes(scales["d"]), pack_runs(codes, 2)], dim=1)

    def unpack(data: Tensor) -> tuple[Tensor, Scales]:
        return unpack_runs(data[:, 2:], 2), {"d": float16_at(data, 0)}

    return BlockFormat(
        name="q2_0",
        block=64,
        bytes=18,
        ggml_type=42,
        decode=decode,
        pack=pack,
        unpack=unpack,
        fit=fit,
        encode=encode,
        levels=levels,
        spread=_spread,
        gather=_gather,
        source="ggml-quants.c",
    )


Q1_0 = _q1_0()
Q2_0 = _q2_0()
