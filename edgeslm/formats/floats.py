"""Plain float storage as formats with blocks of one weight: f32, f16, bf16. `encode` rounds to nearest even."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeslm.formats.base import BlockFormat, Scales


def _float_format(name: str, dtype: torch.dtype, size: int, ggml_type: int) -> BlockFormat:
    def fit(w: Tensor, importance: Tensor | None = None) -> Scales:
        return {}

    def encode(w: Tensor, scales: Scales) -> Tensor:
        return w.to(dtype)

    def decode(codes: Tensor, scales: Scales) -> Tensor:
        return codes.to(torch.float32)

    def pack(codes: Tensor, scales: Scales) -> Tensor:
        return codes.contiguous().view(torch.uint8).reshape(-1, size)

    def unpack(data: Tensor) -> tuple[Tensor, Scales]:
        return data.contiguous().view(dtype).reshape(-1, 1), {}

    def reference(w: Tensor) -> Tensor:
        return pack(encode(w, {}), {})

    return BlockFormat(
        name, 1, size, ggml_type, decode, pack, unpack, fit, encode, reference, source=f"IEEE 754 {name}"
    )


F32 = _float_format("f32", torch.float32, 4, 0)
F16 = _float_format("f16", torch.float16, 2, 1)
BF16 = _float_format("bf16", torch.bfloat16, 2, 30)
