"""What is kept of a teacher's distribution when it is recorded: the likeliest outcomes with an honest rest, or an
unbiased sample (sparse logit sampling, arXiv:2503.16870).

Shape letters: C predictions, V vocabulary, K outcomes kept as they are, S sampled ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeslm.teachers.base import Sparse


@dataclass(frozen=True)
class Kept:
    """As stored: ids [C, K + S], probabilities [C, K] of the first K as float16, entropy [C] as float16 (nats)."""

    ids: Tensor
    weights: Tensor
    entropy: Tensor


def keep(logits: Tensor, count: int, samples: int, temperature: float, uniform: Tensor | None) -> Kept:
    """logits [C, V]; `uniform` [C, S] in 0..1 decides the draws, made from what the first `count` leave."""
    log_p = torch.log_softmax(logits.float() / temperature, dim=-1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(-1)
    weights, ids = torch.topk(p, min(count, p.shape[1]), dim=-1)
    if samples:
        assert uniform is not None
        rest = p.scatter(1, ids, 0.0).double().cumsum(-1)
        drawn = torch.searchsorted(rest, uniform.double() * rest[:, -1:], right=True).clamp(max=p.shape[1] - 1)
        ids = torch.cat([ids, drawn], dim=1)
    return Kept(ids, weights.half(), entropy.half())


def restore(kept: Kept, samples: int, temperature: float) -> Sparse:
    """As losses read it: the mass that the kept outcomes leave is one bucket, or shared evenly by the draws."""
    weights = kept.weights.float()
    rest = (1.0 - weights.sum(-1)).clamp(min=0.0)
    if not samples:
        return Sparse(kept.ids.long(), weights, rest, kept.entropy.float(), temperature)
    each = (rest / samples)[:, None].expand(-1, samples)
    return Sparse(kept.ids.long(), torch.cat([weights, each], dim=1), None, kept.entropy.float(), temperature)


def id_type(vocabulary: int) -> torch.dtype:
    return torch.uint16 if vocabulary <= 1 << 16 else torch.int32


def bytes_per_token(count: int, samples: int, vocabulary: int) -> int:
    """Of a prediction, as stored."""
    return (count + samples) * id_type(vocabulary).itemsize + 2 * count + 2
