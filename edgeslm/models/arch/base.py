"""What an architecture is: names and layout of one model family on both sides, transformers and GGUF.

GGUF files keep decoder layers of this kind in the layout of the first Llama release: one tensor per projection, rows
in output order, `rope` applied to neighbouring pairs. Where transformers orders rows otherwise, `row_order` says how;
where it adds a number in its forward that llama.cpp wants in the file, `offset` does; tensors that llama.cpp reads and
transformers computes from its config are `constants`.
Legend: h heads, d head dimension, r row index.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from edgeslm.errors import ModelError

Config = Mapping[str, Any]
LIMIT = 1 << 24  # no dimension of a model that fits a device is larger; a damaged number must not be built
MAX_LAYERS = 1024

# transformers' name inside a layer -> GGUF's, shared by every family here
LAYER_WEIGHTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# of heads that are normalised before they are turned (QK-norm)
HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


def no_offset(name: str) -> float:
    return 0.0


def no_constants(config: Config) -> dict[str, Tensor]:
    return {}


def not_fused(name: str, config: Config) -> dict[str, tuple[int, int]]:
    return {}


@dataclass(frozen=True)
class Arch:
    """One family. `name` is transformers' `model_type`, `gguf` the `general.architecture` where that differs. `cuts`:
    the kinds of student that can be cut from a teacher of this family."""

    name: str
    config: Callable[[Config], PretrainedConfig]  # GGUF metadata -> transformers config
    metadata: Callable[[Config], dict[str, Any]]  # config.to_dict() -> GGUF keys of the architecture ("llama.*")
    names: Callable[[Config], dict[str, str]]  # config dict -> {transformers name: GGUF name}; no tied head
    row_order: Callable[[str, Config], Tensor | None]  # r with gguf_rows = hf_rows[r]; None: the same order
    gguf_float32: Callable[[str], bool]  # GGUF name -> llama.cpp wants this tensor in float32
    gguf: str = ""
    embedding: str = "model.embed_tokens.weight"
    offset: Callable[[str], float] = no_offset  # transformers name -> what GGUF's value has more than transformers'
    constants: Callable[[Config], dict[str, Tensor]] = no_constants  # config dict -> {GGUF name: float32 values}
    fused: Callable[[str, Config], dict[str, tuple[int, int]]] = not_fused  # name -> {part's name: rows from, to}
    cuts: frozenset[str] = frozenset({"depth", "width"})
    unused: tuple[str, ...] = ()  # ends of names in hub files that are no weights (masks of old releases)
    onnx: str = ""  # why onnxruntime-genai's builder makes no graph of it; empty: it does

    @property
    def architecture(self) -> str:
        return self.gguf or self.name


def float32(name: str) -> bool:
    """Norms and biases: llama.cpp adds and multiplies them in float32."""
    return name.endswith(("_norm.weight", ".bias"))


def same_order(name: str, config: Config) -> Tensor | None:
    return None


def pair_order(heads: int, head_dim: int) -> Tensor:
    """Row order from transformers' halves to GGUF's neighbouring pairs, int64 [h * d].

    transformers rotates row i with row i + d/2 of a head, GGUF's "llama" rotates 2i with 2i + 1.
    """
    rows = torch.arange(heads * head_dim).reshape(heads, 2, head_dim // 2)  # r = hf row at [h, half, i]
    return rows.transpose(1, 2).reshape(-1)  # [h, i, half]


def plain(config: PretrainedConfig) -> dict[str, Any]:
    """config.to_dict() in which sizes have their usual names too: a GPT-2's n_embd is hidden_size."""
    found: dict[str, Any] = config.to_dict()
    found = {usual: getattr(config, own, None) for usual, own in config.attribute_map.items()} | found
    if "n_inner" in found:
        found["intermediate_size"] = found["n_inner"] or 4 * found["hidden_size"]
    return found


def tensor_names(config: Config, biased: tuple[str, ...], weights: Mapping[str, str] = LAYER_WEIGHTS) -> dict[str, str]:
    """{transformers name: GGUF name}; `biased` names the projections of a layer that have a bias, `weights` what a
    layer has."""
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if not config.get("tie_word_embeddings", False):
        names["lm_head.weight"] = "output.weight"
    for layer in range(config["num_hidden_layers"]):
        for ours, theirs in weights.items():
            names[f"model.layers.{layer}.{ours}.weight"] = f"blk.{layer}.{theirs}.weight"
            if ours in biased:
                names[f"model.layers.{layer}.{ours}.bias"] = f"blk.{layer}.{theirs}.bias"
    return names


def head_dim(config: Config) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def shortest(value: float) -> float:
    """The shortest decimal of a float32: a file's 9.999999747378752e-06 is the 1e-05 its maker wrote."""
    return float(str(np.float32(value)))


