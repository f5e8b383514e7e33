"""Moving bits between packed bytes and codes. No arithmetic on what they mean.

    planes    byte j holds weight j in its lowest bits, then a weight j + m, then j + 2m ...   (m bytes in a group)
    runs      byte j holds neighbours: weights (8/width) j, (8/width) j + 1, ... from the lowest bits up

Shape letters: n blocks, g groups of bytes in a block, m bytes in a group, f = 8 / width codes in a byte.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

WORDS = {
    1: torch.uint8,
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
}  # a word that holds the f codes of a byte, one byte each


def float16_at(data: Tensor, at: int) -> Tensor:
    """Two bytes of every block as float16 [n, 1]."""
    return data[:, at : at + 2].contiguous().view(torch.float16)


def as_bytes(x: Tensor) -> Tensor:
    """Any dtype [n, m] -> its bytes, uint8 [n, m * itemsize]."""
    return x.contiguous().view(torch.uint8).reshape(x.shape[0], -1)


def unpack_planes(x: Tensor, width: int) -> Tensor:
    """[n, g, m] bytes -> codes [n, g * f * m], lowest bits first."""
    mask = (1 << width) - 1
    out = x.new_empty(x.shape[0], x.shape[1], 8 // width, x.shape[2])
    for field in range(8 // width):
        torch.bitwise_and(x >> (field * width), mask, out=out[:, :, field])
    return out.reshape(x.shape[0], -1)


def pack_planes(codes: Tensor, width: int, groups: int) -> Tensor:
    """Inverse of `unpack_planes`: codes [n, k] below 2^width -> [n, groups * m]."""
    fields = codes.reshape(codes.shape[0], groups, 8 // width, -1)
    out = fields[:, :, 0].clone()
    for field in range(1, 8 // width):
        out |= fields[:, :, field] << (field * width)
    return out.reshape(codes.shape[0], -1)


def unpack_runs(x: Tensor, width: int) -> Tensor:
    """[n, m] bytes -> codes [n, m * f]: one table entry per byte holds its f codes."""
    table = _runs_of_a_byte(width, x.device)
    return table.index_select(0, x.reshape(-1).to(torch.int32)).view(torch.uint8).reshape(x.shape[0], -1)


def pack_runs(codes: Tensor, width: int) -> Tensor:
    """Inverse of `unpack_runs`: codes [n, k] below 2^width -> [n, k / f]."""
    out = codes[:, 0 :: 8 // width].clone()
    for field in range(1, 8 // width):
        out |= codes[:, field :: 8 // width] << (field * width)
    return out


@functools.cache
def _runs_of_a_byte(width: int, device: torch.device) -> Tensor:
    """[256] words, each with the f codes of that byte in its own bytes."""
    shifts = torch.arange(0, 8, width)
    codes = (torch.arange(256)[:, None] >> shifts) & ((1 << width) - 1)
    return codes.to(torch.uint8).view(WORDS[8 // width]).reshape(-1).to(device)
