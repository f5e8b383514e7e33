"""What rounding one tensor costs: KL to the float model in nats per token, for every tensor and format at once.

To second order KL(p_w || p_(w+e)) = e^T F e / 2 with F the Fisher information of the weights. Rounding errors of
different weights hardly correlate, so its diagonal is enough: sum_i F_ii e_i^2 / 2. F is the second moment of gradients
of log p(y) for labels y drawn from the model itself, not of the data's own labels (Kunstner et al., arXiv:1905.12558).
Labels of different tokens are drawn independently, so the square of a row's summed gradient has the expectation of the
sum over its tokens, and one backward pass per row of text serves all tensors. The errors e are those of the formats'
own fit and encode, on rows of each tensor drawn in proportion to their share of F.

Shape letters: R rows of text, T positions, N = R T, V vocabulary, D hidden width, M x K a weight, n blocks, k weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgeslm.formats import FORMATS
from edgeslm.quantize.masters import Master

SAMPLE_WEIGHTS = 1 << 16  # of a tensor that are fitted to every format
CHUNK_TOKENS = 64  # rows of [V] float32 handled together
OWN_GRID = (
    0.5  # of 4^-bits, the least relative error of a Gaussian source: formats measured 1.5 to 6, own grids 0 to 0.2
)


def fisher(model: Any, ids: Tensor, seed: int, advance: Callable[[int], None]) -> dict[str, Tensor]:
    """Diagonal of the Fisher information per token, float32 [M, K] of every matrix. ids [R, T].

    The model's own weights and type are used as they are; its gradients are left empty, each as soon as it is counted.
    `advance` is told the tokens of every row that is done.
    """
    generator = torch.Generator(device=ids.device).manual_seed(seed)
    matrices = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in matrices.items()}
    head = model.get_output_embeddings().weight

    def count(weight: Tensor) -> None:
        gradient, weight.grad = weight.grad, None
        if gradient is not None:
            gradient = gradient.float()
            own[id(weight)].addcmul_(gradient, gradient)

    own = {id(weight): sums[name] for name, weight in matrices.items()}
    hooks = [weight.register_post_accumulate_grad_hook(count) for weight in matrices.values()]
    try:
        for row in ids:
            hidden = _hidden(model, row)
            d_hidden, d_head = _head_gradients(hidden.detach(), head.detach(), generator)
            head.grad = d_head  # what the embedding adds to it, where the two are tied, is the same weight's gradient
            hidden.backward(d_hidden)
            count(head)
            model.zero_grad(set_to_none=True)
            advance(ids.shape[1])
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total.div_(ids.numel()) for name, total in sums.items()}


@torch.no_grad()
def _head_gradients(hidden: Tensor, head: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Of sum_t -log p(y_t), y_t drawn from p: for hidden [T, D] and head [V, D]."""
    gradient = hidden @ head.T  # [T, V]
    for at in range(0, len(hidden), CHUNK_TOKENS):
        part = slice(at, at + CHUNK_TOKENS)
        gradient[part] = less_drawn_labels(torch.softmax(gradient[part].float(), dim=-1), generator)
    return gradient @ head, gradient.T @ hidden


def less_drawn_labels(p: Tensor, generator: torch.Generator) -> Tensor:
    """p [T, V] -> the gradient of -log p(y) at the logits, y drawn from p. Overwrites p."""
    y = torch.multinomial(p, 1, generator=generator)
    return p.scatter_add_(1, y, torch.full_like(y, -1, dtype=p.dtype))


