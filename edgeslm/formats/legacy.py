"""ggml's first block formats: 32 weights share a float16 scale `d` (and for the `_1` formats a minimum `m`).

    q4_0  | d f16 | qs 16 x uint8 |                      18 bytes   w = (q - 8) d          q in 0..15
    q4_1  | d f16 | m f16 | qs 16 x uint8 |              20 bytes   w = q d + m            q in 0..15
    q5_0  | d f16 | qh u32 | qs 16 x uint8 |             22 bytes   w = (q - 16) d         q in 0..31
    q5_1  | d f16 | m f16 | qh u32 | qs 16 x uint8 |     24 bytes   w = q d + m            q in 0..31
    q8_0  | d f16 | qs 32 x int8 |                       34 bytes   w = q d                q in -127..127

    qs byte j:  bits 0-3 weight j, bits 4-7 weight j + 16;    qh bit j: fifth bit of weight j

Layout and arithmetic: ggml-quants.c `dequantize_row_*`, `quantize_row_*_ref`. Shape letters as in base.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeslm.formats.base import BlockFormat, Scales
from edgeslm.formats.search import best_of, grid_steps

HALF = 2  # bytes of a float16


def _f16(data: Tensor, at: int) -> Tensor:
    """Two bytes of every block as float16 [n, 1]."""
    return data[:, at : at + HALF].contiguous().view(torch.float16)


def _bytes(x: Tensor) -> Tensor:
    """Any dtype [n, m] -> its bytes, uint8 [n, m * itemsize]."""
    return x.contiguous().view(torch.uint8).reshape(x.shape[0], -1)


def _nibbles(qs: Tensor) -> Tensor:
    """[n, 16] -> [n, 32]: low nibbles first, then high ones."""
    return torch.cat([qs & 15, qs >> 4], dim=1)


def _to_nibbles(codes: Tensor) -> Tensor:
    low, high = codes[:, :16] & 15, codes[:, 16:] & 15
    return low | (high << 4)


def _fifth_bits(qh: Tensor) -> Tensor:
    """[n, 4] little-endian u32 -> [n, 32] of 0 or 16."""
    shifts = torch.arange(8, dtype=torch.uint8)
    return (((qh[:, :, None] >> shifts) & 1) << 4).reshape(-1, 32)


def _to_fifth_bits(codes: Tensor) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8)
    bits = ((codes >> 4) & 1).reshape(-1, 4, 8) << shifts
    return bits.sum(dim=2, dtype=torch.uint8)


def _absmax(w: Tensor) -> Tensor:
    """The entry of largest magnitude with its sign, [n, 1]; the first one on ties, as ggml's loop keeps it."""
    return w.gather(1, w.abs().argmax(dim=1, keepdim=True))


def _inverse(d: Tensor) -> Tensor:
    """1/d, and 0 where d is 0 (ggml: `id = d ? 1.0f/d : 0.0f`)."""
    return torch.where(d == 0, torch.zeros_like(d), 1.0 / d)


def _symmetric_codes(w: Tensor, scales: Scales, offset: int) -> Tensor:
    """Nearest code on the grid that the *stored* float16 scale spans. q = round(w / d) + offset, clamped."""
    q = torch.round(w * _inverse(scales["d"].float())).add_(offset)
    return q.clamp_(0, 2 * offset - 1).to(torch.uint8)


def _symmetric(name: str, offset: int, size: int, ggml_type: int) -> BlockFormat:
    five = offset == 16

    def fit(w: Tensor, importance: Tensor | None = None) -> Scales:
        """Scale of least (weighted) squared error among candidates around ggml's absmax / -offset."""
        start = _absmax(w) / -offset
        return {"d": best_of(w, [start * s for s in grid_steps(offset)], offset, importance)}

    def encode(w: Tensor, scales: Scales) -> Tensor:
        return _symmetric_codes(w, scales, offset)

    def decode(codes: Tensor, scales: Scales) -> Tensor:
        return codes.to(torch.float32).sub_(offset).mul_(scales["d"].float())

    def pack(codes: Tensor, scales: Scales) -> Tensor:
        high = [_to_fifth_bits(codes)] if five else []
        return torch.cat([_bytes(scales["d"]), *high, _to_nibbles(codes)], dim=1)

    def unpack(data: Tensor) -> tuple[Tensor, Scales]:
        codes = _nibbles(data[:, size - 16 :])
        if five:
            codes |= _fifth_bits(data[:, HALF : HALF + 4])
        return codes, {"d": _f16(data, 0)}

    def reference(w: Tensor) -> Tensor:
        """quantize_row_q4_0_ref / q5_0_ref: scale in float32 for rounding, float16 only when stored."""
        d = _absmax(w) / -offset
        q = (w * _inverse(d)).add_(offset + 0.5).to(torch.int32).clamp_(max=2 * offset - 1).to(torch.uint8)
        return pack(q, {"d": d.to(torch.float16)})

    return BlockFormat(name, 32, size, ggml_type, decode, pack, unpack, fit, encode, reference, "ggml-quants.c")


