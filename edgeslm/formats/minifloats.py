"""Scales of one byte: E8M0 (a power of two) and unsigned E4M3, both halved because FP4 levels are stored doubled.

Layout and arithmetic: ggml-impl.h `ggml_e8m0_to_fp32_half`, `ggml_ue4m3_to_fp32`. Rounding is ours, to the nearest.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST_E8M0 = 254  # 255 is NaN in the standard
MOST_E4M3 = 0x7E  # 448; 0x7f is NaN in the standard and 0 in ggml


def from_e8m0_half(e: Tensor) -> Tensor:
    """uint8 -> 2^(e - 128) in float32, exact also where that is subnormal."""
    bits = torch.where(e < 2, 0x00200000 << e.to(torch.int32), (e.to(torch.int32) - 1) << 23)
    return bits.view(torch.float32)


def to_e8m0_half(step: Tensor) -> Tensor:
    """The power of two nearest by ratio, as its byte; the smallest for steps that are not positive."""
    mantissa, exponent = torch.frexp(step.clamp(min=2.0**-128))  # mantissa in [1/2, 1)
    exponent = torch.where(mantissa < 0.5**0.5, exponent - 1, exponent)
    return exponent.add_(128).clamp_(0, MOST_E8M0).to(torch.uint8)


def from_e4m3_half(d: Tensor) -> Tensor:
    """uint8 -> half of an unsigned E4M3 number in float32. Bit 7 means nothing."""
    exponent, mantissa = ((d >> 3) & 15).to(torch.int32), (d & 7).to(torch.float32)
    value = torch.ldexp(torch.where(exponent == 0, mantissa, mantissa + 8), exponent.clamp(min=1) - 11)
    return torch.where(d == 0x7F, 0.0, value)


def to_e4m3_half(step: Tensor) -> Tensor:
    """The E4M3 number nearest to twice the step, as its byte; 0 for steps that are not positive."""
    return (2 * step).clamp_(0, 448).to(torch.float8_e4m3fn).view(torch.uint8)