@torch.no_grad()
def rounding_costs(
    weight: Tensor,
    diagonal: Tensor,
    formats: Iterable[str],
    importance: Tensor | None = None,
    own_grids: bool = True,
) -> dict[str, float]:
    """{format: sum_i F_ii e_i^2 / 2} of one tensor [M, K], `diagonal` its F. `importance` [K] weighs the fit.

    `own_grids` False leaves out formats that the weights lie on already, which the weights of a dequantised teacher do:
    of its own type, and of every grid that contains or nearly contains it (Q4_1 is found again by q5_1, q4_k and q5_k).
    """
    rows, often = sample_rows(diagonal.sum(1), max(1, SAMPLE_WEIGHTS // weight.shape[1]))
    w, f = weight[rows].float(), diagonal[rows] * often.to(diagonal.device)[:, None]
    costs = {}
    for name in formats:
        grid = FORMATS[name]
        assert grid.fit is not None
        blocks = w.reshape(-1, grid.block)
        weights = None if importance is None else importance.expand_as(w).reshape(-1, grid.block)
        scales = grid.fit(blocks, weights)
        squares = grid.decode(grid.nearest(blocks, scales, weights), scales).sub_(blocks).square_()
        least = OWN_GRID * 4.0**-grid.bits * float(blocks.square().sum(dtype=torch.float64))
        if own_grids or float(squares.sum(dtype=torch.float64)) > least:
            costs[name] = float(squares.mul_(f.reshape(-1, grid.block)).sum(dtype=torch.float64)) / 2
    return costs


def sample_rows(mass: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """mass [M] -> (rows, how often each counts): sums of `value[rows] * often` estimate sums over all M rows.

    All rows once when there are no more than `count`; else rows in proportion to their mass, taken at equal distances
    along the running sum of the masses in falling order, so that heavy rows are always there and none by chance.
    """
    mass = mass.double().cpu()
    total = float(mass.sum())
    if len(mass) <= count:
        return torch.arange(len(mass)), torch.ones(len(mass))
    if not total > 0:
        return torch.arange(count), torch.zeros(count)
    order = torch.argsort(mass, descending=True, stable=True)
    places = (torch.arange(count, dtype=torch.float64) + 0.5) * (total / count)
    rows, times = torch.unique(
        torch.searchsorted(mass[order].cumsum(0), places).clamp_(max=len(mass) - 1), return_counts=True
    )
    rows = order[rows]
    return rows, (times * (total / count) / mass[rows]).float()


class Reference:
    """A float model whose matrices can be put on formats and back, to measure what that costs on ids [R, T].

    `importance` {tensor: [K]} weighs the fits. The model's weights are as they were after every call.
    """

    @torch.no_grad()
    def __init__(self, model: Any, ids: Tensor, importance: Mapping[str, Tensor]):
        self.model, self.ids, self.importance = model, ids, importance
        self.hidden = [_hidden(model, row) for row in ids]
        self.head = model.get_output_embeddings().weight.detach().clone()
        self.weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
        self.floats = {name: p.detach().clone() for name, p in self.weights.items()}
        self.masters: dict[tuple[str, str], Master] = {}

    @torch.no_grad()
    def kl(self, formats: Mapping[str, str], rows: slice) -> float:
        """Mean KL per token over rows of the text, in nats, with these tensors on their formats and all else float."""
        try:
            for name, chosen in formats.items():
                self._master(name, chosen).project()
            total = sum(self._row_kl(at) for at in range(len(self.ids))[rows])
        finally:
            for name in formats:
                self.weights[name].copy_(self.floats[name])
        return total / self.ids[rows].numel()

    def _master(self, name: str, chosen: str) -> Master:
        """Fitted once; its codes are made anew each time, which is quick."""
        if (name, chosen) not in self.masters:
            value = nn.Parameter(self.floats[name], requires_grad=False)
            weight, importance = self.weights[name], self.importance.get(name)
            master = Master(name, weight, value, FORMATS[chosen], importance=importance)  # type: ignore[arg-type]
            master.fit()
            self.masters[name, chosen] = master
        return self.masters[name, chosen]

    def _row_kl(self, at: int) -> float:
        hidden, head = _hidden(self.model, self.ids[at]), self.model.get_output_embeddings().weight
        total = 0.0
        for start in range(0, len(hidden), CHUNK_TOKENS):
            part = slice(start, start + CHUNK_TOKENS)
            log_s = torch.log_softmax((hidden[part] @ head.T).float(), dim=-1)
            log_t = torch.log_softmax((self.hidden[at][part] @ self.head.T).float(), dim=-1)
            total += float((log_s.sub_(log_t).neg_().mul_(log_t.exp_())).sum(dtype=torch.float64))
        return total


def _hidden(model: Any, row: Tensor) -> Tensor:
    """[T] -> [T, D]"""
    return model.base_model(input_ids=row[None], use_cache=False).last_hidden_state[0]
