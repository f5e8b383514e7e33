"""Knowledge in how a model gets from layer to layer: relations between its layers, or between the graphs its samples
make there. All but `svd_correlation` are joint: they take two lists of as many layers.

Samples, masks and shape letters as in relation.py; D hidden width (student), D' (teacher). Values are per row, [B].
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from edgeslm.knowledge.base import Layer, Params
from edgeslm.knowledge.parts import (
    TINY,
    Over,
    Samples,
    Tokens,
    distances,
    given,
    hiddens,
    mean_over_others,
    over_mean,
    pairs,
    per_row,
    samples,
    spaced,
    unit,
    unit_rms,
)

Weight = Annotated[float, Field(ge=0)]


def _several(student: Sequence[Layer], teacher: Sequence[Layer], name: str) -> None:
    if len(student) != len(teacher):
        raise ValueError(f"{name}: {len(student)} layers of the student and {len(teacher)} of the teacher")
    if len(student) < 2:
        raise ValueError(f"{name} compares a model's layers with each other; map at least two")


def _sampled(
    student: Sequence[Layer], teacher: Sequence[Layer], mask: Tensor, over: Over, tokens: int
) -> list[Samples]:
    return [samples(*hiddens(s, t), mask, over, tokens) for s, t in zip(student, teacher, strict=True)]


def fsp(
    student: Sequence[Layer], teacher: Sequence[Layer], mask: Tensor, *, params: Params, normalise: bool = True
) -> Tensor:
    """Flow of the solution procedure, Yim et al., CVPR 2017: mean squared difference of the Gram matrices [D', D'] of
    consecutive mapped layers, H_1^T H_2 over the row's unmasked positions, averaged over these, [B]. The student's
    hidden states are projected first. `normalise`: each token to root mean square 1, or outlier channels are all
    there is. ValueError with fewer than two layers."""
    _several(student, teacher, "fsp")
    weight = mask.float()[..., None] / mask.sum(dim=1).clamp_min(1)[:, None, None]

    def grams(layers: list[Tensor]) -> list[Tensor]:
        layers = [unit_rms(h) for h in layers] if normalise else layers
        return [(first * weight).mT @ second for first, second in pairwise(layers)]

    of_s = grams([given(x.hidden) @ params["project"] for x in student])
    of_t = grams([given(x.hidden).detach() for x in teacher])
    return sum((s - t).square().mean(dim=(1, 2)) for s, t in zip(of_s, of_t, strict=True)) / len(of_s)  # type: ignore[return-value]


class _TopDirections(torch.autograd.Function):
    """Eigenvectors [S, n, k] and eigenvalues [S, k] of the k largest of a symmetric [S, n, n]; no gradient through
    the latter. Where two eigenvalues meet, their directions turn into each other at no cost and the true gradient is
    infinite; the division is damped there (x / (x^2 + e) for 1 / x) and exact elsewhere."""

    @staticmethod
    def forward(ctx: Any, gram: Tensor, k: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        values, vectors = torch.linalg.eigh(gram)
        ctx.save_for_backward(values, vectors)
        top = vectors[..., -k:].flip(-1), values[..., -k:].flip(-1)
        ctx.mark_non_differentiable(top[1])
        return top

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        values, vectors = ctx.saved_tensors
        k = grad.shape[-1]
        apart = values[..., None, -k:].flip(-1) - values[..., :, None]  # [S, n, k]
        damp = (values[..., -1:, None] * 1e-4).square() + torch.finfo(values.dtype).tiny
        turn = vectors.mT @ grad * apart / (apart.square() + damp)
        whole = vectors @ turn @ vectors[..., -k:].flip(-1).mT
        return (whole + whole.mT) / 2, None


def svd_correlation(
    student: Layer,
    teacher: Layer,
    mask: Tensor,
    *,
    directions: Annotated[int, Field(ge=1)] = 3,
    tokens: Tokens = 128,
) -> Tensor:
    """Squared distance between the top left singular vectors of [positions, D], over at most `tokens` evenly spaced
    unmasked positions, [B]. KD-SVD, arXiv:1807.06819: each of the teacher's `directions` meets the most similar of the
    student's, the sign aligned, and counts by its share of the teacher's singular values. Vectors over positions, not
    channels, so any widths."""
    index, valid = spaced(mask, tokens)
    k = min(directions, index.shape[1])

    def top(h: Tensor) -> tuple[Tensor, Tensor]:
        h = h.gather(1, index[..., None].expand(-1, -1, h.shape[-1])) * valid[..., None]
        h = h / h.detach().abs().amax(dim=(1, 2), keepdim=True).clamp_min(TINY)
        vectors, values = _TopDirections.apply(h @ h.mT, k)
        return vectors * valid[..., None], values.clamp_min(0).sqrt()

    s, t = hiddens(student, teacher)
    (u_s, _), (u_t, sigma) = top(s), top(t)
    agreement = (u_t.mT @ u_s).abs().amax(dim=-1)  # [B, k]
    share = sigma / sigma.sum(dim=-1, keepdim=True).clamp_min(TINY)
    return (share * (2 - 2 * agreement)).sum(dim=-1)


def instance_graph(
    student: Sequence[Layer],
    teacher: Sequence[Layer],
    mask: Tensor,
    *,
    params: Params,
    vertices: Weight = 1.0,
    edges: Weight = 1.0,
    transformations: Weight = 1.0,
    over: Over = "rows",
    tokens: Tokens = 64,
) -> Tensor:
    """Instance relationship graph, Liu et al., CVPR 2019: weighted sum of the mean squared differences of its vertices
    (unit features, the student's projected), its edges (pair distances over their mean) and its transformations from
    each mapped layer to the next (how far each unit vertex moves, how much each edge changes), [B]. ValueError with
    fewer than two layers."""
    _several(student, teacher, "instance_graph")
    layers = _sampled(student, teacher, mask, over, tokens)
    valid = layers[0].valid
    between = pairs(valid)
    of_s, of_t = ([over_mean(distances(x[side]), between) for x in layers] for side in (0, 1))
    total = torch.zeros_like(valid)
    for layer, s, t in zip(layers, of_s, of_t, strict=True):
        place = (unit(layer.student @ params["project"]) - unit(layer.teacher)).square().sum(dim=-1)
        total = total + vertices * place / len(layers)
        total = total + edges * mean_over_others((s - t).square(), between) / len(layers)

    def moved(side: int) -> list[Tensor]:
        return [(unit(b[side]) - unit(a[side])).square().sum(dim=-1) for a, b in pairwise(layers)]

    moves = list(zip(moved(0), moved(1), pairwise(of_s), pairwise(of_t), strict=True))
    for s, t, (s_a, s_b), (t_a, t_b) in moves:
        change = mean_over_others(((s_b - s_a) - (t_b - t_a)).square(), between)
        total = total + transformations * ((s - t).square() + change) / len(moves)
    return per_row(total, valid, over)


def layer_graph(
    student: Sequence[Layer],
    teacher: Sequence[Layer],
    mask: Tensor,
    *,
    heads: Annotated[int, Field(ge=1)] = 4,
    sharpness: Annotated[float, Field(gt=0)] = 4.0,
    over: Over = "rows",
    tokens: Tokens = 64,
) -> Tensor:
    """KL(teacher || student) of the attention that each sample at one mapped layer pays to the samples at the next,
    mean over heads and pairs of layers, nats [B]. After multi-head graph distillation, arXiv:1907.02226, simplified:
    heads are equal slices of the width with attention softmax(sharpness x cosine), where the paper first trains heads
    on the teacher. ValueError with fewer than two layers, or where `heads` does not divide a width."""
    _several(student, teacher, "layer_graph")
    layers = _sampled(student, teacher, mask, over, tokens)
    valid = layers[0].valid
    seen = valid[:, None, None, :] > 0

    def split(x: Tensor) -> Tensor:  # [S, n, D] -> [S, heads, n, D / heads]
        if x.shape[-1] % heads:
            raise ValueError(f"layer_graph: heads: {heads} does not divide the width {x.shape[-1]}")
        return unit(x.unflatten(-1, (heads, -1)).transpose(1, 2))

    def attention(side: int) -> list[Tensor]:
        slices = [split(x[side]) for x in layers]
        scores = [sharpness * a @ b.mT for a, b in pairwise(slices)]
        return [torch.log_softmax(x.masked_fill(~seen, -1e30), dim=-1) for x in scores]

    of_s, of_t = attention(0), attention(1)
    total = torch.zeros_like(valid)
    for log_s, log_t in zip(of_s, of_t, strict=True):
        total = total + (log_t.exp() * (log_t - log_s)).sum(dim=-1).mean(dim=1)
    return per_row(total / len(of_s), valid, over)


def information_flow(
    student: Sequence[Layer],
    teacher: Sequence[Layer],
    mask: Tensor,
    *,
    over: Over = "rows",
    tokens: Tokens = 128,
) -> Tensor:
    """Squared difference, mean over layers, of how much each mapped layer tells of the last one, [B]; over
    rows every row has the same. After information flow modelling, arXiv:2005.00727: quadratic mutual information of two
    layers from information potentials with the kernel (1 + cosine) / 2, here normalised by each layer's own to 0..1.
    ValueError with fewer than two layers."""
    _several(student, teacher, "information_flow")
    layers = _sampled(student, teacher, mask, over, tokens)
    valid = layers[0].valid

    def flow(side: int) -> Tensor:  # [S, L - 1]
        kernels = [_centred_kernel(x[side], valid) for x in layers]
        kernels = [k / k.square().sum(dim=(1, 2), keepdim=True).clamp_min(TINY**2).sqrt() for k in kernels]
        return torch.stack([(k * kernels[-1]).sum(dim=(1, 2)) for k in kernels[:-1]], dim=-1)

    gap = (flow(0) - flow(1)).square().mean(dim=-1, keepdim=True)
    return per_row(gap.expand_as(valid), valid, over)


def _centred_kernel(x: Tensor, valid: Tensor) -> Tensor:
    """H K H [S, n, n] over the valid samples. The sum of the product of two such is V_in + V_all - 2 V_between, the
    information potentials of quadratic mutual information, times n^2."""
    within = valid[:, :, None] * valid[:, None, :]
    kernel = (1 + unit(x) @ unit(x).mT) / 2 * within
    count = valid.sum(dim=-1)[:, None, None].clamp_min(1)
    row = kernel.sum(dim=-1, keepdim=True) / count
    whole = row.sum(dim=1, keepdim=True) / count
    return (kernel - row - row.mT + whole) * within
