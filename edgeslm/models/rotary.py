"""Scaled rotary positions as llama.cpp reads them: a factor for each frequency, in a tensor of the file.

    llama3    rope_freqs.weight [d/2]: 1 for short wavelengths, `factor` for long ones, between them a blend (Llama 3.1)
    longrope  rope_factors_short.weight, rope_factors_long.weight [d/2] (Phi-3, LongRoPE arXiv:2402.13753)

A GGUF file holds the factors of llama3, not what they were computed from: a known release's parameters are looked up,
those of our own files are in the metadata under `edgeslm.rope.llama3`.
Source: transformers' modeling_rope_utils.py and convert_hf_to_gguf.py of llama.cpp. Legend: d turned dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from edgeslm.errors import ModelError

FREQS, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
CONSTANTS = (FREQS, SHORT, LONG)
NOTE = "edgeslm.rope.llama3"  # [factor, low, high, original length]
PARAMETERS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
RELEASES = ((8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192))  # Llama 3.1 and 3.3; Llama 3.2


def llama3_factors(rope: Mapping[str, Any], dim: int) -> Tensor:
    """float32 [d/2] of transformers' `rope_parameters` of type llama3."""
    if missing := [key for key in PARAMETERS if rope.get(key) is None]:
        raise ModelError(f"rotary positions are scaled as 'llama3' without {missing[0]}; the config is damaged")
    factor, low, high, length = (float(rope[key]) for key in PARAMETERS)
    found = []
    for at in range(0, dim, 2):
        wave = 2 * math.pi * float(rope["rope_theta"]) ** (at / dim)
        blend = min(1.0, max(0.0, (length / wave - low) / (high - low)))  # 1: the wave turns often within `length`
        found.append(1 / ((1 - blend) / factor + blend))
    return torch.tensor(found, dtype=torch.float32)


def llama3_parameters(factors: Sequence[float], theta: float, note: Sequence[float] | None) -> dict[str, Any]:
    """transformers' rope_parameters whose factors these are. Raises ModelError when no known ones are."""
    given = torch.tensor(factors, dtype=torch.float32)
    for values in (*((tuple(note),) if note else ()), *RELEASES):
        if len(values) != len(PARAMETERS) or values[1] >= values[2] or min(values) <= 0:
            continue
        rope: dict[str, Any] = {"rope_type": "llama3", "rope_theta": theta} | dict(
            zip(PARAMETERS, (float(v) for v in values), strict=True)
        )
        rope["original_max_position_embeddings"] = int(values[3])
        if torch.allclose(llama3_factors(rope, 2 * len(given)), given, rtol=1e-5):
            return rope
    raise ModelError(
        f"{FREQS} scales rotary positions in a way that is none of Llama 3.1 to 3.3; take the model's folder instead"
    )


def long_scale(rope: Mapping[str, Any], positions: int) -> float:
    """What cosines and sines are multiplied by under longrope."""
    if rope.get("attention_factor"):
        return float(rope["attention_factor"])
    original = int(rope["original_max_position_embeddings"])
    factor = float(rope.get("factor") or positions / original)
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def long_factors(rope: Mapping[str, Any], dim: int) -> dict[str, Tensor]:
    """Both tensors of longrope. Raises ModelError when there are not d/2 factors."""
    found = {SHORT: rope["short_factor"], LONG: rope["long_factor"]}
    for key, values in found.items():
        if len(values) != dim // 2:
            raise ModelError(f"{key} has {len(values)} factors for {dim // 2} frequencies; the config is damaged")
    return {key: torch.tensor(values, dtype=torch.float32) for key, values in found.items()}
