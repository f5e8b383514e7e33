"""Qwen3: each head of q and k is normalised (RMS, one weight for all heads) before it is turned; heads have dimensions
of their own; no biases; GGUF keeps transformers' row order. Source: arXiv:2505.09388."""

from __future__ import annotations

from typing import Any

from transformers import Qwen3Config

from edgeslm.errors import ModelError
from edgeslm.models.arch import base

NAME = "qwen3"


def config(metadata: base.Config) -> Qwen3Config:
    return Qwen3Config(**base.config_values(NAME, metadata))


def metadata(config: base.Config) -> dict[str, Any]:
    if config.get("use_sliding_window"):
        raise ModelError("the model attends in a sliding window, which GGUF's 'qwen3' does not; switch it off")
    if config.get("attention_bias"):
        raise ModelError("the model has biases in its attention, which GGUF's 'qwen3' has no place for")
    return base.architecture_keys(NAME, config)


def names(config: base.Config) -> dict[str, str]:
    return base.tensor_names(config, (), base.LAYER_WEIGHTS | base.HEAD_NORMS)


ARCH = base.Arch(NAME, config, metadata, names, base.same_order, base.float32)
