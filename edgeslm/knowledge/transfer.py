"""Knowledge in what layers hold, beyond matching them value by value: statistics of neurons, neighbourhoods, learned
factors, signs, learned pairing of layers. Shape letters and masks as in feature.py; k factor width; L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from edgeslm.knowledge.base import Layer, Params, Sizes
from edgeslm.knowledge.parts import (
    TINY,
    Over,
    given,
    hiddens,
    pairs,
    per_row,
    pooled,
    projection,
    samples,
    unit,
)

Tokens = Annotated[int, Field(ge=2)]
QUERY_WIDTH = 32  # of cross_layer's queries and keys


def neuron_selectivity(
    student: Layer, teacher: Layer, mask: Tensor, *, kernel: Literal["poly", "linear"] = "poly"
) -> Tensor:
    """Squared maximum mean discrepancy between the two layers' neurons, each the unit vector of its activity over the
    row's unmasked positions, [B]. NST, arXiv:1707.01219. Any widths. 'poly' is (x y)^2: a kernel whose mean feature is
    the mean over neurons of x x^T, so that MMD^2 is the squared distance of two [T, T] matrices; 'linear' is x y."""

    def neurons(h: Tensor) -> Tensor:
        return unit((h * mask[..., None]).transpose(1, 2))  # [B, D, T]

    s, t = (neurons(h) for h in hiddens(student, teacher))
    if kernel == "linear":
        return (s.mean(dim=1) - t.mean(dim=1)).square().sum(dim=-1)
    return (s.mT @ s / s.shape[1] - t.mT @ t / t.shape[1]).square().sum(dim=(1, 2))


def probabilistic(
    student: Layer, teacher: Layer, mask: Tensor, *, over: Over = "tokens", tokens: Tokens = 128
) -> Tensor:
    """KL(teacher || student) of the probability that a sample picks each other sample as its neighbour, proportional
    to (1 + cosine) / 2, mean over samples, nats [B]. PKT, arXiv:1803.10837. Any widths. Samples are tokens of a row (at
    most `tokens`, evenly spaced) or the rows, pooled."""
    s, t, valid = samples(*hiddens(student, teacher), mask, over, tokens)
    others = pairs(valid)

    def neighbours(x: Tensor) -> Tensor:
        kernel = ((unit(x) @ unit(x).mT + 1) / 2).clamp_min(TINY) * others
        return kernel / kernel.sum(dim=-1, keepdim=True).clamp_min(TINY)

    p_s, p_t = neighbours(s), neighbours(t)
    # 1 where there is no pair: log 1 = 0 there
    nats = torch.xlogy(p_t, p_t + 1 - others) - torch.xlogy(p_t, p_s + 1 - others)
    return per_row(nats.sum(dim=-1), valid, over)


Rate = Annotated[float, Field(gt=0, le=1)]


def init_factor(
    student: Sizes, teacher: Sizes, generator: torch.Generator | None, *, rate: float = 0.5, **options: object
) -> Params:
    """Paraphraser `encode` [D', k] and `decode` [k, D'], a pair of transposes at first; translator [D, k]."""
    width = max(1, round(rate * teacher.hidden))
    encode = projection(teacher.hidden, width, generator)
    return {
        "encode": encode,
        "decode": encode.T.clone(),
        "translate": projection(student.hidden, width, generator),
    }


def factor_transfer(student: Layer, teacher: Layer, mask: Tensor, *, params: Params, rate: Rate = 0.5) -> Tensor:
    """Mean |f_s - f_t| between unit factors, times sqrt(k), plus the paraphraser's relative squared error, [B, T]. FT,
    arXiv:1802.04977, with linear maps. The paper trains the paraphraser before the student; here its reconstruction is
    in the value and trains together with it. The two do not meet: the teacher's factor is held fixed in the distance,
    which trains student and translator, and the error trains the paraphraser only. `rate` is k / D'."""
    s, t = hiddens(student, teacher)
    factor = t @ params["encode"]
    gap = unit(s @ params["translate"]) - unit(factor.detach())
    lost = (factor @ params["decode"] - t).square().sum(dim=-1) / t.square().sum(dim=-1).clamp_min(TINY)
    return (gap.abs().mean(dim=-1) * gap.shape[-1] ** 0.5 + lost) * mask


def activation_boundary(
    student: Layer,
    teacher: Layer,
    mask: Tensor,
    *,
    params: Params,
    margin: Annotated[float, Field(gt=0)] = 1.0,
) -> Tensor:
    """Mean over channels of the squared distance by which the projected student misses the teacher's side of 0 by at
    least `margin`, [B, T]. AB, arXiv:1811.03233, on the hidden state. Zero not at equality but wherever every channel
    has the teacher's sign and at least that size."""
    s, t = hiddens(student, teacher)
    side = torch.where(t > 0, 1.0, -1.0)
    return torch.relu(margin - side * (s @ params["project"])).square().mean(dim=-1) * mask


def init_cross_layer(student: Sizes, teacher: Sizes, generator: torch.Generator | None, **options: object) -> Params:
    """For each student layer a projection [D, D']; for each layer of both what makes queries and keys of it."""
    project = torch.stack([projection(student.hidden, teacher.hidden, generator) for _ in range(student.layers)])

    def small(sizes: Sizes) -> Tensor:
        return torch.randn(sizes.layers, sizes.hidden, QUERY_WIDTH, generator=generator) / sizes.hidden**0.5

    return {"project": project, "query": small(student), "key": small(teacher)}


def layer_weights(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor, params: Params) -> Tensor:
    """[B, T, D] of each layer -> [B, L, L'], how much a student layer heeds each teacher layer; sums to 1 over L'."""
    query = [unit(pooled(h, mask)) @ w for h, w in zip(student, params["query"], strict=True)]
    key = [unit(pooled(h, mask)) @ w for h, w in zip(teacher, params["key"], strict=True)]
    return torch.softmax(torch.stack(query, dim=1) @ torch.stack(key, dim=1).mT, dim=-1)


def cross_layer(
    student: Sequence[Layer],
    teacher: Sequence[Layer],
    mask: Tensor,
    *,
    params: Params,
    normalise: bool = True,
) -> Tensor:
    """Sum over teacher layers of the learned weight times the squared error of the projected student layer, mean over
    student layers, [B, T]. SemCKD, arXiv:2012.03236. Weights are of each row, from its pooled hidden states; the
    paper's, from similarities within the batch, would fix the batch size. The student's side of them is held fixed,
    so that it is drawn to the teacher and not to what looks cheap. `normalise` as in `hidden`; without it layers of
    small activations get all the weight."""
    s, t = [given(x.hidden) for x in student], [given(x.hidden).detach() for x in teacher]
    weights = layer_weights([x.detach() for x in s], t, mask, params)
    total = torch.zeros_like(mask, dtype=torch.float32)
    aims = [unit(y) if normalise else y for y in t]
    for i, x in enumerate(s):
        x = x @ params["project"][i]
        x = unit(x) if normalise else x
        for j, aim in enumerate(aims):
            error = (x - aim).square()
            total = total + weights[:, i, j, None] * (error.sum(dim=-1) if normalise else error.mean(dim=-1))
    return total / len(s) * mask