def _affine(name: str, levels: int, size: int, ggml_type: int) -> BlockFormat:
    five = levels == 31

    def fit(w: Tensor, importance: Tensor | None = None) -> Scales:
        low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
        return {"d": ((high - low) / levels).to(torch.float16), "m": low.to(torch.float16)}

    def encode(w: Tensor, scales: Scales) -> Tensor:
        q = torch.round((w - scales["m"].float()) * _inverse(scales["d"].float()))
        return q.clamp_(0, levels).to(torch.uint8)

    def decode(codes: Tensor, scales: Scales) -> Tensor:
        return codes.to(torch.float32).mul_(scales["d"].float()).add_(scales["m"].float())

    def pack(codes: Tensor, scales: Scales) -> Tensor:
        high = [_to_fifth_bits(codes)] if five else []
        return torch.cat([_bytes(scales["d"]), _bytes(scales["m"]), *high, _to_nibbles(codes)], dim=1)

    def unpack(data: Tensor) -> tuple[Tensor, Scales]:
        codes = _nibbles(data[:, size - 16 :])
        if five:
            codes |= _fifth_bits(data[:, 2 * HALF : 2 * HALF + 4])
        return codes, {"d": _f16(data, 0), "m": _f16(data, HALF)}

    def reference(w: Tensor) -> Tensor:
        """quantize_row_q4_1_ref / q5_1_ref."""
        low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
        d = (high - low) / levels
        q = ((w - low) * _inverse(d)).add_(0.5).to(torch.int32).clamp_(max=levels).to(torch.uint8)
        return pack(q, {"d": d.to(torch.float16), "m": low.to(torch.float16)})

    return BlockFormat(name, 32, size, ggml_type, decode, pack, unpack, fit, encode, reference, "ggml-quants.c")


def _q8_0() -> BlockFormat:
    def fit(w: Tensor, importance: Tensor | None = None) -> Scales:
        return {"d": (w.abs().amax(1, keepdim=True) / 127).to(torch.float16)}

    def encode(w: Tensor, scales: Scales) -> Tensor:
        return torch.round(w * _inverse(scales["d"].float())).clamp_(-127, 127).to(torch.int8)

    def decode(codes: Tensor, scales: Scales) -> Tensor:
        return codes.to(torch.float32).mul_(scales["d"].float())

    def pack(codes: Tensor, scales: Scales) -> Tensor:
        return torch.cat([_bytes(scales["d"]), _bytes(codes)], dim=1)

    def unpack(data: Tensor) -> tuple[Tensor, Scales]:
        return data[:, HALF:].contiguous().view(torch.int8), {"d": _f16(data, 0)}

    def reference(w: Tensor) -> Tensor:
        """quantize_row_q8_0_ref: `roundf`, which rounds halves away from zero."""
        d = w.abs().amax(1, keepdim=True) / 127
        x = w * _inverse(d)
        q = torch.trunc(x + torch.copysign(torch.full_like(x, 0.5), x)).to(torch.int8)
        return pack(q, {"d": d.to(torch.float16)})

    return BlockFormat("q8_0", 32, 34, 8, decode, pack, unpack, fit, encode, reference, "ggml-quants.c")


Q4_0 = _symmetric("q4_0", 8, 18, 2)
Q5_0 = _symmetric("q5_0", 16, 22, 6)
Q4_1 = _affine("q4_1", 15, 20, 3)
Q5_1 = _affine("q5_1", 31, 24, 7)
Q8_0 = _q8_0()
