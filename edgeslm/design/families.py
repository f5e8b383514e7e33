"""What a student from scratch can be made of: the knobs of the survey of small language models (arXiv:2409.15790:
attention, feed-forward, its ratio, activation, vocabulary, norm), where transformers has an architecture with them that
llama.cpp runs. Plain data: names are those of edgeslm.models.arch.

Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434) is the one kind of the survey that no family here has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Attention = Literal["mha", "gqa", "mqa"]
GATED_RATIO, PLAIN_RATIO = 8 / 3, 4.0  # feed-forward units / hidden channels: as many weights in either
SHARED = 4  # query heads of a group of `gqa`
ROUND = 64  # feed-forward units that are not given are a multiple of this
POSITIONS = 2048
TEACHERS = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Family:
    """`own_dim`: heads may have other dimensions than hidden / heads; `mup`: nothing in it depends on the width in a
    way that muP would have to undo. `more`: config keys beside the sizes."""

    gated: bool
    activation: Literal["silu", "gelu"]
    norm: Literal["rms", "layer"]
    what: str
    shares: bool = True
    own_dim: bool = True
    rotary: bool = True
    mup: bool = True
    more: tuple[tuple[str, Any], ...] = ()


FAMILIES = {
    "llama": Family(True, "silu", "rms", "rotary, no biases"),
    "qwen3": Family(True, "silu", "rms", "heads are normalised (QK-norm)"),
    "qwen2": Family(True, "silu", "rms", "biases on queries, keys and values", own_dim=False),
    "smollm3": Family(True, "silu", "rms", "every fourth layer without positions", own_dim=False),
    "gemma3_text": Family(True, "gelu", "rms", "four norms a layer, layers with a sliding window", mup=False),
    "starcoder2": Family(False, "gelu", "layer", "rotary, biases everywhere", own_dim=False),
    "gpt2": Family(
        False,
        "gelu",
        "layer",
        "learned positions, biases everywhere",
        shares=False,
        own_dim=False,
        rotary=False,
        more=(("resid_pdrop", 0.0), ("embd_pdrop", 0.0), ("attn_pdrop", 0.0)),
    ),
}


@dataclass(frozen=True)
class Wanted:
    """As a recipe gives it; None leaves a knob to the family."""

    hidden: int
    layers: int
    heads: int
    family: str | None = None
    kv_heads: int | None = None
    attention: str | None = None
    head_dim: int | None = None
    ffn: int | None = None
    ffn_ratio: float | None = None
    gated: bool | None = None
    activation: str | None = None
    norm: str | None = None


def family_of(wanted: Wanted) -> str:
    """The first family that has all that is asked for. Raises ValueError, saying what there is."""
    if wanted.attention == "mla":
        raise ValueError(
            "attention: mla is in no family that is made here, exported and run by llama.cpp; take mha, gqa or mqa"
        )
    shared = _kv_heads(wanted) != wanted.heads
    own_dim = wanted.head_dim not in (None, wanted.hidden / wanted.heads)
    names = [wanted.family] if wanted.family else list(FAMILIES)
    for name in names:
        one = FAMILIES[name]
        asked = ((wanted.gated, one.gated), (wanted.activation, one.activation), (wanted.norm, one.norm))
        if (
            all(w is None or w == has for w, has in asked)
            and (one.shares or not shared)
            and (one.own_dim or not own_dim)
        ):
            return name
    told = "; ".join(_told(name) for name in names)
    raise ValueError(f"no family has this feed-forward, activation, norm and attention; there is {told}")


def _told(name: str) -> str:
    one = FAMILIES[name]
    kind = "gated" if one.gated else "plain"
    heads = ("mha, gqa, mqa" if one.shares else "mha") + ("" if one.own_dim else ", heads of hidden / heads")
    return f"{name} ({kind} {one.activation}, {one.norm} norm, {heads})"


def _kv_heads(wanted: Wanted) -> int:
    if wanted.kv_heads is not None:
        return wanted.kv_heads
    if wanted.attention == "mqa":
        return 1
    if wanted.attention == "gqa":
        return min(
            (g for g in range(1, wanted.heads + 1) if wanted.heads % g == 0),
            key=lambda g: abs(wanted.heads / g - SHARED),
        )
    return wanted.heads


def check(wanted: Wanted) -> None:
    """Raises ValueError for sizes that make no model."""
    kv_heads = _kv_heads(wanted)
    if wanted.hidden % wanted.heads:
        raise ValueError(f"heads: {wanted.hidden} hidden channels are no multiple of {wanted.heads} heads")
    if wanted.heads % kv_heads:
        raise ValueError(f"kv_heads: {wanted.heads} heads cannot be shared evenly by {kv_heads} key-value heads")
    if (wanted.head_dim or wanted.hidden // wanted.heads) % 2:
        raise ValueError("heads: heads of an odd number of dimensions cannot be turned by rotary positions")
    if wanted.ffn is not None and wanted.ffn_ratio is not None:
        raise ValueError("ffn and ffn_ratio say the same; give one of them")
    given = {"mha": kv_heads == wanted.heads, "mqa": kv_heads == 1, "gqa": 1 < kv_heads < wanted.heads}
    if wanted.kv_heads is not None and not given.get(wanted.attention or "", True):
        raise ValueError(f"attention: {wanted.attention} does not have {kv_heads} of {wanted.heads} key-value heads")


def config_of(
    wanted: Wanted, teacher: Mapping[str, Any], tied: bool, positions: int | None, theta: float
) -> dict[str, Any]:
    """The keys of a transformers config; vocabulary and special tokens are the teacher's. Raises ValueError."""
    name = family_of(wanted)
    one = FAMILIES[name]
    ratio = wanted.ffn_ratio or (GATED_RATIO if one.gated else PLAIN_RATIO)
    config: dict[str, Any] = {
        "model_type": name,
        "hidden_size": wanted.hidden,
        "intermediate_size": wanted.ffn or max(ROUND, round(ratio * wanted.hidden / ROUND) * ROUND),
        "num_hidden_layers": wanted.layers,
        "num_attention_heads": wanted.heads,
        "max_position_embeddings": positions or teacher.get("max_position_embeddings") or POSITIONS,
        "tie_word_embeddings": tied,
        **{key: teacher.get(key) for key in TEACHERS},
        **dict(one.more),
    }
    if one.shares:
        config["num_key_value_heads"] = _kv_heads(wanted)
    dim = wanted.head_dim or wanted.hidden // wanted.heads
    if one.own_dim:
        config["head_dim"] = dim
    if name == "gemma3_text":
        config["query_pre_attn_scalar"] = dim
    elif one.rotary:
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    if name == "gpt2":
        own = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
        own |= {"intermediate_size": "n_inner", "max_position_embeddings": "n_positions"}
        config |= {theirs: config[ours] for ours, theirs in own.items()}
    return config
