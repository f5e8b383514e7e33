"""What the loss feels of a rounding error: second moments of a layer's inputs and of the gradients of its outputs.

To second order KL(p_w || p_(w+e)) = e^T F e / 2 with F the Fisher information (sensitivity.py). With x the input of a
linear layer and g the gradient of log p(y) at its output, y drawn from the model itself, tokens taken as independent,
F = E[(g g^T) (x) (x x^T)], which no memory holds. Its nearest product of two factors, one step from |g|^2 and from 1:

    F ~ H_O (x) H_I,   H_I = E[|g|^2 x x^T] / E[|g|^2],   H_O = E[g g^T]

(Martens and Grosse, K-FAC, arXiv:1503.05671; for rounding: Kim et al., GuidedQuant, arXiv:2505.07004; Tseng et al.,
YAQA, arXiv:2505.22988). In the plain moment of the inputs a token with outsized inputs, as the first of a row often
is, outweighs all others; here it counts for no more than what the model says depends on it.

The row of a token in the embedding has the moment of the gradients g where the token stands, in the head that of the
final state times p (1 - p). Both grow with how often the token is met, so that one matrix serves all rows: E[g g^T] for
an embedding, E[(1 - sum_v p_v^2) h h^T] for a head, their sum where the two are tied.
Shape letters: R rows, T tokens of a row, N tokens, V vocabulary, K input channels, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeslm.quantize.sensitivity import CHUNK_TOKENS, less_drawn_labels

WIDEST = 4096  # outputs: with more, O^2 is most of the work; of the widest layers' loss rows spare least (0.1 to 0.2)


@dataclass(frozen=True)
class LossMoments:
    """float32, by weight name. `inputs` H_I [K, K]; `outputs` H_O [O, O], which embedding, head and layers of more than
    WIDEST outputs have none of. `felt`: sum of |g|^2 over tokens, by which H_I was divided, of layers and head."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    felt: dict[str, float]


