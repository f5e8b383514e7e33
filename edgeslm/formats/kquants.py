"""ggml's K formats: super-blocks of 256 weights, whose 8 or 16 sub-blocks have scales of few bits.

    q2_k  | scales 16 x (4-bit sc, 4-bit m) | qs 64 | d f16 | dmin f16 |                84 bytes
    q3_k  | hmask 32 | qs 64 | scales 12 (16 x 6 bit) | d f16 |                        110 bytes
    q4_k  | d f16 | dmin f16 | scales 12 (8 x 6-bit sc, 8 x 6-bit m) | qs 128 |        144 bytes
    q5_k  | d f16 | dmin f16 | scales 12 | qh 32 | qs 128 |                            176 bytes
    q6_k  | ql 128 | qh 64 | scales 16 x int8 | d f16 |                                210 bytes

`scales` holds what the file holds: `d`, `dmin` float16 [n, 1], `sc`, `m` integers [n, sub-blocks].
Arithmetic follows ggml-quants.c `dequantize_row_q*_K`: `(d * sc) * q - (dmin * m)`, each product in float32.
`fit` is kfit.py's. Learned scales keep `d` and `dmin`: only `sc` and `m` follow the step and the minimum.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgeslm.formats import kfit
from edgeslm.formats.base import BlockFormat, Scales
from edgeslm.formats.bits import as_bytes, float16_at, pack_planes, unpack_planes
from edgeslm.formats.kfit import SubGrid
from edgeslm.formats.lattice import inverse

SUPER = 256


def _unpack_q2(data: Tensor) -> tuple[Tensor, Scales]:
    sc = data[:, :16]
    codes = unpack_planes(data[:, 16:80].reshape(-1, 2, 32), 2)
    return codes, {"d": float16_at(data, 80), "dmin": float16_at(data, 82), "sc": sc & 15, "m": sc >> 4}


def _pack_q2(codes: Tensor, scales: Scales) -> Tensor:
    sc_m = scales["sc"] | (scales["m"] << 4)
    return torch.cat([sc_m, pack_planes(codes, 2, 2), as_bytes(scales["d"]), as_bytes(scales["dmin"])], dim=1)


def _unpack_q3(data: Tensor) -> tuple[Tensor, Scales]:
    codes = unpack_planes(data[:, 32:96].reshape(-1, 2, 32), 2)
    codes |= unpack_planes(data[:, None, :32], 1) << 2  # bit j of hmask belongs to the j-th 32 weights
    raw = data[:, 96:108]
    low4 = torch.cat([raw[:, :8] & 15, raw[:, :8] >> 4], dim=1)
    high2 = unpack_planes(raw[:, None, 8:12], 2)
    return codes, {"d": float16_at(data, 108), "sc": (low4 | (high2 << 4)).to(torch.int8) - 32}


def _pack_q3(codes: Tensor, scales: Scales) -> Tensor:
    sc = (scales["sc"] + 32).to(torch.uint8)
    low = (sc[:, :8] & 15) | ((sc[:, 8:] & 15) << 4)
    high = pack_planes(sc >> 4, 2, 1)
    return torch.cat([pack_planes(codes >> 2, 1, 1), pack_planes(codes & 3, 2, 2), low, high, as_bytes(scales["d"])], 1)


def _unpack_sc_m(raw: Tensor) -> tuple[Tensor, Tensor]:
    """12 bytes -> 8 six-bit scales and 8 six-bit minima (ggml `get_scale_min_k4`)."""
    a, b, c = raw[:, :4], raw[:, 4:8], raw[:, 8:]
    sc = torch.cat([a & 63, (c & 15) | ((a >> 6) << 4)], dim=1)
    m = torch.cat([b & 63, (c >> 4) | ((b >> 6) << 4)], dim=1)
    return sc, m


def _pack_sc_m(sc: Tensor, m: Tensor) -> Tensor:
    a = sc[:, :4] | ((sc[:, 4:] >> 4) << 6)
    b = m[:, :4] | ((m[:, 4:] >> 4) << 6)
    c = (sc[:, 4:] & 15) | ((m[:, 4:] & 15) << 4)
    return torch.cat([a, b, c], dim=1)


def _head(scales: Scales) -> list[Tensor]:
    return [as_bytes(scales["d"]), as_bytes(scales["dmin"]), _pack_sc_m(scales["sc"], scales["m"])]


def _unpack_q4(data: Tensor) -> tuple[Tensor, Scales]:
    sc, m = _unpack_sc_m(data[:, 4:16])
    codes = unpack_planes(data[:, 16:144].reshape(-1, 4, 32), 4)
    return codes, {"d": float16_at(data, 0), "dmin": float16_at(data, 2), "sc": sc, "m": m}


def _pack_q4(codes: Tensor, scales: Scales) -> Tensor:
    return torch.cat([*_head(scales), pack_planes(codes, 4, 4)], dim=1)


def _unpack_q5(data: Tensor) -> tuple[Tensor, Scales]:
    sc, m = _unpack_sc_m(data[:, 4:16])
    codes = unpack_planes(data[:, 48:176].reshape(-1, 4, 32), 4)
    codes |= unpack_planes(data[:, None, 16:48], 1) << 4
    return codes, {"d": float16_at(data, 0), "dmin": float16_at(data, 2), "sc": sc, "m": m}


def _pack_q5(codes: Tensor, scales: Scales) -> Tensor:
    return torch.cat([*_head(scales), pack_planes(codes >> 4, 1, 1), pack_planes(codes & 15, 4, 4)], dim=1)


def _unpack_q6(data: Tensor) -> tuple[Tensor, Scales]:
    # each half of 128 weights: ql 64 bytes of low nibbles (first 64 weights low), qh 32 bytes of four times two bits
    codes = unpack_planes(data[:, :128].reshape(-1, 2, 64), 4)
    codes |= unpack_planes(data[:, 128:192].reshape(-1, 2, 32), 2) << 4
    return codes, {"d": float16_at(data, 208), "sc": data[:, 192:208].contiguous().view(torch.int8)}


def _pack_q6(codes: Tensor, scales: Scales) -> Tensor:
    low, high = pack_planes(codes & 15, 4, 2), pack_planes(codes >> 4, 2, 2)
    return torch.cat([low, high, as_bytes(scales["sc"]), as_bytes(scales["d"])], dim=1)


def _trainable(
    name: str, size: int, ggml_type: int, grid: SubGrid, pack: Callable[..., Tensor], unpack: Callable[..., tuple]
) -> BlockFormat:
    """The float side of a K format. Codes count from 0, levels from `grid.low`."""

    def fit(w: Tensor, importance: Tensor | None = None) -> Scales:
        return kfit.fit(w, importance, grid)

    def spread(scales: Scales) -> tuple[Tensor, Tensor | None]:
        step = scales["d"].float() * scales["sc"]
        return step, scales["dmin"].float() * scales["m"] if grid.deepest else None

    def gather(step: Tensor, minimum: Tensor | None, scales: Scales) -> Scales:
        out = scales | {"sc": _integers(step, scales["d"], scales["sc"], grid.bottom, grid.top)}
        if minimum is not None:
            out["m"] = _integers(minimum, scales["dmin"], scales["m"], 0, grid.deepest)
        return out

    def levels(codes: Tensor) -> Tensor:
        q = codes.to(torch.float32)
        return q.add_(grid.low) if grid.low else q

    def encode(w: Tensor, scales: Scales) -> Tensor:
        step, minimum = spread(scales)
        x, per_weight = w.reshape(w.shape[0], -1, grid.size), inverse(step)[:, :, None]
        q = x * per_weight if minimum is None else (x + minimum[:, :, None]).mul_(per_weight)
        codes = q.round_().clamp_(grid.low, grid.high).to(torch.int8)
        return (codes.sub_(grid.low) if grid.low else codes).view(torch.uint8).reshape(w.shape)

    def decode(codes: Tensor, scales: Scales) -> Tensor:
        step, minimum = spread(scales)
        out = levels(codes).reshape(codes.shape[0], -1, grid.size).mul_(step[:, :, None])
        if minimum is not None:
            out.sub_(minimum[:, :, None])
        return out.reshape(codes.shape)

    verbs = (decode, pack, unpack, fit, encode, None, levels, spread, gather)
    return BlockFormat(name, SUPER, size, ggml_type, *verbs, "ggml-quants.c")


def _integers(x: Tensor, unit: Tensor, given: Tensor, low: int, high: int) -> Tensor:
    """x in whole units; the given integers where the unit is 0, as any does then."""
    unit = unit.float()
    rounded = torch.round(x * inverse(unit)).clamp_(low, high).to(given.dtype)
    return torch.where(unit == 0, given, rounded)


Q2_K = _trainable("q2_k", 84, 10, SubGrid(16, 0, 3, 0, 15, 15), _pack_q2, _unpack_q2)
Q3_K = _trainable("q3_k", 110, 11, SubGrid(16, -4, 3, -32, 31), _pack_q3, _unpack_q3)
Q4_K = _trainable("q4_k", 144, 12, SubGrid(32, 0, 15, 0, 63, 63), _pack_q4, _unpack_q4)
Q5_K = _trainable("q5_k", 176, 13, SubGrid(32, 0, 31, 0, 63, 63), _pack_q5, _unpack_q5)
Q6_K = _trainable("q6_k", 210, 14, SubGrid(16, -32, 31, -128, 127), _pack_q6, _unpack_q6)
