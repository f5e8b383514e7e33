"""Depth pruning by block influence (ShortGPT, Men et al., arXiv:2403.03853).

Influence of layer l = 1 - mean over tokens of cos(hidden state before l, hidden state after l). The layers of least
influence are left out; importance is measured on real text, never taken from position.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from edgeslm.errors import ModelError


@torch.no_grad()
def block_influence(model: Any, ids: Tensor, rows: int = 4) -> list[float]:
    """One score per layer, in 0..2. ids [R, T]; `rows` are run together."""
    layers = model.base_model.layers
    sums = torch.zeros(len(layers), dtype=torch.float64)
    hooks = [layer.register_forward_hook(_adder(sums, index)) for index, layer in enumerate(layers)]
    try:
        for at in range(0, ids.shape[0], rows):
            model.base_model(input_ids=ids[at : at + rows], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return (sums / ids.numel()).tolist()


def _adder(sums: Tensor, index: int):
    def add(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
        before = inputs[0]
        after = output[0] if isinstance(output, tuple) else output
        cosine = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
        sums[index] += (1.0 - cosine).cpu().double().sum()

    return add


def choose(scores: list[float], keep: int) -> tuple[list[int], list[int]]:
    """(kept, dropped) layer indices in order. Raises ModelError when more layers are asked for than there are."""
    if keep > len(scores):
        raise ModelError(f"student.layers is {keep} but the teacher has {len(scores)} layers")
    dropped = sorted(sorted(range(len(scores)), key=lambda i: (scores[i], i))[: len(scores) - keep])
    return [i for i in range(len(scores)) if i not in dropped], dropped


def prune(model: Any, kept: list[int]) -> Any:
    """A copy of the teacher with the kept layers only; all weights are the student's own."""
    layers = model.base_model.layers
    model.base_model.layers = nn.ModuleList()
    try:
        student = copy.deepcopy(model)
    finally:
        model.base_model.layers = layers
    student.base_model.layers = nn.ModuleList(copy.deepcopy(layers[i]) for i in kept)
    for index, layer in enumerate(student.base_model.layers):
        layer.self_attn.layer_idx = index
    config = student.config
    config.num_hidden_layers = len(kept)
    types = getattr(config, "layer_types", None)
    if types is not None:
        config.layer_types = [types[i] for i in kept]
    return student
