"""ggml's ternary formats: 256 weights of -d, 0 or d.

    tq1_0  | qs 48 | qh 4 | d f16 |       54 bytes, 1.69 bits    five weights in a byte of qs, four in a byte of qh
    tq2_0  | qs 64 | d f16 |              66 bytes, 2.06 bits    four weights in a byte

    w = (q - 1) d, q in 0..2 (the two bits of tq2_0 can also say 3, which reads as 2d; `encode` never does)

    tq1_0: a byte is ceil(256 t / 243) for t = q0 81 + q1 27 + q2 9 + q3 3 + q4; then digit i is the top of
           (byte 3^i mod 256) 3, shifted right by 8. `qs` byte j < 32 holds weights j + 32 i, byte 32 + j
           weights 160 + j + 16 i; `qh` byte j holds weights 240 + j + 4 i, its fifth digit is 0. Of the 256
           values of a byte ggml writes 243 (in qh 81); the others read as one of those and are packed as it.
    tq2_0: planes of two bits in two groups of 32 bytes

Layout and arithmetic: ggml-quants.c `dequantize_row_tq*`, `quantize_row_tq*_ref`. ggml's quantiser takes d = max |w|;
`fit` looks for the d of least squared error (sweep.py). Shape letters as in base.py.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgeslm.formats.base import BlockFormat, Scales
from edgeslm.formats.bits import as_bytes, float16_at, pack_planes, unpack_planes
from edgeslm.formats.one_scale import one_scale
from edgeslm.formats.sweep import inverse, ternary_scale

Pack = Callable[[Tensor, Scales], Tensor]
Unpack = Callable[[Tensor], tuple[Tensor, Scales]]
SUPER = 256
PARTS = ((0, 32, 5), (160, 16, 5), (240, 4, 4))  # first weight, bytes, digits in a byte


def encode(w: Tensor, scales: Scales) -> Tensor:
    q = torch.mul(w, inverse(scales["d"].float())).round_()
    return q.clamp_(-1, 1).add_(1).to(torch.uint8)


def levels(codes: Tensor) -> Tensor:
    return codes.to(torch.float32).sub_(1)


def _unpack_tq1(data: Tensor) -> tuple[Tensor, Scales]:
    codes = data.new_empty(data.shape[0], SUPER)
    at = 0
    for first, width, digits in PARTS:
        raw = data[:, at : at + width]
        out = codes[:, first : first + digits * width].view(-1, digits, width)
        for i in range(digits):
            turned = raw * 3**i  # modulo 256: the digits before this one fall off
            torch.add(
                (turned > 85).view(torch.uint8), (turned > 170).view(torch.uint8), out=out[:, i]
            )  # (3 turned) >> 8
        at += width
    return codes, {"d": float16_at(data, 52)}


def _pack_tq1(codes: Tensor, scales: Scales) -> Tensor:
    parts = []
    for first, width, digits in PARTS:
        fields = codes[:, first : first + digits * width].reshape(-1, digits, width)
        total = fields[:, 0] * 81
        for i in range(1, digits):
            total += fields[:, i] * 3 ** (4 - i)
        parts.append(((total.to(torch.int32) * 256 + 242) // 243).to(torch.uint8))
    return torch.cat([*parts, as_bytes(scales["d"])], dim=1)


def _unpack_tq2(data: Tensor) -> tuple[Tensor, Scales]:
    return unpack_planes(data[:, :64].reshape(-1, 2, 32), 2), {"d": float16_at(data, 64)}


def _pack_tq2(codes: Tensor, scales: Scales) -> Tensor:
    return torch.cat([pack_planes(codes, 2, groups=2), as_bytes(scales["d"])], dim=1)


def _ternary(name: str, size: int, ggml_type: int, pack: Pack, unpack: Unpack) -> BlockFormat:
    return one_scale(
        name,
        block=SUPER,
        size=size,
        ggml_type=ggml_type,
        best=ternary_scale,
        encode=encode,
        levels=levels,
        pack=pack,
        unpack=unpack,
    )


TQ1_0 = _ternary("tq1_0", 54, 34, _pack_tq1, _unpack_tq1)
TQ2_0 = _ternary("tq2_0", 66, 35, _pack_tq2, _unpack_tq2)