def loss_moments(
    model: Any,
    ids: Tensor,
    names: Collection[str],
    *,
    outputs: bool = True,
    seed: int = 0,
    rows: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> LossMoments:
    """Of the weights `names` of a transformers causal model on ids [R, T]; `rows` rows are run together.

    Labels depend on `seed` and not on `names`, so that several calls for some names each give what one call for all
    would. Without `outputs` only the moments of inputs are made. Gradients of weights are neither made nor touched.
    Held are 4 (K^2 + O^2) bytes a weight (`moment_sizes`), the graph of `rows` rows, and the gradients of the outputs
    that are asked for.
    """
    own = {id(weight): name for name, weight in model.named_parameters()}
    head = model.get_output_embeddings().weight
    sums = _Sums(frozenset(names), outputs)
    read: list[tuple[str, Tensor, Tensor]] = []  # name, input, output of every layer that is asked for
    linear = [m for m in model.base_model.modules() if isinstance(m, nn.Linear) and own[id(m.weight)] in sums.wanted]
    hooks = [m.register_forward_hook(_reader(read, own[id(m.weight)])) for m in linear]
    embedding = model.get_input_embeddings()
    if own[id(embedding.weight)] in sums.wanted:
        hooks.append(embedding.register_forward_hook(_reader(read, own[id(embedding.weight)])))
    generator = torch.Generator(device=ids.device).manual_seed(seed)
    try:
        for at in range(0, ids.shape[0], rows):
            read.clear()
            with torch.set_grad_enabled(bool(hooks)):
                hidden = model.base_model(input_ids=ids[at : at + rows], use_cache=False).last_hidden_state
            gradient, weigh = _at_the_end(hidden.detach(), head.detach(), generator)
            sums.add_inputs(own[id(head)], hidden.detach(), weigh)
            gradients = torch.autograd.grad(hidden, [y for _, _, y in read], gradient) if read else ()
            for (name, x, _), g in zip(read, gradients, strict=True):
                if x.is_floating_point():
                    sums.add(name, x, g)
                else:  # token ids
                    scale = float(getattr(embedding, "scalar_embed_scale", 1.0))  # Gemma's output is a multiple
                    sums.add_embedding(name, scale * g, tied=name == own[id(head)])
            if on_progress:
                on_progress(min(ids.shape[0], at + rows) * ids.shape[1], ids.numel())
    finally:
        for hook in hooks:
            hook.remove()
    return sums.result()


def moment_sizes(model: Any, names: Collection[str]) -> dict[str, int]:
    """{weight name: bytes of its two moments}, in the order of `names`."""
    weights = dict(model.named_parameters())
    linear = {id(m.weight) for m in model.base_model.modules() if isinstance(m, nn.Linear)}

    def size(weight: Tensor) -> int:
        outputs, inputs = weight.shape
        return 4 * (inputs**2 + (outputs**2 if id(weight) in linear and outputs <= WIDEST else 0))

    return {name: size(weights[name]) for name in names}


class _Sums:
    def __init__(self, wanted: frozenset[str], with_outputs: bool):
        self.wanted, self.with_outputs = wanted, with_outputs
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.weights: dict[str, float] = {}  # sums of |g|^2
        self.tokens: dict[str, int] = {}

    @torch.no_grad()
    def add_inputs(self, name: str, inputs: Tensor, weigh: Tensor) -> None:
        """inputs [..., K], weigh of the same leading shape: |g|^2, or its expectation."""
        if name not in self.wanted:
            return
        x, w = inputs.reshape(-1, inputs.shape[-1]).float(), weigh.reshape(-1).float()
        x = x * w.sqrt()[:, None]
        _add(self.inputs, name, x)
        self.weights[name] = self.weights.get(name, 0.0) + float(w.sum(dtype=torch.float64))

    @torch.no_grad()
    def add_embedding(self, name: str, gradient: Tensor, tied: bool) -> None:
        g = gradient.reshape(-1, gradient.shape[-1]).float()
        _add(self.inputs, name, g)
        if not tied:  # else the head has counted its tokens
            self.weights[name] = self.weights.get(name, 0.0) + len(g)

    @torch.no_grad()
    def add(self, name: str, inputs: Tensor, gradient: Tensor) -> None:
        g = gradient.reshape(-1, gradient.shape[-1]).float()
        self.add_inputs(name, inputs, g.square().sum(1))
        if self.with_outputs and g.shape[1] <= WIDEST:
            _add(self.outputs, name, g)
            self.tokens[name] = self.tokens.get(name, 0) + len(g)

    def result(self) -> LossMoments:
        for name, total in self.inputs.items():
            total.div_(max(self.weights[name], torch.finfo(torch.float32).tiny))
        for name, total in self.outputs.items():
            total.div_(self.tokens[name])
        return LossMoments(self.inputs, self.outputs, self.weights)


def _add(sums: dict[str, Tensor], name: str, x: Tensor) -> None:
    """x [N, K]: adds x^T x."""
    if name not in sums:
        sums[name] = x.new_zeros(x.shape[1], x.shape[1])
    sums[name].addmm_(x.T, x)


@torch.no_grad()
def _at_the_end(hidden: Tensor, head: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """hidden [R, T, D], head [V, D] -> the gradient of sum_t -log p(y_t), y_t drawn from p, of the same shape; and what
    |g|^2 is expected to be at the logits, 1 - sum_v p_v^2 [R, T]."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    gradient, weigh = torch.empty_like(flat), flat.new_empty(len(flat), dtype=torch.float32)
    for at in range(0, len(flat), CHUNK_TOKENS):
        part = slice(at, at + CHUNK_TOKENS)
        p = torch.softmax((flat[part] @ head.T).float(), dim=-1)
        weigh[part] = 1 - p.square().sum(1)
        gradient[part] = less_drawn_labels(p, generator).to(flat.dtype) @ head
    return gradient.view_as(hidden), weigh.view(hidden.shape[:-1]).clamp_(min=0)


def _reader(read: list[tuple[str, Tensor, Tensor]], name: str):
    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        read.append((name, inputs[0].detach(), output))

    return hook
