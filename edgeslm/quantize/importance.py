"""What a model's weights are multiplied with on real text: input statistics for fitting and rounding.

The output error of a linear layer is tr((W - Q) H (W - Q)^T) with H the second moment of its inputs. Its diagonal, the
mean square of every input channel, weighs the squared error of a weight when scales are searched (llama.cpp calls it
the importance matrix); the whole of it is what error-feedback rounding needs (GPTQ, arXiv:2210.17323).

Names are transformers' parameter names. The input of the head is the final hidden state, which for a tied head stands
under the embedding's name; an untied embedding multiplies nothing and has no entry.
Shape letters: R rows, T tokens of a row, N = R T tokens, K input channels of a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class InputStatistics:
    """`mean_squares` {weight name: float32 [K]} over `tokens` tokens. `moments` {weight name: float32 [K, K]} holds
    X^T X / N; weights that read the same input (q, k, v; gate, up) hold the same tensor."""

    mean_squares: dict[str, Tensor]
    moments: dict[str, Tensor]
    tokens: int


def block_importance(mean_squares: Tensor, block: int, first: int = 0, count: int | None = None) -> Tensor:
    """mean_squares [K] of a weight -> weights of squared error [n, block] as `fit` takes them, for the `count` blocks
    from block `first` on in row-major order (default: those of one row). Every row of a weight has the same."""
    row = mean_squares.reshape(-1, block)
    chosen = torch.arange(first, first + (row.shape[0] if count is None else count), device=row.device)
    return row[chosen % row.shape[0]]


@torch.no_grad()
def input_statistics(
    model: Any,
    ids: Tensor,
    *,
    rows: int = 4,
    moments: Collection[str] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> InputStatistics:
    """Statistics of every weight of a transformers causal model on ids [R, T]; `rows` rows are run together.

    `moments` names the weights whose whole second moment is kept: 4 K^2 bytes for each distinct input (13 MB for a
    layer of SmolLM2-135M), see `moment_groups`. `on_progress(tokens done, tokens)` is called after every batch.
    """
    names = {id(weight): name for name, weight in model.named_parameters()}
    taken = _Taken(moments)
    linear = [m for m in model.base_model.modules() if isinstance(m, nn.Linear)]
    hooks = [m.register_forward_pre_hook(_taker(taken, names[id(m.weight)])) for m in linear]
    head = names[id(model.get_output_embeddings().weight)]
    try:
        for at in range(0, ids.shape[0], rows):
            hidden = model.base_model(input_ids=ids[at : at + rows], use_cache=False).last_hidden_state
            taken.add(head, hidden)
            taken.last = None  # the next batch's input may get the same place in memory
            if on_progress:
                on_progress(min(ids.shape[0], at + rows) * ids.shape[1], ids.numel())
    finally:
        for hook in hooks:
            hook.remove()
    return taken.result(ids.numel())


def moment_groups(sizes: Mapping[str, int], memory_bytes: int) -> list[list[str]]:
    """{weight name: bytes of its moments} in the order of the forward pass -> groups that fit in `memory_bytes`.

    One pass over the text per group bounds memory. Counts every weight alone, so shared inputs leave room.
    A weight that does not fit by itself is a group of its own.
    """
    groups: list[list[str]] = []
    used = 0
    for name, need in sizes.items():
        if not groups or used + need > memory_bytes:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += need
    return groups


class _Taken:
    """Running sums. Inputs are told apart by object: the second reader of a tensor shares the first one's sums."""

    def __init__(self, wanted: Collection[str]):
        self.wanted = frozenset(wanted)  # names whose moment is kept
        self.squares: dict[str, Tensor] = {}  # float64 [K], by the first reader
        self.products: dict[str, Tensor] = {}  # float32 [K, K], by the first reader that wants one
        self.first: dict[str, str] = {}  # reader -> first reader of its input
        self.whole: dict[str, str] = {}  # reader -> first reader of its input that wants the moment
        self.last: tuple[Tensor, str] | None = None  # input and its first reader
        self.adding: str | None = None  # reader under whose name the last input's moment was added

    def add(self, name: str, inputs: Tensor) -> None:
        x = inputs.reshape(-1, inputs.shape[-1]).float()  # [N, K]
        if self.last is None or self.last[0] is not inputs:
            self.last, self.adding = (inputs, name), None
            sums = x.square().sum(0).double()
            self.squares[name] = self.squares[name].add_(sums) if name in self.squares else sums
        self.first[name] = self.last[1]
        if name not in self.wanted:
            return
        if self.adding is None:
            self.adding = name
            if name not in self.products:
                self.products[name] = x.new_zeros(x.shape[1], x.shape[1])
            self.products[name].addmm_(x.T, x)
        self.whole[name] = self.adding

    def result(self, tokens: int) -> InputStatistics:
        for product in self.products.values():
            product.div_(tokens)
        means = {name: (self.squares[first] / tokens).float() for name, first in self.first.items()}
        return InputStatistics(means, {name: self.products[w] for name, w in self.whole.items()}, tokens)


def _taker(taken: _Taken, name: str):
    def take(module: nn.Module, inputs: tuple) -> None:
        taken.add(name, inputs[0])

    return take
