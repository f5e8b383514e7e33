"""Depth pruning: which layers go, decided on real text, and a student without them.

`influence`: block influence (ShortGPT, Men et al., arXiv:2403.03853), 1 - mean over tokens of cos(hidden state before a
layer, hidden state after it). `loss`: by how much the loss on text rises without the layer (Shortened LLaMA, Kim et
al., arXiv:2402.02834). `greedy`: the same, measured anew after every layer that goes (SLEB, Song et al.,
arXiv:2402.09025). `even` and `first` go by position alone, as rivals. `contiguous`: one run of layers goes, the one
whose end is most like its beginning (Gromov et al., arXiv:2403.17887), or that the loss misses least (Minitron,
arXiv:2407.14679).

Shape letters: R rows, T tokens of a row, D hidden width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeslm.errors import ModelError
from edgeslm.models.blocks import layers_name, layers_of
from edgeslm.models.forward import head_weight, hidden_states, predictions
from edgeslm.models.shapes import PER_LAYER
from edgeslm.students.pattern import kinds, most_influence

CHUNK = 256  # predictions whose logits exist at a time
ROWS = 4  # rows run together
Told = Callable[[int], object]  # is told how many tokens were read since it was told last


def nobody(tokens: int) -> None:
    """Who is told where none asked to be."""


@dataclass(frozen=True)
class Choice:
    """`kept` and `dropped` layers in order. `scores`: one a layer or, of a choice of a run of layers, one for each
    layer that the run might begin with; none for a choice by position."""

    method: str
    kept: list[int]
    dropped: list[int]
    scores: list[float]


@torch.no_grad()
def block_influence(model: Any, ids: Tensor, rows: int = ROWS, span: int = 1, on_tokens: Told = nobody) -> list[float]:
    """One score for each run of `span` layers, by the layer it begins with, in 0..2. ids [R, T]."""
    layers = layers_of(model)
    sums = torch.zeros(len(layers) - span + 1, dtype=torch.float64)
    seen: dict[int, Tensor] = {}  # hidden state before layer i, [rows, T, D]; as many as a run is long

    def before(index: int) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: tuple) -> None:
            seen[index] = inputs[0]

        return keep

    def after(index: int) -> Callable[..., None]:
        def add(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
            start = index - span + 1
            if start >= 0:
                end = output[0] if isinstance(output, tuple) else output
                cosine = torch.nn.functional.cosine_similarity(seen.pop(start).float(), end.float(), dim=-1)
                sums[start] += (1.0 - cosine).cpu().double().sum()

        return add

    hooks = [layer.register_forward_pre_hook(before(index)) for index, layer in enumerate(layers)]
    hooks += [layer.register_forward_hook(after(index)) for index, layer in enumerate(layers)]
    try:
        for at in range(0, ids.shape[0], rows):
            hidden_states(model, ids[at : at + rows])
            seen.clear()
            on_tokens(ids[at : at + rows].numel())
    finally:
        for hook in hooks:
            hook.remove()
    return (sums / ids.numel()).tolist()


@torch.no_grad()
def text_loss(model: Any, ids: Tensor, rows: int = ROWS, on_tokens: Told = nobody) -> float:
    """Mean cross-entropy of the next token on ids [R, T], in nats."""
    head, total = head_weight(model), 0.0
    for at in range(0, ids.shape[0], rows):
        part = ids[at : at + rows]
        states, targets = predictions(hidden_states(model, part)), part[:, 1:].reshape(-1)
        for start in range(0, len(targets), CHUNK):
            logits = (states[start : start + CHUNK] @ head.T).float()
            some = targets[start : start + CHUNK]
            total += float(torch.nn.functional.cross_entropy(logits, some, reduction="sum"))
        on_tokens(part.numel())
    return total / (ids.shape[0] * (ids.shape[1] - 1))


def loss_without(model: Any, ids: Tensor, alive: Sequence[int], span: int = 1, on_tokens: Told = nobody) -> list[float]:
    """By how much the loss rises when the run of `span` layers that begins at each place of `alive` goes too."""
    with only(model, alive):
        whole = text_loss(model, ids, on_tokens=on_tokens)
    rises = []
    for at in range(len(alive) - span + 1):
        with only(model, [*alive[:at], *alive[at + span :]]):
            rises.append(text_loss(model, ids, on_tokens=on_tokens) - whole)
    return rises


def _by_influence(model: Any, ids: Tensor, keep: int, contiguous: bool, told: Told) -> Choice:
    def scores(span: int) -> list[float]:
        return block_influence(model, ids, span=span, on_tokens=told)

    return _by_scores("block_influence", scores, model, keep, contiguous)


def _by_loss(model: Any, ids: Tensor, keep: int, contiguous: bool, told: Told) -> Choice:
    def scores(span: int) -> list[float]:
        return loss_without(model, ids, range(_count(model)), span, told)

    return _by_scores("loss_without", scores, model, keep, contiguous)


def _greedily(model: Any, ids: Tensor, keep: int, contiguous: bool, told: Told) -> Choice:
    alive, first = list(range(_count(model))), list[float]()
    while len(alive) > keep:
        rises = loss_without(model, ids, alive, on_tokens=told)
        first = first or rises
        del alive[min(range(len(rises)), key=lambda i: (rises[i], i))]
    return _choice("greedy_loss", model, alive, first)


def _evenly(model: Any, ids: Tensor, keep: int, contiguous: bool, told: Told) -> Choice:
    """The first and the last stay, the others at even distances."""
    last = _count(model) - 1
    kept = [round(i * last / (keep - 1)) for i in range(keep)] if keep > 1 else [last]
    return _choice("evenly_spaced", model, kept, [])


def _first(model: Any, ids: Tensor, keep: int, contiguous: bool, told: Told) -> Choice:
    return _choice("first_layers", model, list(range(keep)), [])


METHODS: dict[str, Callable[[Any, Tensor, int, bool, Told], Choice]] = {
    "influence": _by_influence,
    "loss": _by_loss,
    "greedy": _greedily,
    "even": _evenly,
    "first": _first,
}


def passes(layers: int, keep: int, how: str | Sequence[int], contiguous: bool = False) -> int:
    """How often `choose` reads its text."""
    if how == "influence":
        return 1
    if how == "loss":
        return keep + 2 if contiguous and keep < layers else layers + 1
    return sum(alive + 1 for alive in range(keep + 1, layers + 1)) if how == "greedy" else 0


def choose(
    model: Any, ids: Tensor, keep: int, how: str | Sequence[int], contiguous: bool = False, on_tokens: Told = nobody
) -> Choice:
    """`how`: a name of METHODS, or the layers to keep. Raises ModelError for layers that are not there."""
    count = _count(model)
    if keep > count:
        raise ModelError(f"student.layers is {keep} but the teacher has {count} layers")
    if not isinstance(how, str):
        if not all(0 <= layer < count for layer in how):
            raise ModelError(f"student.choose names layer {max(how)} but the teacher has {count} layers, from 0 on")
        return _choice("given", model, list(how), [])
    return METHODS[how](model, ids, keep, contiguous, on_tokens)


def _by_scores(method: str, scores_of: Callable[[int], list[float]], model: Any, keep: int, contiguous: bool) -> Choice:
    """Of single layers the least go; of runs the least one."""
    count = _count(model)
    gone = count - keep
    if contiguous and gone:
        scores = scores_of(gone)
        start = min(range(len(scores)), key=lambda i: (scores[i], i))
        return _choice(f"{method}_of_runs", model, [*range(start), *range(start + gone, count)], scores)
    scores, of_kind = scores_of(1), kinds(model.config)
    if len(set(of_kind)) > 1:
        return _choice(method, model, most_influence(scores, keep, of_kind), scores)
    least = set(sorted(range(count), key=lambda i: (scores[i], i))[:gone])
    return _choice(method, model, [i for i in range(count) if i not in least], scores)


def _choice(method: str, model: Any, kept: list[int], scores: list[float]) -> Choice:
    return Choice(method, kept, [i for i in range(_count(model)) if i not in kept], scores)


def _count(model: Any) -> int:
    return len(layers_of(model))


@contextmanager
def only(model: Any, kept: Sequence[int]) -> Iterator[None]:
    """The model computes with these of its layers alone while this lasts; nothing is copied."""
    base, config, layers, name = model.base_model, model.config, layers_of(model), layers_name(model)
    before = {key: getattr(config, key) for key in ("num_hidden_layers", *PER_LAYER) if hasattr(config, key)}
    setattr(base, name, nn.ModuleList(layers[i] for i in kept))
    _set_depth(config, kept)
    try:
        yield
    finally:
        setattr(base, name, layers)
        for key, value in before.items():
            setattr(config, key, value)


def prune(model: Any, kept: list[int], share: bool = False) -> Any:
    """A copy of the teacher with the kept layers only. `share`: its weights are the teacher's, not copies of them."""
    layers, name = layers_of(model), layers_name(model)
    memo = same_weights(model) if share else {}
    setattr(model.base_model, name, nn.ModuleList())
    try:
        student = copy.deepcopy(model, memo)
    finally:
        setattr(model.base_model, name, layers)
    setattr(student.base_model, name, nn.ModuleList(copy.deepcopy(layers[i], memo) for i in kept))
    for index, layer in enumerate(layers_of(student)):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]
    _set_depth(student.config, kept)
    return student


def same_weights(model: nn.Module) -> dict[int, Any]:
    """What `copy.deepcopy` takes as memo so that the copy is made of modules of its own around the same weights."""
    return {id(weight): weight for weight in model.parameters()}


def _set_depth(config: Any, kept: Sequence[int]) -> None:
    config.num_hidden_layers = len(kept)
    for key in PER_LAYER:
        if getattr(config, key, None) is not None:
            setattr(config, key, [getattr(config, key)[i] for i in kept])
