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
    """As stored: ids [C, K + S]; `logs` [C, K] float16, log-probabilities of the first K, for a teacher that is sure
    gives outcomes that no float16 probability could tell from 0; `rest` [C] float16, the log-probability of all others
    where nothing is drawn, else the entropy (nats)."""

    ids: Tensor
    logs: Tensor
    rest: Tensor


def keep(logits: Tensor, count: int, samples: int, temperature: float, uniform: Tensor | None) -> Kept:
    """logits [C, V]; `uniform` [C, S] in 0..1 decides the draws, made from what the first `count` leave."""
    log_p = torch.log_softmax(logits.float() / temperature, dim=-1)
    logs, ids = torch.topk(log_p, min(count, log_p.shape[1]), dim=-1)
    if not samples:
        return Kept(ids, logs.half(), log_p.scatter(1, ids, -torch.inf).logsumexp(-1).half())
    assert uniform is not None
    p = log_p.exp()
    rest = p.scatter(1, ids, 0.0).double().cumsum(-1)
    drawn = torch.searchsorted(rest, uniform.double() * rest[:, -1:], right=True).clamp(max=p.shape[1] - 1)
    return Kept(torch.cat([ids, drawn], dim=1), logs.half(), torch.special.entr(p).sum(-1).half())


def restore(kept: Kept, samples: int, temperature: float) -> Sparse:
    """As losses read it: what the kept outcomes leave is one bucket, or shared evenly by the draws."""
    weights, rest = kept.logs.float().exp(), kept.rest.float()
    if not samples:
        return Sparse(kept.ids.long(), weights, rest.exp(), None, temperature)
    each = ((1.0 - weights.sum(-1)).clamp(min=0.0) / samples)[:, None].expand(-1, samples)
    return Sparse(kept.ids.long(), torch.cat([weights, each], dim=1), None, rest, temperature)


def id_type(vocabulary: int) -> torch.dtype:
    return torch.uint16 if vocabulary <= 1 << 16 else torch.int32


def bytes_per_token(count: int, samples: int, vocabulary: int) -> int:
    """Of a prediction, as stored."""
    return (count + samples) * id_type(vocabulary).itemsize + 2 * count + 2
