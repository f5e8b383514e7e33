"""Gemma 3, text only: four norms a layer and norms of heads, all of which multiply by 1 + weight (GGUF holds the sum);
layers that see a sliding window, with rotary positions of another base, between layers that see everything; inputs
scaled by the square root of the width; gelu. Source: arXiv:2503.19786, llama.cpp's gemma3.cpp.

llama.cpp scales queries by the dimensions of a head (in models of 62 layers by width / heads), so a
`query_pre_attn_scalar` of another value is refused. It also squashes no logits here.
"""

from __future__ import annotations

from typing import Any

from transformers import Gemma3TextConfig

from edgeslm.errors import ModelError
from edgeslm.models.arch import base

NAME, GGUF = "gemma3_text", "gemma3"
WEIGHTS = base.LAYER_WEIGHTS | base.HEAD_NORMS | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
SLIDING, FULL = "sliding_attention", "full_attention"
EVERY = 6  # where a file has no pattern every sixth layer sees everything
LAYERS_27B = 62
LOCAL_THETA = 10000.0


def config(metadata: base.Config) -> Gemma3TextConfig:
    values, keys = base.config_values(GGUF, metadata, scaled=True), base.Keys(GGUF, metadata)
    full = values.pop("rope_parameters")
    keys.refuse("rope.scaling.type", ("none", "linear"), "this scaling of rotary positions is not supported")
    if metadata.get(f"{GGUF}.rope.scaling.type") == "linear":
        full |= {"rope_type": "linear", "factor": keys.number("rope.scaling.factor")}
    keys.refuse("final_logit_softcapping", (0.0,), "squashed logits are not supported")
    layers = values["num_hidden_layers"]
    return Gemma3TextConfig(
        **values,
        rope_parameters={
            SLIDING: {"rope_type": "default", "rope_theta": keys.number("rope.freq_base_swa", LOCAL_THETA)},
            FULL: full,
        },
        query_pre_attn_scalar=_scalar(layers, values["hidden_size"], values["num_attention_heads"], values["head_dim"]),
        sliding_window=keys.integer("attention.sliding_window"),
        layer_types=_pattern(metadata.get(f"{GGUF}.attention.sliding_window_pattern", EVERY), layers),
    )


def _pattern(given: Any, layers: int) -> list[str]:
    """Types of layers from a period or one flag for each layer. Raises ModelError."""
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        given = [(layer + 1) % given != 0 for layer in range(layers)]
    if not isinstance(given, list) or len(given) != layers:
        raise ModelError(f"GGUF metadata '{GGUF}.attention.sliding_window_pattern' does not fit {layers} layers")
    return [SLIDING if slides else FULL for slides in given]


def _scalar(layers: int, hidden: int, heads: int, dim: int) -> int:
    return hidden // heads if layers == LAYERS_27B else dim


def metadata(config: base.Config) -> dict[str, Any]:
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    scalar = _scalar(layers, config["hidden_size"], heads, base.head_dim(config))
    if config["query_pre_attn_scalar"] != scalar:
        raise ModelError(
            f"query_pre_attn_scalar is {config['query_pre_attn_scalar']}, but llama.cpp's '{GGUF}' scales queries by "
            f"{scalar} here; export to onnx, or take a model whose heads have as many dimensions"
        )
    for key in ("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention", "attention_bias"):
        if config.get(key):
            raise ModelError(f"the model has {key}, which llama.cpp's '{GGUF}' does not compute")
    ropes = config["rope_parameters"]
    full, local = ropes.get(FULL) or {"rope_theta": 1e6}, ropes.get(SLIDING) or {"rope_theta": LOCAL_THETA}
    kinds = (full.get("rope_type", "default"), local.get("rope_type", "default"))
    if kinds not in (("default", "default"), ("linear", "default")):
        raise ModelError(f"rotary positions are scaled in a way ({', '.join(kinds)}) that '{GGUF}' cannot be told")
    keys = base.architecture_keys(GGUF, config, full, ("hidden_activation", "gelu_pytorch_tanh"))
    own: dict[str, Any] = {
        "attention.key_length": base.head_dim(config),
        "attention.value_length": base.head_dim(config),
        "attention.sliding_window": int(config["sliding_window"]),
        "attention.sliding_window_pattern": [kind == SLIDING for kind in config["layer_types"][:layers]],
        "rope.freq_base_swa": float(local["rope_theta"]),
    }
    if kinds[0] == "linear":
        own |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(full["factor"])}
    return keys | {f"{GGUF}.{key}": value for key, value in own.items()}


def names(config: base.Config) -> dict[str, str]:
    return base.tensor_names(config, (), WEIGHTS)


def offset(name: str) -> float:
    return 1.0 if name.endswith("norm.weight") else 0.0


ARCH = base.Arch(
    NAME,
    config,
    metadata,
    names,
    base.same_order,
    base.float32,
    gguf=GGUF,
    offset=offset,
    cuts=frozenset({"depth"}),
    onnx="onnxruntime-genai's model builder cannot read Gemma 3's two kinds of rotary positions from transformers 5",
)
