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
from edgeslm.formats.bits import as_bytes, float16_at, pack_planes, pack_runs, unpack_planes, unpack_runs
from edgeslm.formats.lattice import inverse
from edgeslm.formats.search import fit_step, fit_step_and_minimum, to_float16

HALF = 2  # bytes of a float16
SOURCE = "ggml-quants.c"
SHARES_OF_8_BITS = (1.02, 1.01, 1.0, 0.99, 0.98, 0.97, 0.95)  # 255 levels: cutting the largest weight seldom pays


def _nibbles(qs: Tensor) -> Tensor:
    """[n, 16] -> [n, 32]: low nibbles first, then high ones."""
    return unpack_planes(qs[:, None], 4)


def _to_nibbles(codes: Tensor) -> Tensor:
    return pack_planes(codes & 15, 4, 1)


def _absmax(w: Tensor) -> Tensor:
    """The entry of largest magnitude with its sign, [n, 1]; the first one on ties, as ggml's loop keeps it."""
    return w.gather(1, w.abs().argmax(dim=1, keepdim=True))


def _signed(w: Tensor, scales: Scales, low: int, high: int) -> Tensor:
    """Nearest level on the grid that the *stored* float16 scale spans: round(w / d), clamped, int8."""
    return (w * inverse(scales["d"].float())).round_().clamp_(low, high).to(torch.int8)


def _spread(scales: Scales) -> tuple[Tensor, None]:
    return scales["d"].float(), None


def _gather(step: Tensor, minimum: Tensor | None, scales: Scales) -> Scales:
    return {"d": to_float16(step)}


def _symmetric(name: str, offset: int, size: int, ggml_type: int) -> BlockFormat:
    five = offset == 16

    def fit(w: Tensor, importance: Tensor | None = None) -> Scales:
        return fit_step(w, importance, -offset, offset - 1)

    def encode(w: Tensor, scales: Scales) -> Tensor:
        return _signed(w, scales, -offset, offset - 1).add_(offset).view(torch.uint8)

    def levels(codes: Tensor) -> Tensor:
        return codes.to(torch.float32).sub_(offset)

    def decode(codes: Tensor, scales: Scales) -> Tensor:
        return levels(codes).mul_(scales["d"].float())

    def pack(codes: Tensor, scales: Scales) -> Tensor:
        high = [pack_runs(codes >> 4, 1)] if five else []
        return torch.cat([as_bytes(scales["d"]), *high, _to_nibbles(codes)], dim=1)

    def unpack(data: Tensor) -> tuple[Tensor, Scales]:
        codes = _nibbles(data[:, size - 16 :])
        if five:
            codes |= unpack_runs(data[:, HALF : HALF + 4], 1) << 4
        return codes, {"d": float16_at(data, 0)}

    def reference(w: Tensor) -> Tensor:
        """quantize_row_q4_0_ref / q5_0_ref: scale in float32 for rounding, float16 only when stored."""
        d = _absmax(w) / -offset
        q = (w * inverse(d)).add_(offset + 0.5).to(torch.int32).clamp_(max=2 * offset - 1).to(torch.uint8)
        return pack(q, {"d": d.to(torch.float16)})

    return BlockFormat(
        name, 32, size, ggml_type, decode, pack, unpack, fit, encode, reference, levels, _spread, _gather, SOURCE
    )


def _affine(name: str, top: int, size: int, ggml_type: int) -> BlockFormat:
    five = top == 31

    def fit(w: Tensor, importance: Tensor | None = None) -> Scales:
        return fit_step_and_minimum(w, importance, top)

    def encode(w: Tensor, scales: Scales) -> Tensor:
        q = (w - scales["m"].float()).mul_(inverse(scales["d"].float()))
        return q.round_().clamp_(0, top).to(torch.int8).view(torch.uint8)

    def levels(codes: Tensor) -> Tensor:
        return codes.to(torch.float32)

    def spread(scales: Scales) -> tuple[Tensor, Tensor]:
        return scales["d"].float(), -scales["m"].float()

    def gather(step: Tensor, minimum: Tensor | None, scales: Scales) -> Scales:
        assert minimum is not None, f"{name} has a minimum"
        return {"d": to_float16(step), "m": to_float16(-minimum)}

    def decode(codes: Tensor, scales: Scales) -> Tensor:
        return levels(codes).mul_(scales["d"].float()).add_(scales["m"].float())

    def pack(codes: Tensor, scales: Scales) -> Tensor:
        high = [pack_runs(codes >> 4, 1)] if five else []
        return torch.cat([as_bytes(scales["d"]), as_bytes(scales["m"]), *high, _to_nibbles(codes)], dim=1)

    def unpack(data: Tensor) -> tuple[Tensor, Scales]:
        codes = _nibbles(data[:, size - 16 :])
        if five:
            codes |= unpack_runs(data[:, 2 * HALF : 2 * HALF + 4], 1) << 4
        return codes, {"d": float16_at(data, 0), "m": float16_at(data, HALF)}

    def reference(w: Tensor) -> Tensor:
        """quantize_row_q4_1_ref / q5_1_ref."""
        low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
        d = (high - low) / top
        q = ((w - low) * inverse(d)).add_(0.5).to(torch.int32).clamp_(max=top).to(torch.uint8)
        return pack(q, {"d": d.to(torch.float16), "m": low.to(torch.float16)})

    return BlockFormat(
        name, 32, size, ggml_type, decode, pack, unpack, fit, encode, reference, levels, spread, gather, SOURCE
    )


def _q8_0() -> BlockFormat:
    def fit(w: Tensor, importance: Tensor | None = None) -> Scales:
        return fit_step(w, importance, -127, 127, signed=False, shares=SHARES_OF_8_BITS)

    def encode(w: Tensor, scales: Scales) -> Tensor:
        return _signed(w, scales, -127, 127)

    def levels(codes: Tensor) -> Tensor:
        return codes.to(torch.float32)

    def decode(codes: Tensor, scales: Scales) -> Tensor:
        return levels(codes).mul_(scales["d"].float())

    def pack(codes: Tensor, scales: Scales) -> Tensor:
        return torch.cat([as_bytes(scales["d"]), as_bytes(codes)], dim=1)

    def unpack(data: Tensor) -> tuple[Tensor, Scales]:
        return data[:, HALF:].contiguous().view(torch.int8), {"d": float16_at(data, 0)}

    def reference(w: Tensor) -> Tensor:
        """quantize_row_q8_0_ref: `roundf`, which rounds halves away from zero."""
        d = w.abs().amax(1, keepdim=True) / 127
        x = w * inverse(d)
        q = torch.trunc(x + torch.copysign(torch.full_like(x, 0.5), x)).to(torch.int8)
        return pack(q, {"d": d.to(torch.float16)})

    return BlockFormat(
        "q8_0", 32, 34, 8, decode, pack, unpack, fit, encode, reference, levels, _spread, _gather, SOURCE
    )


Q4_0 = _symmetric("q4_0", 8, 18, 2)
Q5_0 = _symmetric("q5_0", 16, 22, 6)
Q4_1 = _affine("q4_1", 15, 20, 3)
Q5_1 = _affine("q5_1", 31, 24, 7)
Q8_0 = _q8_0()
