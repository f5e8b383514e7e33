"""Knowledge in relations among samples: distances, angles, similarities, neighbourhoods.

Samples are the rows of a micro-batch, each its hidden state pooled over unmasked positions (`over: rows`), or at most
`tokens` evenly spaced tokens of each row (`over: tokens`). Values are per row, [B], 0 where a sample has no partner
(one row alone, a row without unmasked tokens). Any widths; no weights. Shape letters: B rows, S sets, n samples of a
set.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from edgeslm.knowledge.base import Layer
from edgeslm.knowledge.parts import (
    Over,
    Tokens,
    distances,
    hiddens,
    mean_over_others,
    over_mean,
    pairs,
    per_row,
    samples,
    squared_distances,
    unit,
)


def huber(gap: Tensor) -> Tensor:
    """gap^2 / 2 up to 1, |gap| - 1/2 beyond."""
    size = gap.abs()
    return torch.where(size <= 1, gap.square() / 2, size - 0.5)


def rkd_distance(student: Layer, teacher: Layer, mask: Tensor, *, over: Over = "rows", tokens: Tokens = 64) -> Tensor:
    """Huber of the difference between pair distances, each model's over its mean distance, [B]. RKD-D,
    arXiv:1904.05068."""
    s, t, valid = samples(*hiddens(student, teacher), mask, over, tokens)
    between = pairs(valid)
    gap = over_mean(distances(s), between) - over_mean(distances(t), between)
    return per_row(mean_over_others(huber(gap), between), valid, over)


def rkd_angle(student: Layer, teacher: Layer, mask: Tensor, *, over: Over = "rows", tokens: Tokens = 24) -> Tensor:
    """Huber of the difference between the cosines of the angles that two samples make at a third, mean over pairs, of
    each third, [B]. RKD-A, arXiv:1904.05068. n^3 angles, hence few tokens."""
    s, t, valid = samples(*hiddens(student, teacher), mask, over, tokens)
    between = pairs(valid)

    def cosines(x: Tensor) -> Tensor:
        away = unit(x[:, None, :, :] - x[:, :, None, :])  # [S, n (at), n (to), D]
        return away @ away.mT  # [S, n, n, n]

    corner = between[:, :, :, None] * between[:, :, None, :] * between[:, None, :, :]  # three different samples
    value = (huber(cosines(s) - cosines(t)) * corner).sum(dim=(2, 3)) / corner.sum(dim=(2, 3)).clamp_min(1)
    return per_row(value, valid, over)


def similarity(student: Layer, teacher: Layer, mask: Tensor, *, over: Over = "rows", tokens: Tokens = 128) -> Tensor:
    """Squared distance of the rows of A A^T, each row to length 1, over n, [B]. SP, arXiv:1907.09682."""
    s, t, valid = samples(*hiddens(student, teacher), mask, over, tokens)
    gap = unit(s @ s.mT) - unit(t @ t.mT)  # gaps among samples are vectors of zeros
    count = valid.sum(dim=-1, keepdim=True).clamp_min(1)
    return per_row(gap.square().sum(dim=-1) / count, valid, over)


def correlation_congruence(
    student: Layer,
    teacher: Layer,
    mask: Tensor,
    *,
    gamma: Annotated[float, Field(gt=0)] = 0.4,
    order: Annotated[int, Field(ge=1, le=8)] = 2,
    over: Over = "rows",
    tokens: Tokens = 128,
) -> Tensor:
    """Mean squared difference of the correlations exp(-gamma |x - y|^2) of unit features, by the Taylor series
    exp(-2 gamma) sum over p <= order of (2 gamma x.y)^p / p!, [B]. CC, arXiv:1904.01802."""

    def correlation(x: Tensor) -> Tensor:
        product = 2 * gamma * unit(x) @ unit(x).mT
        series = [product**p / math.factorial(p) for p in range(order + 1)]
        return math.exp(-2 * gamma) * torch.stack(series).sum(dim=0)

    s, t, valid = samples(*hiddens(student, teacher), mask, over, tokens)
    return per_row(mean_over_others((correlation(s) - correlation(t)).square(), pairs(valid)), valid, over)


def locality(
    student: Layer,
    teacher: Layer,
    mask: Tensor,
    *,
    neighbours: Annotated[int, Field(ge=1)] = 4,
    aim: Literal["teacher", "zero"] = "teacher",
    over: Over = "rows",
    tokens: Tokens = 64,
) -> Tensor:
    """The manifold around each sample: its nearest `neighbours` by the teacher, weighted exp(-their distance) there,
    keep their distances, [B]. Distances are squared and over their mean in each model. After the locality preserving
    loss of arXiv:1812.01819, whose own term (`aim: zero`) pulls the student's neighbours together however far they are
    in the teacher: its optimum alone is one point for all, so it needs another loss beside it."""
    s, t, valid = samples(*hiddens(student, teacher), mask, over, tokens)
    between = pairs(valid)
    d_s, d_t = (over_mean(squared_distances(x), between) for x in (s, t))
    far = d_t.masked_fill(between == 0, torch.inf)
    limit = far.kthvalue(min(neighbours, far.shape[-1]), dim=-1, keepdim=True).values
    near = between * (far <= limit)
    weight = torch.exp(-d_t)
    gap = (d_s - d_t).square() if aim == "teacher" else d_s
    return per_row(mean_over_others(weight * gap, near), valid, over)
