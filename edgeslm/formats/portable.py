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
from edgeslm.formats.search import best_of

SMALLEST = 2.0**-14  # below this float16 is subnormal and loses significant bits
STEPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)


def to_8_bits(d: Tensor) -> Tensor:
    """Positive scales [n, 1] -> float16 with the low 3 of 11 significant bits zero; 0 stays 0."""
    mantissa, exponent = torch.frexp(d.abs().float())
    rounded = torch.ldexp(torch.round(mantissa * 256) / 256, exponent)
    return torch.where(rounded < SMALLEST, torch.where(d == 0, 0.0, SMALLEST), rounded).to(torch.float16)


def fit(w: Tensor, importance: Tensor | None = None) -> Scales:
    """Best of positive candidates: absmax spans the short side (7 steps) so that neither sign is cut."""
    start = w.abs().amax(1, keepdim=True) / 7.5
    return {"d": best_of(w, [to_8_bits(start * s).float() for s in STEPS], 8, importance, to_8_bits)}


Q4_0_PORTABLE = replace(Q4_0, name="q4_0_portable", fit=fit, reference=None, source="ggml-quants.c; our scale grid")
