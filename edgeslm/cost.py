"""What a decoder costs, from its shape alone: parameters, bytes, operations and ceilings. Plain data in and out.

A `shape` is a transformers config as a dict, of which these keys are read: hidden_size D, intermediate_size F,
num_hidden_layers L, num_attention_heads H, num_key_value_heads G, head_dim (D / H when absent), vocab_size V,
tie_word_embeddings, attention_bias, and model_type, which says what a family has beside its matrices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

TYPICAL_SHARE = 0.25  # of the matrix-product bound that a training step reached where it was measured
BACKWARD_FACTOR = 2.0  # gradients of inputs and of weights: one product each


@dataclass(frozen=True)
class Counts:
    """Parameters by where they sit."""

    embedding: int  # the input table; a tied head is this same table
    head: int  # 0 when tied
    linear: int  # all matrices of all blocks
    small: int  # norms and biases
    layers: int
    positions: int = 0  # a table of learned positions

    @property
    def total(self) -> int:
        return self.embedding + self.head + self.linear + self.small + self.positions

    @property
    def per_token(self) -> int:
        """Matrix weights multiplied for each token: the blocks' and the head's."""
        return self.linear + (self.head or self.embedding)


def head_dim(shape: Mapping[str, Any]) -> int:
    return int(shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"])


NORMS = {"gemma3_text": 4}  # vectors of norms a layer, 2 elsewhere
HEAD_NORMS = ("qwen3", "gemma3_text")  # one weight for each dimension of a head, for queries and for keys
PLAIN = ("gpt2", "starcoder2")  # two feed-forward matrices instead of three; norms with biases
LEARNED_POSITIONS = ("gpt2",)


def counts(shape: Mapping[str, Any]) -> Counts:
    """Of a decoder of one of the families in edgeslm.models.arch; gated feed-forward and RMS norms where none says
    otherwise."""
    kind = shape.get("model_type")
    d, f, layers, v = (int(shape[k]) for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"))
    q = int(shape["num_attention_heads"]) * head_dim(shape)
    kv = int(shape.get("num_key_value_heads") or shape["num_attention_heads"]) * head_dim(shape)
    attention = d * q + 2 * d * kv + q * d
    biases = 0
    if kind == "qwen2":
        biases = q + 2 * kv
    elif kind == "gpt2" or (kind == "starcoder2" and shape.get("use_bias", True)):
        biases = q + 2 * kv + d + f + d
    elif shape.get("attention_bias"):
        biases = q + 2 * kv + d
    norms = NORMS.get(str(kind), 2) * d + 2 * head_dim(shape) * (kind in HEAD_NORMS)
    each = 2 if kind in PLAIN else 1  # weight and bias of a norm
    tied = bool(shape.get("tie_word_embeddings", False))
    return Counts(
        embedding=v * d,
        head=0 if tied else v * d,
        linear=layers * (attention + (2 if kind in PLAIN else 3) * d * f),
        small=layers * (norms * each + biases) + d * each,
        layers=layers,
        positions=d * int(shape["max_position_embeddings"]) if kind in LEARNED_POSITIONS else 0,
    )


def weight_bytes(shape: Mapping[str, Any], linear_bits: float, embedding_bits: float, head_bits: float = 0.0) -> int:
    """Bytes of all tensors; norms and biases are float32. `head_bits` 0 takes the embedding's for an untied head."""
    n = counts(shape)
    tables = (n.embedding + n.positions) * embedding_bits + n.head * (head_bits or embedding_bits)
    bits = n.linear * linear_bits + tables + n.small * 32
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


@dataclass(frozen=True)
class Ceilings:
    """What a device can do at most, per second, with the threads that will be used; None where nobody knows."""

    read_bytes_per_s: float | None = None
    flops_f32_per_s: float | None = None
    ops_int8_per_s: float | None = None  # two for a multiply-add


@dataclass(frozen=True)
class Efficiency:
    """The share of its bound that a runtime reaches, from a measurement that `source` names. Never a guess."""

    value: float
    source: str


@dataclass(frozen=True)
class Load:
    """A model as a device sees it. `unread_bytes` of the weights are not touched for a token (an input table that is
    not the head). `int8` says that its matrices are multiplied as 8-bit integers, as ggml does for low-bit weights.
    `buffers_bytes` is what a process was measured to hold besides weights and cache, None when nobody did."""

    shape: Mapping[str, Any]
    weights_bytes: float
    unread_bytes: float = 0.0
    kv_element_bytes: float = 2.0
    int8: bool = False
    buffers_bytes: float | None = None