class Keys:
    """Typed access to `<arch>.<key>` of GGUF metadata. Raises ModelError for what is absent or of another type."""

    def __init__(self, arch: str, metadata: Config):
        self.arch, self.metadata = arch, metadata

    def integer(self, key: str, default: int | None = None, limit: int = LIMIT) -> int:
        name = f"{self.arch}.{key}"
        value = self.metadata.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
            raise ModelError(f"GGUF metadata '{name}' is {value!r}, but a whole number from 1 to {limit} is needed")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        name = f"{self.arch}.{key}"
        value = self.metadata.get(name, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
            raise ModelError(f"GGUF metadata '{name}' is {value!r}, but one positive number is needed to run this")
        return shortest(float(value))

    def refuse(self, key: str, allowed: tuple[Any, ...], why: str) -> None:
        value = self.metadata.get(f"{self.arch}.{key}")
        if value is not None and value not in allowed:
            raise ModelError(f"GGUF metadata '{self.arch}.{key}' is {value!r}: {why}; take a model without it")


def config_values(arch: str, metadata: Config, scaled: bool = False, partial: bool = False) -> dict[str, Any]:
    """Keyword arguments of a transformers config, common to the families here. `scaled`: the caller reads scaled rotary
    positions itself; `partial`: and those of a part of a head. Raises ModelError, naming the key."""
    keys = Keys(arch, metadata)
    if not scaled:
        keys.refuse("rope.scaling.type", ("none",), "scaled rotary positions are not supported")
        keys.refuse("rope.scale_linear", (1.0,), "scaled rotary positions are not supported")
    keys.refuse("expert_count", (0,), "mixtures of experts are not supported")
    hidden, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    if hidden % heads and f"{arch}.attention.key_length" not in metadata:
        raise ModelError(f"GGUF metadata: an embedding_length of {hidden} cannot be shared by {heads} attention heads")
    kv_heads = keys.integer("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise ModelError(f"GGUF metadata: {heads} attention heads are no multiple of {kv_heads} key-value heads")
    dim = keys.integer("attention.key_length", hidden // heads)
    for key in ("attention.value_length", *(() if partial else ("rope.dimension_count",))):
        keys.refuse(key, (dim,), f"it differs from the {dim} dimensions of a head, which is not supported")
    if dim % 2:
        raise ModelError(f"GGUF metadata: heads of {dim} dimensions are odd, which rotary positions cannot turn")
    values = {
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_type": "default", "rope_theta": keys.number("rope.freq_base", 10000.0)},
        "head_dim": dim,
    }
    return values | sizes_and_tokens(keys)


def sizes_and_tokens(keys: Keys) -> dict[str, Any]:
    """What every decoder has, rotary or not."""
    tokens = keys.metadata.get("tokenizer.ggml.tokens", ())
    values: dict[str, Any] = {
        "vocab_size": keys.integer("vocab_size", len(tokens) or None),
        "hidden_size": keys.integer("embedding_length"),
        "num_hidden_layers": keys.integer("block_count", limit=MAX_LAYERS),
        "max_position_embeddings": keys.integer("context_length", limit=1 << 31),
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        values[f"{name}_token_id"] = keys.metadata.get(f"tokenizer.ggml.{key}_token_id")
    return values


def architecture_keys(
    arch: str,
    config: Config,
    rope: Mapping[str, Any] | None = None,
    activation: tuple[str, str] = ("hidden_act", "silu"),
) -> dict[str, Any]:
    """config.to_dict() -> the `<arch>.*` keys llama.cpp reads. `rope`: the config's rotary positions where a family
    keeps them elsewhere or writes their scaling itself; `activation`: its key and what llama.cpp computes. Raises
    ModelError for what GGUF cannot say."""
    if rope is None:
        rope = config.get("rope_parameters") or {}
        if rope.get("rope_type", "default") != "default":
            raise ModelError(
                f"the model scales its rotary positions ('{rope['rope_type']}'), which GGUF's '{arch}' cannot be told; "
                "take a model without rope scaling"
            )
    key, computed = activation
    if config.get(key, computed) != computed:
        raise ModelError(f"activation '{config[key]}' is not what GGUF's '{arch}' computes ({computed})")
    heads, dim = int(config["num_attention_heads"]), head_dim(config)
    keys: dict[str, Any] = {
        "block_count": int(config["num_hidden_layers"]),
        "context_length": int(config["max_position_embeddings"]),
        "embedding_length": int(config["hidden_size"]),
        "feed_forward_length": int(config["intermediate_size"]),
        "attention.head_count": heads,
        "attention.head_count_kv": int(config.get("num_key_value_heads") or heads),
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(rope.get("rope_theta", 10000.0)),
        "rope.dimension_count": dim,
        "vocab_size": int(config["vocab_size"]),
    }
    if dim * heads != int(config["hidden_size"]):
        keys |= {"attention.key_length": dim, "attention.value_length": dim}
    return {f"{arch}.{key}": value for key, value in keys.items()}
