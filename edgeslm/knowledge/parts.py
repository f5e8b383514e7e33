"""What the losses on features share: masks, projections, samples of a batch, pairs of samples.

Shape letters: B rows, T positions, D hidden width; S sets of samples, n samples of a set.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from edgeslm.knowledge.base import Layer

TINY = 1e-6
Over = Literal["rows", "tokens"]
Tokens = Annotated[int, Field(ge=2)]  # at most so many tokens of a row are samples


def given(field: Tensor | None) -> Tensor:
    """A field of `Layer` that the loss reads, float32. ValueError where nobody filled it."""
    if field is None:
        raise ValueError("a loss reads a field of a layer that was not captured; see `reads` in knowledge/__init__.py")
    return field.float()


def hiddens(student: Layer, teacher: Layer) -> tuple[Tensor, Tensor]:
    """[B, T, D] and [B, T, D'], the teacher's without gradient."""
    return given(student.hidden), given(teacher.hidden).detach()


def projection(width_in: int, width_out: int, generator: torch.Generator | None) -> Tensor:
    """[in, out]: the identity where the widths are equal, else random with orthonormal rows or columns, so that
    lengths and angles are kept as far as the smaller width can."""
    if width_in == width_out:
        return torch.eye(width_in)
    tall = torch.randn(max(width_in, width_out), min(width_in, width_out), generator=generator)
    q = torch.linalg.qr(tall).Q
    return (q if width_in > width_out else q.T).contiguous()


def unit(x: Tensor) -> Tensor:
    """Each vector over its length; a vector of zeros stays."""
    return torch.nn.functional.normalize(x, dim=-1, eps=TINY)


def unit_rms(x: Tensor) -> Tensor:
    return unit(x) * x.shape[-1] ** 0.5


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the unmasked positions, [B, D]; zeros for a row without any."""
    weight = mask.float()[..., None]
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)


class Samples(NamedTuple):
    """Of student and teacher at the same places; `valid` [S, n] is 1 for a sample and 0 for a gap."""

    student: Tensor  # [S, n, D]
    teacher: Tensor  # [S, n, D']
    valid: Tensor


def samples(student: Tensor, teacher: Tensor, mask: Tensor, over: Over, most: int) -> Samples:
    """'rows': one set, its samples the rows' pooled hidden states, whatever `most`. 'tokens': a set per row, its
    samples at most `most` of the row's unmasked tokens, evenly spaced."""
    if over == "rows":
        valid = (mask.sum(dim=1) > 0).float()
        return Samples(pooled(student, mask)[None], pooled(teacher, mask)[None], valid[None])
    index, valid = spaced(mask, most)

    def take(x: Tensor) -> Tensor:
        return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1])) * valid[..., None]

    return Samples(take(student), take(teacher), valid)


def spaced(mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Positions [B, n] of at most `most` unmasked tokens of each row, evenly spaced, and which of the n are such."""
    first = torch.argsort((mask == 0).to(torch.int8), dim=1, stable=True)  # unmasked ones first, in their order
    count = (mask > 0).sum(dim=1, keepdim=True)
    n = min(most, mask.shape[1])
    slot = torch.arange(n, device=mask.device) * count.clamp_min(n) // n  # n slots over max(count, n) places
    return first.gather(1, slot), (slot < count).float()


def per_row(values: Tensor, valid: Tensor, over: Over) -> Tensor:
    """Values of samples [S, n] to [B]: the sample is the row, or the row's mean over its tokens."""
    kept = values * valid
    return kept[0] if over == "rows" else kept.sum(dim=1) / valid.sum(dim=1).clamp_min(1)


def pairs(valid: Tensor) -> Tensor:
    """[S, n, n], 1 where both are samples and not the same one."""
    return valid[:, :, None] * valid[:, None, :] * (1 - torch.eye(valid.shape[1], device=valid.device))


def mean_over_others(values: Tensor, between: Tensor) -> Tensor:
    """[S, n, n] to the mean over each sample's partners, [S, n]; 0 without partners."""
    return (values * between).sum(dim=-1) / between.sum(dim=-1).clamp_min(1)


def squared_distances(x: Tensor) -> Tensor:
    """[S, n, D] -> [S, n, n]. Centred first, so that a large common part costs no precision."""
    x = x - x.mean(dim=1, keepdim=True)
    length = x.square().sum(dim=-1)
    return (length[:, :, None] + length[:, None, :] - 2 * x @ x.mT).clamp_min(0)


def distances(x: Tensor) -> Tensor:
    """As squared_distances; the gradient at distance 0 is 0, not infinite."""
    squared = squared_distances(x)
    apart = squared > TINY**2
    return torch.where(apart, squared, 1.0).sqrt() * apart


def over_mean(values: Tensor, between: Tensor) -> Tensor:
    """[S, n, n] over the mean of its pairs, so that the scale of the features is gone."""
    mean = (values * between).sum(dim=(1, 2), keepdim=True) / between.sum(dim=(1, 2), keepdim=True).clamp_min(1)
    return values / mean.clamp_min(TINY)
