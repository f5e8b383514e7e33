"""ggml's codebook formats: super-blocks of 256 weights, every eight of them one code.

    iq2_xxs | d f16 | 8 x (4 x u8 index, u32: 4 x 7 signs, 4-bit sc) |                           66 bytes
    iq2_xs  | d f16 | 32 x u16 (9-bit index, 7 signs) | scales 8 (16 x 4 bit) |                   74 bytes
    iq2_s   | d f16 | qs 32 | signs 32 | qh 8 (32 x 2 bit) | scales 8 (16 x 4 bit) |              82 bytes
    iq3_xxs | d f16 | qs 64 | 8 x u32 (4 x 7 signs, 4-bit sc) |                                   98 bytes
    iq3_s   | d f16 | qs 64 | qh 8 (64 x 1 bit) | signs 32 | scales 4 (8 x 4 bit) |              110 bytes
    iq1_s   | d f16 | qs 32 | 8 x u16 (4 x 3 index bits, 3-bit sc, shift) |                       50 bytes
    iq1_m   | qs 32 | qh 16 (32 x (3 index bits, shift)) | 4 x u16 (4 x 3-bit sc, 4 bits of d) |  56 bytes

A code here is not one weight: `codes` is int32 [n, 32], one for eight weights, because that is what these files store.

    iq2, iq3    bits 0-8 an index (iq3: of the first four weights), bits 9-17 in iq3 the index of the other four,
                bits 18-25 the signs (iq2_s: index of ten bits). Where a file keeps seven signs the eighth makes their
                number even.
    iq1         bits 0-10 the index, bit 11 the shift: level + 1/8, or - 1/8 where it is set (in iq1_s alike for 32
                weights)

`scales`: `d` float16 [n, 1], `sc` uint8 [n, 8 or 16]. Arithmetic: ggml-quants.c `dequantize_row_iq*`. The codebooks
are those of the gguf package, loaded when first used. Shape letters as in base.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from gguf import quants
from torch import Tensor

from edgeslm.formats import codebookfit
from edgeslm.formats.base import BlockFormat, Scales
from edgeslm.formats.bits import as_bytes, float16_at, pack_runs, unpack_runs
from edgeslm.formats.codebookfit import SECOND, SIGNS, Book
from edgeslm.formats.codesearch import EvenLattice, FineCells

SUPER = 256
CPU = torch.device("cpu")
SHIFT = 11  # first bit of that part of a code of iq1


@functools.cache
def _grid(book: str, device: torch.device) -> Tensor:
    """[entries, 8 or 4] levels; for iq1 [2 x 2048, 8]: with the shift up, then with the shift down."""
    quant = getattr(quants, book)
    quant.init_grid()
    grid = torch.from_numpy(quant.grid.reshape(quant.grid_shape).astype(np.float32))
    if book == "IQ1_S":
        grid = torch.cat([grid + float(quant.delta), grid - float(quant.delta)])
    return grid.to(device)


@functools.cache
def _signs(device: torch.device) -> Tensor:
    """[256, 8] of 1 or -1: bit j set makes weight j negative."""
    bits = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
    return (1.0 - 2.0 * bits).to(device)


@functools.cache
def _eight_signs(device: torch.device) -> Tensor:
    """[128] seven signs -> eight, of which an even number is set (ksigns_iq2xs)."""
    return torch.from_numpy(np.frombuffer(quants.IQ2_XXS.ksigns, np.uint8).astype(np.int32)).to(device)


def _decode(book: str, step: Callable[[Scales], Tensor]) -> Callable[[Tensor, Scales], Tensor]:
    def decode(codes: Tensor, scales: Scales) -> Tensor:
        grid, flat = _grid(book, codes.device), codes.reshape(-1)
        if book == "IQ1_S":
            out = grid.index_select(0, flat)
        else:
            indices = flat & 1023 if grid.shape[1] == 8 else torch.stack([flat & 511, (flat >> SECOND) & 511], dim=1)
            out = grid.index_select(0, indices.reshape(-1)).reshape(-1, 8)
            out.mul_(_signs(codes.device).index_select(0, flat >> SIGNS))
        steps = step(scales)
        return out.view(*steps.shape, -1).mul_(steps[:, :, None]).reshape(-1, SUPER)

    return decode


def _odd_step(scales: Scales) -> Tensor:
    return scales["d"].float() * (2 * scales["sc"].float() + 1)


def _words(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes [n, m] -> int32 words [n, m / size], 16-bit ones without a sign."""
    words = data.clone(memory_format=torch.contiguous_format).view(dtype)  # one block's bytes may begin anywhere
    return words if dtype == torch.int32 else words.to(torch.int32) & 0xFFFF


def _apart(words: Tensor, width: int, count: int) -> Tensor:
    """[n, m] -> [n, m * count]: `count` fields of `width` bits, lowest first."""
    shifts = torch.arange(0, width * count, width, dtype=torch.int32, device=words.device)
    return ((words[:, :, None] >> shifts) & ((1 << width) - 1)).reshape(words.shape[0], -1)


