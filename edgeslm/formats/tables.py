"""ggml's table formats: a four-bit code names one of 16 levels that are not evenly spaced.

    iq4_nl | d f16 | qs 16 |                                        18 bytes for 32 weights, 4.5 bits
    iq4_xs | d f16 | scales_h u16 | scales_l 4 | qs 8 x 16 |        136 bytes for 8 x 32 weights, 4.25 bits
    mxfp4  | e u8 | qs 16 |                                         17 bytes for 32 weights, 4.25 bits
    nvfp4  | d 4 x u8 | qs 4 x 8 |                                  36 bytes for 4 x 16 weights, 4.5 bits

    iq4_*   w = level(q) step, levels -127 .. 113; step = d, in iq4_xs d (ls - 32) with a six-bit ls for 32 weights:
            its low four bits in nibble b of scales_l, its high two in bits 2b of scales_h
    mxfp4   w = level(q) 2^(e - 128), levels 0 1 2 3 4 6 8 12 and their negatives: E2M1 doubled
    nvfp4   the same levels, step = half of an unsigned E4M3 number for 16 weights
    qs byte j of a group:  low nibble weight j, high nibble weight j + (half of the group)

`scales` holds what the file holds: `d` float16 [n, 1], in iq4_xs also `sc` int8 [n, 8] (ls - 32); mxfp4 `e`
uint8 [n, 1]; nvfp4 `d` uint8 [n, 4]. Layout and arithmetic: ggml-quants.c `dequantize_row_*`; one-byte scales in
minifloats.py, levels in levels.py, the scale search in tablefit.py. Shape letters as in base.py; g groups in a block.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgeslm.formats.base import BlockFormat, Scales
from edgeslm.formats.bits import as_bytes, float16_at, pack_planes, pack_runs, unpack_planes, unpack_runs
from edgeslm.formats.lattice import by_slices
from edgeslm.formats.levels import FP4, IQ4, Levels
from edgeslm.formats.minifloats import from_e4m3_half, from_e8m0_half, to_e4m3_half, to_e8m0_half
from edgeslm.formats.search import to_float16
from edgeslm.formats.sweep import inverse
from edgeslm.formats.tablefit import fit_e4m3, fit_power_of_two, fit_six_bits, fit_step


def _table_format(
    name: str,
    block: int,
    group: int,
    size: int,
    ggml_type: int,
    table: Levels,
    fit: Callable[[Tensor, Tensor | None], Scales],
    step_of: Callable[[Scales], Tensor],
    gather: Callable[[Tensor, Tensor | None, Scales], Scales],
    head: Callable[[Scales], list[Tensor]],
    read_head: Callable[[Tensor], Scales],
) -> BlockFormat:
    """`head` packs the bytes before `qs` and `read_head` unpacks them; `step_of` gives the step of every group."""
    groups = block // group

    def fit_blocks(w: Tensor, importance: Tensor | None = None) -> Scales:
        return by_slices(fit, w, importance)

    def encode(w: Tensor, scales: Scales) -> Tensor:
        return table.nearest(w.reshape(-1, groups, group), inverse(step_of(scales))[:, :, None]).reshape(w.shape)

    def levels(codes: Tensor) -> Tensor:
        return table.of(codes)

    def decode(codes: Tensor, scales: Scales) -> Tensor:
        out = table.of(codes)
        out.view(-1, groups, group).mul_(step_of(scales)[:, :, None])
        return out

    def pack(codes: Tensor, scales: Scales) -> Tensor:
        return torch.cat([*head(scales), pack_planes(codes, 4, groups)], dim=1)

    def unpack(data: Tensor) -> tuple[Tensor, Scales]:
        qs = data[:, size - block // 2 :].reshape(-1, groups, group // 2)
        return unpack_planes(qs, 4), read_head(data)

    def spread(scales: Scales) -> tuple[Tensor, Tensor | None]:
        return step_of(scales), None

    return BlockFormat(
        name=name,
        block=block,
        bytes=size,
        ggml_type=ggml_type,
        decode=decode,
        pack=pack,
        unpack=unpack,
        fit=fit_blocks,
        encode=encode,
        levels=levels,
        spread=spread,
        gather=gather,
        source="ggml-quants.c",
    )


def _six_bit_steps(scales: Scales) -> Tensor:
    return scales["d"].float() * scales["sc"].float()


def _gather_six_bits(step: Tensor, minimum: Tensor | None, scales: Scales) -> Scales:
    sc = torch.round(step * inverse(scales["d"].float())).clamp_(-32, 31).to(torch.int8)
    return {"d": scales["d"], "sc": sc}


def _six_bit_head(scales: Scales) -> list[Tensor]:
    ls = (scales["sc"] + 32).to(torch.uint8)
    return [as_bytes(scales["d"]), pack_runs(ls >> 4, 2), pack_runs(ls & 15, 4)]


def _read_six_bit_head(data: Tensor) -> Scales:
    ls = (unpack_runs(data[:, 2:4], 2) << 4) | unpack_runs(data[:, 4:8], 4)
    return {"d": float16_at(data, 0), "sc": ls.to(torch.int8) - 32}


IQ4_NL = _table_format(
    name="iq4_nl",
    block=32,
    group=32,
    size=18,
    ggml_type=20,
    table=IQ4,
    fit=lambda w, importance: {"d": fit_step(w, importance, IQ4)},
    step_of=lambda scales: scales["d"].float(),
    gather=lambda step, minimum, scales: {"d": to_float16(step)},
    head=lambda scales: [as_bytes(scales["d"])],
    read_head=lambda data: {"d": float16_at(data, 0)},
)
IQ4_XS = _table_format(
    name="iq4_xs",
    block=256,
    group=32,
    size=136,
    ggml_type=23,
    table=IQ4,
    fit=lambda w, importance: fit_six_bits(w, importance, IQ4),
    step_of=_six_bit_steps,
    gather=_gather_six_bits,
    head=_six_bit_head,
    read_head=_read_six_bit_head,
)
MXFP4 = _table_format(
    name="mxfp4",
    block=32,
    group=32,
    size=17,
    ggml_type=39,
    table=FP4,
    fit=lambda w, importance: {"e": fit_power_of_two(w, importance, FP4)},
    step_of=lambda scales: from_e8m0_half(scales["e"]),
    gather=lambda step, minimum, scales: {"e": to_e8m0_half(step)},
    head=lambda scales: [scales["e"]],
    read_head=lambda data: {"e": data[:, :1]},
)
NVFP4 = _table_format(
    name="nvfp4",
    block=64,
    group=16,
    size=36,
    ggml_type=40,
    table=FP4,
    fit=lambda w, importance: {"d": fit_e4m3(w, importance, FP4)},
    step_of=lambda scales: from_e4m3_half(scales["d"]),
    gather=lambda step, minimum, scales: {"d": to_e4m3_half(step)},
    head=lambda scales: [scales["d"]],
    read_head=lambda data: {"d": data[:, :4]},
)
