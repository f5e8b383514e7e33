"""Q4_0 with scales that every kernel holds exactly: positive, and of at most 8 significant bits.

Some ARM kernels keep block scales in bfloat16 and some runtimes refuse negative ones. A float16 number with 8
significant bits and a normal exponent is exact in both. The bytes are plain q4_0; only `fit` differs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from edgeslm.formats.base import Scales
from edgeslm.formats.legacy import Q4_0
from edgeslm.formats.search import fit_step

SMALLEST = 2.0**-14  # below this float16 is subnormal and loses significant bits
LARGEST = 65280.0  # 255 * 2^8
NUDGES = (1.0, 1 - 2.0**-8, 1 + 2.0**-8)


def to_8_bits(d: Tensor) -> Tensor:
    """Positive scales [n, 1] -> float16 with the low 3 of 11 significant bits zero; 0 stays 0."""
    mantissa, exponent = torch.frexp(d.abs().float().clamp(max=LARGEST))
    rounded = torch.ldexp(torch.round(mantissa * 256) / 256, exponent)
    return torch.where(rounded < SMALLEST, torch.where(d == 0, 0.0, SMALLEST), rounded).to(torch.float16)


def fit(w: Tensor, importance: Tensor | None = None) -> Scales:
    """The best positive scale; neither sign gets the longer side of the grid by choice."""
    return fit_step(w, importance, -8, 7, signed=False, store=to_8_bits, nudges=NUDGES)


def gather(step: Tensor, minimum: Tensor | None, scales: Scales) -> Scales:
    return {"d": to_8_bits(step.clamp(min=0))}


Q4_0_PORTABLE = replace(
    Q4_0, name="q4_0_portable", fit=fit, gather=gather, reference=None, source="ggml-quants.c; our scale grid"
)
