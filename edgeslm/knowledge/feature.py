"""Knowledge in what layers hold: hidden states, attention, self-relations of queries, keys and values.

Shape letters: B rows, T positions, D hidden width (student), D' (teacher), H heads, d head width, A relation heads.
Values are per token [B, T] and 0 where the mask is, or per row [B]. All in float32; no gradient to the teacher.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from edgeslm.knowledge.base import Layer, Params, Sizes
from edgeslm.knowledge.parts import TINY, given, hiddens, projection, unit

Heads = Annotated[int, Field(ge=1)]
Relation = Literal["query", "key", "value"]
# strict=False: a recipe writes a list
Relations = Annotated[tuple[Relation, ...], Field(min_length=1, strict=False)]
FORBIDDEN = -1e30  # a score no softmax sees; finite, so that 0 times a difference of two is 0


def init_projection(student: Sizes, teacher: Sizes, generator: torch.Generator | None, **options: object) -> Params:
    """`project` [D, D'], the identity at equal widths."""
    return {"project": projection(student.hidden, teacher.hidden, generator)}


def hidden(student: Layer, teacher: Layer, mask: Tensor, *, params: Params, normalise: bool = False) -> Tensor:
    """Squared error of the projected hidden state, [B, T]. FitNets, arXiv:1412.6550: the mean over channels. With
    `normalise` the squared distance of the two unit vectors (PKD, arXiv:1908.09355), which no scale changes."""
    s, t = hiddens(student, teacher)
    s = s @ params["project"]
    if normalise:
        return (unit(s) - unit(t)).square().sum(dim=-1) * mask
    return (s - t).square().mean(dim=-1) * mask


def cosine(student: Layer, teacher: Layer, mask: Tensor, *, params: Params) -> Tensor:
    """1 - cosine of projected and teacher's hidden state, in 0..2, [B, T]. DistilBERT, arXiv:1910.01108."""
    s, t = hiddens(student, teacher)
    # half the squared distance of unit vectors: the same number, precise near 0 and never below it
    return (unit(s @ params["project"]) - unit(t)).square().sum(dim=-1) / 2 * mask


def attention_transfer(
    student: Layer, teacher: Layer, mask: Tensor, *, power: Annotated[float, Field(ge=1)] = 2.0
) -> Tensor:
    """Where activity is: sum over channels of |h|^power at each position, a vector over the row's unmasked positions,
    to length 1; squared distance of the two, in 0..2, [B]. AT, arXiv:1612.03928, positions for its pixels. Any
    widths."""

    def summary(h: Tensor) -> Tensor:
        # powers of outlier channels overflow; a scale common to the row is lost in normalising anyhow
        peak = h.detach().abs().amax(dim=(1, 2), keepdim=True).clamp_min(TINY)
        return unit((h / peak).abs().pow(power).sum(dim=-1) * mask)

    s, t = hiddens(student, teacher)
    return (summary(s) - summary(t)).square().sum(dim=-1)


def attention_maps(student: Layer, teacher: Layer, mask: Tensor, *, distance: Literal["mse", "kl"] = "mse") -> Tensor:
    """Each query's attention over unmasked keys, mean over heads, [B, T]. 'mse': summed squared difference of
    probabilities; 'kl': KL(teacher || student) in nats, over the unmasked keys anew normalised. TinyBERT,
    arXiv:1909.10351. Where the models differ in the number of heads, the means over heads are compared."""
    s, t = given(student.attention), given(teacher.attention).detach()  # [B, H, T, T]
    if s.shape[1] != t.shape[1]:
        s, t = s.mean(dim=1, keepdim=True), t.mean(dim=1, keepdim=True)
    keys = mask.float()[:, None, None, :]
    if distance == "mse":
        return ((s - t) * keys).square().sum(dim=-1).mean(dim=1) * mask
    # TINY in every place keeps the logarithms finite and both sides distributions, so that KL stays above 0
    s, t = ((x + TINY) * keys for x in (s, t))
    s, t = (x / x.sum(dim=-1, keepdim=True).clamp_min(TINY) for x in (s, t))
    nats = torch.xlogy(t, t) - torch.xlogy(t, s + (1 - keys))
    return nats.sum(dim=-1).mean(dim=1) * mask


def minilm(
    student: Layer,
    teacher: Layer,
    mask: Tensor,
    *,
    relations: Relations = ("query", "key", "value"),
    relation_heads: Heads | None = None,
    causal: bool = True,
) -> Tensor:
    """KL(teacher || student) of softmax(X X^T / sqrt(width)) for X the queries, keys, values, mean over them and over
    relation heads, nats [B, T]. MiniLM, arXiv:2002.10957 (`value` alone) and MiniLMv2, arXiv:2012.15828, which joins
    all heads and splits them anew into `relation_heads`, so that widths and numbers of heads may differ. Without it
    the greatest number that divides both models' heads. A token sees unmasked tokens only, and with `causal` only
    itself and earlier ones. ValueError where a width is not divisible."""
    may = (mask[:, None, :] > 0).expand(-1, mask.shape[1], -1)  # [B, T, T]
    if causal:
        may = may & torch.ones_like(may).tril()
    may = may | torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)  # no row of a softmax is empty
    total = torch.zeros_like(mask, dtype=torch.float32)
    for name in relations:
        s, t = given(getattr(student, name)), given(getattr(teacher, name)).detach()
        heads = relation_heads or math.gcd(s.shape[1], t.shape[1])
        log_s, log_t = self_relation(s, heads, may), self_relation(t, heads, may)
        total = total + (log_t.exp() * (log_t - log_s)).sum(dim=-1).mean(dim=1)
    return total / len(relations) * mask


def self_relation(x: Tensor, heads: int, may: Tensor) -> Tensor:
    """x [B, H, T, d] -> log softmax of scaled self-products [B, A, T, T] over the places where `may` [B, T, T]."""
    batch, old, length, width = x.shape
    if old * width % heads:
        raise ValueError(f"minilm: a width of {old * width} does not split into relation_heads: {heads}")
    x = x.transpose(1, 2).reshape(batch, length, heads, old * width // heads).transpose(1, 2)  # [B, A, T, d]
    scores = x @ x.mT / math.sqrt(x.shape[-1])
    return torch.log_softmax(scores.masked_fill(~may[:, None], FORBIDDEN), dim=-1)
