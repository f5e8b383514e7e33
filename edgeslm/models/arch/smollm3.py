"""SmolLM3: Llama in which every fourth layer has no rotary positions (NoPE, arXiv:2501.18795). llama.cpp takes "every
fourth" as given, so students that break the pattern are refused; GGUF pairs the rows of q and k as for Llama."""

from __future__ import annotations

from typing import Any

from transformers import SmolLM3Config

from edgeslm.errors import ModelError
from edgeslm.models.arch import base, llama

NAME = "smollm3"
EVERY = 4  # llama.cpp: n_no_rope_layer_step


def config(metadata: base.Config) -> SmolLM3Config:
    values = base.config_values(NAME, metadata)
    dim = values.pop("head_dim")  # this config has no such field: a head is hidden_size / heads
    if dim * values["num_attention_heads"] != values["hidden_size"]:
        raise ModelError(f"GGUF metadata: heads of {dim} dimensions do not make up the embedding, as 'smollm3' needs")
    return SmolLM3Config(**values, no_rope_layer_interval=EVERY)


def metadata(config: base.Config) -> dict[str, Any]:
    if config.get("mlp_bias") or config.get("use_sliding_window"):
        raise ModelError("the model has feed-forward biases or a sliding window, which GGUF's 'smollm3' does not")
    turned = [bool(x) for x in config["no_rope_layers"][: config["num_hidden_layers"]]]
    if turned != [(layer + 1) % EVERY != 0 for layer in range(config["num_hidden_layers"])]:
        without = [layer for layer, x in enumerate(turned) if not x]
        raise ModelError(
            f"layers {without} have no rotary positions, but llama.cpp's 'smollm3' leaves them out of every fourth "
            "layer; keep such layers in such places"
        )
    return base.architecture_keys(NAME, config)


def names(config: base.Config) -> dict[str, str]:
    return base.tensor_names(config, llama.ATTENTION if config.get("attention_bias") else ())


ARCH = base.Arch(NAME, config, metadata, names, llama.row_order, base.float32)
