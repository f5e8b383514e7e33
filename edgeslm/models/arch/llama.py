"""Llama and what shares its shape (SmolLM2, TinyLlama, llama2.c): no biases; GGUF pairs the rows of q and k. Llama 3.1
and later scale their rotary positions, whose factors are a tensor in GGUF (edgeslm.models.rotary)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import LlamaConfig

from edgeslm.errors import ModelError
from edgeslm.models import rotary
from edgeslm.models.arch import base

NAME = "llama"
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")


def config(metadata: base.Config) -> LlamaConfig:
    values = base.config_values(NAME, metadata)
    if rotary.FREQS in metadata:
        theta = values["rope_parameters"]["rope_theta"]
        values["rope_parameters"] = rotary.llama3_parameters(metadata[rotary.FREQS], theta, metadata.get(rotary.NOTE))
    return LlamaConfig(**values)


def metadata(config: base.Config) -> dict[str, Any]:
    if config.get("mlp_bias"):
        raise ModelError("the model has biases in its feed-forward layers, which are not supported for 'llama'")
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") != "llama3":
        return base.architecture_keys(NAME, config)
    constants(config)  # refuses what is missing
    return base.architecture_keys(NAME, config, rope) | {rotary.NOTE: [float(rope[key]) for key in rotary.PARAMETERS]}


def constants(config: base.Config) -> dict[str, Tensor]:
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") != "llama3":
        return {}
    return {rotary.FREQS: rotary.llama3_factors(rope, base.head_dim(config))}


def names(config: base.Config) -> dict[str, str]:
    return base.tensor_names(config, ATTENTION if config.get("attention_bias") else ())


def row_order(name: str, config: base.Config) -> Tensor | None:
    """q and k only; a bias is ordered as its weight's rows."""
    if ".q_proj." in name:
        return base.pair_order(config["num_attention_heads"], base.head_dim(config))
    if ".k_proj." in name:
        heads = config.get("num_key_value_heads") or config["num_attention_heads"]
        return base.pair_order(heads, base.head_dim(config))
    return None


ARCH = base.Arch(NAME, config, metadata, names, row_order, base.float32, constants=constants)
