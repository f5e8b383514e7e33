"""GPT-2: learned positions, norms with biases, q, k and v in one matrix, a plain feed-forward with gelu, biases
everywhere. transformers keeps its matrices turned ([inputs, outputs], `Conv1D`); edgeslm.models.turned makes plain
linear layers of them, in which rows are outputs as everywhere else."""

from __future__ import annotations

from typing import Any

from transformers import GPT2Config

from edgeslm.errors import ModelError
from edgeslm.models.arch import base

NAME = "gpt2"
ENDS = {
    "transformer.wte.weight": "token_embd.weight",
    "transformer.wpe.weight": "position_embd.weight",
    "transformer.ln_f.weight": "output_norm.weight",
    "transformer.ln_f.bias": "output_norm.bias",
}
WEIGHTS = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")


def config(metadata: base.Config) -> GPT2Config:
    keys = base.Keys(NAME, metadata)
    values = base.sizes_and_tokens(keys)
    heads = keys.integer("attention.head_count")
    keys.refuse("attention.head_count_kv", (heads,), "GPT-2 shares no keys and values among heads")
    if values["hidden_size"] % heads:
        raise ModelError(f"GGUF metadata: {values['hidden_size']} channels cannot be shared by {heads} attention heads")
    values["n_positions"] = values.pop("max_position_embeddings")
    return GPT2Config(
        **values,
        n_head=heads,
        n_inner=keys.integer("feed_forward_length"),
        layer_norm_epsilon=keys.number("attention.layer_norm_epsilon"),
    )


def metadata(config: base.Config) -> dict[str, Any]:
    if config["activation_function"] not in ACTIVATIONS:
        raise ModelError(f"activation '{config['activation_function']}' is not what GGUF's 'gpt2' computes (gelu_new)")
    for key, wanted in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        if bool(config.get(key, wanted)) != wanted:
            raise ModelError(f"the model has {key} {config[key]}, which llama.cpp's 'gpt2' does not compute")
    keys = {
        "block_count": config["n_layer"],
        "context_length": config["n_positions"],
        "embedding_length": config["n_embd"],
        "feed_forward_length": config["n_inner"] or 4 * config["n_embd"],
        "attention.head_count": config["n_head"],
        "attention.head_count_kv": config["n_head"],
        "vocab_size": config["vocab_size"],
    }
    integers = {f"{NAME}.{key}": int(value) for key, value in keys.items()}
    return integers | {f"{NAME}.attention.layer_norm_epsilon": float(config["layer_norm_epsilon"])}


def names(config: base.Config) -> dict[str, str]:
    found = dict(ENDS)
    if not config.get("tie_word_embeddings", True):
        found["lm_head.weight"] = "output.weight"
    for layer in range(config["n_layer"]):
        for ours, theirs in WEIGHTS.items():
            for part in ("weight", "bias"):
                found[f"transformer.h.{layer}.{ours}.{part}"] = f"blk.{layer}.{theirs}.{part}"
    return found


ARCH = base.Arch(
    NAME,
    config,
    metadata,
    names,
    base.same_order,
    base.float32,
    embedding="transformer.wte.weight",
    cuts=frozenset({"depth"}),
    unused=(".attn.bias", ".attn.masked_bias"),
    onnx="onnxruntime-genai's model builder knows no GPT-2",
)
