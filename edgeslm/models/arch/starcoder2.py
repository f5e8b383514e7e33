"""StarCoder2: a plain feed-forward with gelu, norms with biases, biases everywhere, rotary positions, shared keys and
values. GGUF keeps transformers' row order. Source: arXiv:2402.19173, llama.cpp's starcoder2.cpp."""

from __future__ import annotations

from typing import Any

from transformers import Starcoder2Config

from edgeslm.errors import ModelError
from edgeslm.models.arch import base

NAME = "starcoder2"
WEIGHTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
EPSILON = "attention.layer_norm_epsilon"


def config(metadata: base.Config) -> Starcoder2Config:
    epsilon = base.Keys(NAME, metadata).number(EPSILON)
    values = base.config_values(NAME, {**metadata, f"{NAME}.attention.layer_norm_rms_epsilon": epsilon})
    del values["rms_norm_eps"]
    dim = values.pop("head_dim")  # this config has no such field: a head is hidden_size / heads
    if dim * values["num_attention_heads"] != values["hidden_size"]:
        raise ModelError(f"GGUF metadata: heads of {dim} dimensions do not make up the embedding, as '{NAME}' needs")
    return Starcoder2Config(**values, norm_epsilon=epsilon)


def metadata(config: base.Config) -> dict[str, Any]:
    if not config.get("use_bias", True) or config.get("sliding_window"):
        raise ModelError("the model has no biases, or a sliding window, which GGUF's 'starcoder2' cannot say")
    values = {**config, "rms_norm_eps": config["norm_epsilon"]}
    keys = base.architecture_keys(NAME, values, None, ("hidden_act", "gelu_pytorch_tanh"))
    del keys[f"{NAME}.attention.layer_norm_rms_epsilon"]
    return keys | {f"{NAME}.{EPSILON}": float(config["norm_epsilon"])}


def names(config: base.Config) -> dict[str, str]:
    return {**base.tensor_names(config, tuple(WEIGHTS), WEIGHTS), "model.norm.bias": "output_norm.bias"}


ARCH = base.Arch(
    NAME,
    config,
    metadata,
    names,
    base.same_order,
    base.float32,
    cuts=frozenset({"depth"}),
    onnx="onnxruntime-genai's model builder knows no StarCoder2",
)