@dataclass(frozen=True)
class Prediction:
    """`value` = bound x efficiency, or the bound alone where no efficiency was measured; `formula` says which."""

    metric: str
    unit: str
    value: float
    limited_by: str  # "memory", "arithmetic" or "" for a sum
    formula: str
    at: int = 0  # the depth of a decode, the length of a prefill, the context of a sum

    def error(self, measured: float) -> float:
        """How far off: +0.10 is a tenth too high."""
        return self.value / measured - 1


def predict(
    ceilings: Ceilings,
    load: Load,
    *,
    depths: Iterable[int] = (),
    lengths: Iterable[int] = (),
    context: int = 0,
    efficiencies: Mapping[str, Efficiency] | None = None,
) -> list[Prediction]:
    """Decode at each depth, prefill at each length, memory for a context. What a missing ceiling would decide is left
    out. `efficiencies` are named "decode" and "prefill"."""
    known = efficiencies or {}
    found = [_decode(ceilings, load, depth, known.get("decode")) for depth in depths]
    found += [_prefill(ceilings, load, length, known.get("prefill")) for length in lengths]
    return [one for one in (*found, _memory(load, context)) if one is not None]


def efficiency(measured: float, ceilings: Ceilings, load: Load, metric: str, at: int, source: str) -> Efficiency | None:
    """Of one measurement ("decode" at a depth, "prefill" at a length), for the same runtime on other models."""
    bound = {"decode": _decode, "prefill": _prefill}[metric](ceilings, load, at, None)
    return None if bound is None else Efficiency(measured / bound.value, source)


def _decode(ceilings: Ceilings, load: Load, depth: int, share: Efficiency | None) -> Prediction | None:
    """One token: all weights and the cache so far are read, or its operations done, whichever takes longer."""
    if ceilings.read_bytes_per_s is None:
        return None
    moved = decode_bytes(
        load.weights_bytes, kv_bytes_per_token(load.shape, load.kv_element_bytes), depth, load.unread_bytes
    )
    linear = 2.0 * counts(load.shape).per_token
    seconds = {
        "memory": moved / ceilings.read_bytes_per_s,
        "arithmetic": _arithmetic_s(ceilings, load, linear, _attention_flops(load.shape, depth)) or 0.0,
    }
    what = f"{moved:.0f} bytes and {linear + _attention_flops(load.shape, depth):.3g} operations a token at {depth}"
    return _bounded("predicted_decode", 1, depth, seconds, what, share)


def _prefill(ceilings: Ceilings, load: Load, length: int, share: Efficiency | None) -> Prediction | None:
    """A prompt in one go: the weights are read once, every block multiplies every token, the head only the last one."""
    n = counts(load.shape)
    linear = 2.0 * (n.linear * length + (n.head or n.embedding))
    attention = length * _attention_flops(load.shape, (length + 1) / 2)  # a position sees those up to itself
    arithmetic = _arithmetic_s(ceilings, load, linear, attention)
    if arithmetic is None or ceilings.read_bytes_per_s is None:
        return None
    seconds = {"memory": (load.weights_bytes - load.unread_bytes) / ceilings.read_bytes_per_s, "arithmetic": arithmetic}
    what = f"{linear + attention:.3g} operations for {length} tokens"
    return _bounded("predicted_prefill", length, length, seconds, what, share)


def _attention_flops(shape: Mapping[str, Any], positions: float) -> float:
    """Scores and weighted values of one token over so many positions, all layers."""
    return 4.0 * counts(shape).layers * int(shape["num_attention_heads"]) * head_dim(shape) * positions


def _arithmetic_s(ceilings: Ceilings, load: Load, linear: float, attention: float) -> float | None:
    """Matrices at the rate of their kind, attention in float32; None when a rate is not known."""
    rate = ceilings.ops_int8_per_s if load.int8 else ceilings.flops_f32_per_s
    if rate is None or ceilings.flops_f32_per_s is None:
        return None
    return linear / rate + attention / ceilings.flops_f32_per_s


def _bounded(
    metric: str, tokens: int, at: int, seconds: Mapping[str, float], what: str, share: Efficiency | None
) -> Prediction:
    limit = max(seconds, key=lambda name: seconds[name])
    bound = tokens / seconds[limit]
    reached = "the bound itself" if share is None else f"x {share.value:.3f} reached in {share.source}"
    value = bound if share is None else bound * share.value
    formula = f"{what}, limited by {limit}: {bound:.4g} tokens/s, {reached}"
    return Prediction(metric, "tokens/s", value, limit, formula, at)


def _memory(load: Load, context: int) -> Prediction | None:
    if load.buffers_bytes is None or context < 1:
        return None
    cache = kv_bytes(load.shape, context, load.kv_element_bytes)
    parts = (
        f"{load.weights_bytes:.0f} of weights + {cache:.0f} of cache for {context} + {load.buffers_bytes:.0f} measured"
    )
    return Prediction("predicted_memory", "bytes", load.weights_bytes + cache + load.buffers_bytes, "", parts, context)
