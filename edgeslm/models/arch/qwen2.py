"""Qwen2 and Qwen2.5: biases on q, k and v; GGUF keeps transformers' row order (its rope turns halves, not pairs)."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2Config

from edgeslm.errors import ModelError
from edgeslm.models.arch import base

NAME = "qwen2"
BIASED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def config(metadata: base.Config) -> Qwen2Config:
    values = base.config_values(NAME, metadata)
    dim = values.pop("head_dim")  # this config has no such field: a head is hidden_size / heads
    if dim * values["num_attention_heads"] != values["hidden_size"]:
        raise ModelError(f"GGUF metadata: heads of {dim} dimensions do not make up the embedding, as 'qwen2' needs")
    return Qwen2Config(**values)


def metadata(config: base.Config) -> dict[str, Any]:
    if config.get("use_sliding_window"):
        raise ModelError("the model attends in a sliding window, which GGUF's 'qwen2' does not; switch it off")
    heads, dim = config["num_attention_heads"], base.head_dim(config)
    if heads * dim != config["hidden_size"]:
        raise ModelError(
            f"{heads} heads of {dim} dimensions do not make up the {config['hidden_size']} hidden channels, as GGUF's "
            "'qwen2' needs; choose hidden and heads that do"
        )
    return base.architecture_keys(NAME, config)


def names(config: base.Config) -> dict[str, str]:
    return base.tensor_names(config, BIASED)


ARCH = base.Arch(NAME, config, metadata, names, base.same_order, base.float32)
