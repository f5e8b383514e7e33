"""ggml's K formats: super-blocks of 256 weights, read (decode, pack, unpack) only for now.

    q2_k  | scales 16 x (4-bit sc, 4-bit m) | qs 64 | d f16 | dmin f16 |                84 bytes
    q3_k  | hmask 32 | qs 64 | scales 12 (16 x 6 bit) | d f16 |                        110 bytes
    q4_k  | d f16 | dmin f16 | scales 12 (8 x 6-bit sc, 8 x 6-bit m) | qs 128 |        144 bytes
    q5_k  | d f16 | dmin f16 | scales 12 | qh 32 | qs 128 |                            176 bytes
    q6_k  | ql 128 | qh 64 | scales 16 x int8 | d f16 |                                210 bytes

`scales` holds what the file holds: `d`, `dmin` float16 [n, 1], `sc`, `m` integers [n, sub-blocks].
Arithmetic follows ggml-quants.c `dequantize_row_q*_K`: `(d * sc) * q - (dmin * m)`, each product in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeslm.formats.base import BlockFormat, Scales

SUPER = 256


def _f16(data: Tensor, at: int) -> Tensor:
    return data[:, at : at + 2].contiguous().view(torch.float16)


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8).reshape(x.shape[0], -1)


def _fields(x: Tensor, width: int) -> Tensor:
    """[n, g, j] bytes -> [n, g, 8/width, j]: field f of every byte, lowest bits first."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8).reshape(-1, 1)
    return (x[:, :, None, :] >> shifts) & ((1 << width) - 1)


