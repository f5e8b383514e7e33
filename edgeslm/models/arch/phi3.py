"""Phi-3 and Phi-4-mini: q, k and v in one matrix, gate and up in another (both sides in the same order of rows); rotary
positions of a part of each head; LongRoPE factors for short and for long texts. Source: arXiv:2404.14219, 2503.01743.

llama.cpp sees everything where transformers sees a sliding window: the file claims no longer context than the window,
within which both are the same. It chooses short or long factors by the context it is opened with, transformers by the
text.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Phi3Config

from edgeslm.errors import ModelError
from edgeslm.models import rotary
from edgeslm.models.arch import base

NAME = "phi3"
WEIGHTS = {
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def config(metadata: base.Config) -> Phi3Config:
    values, keys = base.config_values(NAME, metadata, partial=True), base.Keys(NAME, metadata)
    dim = values.pop("head_dim")  # this config has no such field: a head is hidden_size / heads
    if dim * values["num_attention_heads"] != values["hidden_size"]:
        raise ModelError(f"GGUF metadata: heads of {dim} dimensions do not make up the embedding, as 'phi3' needs")
    positions = values["max_position_embeddings"]
    rope, original = values["rope_parameters"], keys.integer("rope.scaling.original_context_length", positions)
    rope["partial_rotary_factor"] = keys.integer("rope.dimension_count", dim, limit=dim) / dim
    if rotary.SHORT in metadata and rotary.LONG in metadata:
        rope |= {
            "rope_type": "longrope",
            "short_factor": [base.shortest(x) for x in metadata[rotary.SHORT]],
            "long_factor": [base.shortest(x) for x in metadata[rotary.LONG]],
            "original_max_position_embeddings": original,
            "factor": positions / original,
        }
        stored = metadata.get(f"{NAME}.rope.scaling.attn_factor", 1.0)
        if abs(stored - rotary.long_scale(rope, positions)) > 1e-4:
            rope["attention_factor"] = base.shortest(stored)
    return Phi3Config(**values, original_max_position_embeddings=original)


def metadata(config: base.Config) -> dict[str, Any]:
    heads, hidden, rope = config["num_attention_heads"], config["hidden_size"], config.get("rope_parameters") or {}
    if base.head_dim(config) * heads != hidden:
        raise ModelError(f"{heads} heads do not make up the {hidden} hidden channels, as GGUF's 'phi3' needs")
    if rope.get("rope_type", "default") not in ("default", "longrope"):
        raise ModelError(f"the model scales its rotary positions ('{rope['rope_type']}'), unlike GGUF's 'phi3'")
    positions = int(config["max_position_embeddings"])
    keys = base.architecture_keys(NAME, config, rope)
    own: dict[str, Any] = {
        "context_length": min(positions, config.get("sliding_window") or positions),
        "rope.dimension_count": turned(config),
    }
    if rope.get("rope_type") == "longrope":
        own |= {
            "context_length": positions,
            "rope.scaling.original_context_length": int(rope["original_max_position_embeddings"]),
            "rope.scaling.attn_factor": rotary.long_scale(rope, positions),
        }
        if (config.get("sliding_window") or positions) < positions:
            raise ModelError("the model has LongRoPE and a sliding window within it, which GGUF's 'phi3' cannot say")
    return keys | {f"{NAME}.{key}": value for key, value in own.items()}


def turned(config: base.Config) -> int:
    """Dimensions of a head that rotary positions turn."""
    factor = (config.get("rope_parameters") or {}).get("partial_rotary_factor") or 1.0
    return int(base.head_dim(config) * factor)


def constants(config: base.Config) -> dict[str, Tensor]:
    rope = config.get("rope_parameters") or {}
    return rotary.long_factors(rope, turned(config)) if rope.get("rope_type") == "longrope" else {}


def fused(name: str, config: base.Config) -> dict[str, tuple[int, int]]:
    """The projections that a fused matrix is made of, and their rows."""
    dim = base.head_dim(config)
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    place = name.rpartition(".")[0].rpartition(".")[0]
    if name.endswith(".qkv_proj.weight"):
        ends = {"q_proj": (0, q), "k_proj": (q, q + kv), "v_proj": (q + kv, q + 2 * kv)}
    elif name.endswith(".gate_up_proj.weight"):
        units = int(config["intermediate_size"])
        ends = {"gate_proj": (0, units), "up_proj": (units, 2 * units)}
    else:
        return {}
    return {f"{place}.{part}.weight": rows for part, rows in ends.items()}


def names(config: base.Config) -> dict[str, str]:
    return base.tensor_names(config, (), WEIGHTS)


ARCH = base.Arch(
    NAME,
    config,
    metadata,
    names,
    base.same_order,
    base.float32,
    constants=constants,
    fused=fused,
    cuts=frozenset({"depth"}),
)
