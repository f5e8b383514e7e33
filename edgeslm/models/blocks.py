"""Where a transformers model keeps its layers, and reading what they hold while the model runs.

Layer 0 is what the embeddings give, layer l what the l-th block gives to the next (the last before the final norm).
Shape letters: B rows, T positions, D hidden width, H heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgeslm.errors import ModelError
from edgeslm.knowledge.base import Layer, Sizes

# names of (attention module, query, key, value) inside a block, by family; one name for all three: they are fused
ATTENTIONS = (
    ("self_attn", "qkv_proj", "qkv_proj", "qkv_proj"),
    ("self_attn", "q_proj", "k_proj", "v_proj"),
    ("attn", "c_attn", "c_attn", "c_attn"),
    ("attention.self", "query", "key", "value"),
)
FIELDS = ("query", "key", "value")
LISTS = ("layers", "layer", "h")
Wants = Mapping[int, frozenset[str]]  # layer -> fields of `Layer`


def layers_of(model: Any) -> nn.ModuleList:
    """The blocks in order. Raises ModelError for a model whose blocks are not where they are looked for."""
    base = model.base_model
    for owner in (base, getattr(base, "encoder", None)):
        for name in LISTS:
            if isinstance(found := getattr(owner, name, None), nn.ModuleList):
                return found
    raise ModelError(f"{type(model).__name__}: its layers are not where edgeslm.models.blocks looks for them")


def layers_name(model: Any) -> str:
    """What a decoder's base model calls its blocks."""
    return next(name for name in LISTS if isinstance(getattr(model.base_model, name, None), nn.ModuleList))


def sizes_of(config: Any) -> tuple[int, Sizes]:
    """(number of layers, widths)."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers, Sizes(config.hidden_size, heads, width)


@contextmanager
def reading(model: nn.Module, wants: Wants) -> Iterator[dict[int, Layer]]:
    """Inside the block a forward of `model` fills {layer: Layer} with the wanted fields and nothing else: a hidden
    state costs B T D values, query, key and value B T H d each, attention B H T T (and needs `attention: eager`)."""
    found: dict[int, Layer] = {}
    blocks = layers_of(model) if wants else nn.ModuleList()
    handles = []
    try:
        for index, fields in sorted(wants.items()):
            handles += _watch(blocks, index, fields, found)
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _watch(blocks: nn.ModuleList, index: int, fields: frozenset[str], found: dict[int, Layer]) -> list[Any]:
    def keep(name: str, value: Tensor) -> None:
        found[index] = replace(found.get(index, Layer()), **{name: value})

    if not 0 <= index <= len(blocks):
        raise ModelError(f"layer {index} is asked for, but the model has layers 0 to {len(blocks)}")
    if index == 0:
        if fields != {"hidden"}:
            raise ModelError("layer 0 is the embedding: only its hidden state can be read")
        return [blocks[0].register_forward_pre_hook(lambda module, inputs: keep("hidden", inputs[0]))]
    block, handles = blocks[index - 1], []
    if "hidden" in fields:
        handles.append(block.register_forward_hook(lambda module, inputs, out: keep("hidden", _first(out))))
    if fields <= {"hidden"}:  # a block without attention has a hidden state all the same
        return handles
    names = next(names for names in ATTENTIONS if _has(block, names))
    attention: Any = block.get_submodule(names[0])
    if "attention" in fields:
        handles.append(attention.register_forward_hook(lambda module, inputs, out: keep("attention", _maps(out))))
    for field, name in zip(FIELDS, names[1:], strict=True):
        if field in fields:
            place = FIELDS.index(field) if names[1] == names[2] else None
            projection = getattr(attention, name)
            handles.append(projection.register_forward_hook(_heads(keep, field, attention, place)))
    return handles


def _has(block: nn.Module, names: tuple[str, ...]) -> bool:
    try:
        return hasattr(block.get_submodule(names[0]), names[1])
    except AttributeError:
        return False


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def _maps(out: Any) -> Tensor:
    maps = out[1] if isinstance(out, tuple) and len(out) > 1 else None
    if maps is None:
        raise ModelError("attention maps are wanted, which fused attention never makes; set attention: eager")
    return maps


def _heads(keep: Callable[[str, Tensor], None], field: str, attention: Any, place: int | None) -> Callable[..., None]:
    """`place`: which part of a fused projection's output the field is."""

    def hook(module: nn.Module, inputs: Any, out: Tensor) -> None:
        width = getattr(attention, "head_dim", None) or attention.attention_head_size
        if place is not None:
            shared = (out.shape[-1] - attention.config.num_attention_heads * width) // 2
            out = out.split([out.shape[-1] - 2 * shared, shared, shared], -1)[place]
        split = out.unflatten(-1, (-1, width)).transpose(1, 2)  # [B, T, H d] -> [B, H, T, d]
        heads = attention.config.num_attention_heads
        keep(field, torch.repeat_interleave(split, heads // split.shape[1], dim=1) if split.shape[1] < heads else split)

    return hook