def _together(fields: Tensor, width: int, count: int) -> Tensor:
    """Inverse of `_apart`, int32."""
    shifts = torch.arange(0, width * count, width, dtype=torch.int32, device=fields.device)
    parts = fields.to(torch.int32).reshape(fields.shape[0], -1, count) << shifts
    return parts.sum(dim=2, dtype=torch.int32)


def _unpack_signs_and_scales(words: Tensor) -> tuple[Tensor, Tensor]:
    """u32 [n, 8] -> eight signs [n, 32], sc uint8 [n, 8]."""
    signs = _eight_signs(words.device).index_select(0, _apart(words, 7, 4).reshape(-1))
    return signs.reshape(words.shape[0], -1), ((words >> 28) & 15).to(torch.uint8)


def _pack_signs_and_scales(codes: Tensor, sc: Tensor) -> Tensor:
    return _together((codes >> SIGNS) & 127, 7, 4) | (sc.to(torch.int32) << 28)


def _unpack_iq2_xxs(data: Tensor) -> tuple[Tensor, Scales]:
    groups = data[:, 2:].reshape(-1, 8, 8)
    signs, sc = _unpack_signs_and_scales(_words(groups[:, :, 4:].reshape(-1, 32), torch.int32))
    codes = groups[:, :, :4].reshape(-1, 32).to(torch.int32) | (signs << SIGNS)
    return codes, {"d": float16_at(data, 0), "sc": sc}


def _pack_iq2_xxs(codes: Tensor, scales: Scales) -> Tensor:
    index = (codes & 255).to(torch.uint8).reshape(-1, 8, 4)
    rest = as_bytes(_pack_signs_and_scales(codes, scales["sc"])).reshape(-1, 8, 4)
    return torch.cat([as_bytes(scales["d"]), torch.cat([index, rest], dim=2).reshape(-1, 64)], dim=1)


def _unpack_iq2_xs(data: Tensor) -> tuple[Tensor, Scales]:
    words = _words(data[:, 2:66], torch.int16)
    signs = _eight_signs(data.device).index_select(0, (words >> 9).reshape(-1)).reshape(words.shape)
    return (words & 511) | (signs << SIGNS), {"d": float16_at(data, 0), "sc": unpack_runs(data[:, 66:], 4)}


def _pack_iq2_xs(codes: Tensor, scales: Scales) -> Tensor:
    words = (codes & 511) | (((codes >> SIGNS) & 127) << 9)
    return torch.cat([as_bytes(scales["d"]), as_bytes(words.to(torch.int16)), pack_runs(scales["sc"], 4)], dim=1)


def _unpack_iq2_s(data: Tensor) -> tuple[Tensor, Scales]:
    low, signs, high = data[:, 2:34], data[:, 34:66], unpack_runs(data[:, 66:74], 2)
    codes = low.to(torch.int32) | (high.to(torch.int32) << 8) | (signs.to(torch.int32) << SIGNS)
    return codes, {"d": float16_at(data, 0), "sc": unpack_runs(data[:, 74:], 4)}


def _pack_iq2_s(codes: Tensor, scales: Scales) -> Tensor:
    low, high, signs = ((part & 255).to(torch.uint8) for part in (codes, (codes >> 8) & 3, codes >> SIGNS))
    return torch.cat([as_bytes(scales["d"]), low, signs, pack_runs(high, 2), pack_runs(scales["sc"], 4)], dim=1)


def _unpack_iq3_xxs(data: Tensor) -> tuple[Tensor, Scales]:
    signs, sc = _unpack_signs_and_scales(_words(data[:, 66:], torch.int32))
    index = data[:, 2:66].to(torch.int32)
    return index[:, 0::2] | (index[:, 1::2] << SECOND) | (signs << SIGNS), {"d": float16_at(data, 0), "sc": sc}


def _pack_iq3_xxs(codes: Tensor, scales: Scales) -> Tensor:
    index = torch.stack([codes, codes >> SECOND], dim=2).reshape(-1, 64) & 255
    rest = as_bytes(_pack_signs_and_scales(codes, scales["sc"]))
    return torch.cat([as_bytes(scales["d"]), index.to(torch.uint8), rest], dim=1)


def _unpack_iq3_s(data: Tensor) -> tuple[Tensor, Scales]:
    index = data[:, 2:66].to(torch.int32) | (unpack_runs(data[:, 66:74], 1).to(torch.int32) << 8)
    signs = data[:, 74:106].to(torch.int32)
    codes = index[:, 0::2] | (index[:, 1::2] << SECOND) | (signs << SIGNS)
    return codes, {"d": float16_at(data, 0), "sc": unpack_runs(data[:, 106:], 4)}


def _pack_iq3_s(codes: Tensor, scales: Scales) -> Tensor:
    index = torch.stack([codes & 511, (codes >> SECOND) & 511], dim=2).reshape(-1, 64)
    low, high, signs = ((part & 255).to(torch.uint8) for part in (index, index >> 8, codes >> SIGNS))
    return torch.cat([as_bytes(scales["d"]), low, pack_runs(high, 1), signs, pack_runs(scales["sc"], 4)], dim=1)