def _merge(fields: Tensor, width: int) -> Tensor:
    """Inverse of `_fields`: [n, g, f, j] -> [n, g, j]."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8).reshape(-1, 1)
    return (fields << shifts).sum(dim=2, dtype=torch.uint8)


def _scaled(codes: Tensor, scales: Scales, sub: int, offset: int = 0) -> Tensor:
    """(d * sc) * (q - offset) [- dmin * m] over sub-blocks of `sub` weights."""
    q = codes.to(torch.float32).reshape(codes.shape[0], -1, sub)
    if offset:
        q = q - offset
    out = q.mul_((scales["d"].float() * scales["sc"].float())[:, :, None])
    if "dmin" in scales:
        out.sub_((scales["dmin"].float() * scales["m"].float())[:, :, None])
    return out.reshape(codes.shape[0], SUPER)


def _unpack_q2(data: Tensor) -> tuple[Tensor, Scales]:
    sc = data[:, :16]
    codes = _fields(data[:, 16:80].reshape(-1, 2, 32), 2).reshape(-1, SUPER)
    return codes, {"d": _f16(data, 80), "dmin": _f16(data, 82), "sc": sc & 15, "m": sc >> 4}


def _pack_q2(codes: Tensor, scales: Scales) -> Tensor:
    qs = _merge(codes.reshape(-1, 2, 4, 32), 2).reshape(-1, 64)
    return torch.cat([scales["sc"] | (scales["m"] << 4), qs, _bytes(scales["d"]), _bytes(scales["dmin"])], dim=1)


def _unpack_q3(data: Tensor) -> tuple[Tensor, Scales]:
    low = _fields(data[:, 32:96].reshape(-1, 2, 32), 2).reshape(-1, 8, 32)
    high = _fields(data[:, None, :32], 1).reshape(-1, 8, 32)  # bit j of hmask belongs to sub-row j
    raw = data[:, 96:108]
    low4 = torch.cat([raw[:, :8] & 15, raw[:, :8] >> 4], dim=1)
    high2 = _fields(raw[:, None, 8:12], 2).reshape(-1, 16)
    sc = (low4 | (high2 << 4)).to(torch.int8) - 32
    return (low | (high << 2)).reshape(-1, SUPER), {"d": _f16(data, 108), "sc": sc}


def _pack_q3(codes: Tensor, scales: Scales) -> Tensor:
    rows = codes.reshape(-1, 8, 32)
    hmask = _merge((rows >> 2).reshape(-1, 1, 8, 32), 1).reshape(-1, 32)
    qs = _merge((rows & 3).reshape(-1, 2, 4, 32), 2).reshape(-1, 64)
    sc = (scales["sc"] + 32).to(torch.uint8)
    low = (sc[:, :8] & 15) | ((sc[:, 8:] & 15) << 4)
    high = _merge((sc >> 4).reshape(-1, 1, 4, 4), 2).reshape(-1, 4)
    return torch.cat([hmask, qs, low, high, _bytes(scales["d"])], dim=1)


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


def _unpack_q4(data: Tensor) -> tuple[Tensor, Scales]:
    sc, m = _unpack_sc_m(data[:, 4:16])
    codes = _fields(data[:, 16:144].reshape(-1, 4, 32), 4).reshape(-1, SUPER)
    return codes, {"d": _f16(data, 0), "dmin": _f16(data, 2), "sc": sc, "m": m}


def _pack_q4(codes: Tensor, scales: Scales) -> Tensor:
    qs = _merge(codes.reshape(-1, 4, 2, 32), 4).reshape(-1, 128)
    head = [_bytes(scales["d"]), _bytes(scales["dmin"]), _pack_sc_m(scales["sc"], scales["m"])]
    return torch.cat([*head, qs], dim=1)


def _unpack_q5(data: Tensor) -> tuple[Tensor, Scales]:
    sc, m = _unpack_sc_m(data[:, 4:16])
    low = _fields(data[:, 48:176].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    high = _fields(data[:, None, 16:48], 1).reshape(-1, 8, 32)
    scales = {"d": _f16(data, 0), "dmin": _f16(data, 2), "sc": sc, "m": m}
    return (low | (high << 4)).reshape(-1, SUPER), scales


def _pack_q5(codes: Tensor, scales: Scales) -> Tensor:
    rows = codes.reshape(-1, 8, 32)
    qh = _merge((rows >> 4).reshape(-1, 1, 8, 32), 1).reshape(-1, 32)
    qs = _merge((rows & 15).reshape(-1, 4, 2, 32), 4).reshape(-1, 128)
    head = [_bytes(scales["d"]), _bytes(scales["dmin"]), _pack_sc_m(scales["sc"], scales["m"])]
    return torch.cat([*head, qh, qs], dim=1)


def _unpack_q6(data: Tensor) -> tuple[Tensor, Scales]:
    # each half of 128 weights: ql 64 bytes give low nibbles (rows 0,1 low; rows 2,3 high), qh 32 bytes two bits each
    low = _fields(data[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 2, 4, 32)
    high = _fields(data[:, 128:192].reshape(-1, 2, 32), 2)
    codes = (low | (high << 4)).reshape(-1, SUPER)
    return codes, {"d": _f16(data, 208), "sc": data[:, 192:208].contiguous().view(torch.int8)}


def _pack_q6(codes: Tensor, scales: Scales) -> Tensor:
    rows = codes.reshape(-1, 2, 4, 32)
    ql = _merge((rows & 15).reshape(-1, 2, 2, 64), 4).reshape(-1, 128)
    qh = _merge(rows >> 4, 2).reshape(-1, 64)
    return torch.cat([ql, qh, _bytes(scales["sc"]), _bytes(scales["d"])], dim=1)


def _decode_q2(codes: Tensor, scales: Scales) -> Tensor:
    return _scaled(codes, scales, 16)


def _decode_q3(codes: Tensor, scales: Scales) -> Tensor:
    return _scaled(codes, scales, 16, offset=4)


def _decode_q45(codes: Tensor, scales: Scales) -> Tensor:
    return _scaled(codes, scales, 32)


def _decode_q6(codes: Tensor, scales: Scales) -> Tensor:
    return _scaled(codes, scales, 16, offset=32)


SOURCE = "ggml-quants.c"
Q2_K = BlockFormat("q2_k", SUPER, 84, 10, _decode_q2, _pack_q2, _unpack_q2, source=SOURCE)
Q3_K = BlockFormat("q3_k", SUPER, 110, 11, _decode_q3, _pack_q3, _unpack_q3, source=SOURCE)
Q4_K = BlockFormat("q4_k", SUPER, 144, 12, _decode_q45, _pack_q4, _unpack_q4, source=SOURCE)
Q5_K = BlockFormat("q5_k", SUPER, 176, 13, _decode_q45, _pack_q5, _unpack_q5, source=SOURCE)
Q6_K = BlockFormat("q6_k", SUPER, 210, 14, _decode_q6, _pack_q6, _unpack_q6, source=SOURCE)
