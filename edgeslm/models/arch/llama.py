"""Llama and what shares its shape (SmolLM2, TinyLlama, llama2.c): no biases; GGUF pairs the rows of q and k."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import LlamaConfig

from edgeslm.errors import ModelError
from edgeslm.models.arch import base

NAME = "llama"
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")


def config(metadata: base.Config) -> LlamaConfig:
    return LlamaConfig(**base.config_values(NAME, metadata))


def metadata(config: base.Config) -> dict[str, Any]:
    if config.get("mlp_bias"):
        raise ModelError("the model has biases in its feed-forward layers, which are not supported for 'llama'")
    return base.architecture_keys(NAME, config)


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


ARCH = base.Arch(NAME, config, metadata, names, row_order, base.float32)