def _unpack_iq1_s(data: Tensor) -> tuple[Tensor, Scales]:
    words = _words(data[:, 34:], torch.int16)
    shift = (words >> 15).repeat_interleave(4, dim=1)
    codes = data[:, 2:34].to(torch.int32) | (_apart(words, 3, 4) << 8) | (shift << SHIFT)
    return codes, {"d": float16_at(data, 0), "sc": ((words >> 12) & 7).to(torch.uint8)}


def _pack_iq1_s(codes: Tensor, scales: Scales) -> Tensor:
    shift = codes[:, 0::4] >> SHIFT
    words = _together((codes >> 8) & 7, 3, 4) | (scales["sc"].to(torch.int32) << 12) | (shift << 15)
    return torch.cat([as_bytes(scales["d"]), (codes & 255).to(torch.uint8), as_bytes(words.to(torch.int16))], dim=1)


def _unpack_iq1_m(data: Tensor) -> tuple[Tensor, Scales]:
    codes = data[:, :32].to(torch.int32) | (unpack_runs(data[:, 32:48], 4).to(torch.int32) << 8)
    words = _words(data[:, 48:], torch.int16)
    d = _together(words >> 12, 4, 4).to(torch.int16).view(torch.float16)
    return codes, {"d": d, "sc": _apart(words, 3, 4).to(torch.uint8)}


def _pack_iq1_m(codes: Tensor, scales: Scales) -> Tensor:
    d = scales["d"].contiguous().view(torch.int16).to(torch.int32)
    words = _together(scales["sc"], 3, 4) | (_apart(d, 4, 4) << 12)
    high = pack_runs((codes >> 8).to(torch.uint8), 4)
    return torch.cat([(codes & 255).to(torch.uint8), high, as_bytes(words.to(torch.int16))], dim=1)


def _read(
    name: str,
    size: int,
    ggml_type: int,
    book: str,
    step: Callable[[Scales], Tensor],
    pack: Callable[[Tensor, Scales], Tensor],
    unpack: Callable[[Tensor], tuple[Tensor, Scales]],
) -> BlockFormat:
    return BlockFormat(
        name, SUPER, size, ggml_type, _decode(book, step), pack, unpack, source="ggml-quants.c", per_code=8
    )


@functools.cache
def _search(book: str, device: torch.device) -> FineCells | EvenLattice:
    grid = _grid(book, CPU)
    found = FineCells.of(grid) if grid.shape[1] == 4 else EvenLattice.of(grid)
    return found.to(device)


BOOKS = {
    "iq3_s": Book(8, 1.0, False, functools.partial(_search, "IQ3_S")),
    "iq3_xxs": Book(8, 1 / 4, True, functools.partial(_search, "IQ3_XXS")),
    "iq2_s": Book(16, 1 / 8, False, functools.partial(_search, "IQ2_S")),
    "iq2_xs": Book(16, 1 / 8, True, functools.partial(_search, "IQ2_XS")),
    "iq2_xxs": Book(8, 1 / 8, True, functools.partial(_search, "IQ2_XXS")),
}


def _trained(form: BlockFormat, book: str) -> BlockFormat:
    """With the verbs of training."""
    own = BOOKS[form.name]

    def levels(codes: Tensor) -> Tensor:
        one = {"d": codes.new_ones(codes.shape[0], 1, dtype=torch.float16)}
        return _decode(book, lambda scales: scales["d"].float())(codes, one)

    return replace(
        form,
        fit=lambda w, importance=None: codebookfit.fit(w, importance, own),
        encode=lambda w, scales, importance=None: codebookfit.encode(w, scales, importance, own),
        levels=levels,
        spread=lambda scales: (own.step(scales), None),
        gather=functools.partial(codebookfit.gather, book=own),
    )


IQ1_S = _read("iq1_s", 50, 19, "IQ1_S", _odd_step, _pack_iq1_s, _unpack_iq1_s)
IQ1_M = _read("iq1_m", 56, 29, "IQ1_S", _odd_step, _pack_iq1_m, _unpack_iq1_m)
IQ2_XXS = _trained(
    _read("iq2_xxs", 66, 16, "IQ2_XXS", BOOKS["iq2_xxs"].step, _pack_iq2_xxs, _unpack_iq2_xxs), "IQ2_XXS"
)
IQ2_XS = _trained(_read("iq2_xs", 74, 17, "IQ2_XS", BOOKS["iq2_xs"].step, _pack_iq2_xs, _unpack_iq2_xs), "IQ2_XS")
IQ2_S = _trained(_read("iq2_s", 82, 22, "IQ2_S", BOOKS["iq2_s"].step, _pack_iq2_s, _unpack_iq2_s), "IQ2_S")
IQ3_XXS = _trained(
    _read("iq3_xxs", 98, 18, "IQ3_XXS", BOOKS["iq3_xxs"].step, _pack_iq3_xxs, _unpack_iq3_xxs), "IQ3_XXS"
)
IQ3_S = _trained(_read("iq3_s", 110, 21, "IQ3_S", BOOKS["iq3_s"].step, _pack_iq3_s, _unpack_iq3_s), "IQ3_S")
