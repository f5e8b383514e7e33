"""Shapes of a wanted size, from scratch or out of a teacher. Every one is a config's keys and a recipe's `student`.

Widths, heads times their dimensions and feed-forward units are multiples of the block of the wanted grid where that is
possible. From scratch, width / layers lies between 12 and 128: SmolLM2-135M has 19, MobileLLM (arXiv:2402.14905) finds
deep and thin better below a billion parameters, GPT-3's sizes have 64 to 128.

Legend: D hidden width, F feed-forward units, H heads, G key-value heads, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgeslm import cost
from edgeslm.design.teacher import NO_HEAD_DIM, WIDTH

HEADS_OF = 64  # dimensions of a head from scratch; twice as many from WIDE on
WIDE = 2048
THIN, FAT = 12, 128  # width / layers
RATIOS = (8 / 3, 2.0, 4.0)  # F / D of a gated feed-forward: Llama's, narrow, wide
SHARED = 4  # query heads that share keys and values, about
MOST_LAYERS, LEAST_LAYERS = 96, 4
NEAR = 0.06  # how far from the budget a shape may be


@dataclass(frozen=True)
class Shape:
    config: dict[str, Any]
    student: dict[str, Any]  # the recipe's section

    @property
    def parameters(self) -> int:
        return cost.counts(self.config).total


def from_scratch(parameters: int, vocabulary: int, block: int) -> list[Shape]:
    """Llama-shaped, tied. At each width the feed-forward ratio that comes nearest to the budget."""
    found = []
    step = max(block, HEADS_OF)
    for width in range(step, 8192 + 1, step):
        dim = HEADS_OF if width < WIDE else 2 * HEADS_OF
        heads = width // dim
        options = []
        for ratio in RATIOS:
            units = max(block, round(ratio * width / block) * block)
            options += _deep(_llama(width, units, heads, _share(heads, SHARED), dim, vocabulary), parameters)
        options = [o for o in options if THIN <= width / o["num_hidden_layers"] <= FAT]
        if options:
            best = min(
                options, key=lambda o: (round(_off(o, parameters), 2), abs(o["intermediate_size"] / width - RATIOS[0]))
            )
            found.append(Shape(best, _scratch_section(best)))
    return found


def _llama(width: int, units: int, heads: int, kv_heads: int, dim: int, vocabulary: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": units,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": dim,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
    }


def _scratch_section(config: Mapping[str, Any]) -> dict[str, Any]:
    names = {"hidden": "hidden_size", "ffn": "intermediate_size", "layers": "num_hidden_layers"}
    names |= {"heads": "num_attention_heads", "kv_heads": "num_key_value_heads"}
    return {"kind": "scratch", **{ours: config[theirs] for ours, theirs in names.items()}}


def cut(teacher: Mapping[str, Any], parameters: int, vocabulary: int, block: int) -> list[Shape]:
    """Fewer layers of the teacher, and, where its family can be cut in width, narrower ones of so many layers as the
    budget leaves."""
    whole = dict(teacher) | {"vocab_size": vocabulary}
    words = {"vocabulary": {"keep": vocabulary}} if vocabulary < teacher["vocab_size"] else {}
    most = int(teacher["num_hidden_layers"])
    found = [
        Shape(shape, {"kind": "depth", "layers": shape["num_hidden_layers"], **words})
        for shape in _deep(whole, parameters, most, 1)
    ]
    if teacher.get("model_type") not in WIDTH:
        return found
    for width in _widths(teacher, block):
        options = [o for narrow in _narrow(teacher, whole, width, block) for o in _deep(narrow, parameters, most, 1)]
        if options:
            ratio = teacher["intermediate_size"] / teacher["hidden_size"]
            best = min(
                options, key=lambda o: (round(_off(o, parameters), 2), abs(o["intermediate_size"] / width - ratio))
            )
            found.append(Shape(best, {**_width_section(teacher, best), **words}))
    return found


def _widths(teacher: Mapping[str, Any], block: int) -> Iterator[int]:
    """Multiples of the block up to the teacher's width, and that width itself with fewer units."""
    whole = int(teacher["hidden_size"])
    step = max(block, 64)
    yield from range(step * max(1, whole // 3 // step), whole, step)
    yield whole


def _narrow(teacher: Mapping[str, Any], whole: Mapping[str, Any], width: int, block: int) -> Iterator[dict[str, Any]]:
    """Heads as the width allows: transformers wants it to be a multiple of their number."""
    dim, most = int(teacher["head_dim"]), int(teacher["num_attention_heads"])
    given = int(teacher["num_key_value_heads"])
    shared = most // given
    tied_to_width = teacher.get("model_type") in NO_HEAD_DIM
    able = [h for h in range(1, most + 1) if width % h == 0 and (not tied_to_width or h * dim == width)]
    fitting = [h for h in able if h * dim % block == 0] or able
    if not fitting:
        return
    target = most * width / teacher["hidden_size"]
    heads = min(fitting, key=lambda h: (abs(h - target), -h))
    ratio = teacher["intermediate_size"] / teacher["hidden_size"]
    for factor in (1.0, 0.75, 0.5, 1.25):
        units = min(int(teacher["intermediate_size"]), max(block, round(factor * ratio * width / block) * block))
        if width == teacher["hidden_size"] and units == teacher["intermediate_size"]:
            continue  # that is depth alone
        sizes = {"hidden_size": width, "intermediate_size": units, "head_dim": dim}
        yield {**whole, **sizes, "num_attention_heads": heads, "num_key_value_heads": _share(heads, shared, given)}


def _width_section(teacher: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    names = {"hidden": "hidden_size", "ffn": "intermediate_size", "layers": "num_hidden_layers"}
    names |= {"heads": "num_attention_heads", "kv_heads": "num_key_value_heads"}
    return {"kind": "width", **{ours: config[key] for ours, key in names.items() if config[key] != teacher[key]}}


def _deep(
    config: Mapping[str, Any], parameters: int, most: int = MOST_LAYERS, least: int = LEAST_LAYERS
) -> list[dict[str, Any]]:
    """The config with the number of layers that comes nearest to the budget, where that is near enough."""
    one, two = (cost.counts({**config, "num_hidden_layers": n}).total for n in (1, 2))
    layers = min(most, max(least, round((parameters - (2 * one - two)) / (two - one))))
    shape = {**config, "num_hidden_layers": layers}
    return [shape] if _off(shape, parameters) <= NEAR else []


def _off(config: Mapping[str, Any], parameters: int) -> float:
    return abs(cost.counts(config).total / parameters - 1)


def _share(heads: int, by: int, most: int = 1 << 16) -> int:
    """Key-value heads: a divisor of `heads`, `most` at most, of which each serves about `by`."""
    return min((g for g in range(1, min(heads, most) + 1) if heads % g == 0), key=lambda g: (abs(heads / g - by), g))
