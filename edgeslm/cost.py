"""What a decoder costs, from its shape alone: parameters, bytes, operations and ceilings. Plain data in and out.

A `shape` is a transformers config as a dict, of which these keys are read: hidden_size D, intermediate_size F,
num_hidden_layers L, num_attention_heads H, num_key_value_heads G, head_dim (D / H when absent), vocab_size V,
tie_word_embeddings, attention_bias / model_type "qwen2" (biases on q, k, v).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BACKWARD_FACTOR = 2.0  # gradients of inputs and of weights: one product each


@dataclass(frozen=True)
class Counts:
    """Parameters by where they sit."""

    embedding: int  # the input table; a tied head is this same table
    head: int  # 0 when tied
    linear: int  # all matrices of all blocks
    small: int  # norms and biases
    layers: int

    @property
    def total(self) -> int:
        return self.embedding + self.head + self.linear + self.small

    @property
    def per_token(self) -> int:
        """Matrix weights multiplied for each token: the blocks' and the head's."""
        return self.linear + (self.head or self.embedding)


def head_dim(shape: Mapping[str, Any]) -> int:
    return int(shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"])


def counts(shape: Mapping[str, Any]) -> Counts:
    """Of a Llama- or Qwen2-shaped decoder (gated feed-forward, RMS norms)."""
    d, f, layers, v = (int(shape[k]) for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"))
    q = int(shape["num_attention_heads"]) * head_dim(shape)
    kv = int(shape.get("num_key_value_heads") or shape["num_attention_heads"]) * head_dim(shape)
    attention = d * q + 2 * d * kv + q * d
    biases = 0
    if shape.get("model_type") == "qwen2":
        biases = q + 2 * kv
    elif shape.get("attention_bias"):
        biases = q + 2 * kv + d
    tied = bool(shape.get("tie_word_embeddings", False))
    return Counts(
        embedding=v * d,
        head=0 if tied else v * d,
        linear=layers * (attention + 3 * d * f),
        small=layers * (2 * d + biases) + d,
        layers=layers,
    )


def weight_bytes(shape: Mapping[str, Any], linear_bits: float, embedding_bits: float, head_bits: float = 0.0) -> int:
    """Bytes of all tensors; norms and biases are float32. `head_bits` 0 takes the embedding's for an untied head."""
    n = counts(shape)
    bits = n.linear * linear_bits + n.embedding * embedding_bits + n.head * (head_bits or embedding_bits) + n.small * 32
    return round(bits / 8)


def kv_bytes_per_token(shape: Mapping[str, Any], element_bytes: float = 2.0) -> float:
    """Keys and values that one token adds to the cache over all layers."""
    heads = int(shape.get("num_key_value_heads") or shape["num_attention_heads"])
    return 2 * int(shape["num_hidden_layers"]) * heads * head_dim(shape) * element_bytes


def kv_bytes(shape: Mapping[str, Any], context: int, element_bytes: float = 2.0) -> float:
    return kv_bytes_per_token(shape, element_bytes) * context


def forward_flops(shape: Mapping[str, Any], context: int) -> float:
    """Per token at a mean of context / 2 attended positions: two operations a weight, plus scores and values."""
    attention = 2 * 2 * counts(shape).layers * int(shape["num_attention_heads"]) * head_dim(shape) * context / 2
    return 2.0 * counts(shape).per_token + attention


def backward_flops(shape: Mapping[str, Any], context: int) -> float:
    return BACKWARD_FACTOR * forward_flops(shape, context)


def decode_bytes(weights: float, kv_per_token: float = 0.0, context: float = 0.0, unread: float = 0.0) -> float:
    """Bytes that must move for one new token: every weight once except `unread` ones (an input table that is not the
    head gives one row only), and the cache of `context` positions."""
    return weights - unread + kv_per_token * context


def decode_bound(bytes_per_token: float, bandwidth_bytes_per_s: float) -> float:
    """Tokens per second that no decoder of one sequence can exceed while its weights come from memory."""
    return bandwidth_bytes_per_s / bytes_per_token


def prefill_bound(shape: Mapping[str, Any], context: int, flops_per_s: float) -> float:
    """Tokens per second of a prompt at a given rate of floating-point operations."""
    return flops_per_s / forward_flops(shape, context)


def training_bound(
    student: Mapping[str, Any], context: int, flops_per_s: float, teacher: Mapping[str, Any] | None = None
) -> float:
    """Tokens per second of a training step: student forward and backward, plus a live teacher's forward."""
    work = forward_flops(student, context) + backward_flops(student, context)
    if teacher is not None:
        work += forward_flops(teacher, context)
    return flops_per_s / work


def bits_per_weight(formats: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    """Mean stored bits over tensors: name -> bits, name -> number of weights."""
    total = sum(sizes.values())
    return sum(formats[name] * size for name, size in sizes.items()) / total
