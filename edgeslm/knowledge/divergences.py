"""Divergences between two output distributions beyond the two directions of KL. Shapes, temperature and float32 as in
response.py. Mixtures of distributions are made of log-probabilities by log-add-exp: no logarithm ever sees a zero.

Letters in formulas: t and s the teacher's and the student's probabilities, sums over the vocabulary.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from edgeslm.knowledge.response import Inside, Share, Temperature, log_probabilities

Skew = Annotated[float, Field(ge=0, lt=1)]
Exponent = Annotated[float, Field(ge=0, le=2)]
SMALL = 1e-3  # exponents below it are taken as their limit: float32 could not tell, and 1/(alpha beta) magnifies


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def _mixture(share: float, log_p: Tensor, log_q: Tensor) -> Tensor:
    """log(share p + (1 - share) q), share in [0, 1)."""
    if share == 0:
        return log_q
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))


def _both(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return log_probabilities(student, temperature), log_probabilities(teacher.detach(), temperature)


def jsd(
    student: Tensor, teacher: Tensor, targets: Tensor, *, beta: Inside = 0.5, temperature: Temperature = 1.0
) -> Tensor:
    """T^2 (b KL(t || m) + (1 - b) KL(s || m)), m = b t + (1 - b) s, [N]. GKD, arXiv:2306.13649."""
    log_s, log_t = _both(student, teacher, temperature)
    log_m = _mixture(beta, log_t, log_s)
    return temperature**2 * (beta * _kl(log_t, log_m) + (1 - beta) * _kl(log_s, log_m))


def skew_kl(
    student: Tensor, teacher: Tensor, targets: Tensor, *, alpha: Skew = 0.1, temperature: Temperature = 1.0
) -> Tensor:
    """T^2 KL(t || a t + (1 - a) s), [N]. DistiLLM, arXiv:2402.03898. a = 0 is forward_kl; never above log(1/a)."""
    log_s, log_t = _both(student, teacher, temperature)
    return temperature**2 * _kl(log_t, _mixture(alpha, log_t, log_s))


def skew_reverse_kl(
    student: Tensor, teacher: Tensor, targets: Tensor, *, alpha: Skew = 0.1, temperature: Temperature = 1.0
) -> Tensor:
    """T^2 KL(s || a s + (1 - a) t), [N]. DistiLLM, arXiv:2402.03898. a = 0 is reverse_kl; never above log(1/a)."""
    log_s, log_t = _both(student, teacher, temperature)
    return temperature**2 * _kl(log_s, _mixture(alpha, log_s, log_t))


def alpha_beta(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    *,
    alpha: Exponent = 0.2,
    beta: Exponent = 0.7,
    temperature: Temperature = 1.0,
) -> Tensor:
    """ABKD, arXiv:2505.04560: -T^2/(a b) sum(t^a s^b - a/(a+b) t^(a+b) - b/(a+b) s^(a+b)), [N], and its limits where
    an exponent tends to 0: (1, 0) is forward_kl, (0, 1) reverse_kl, (0, 0) half the squared distance of
    log-probabilities. Exponents below 0 would raise small probabilities to large numbers and are refused. An
    f-divergence only where a + b = 1."""
    log_s, log_t = _both(student, teacher, temperature)
    gap = log_t - log_s
    if alpha < SMALL and beta < SMALL:
        terms = gap.square() / 2
    elif beta < SMALL:
        t, s = (alpha * log_t).exp(), (alpha * log_s).exp()
        terms = (t * (alpha * gap) - t + s) / alpha**2
    elif alpha < SMALL:
        t, s = (beta * log_t).exp(), (beta * log_s).exp()
        terms = (t - s - s * (beta * gap)) / beta**2
    else:
        # the larger of the two is taken out, so that each exponential is at most 1 and differences near equality
        # are differences of small numbers; as the sum does not depend on it, it needs no gradient
        both, top = alpha + beta, torch.maximum(log_t, log_s).detach()
        t, s = log_t - top, log_s - top
        inner = (alpha * torch.expm1(both * t) + beta * torch.expm1(both * s)) / both - torch.expm1(
            alpha * t + beta * s
        )
        terms = (both * top).exp() * inner / (alpha * beta)
    return temperature**2 * terms.sum(dim=-1)


def tvd(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """Half the sum of |s - t|, in 0..1, [N]. f-distill, arXiv:2307.15190."""
    return (torch.softmax(student.float(), -1) - torch.softmax(teacher.detach().float(), -1)).abs().sum(dim=-1) / 2


def _mix(student: Tensor, teacher: Tensor, reverse: Tensor | float, temperature: float) -> Tensor:
    """T^2 (reverse KL(s || t) + (1 - reverse) KL(t || s))."""
    log_s, log_t = _both(student, teacher, temperature)
    return temperature**2 * (reverse * _kl(log_s, log_t) + (1 - reverse) * _kl(log_t, log_s))


def confidence_mix(
    student: Tensor, teacher: Tensor, targets: Tensor, *, share: Share | None = None, temperature: Temperature = 1.0
) -> Tensor:
    """g reverse_kl + (1 - g) forward_kl, [N]. CAKLD of BitDistiller, arXiv:2402.10631: a sure teacher is followed to
    its mode. g is the teacher's probability (at T = 1) of each target token; the paper's one g for all, its mean over
    the data measured beforehand, is `share`."""
    if share is not None:
        return _mix(student, teacher, share, temperature)
    sure = log_probabilities(teacher.detach()).gather(1, targets[:, None]).squeeze(1).exp()
    return _mix(student, teacher, sure, temperature)


def entropy_mix(student: Tensor, teacher: Tensor, targets: Tensor, *, temperature: Temperature = 1.0) -> Tensor:
    """h forward_kl + (1 - h) reverse_kl, [N], h the teacher's entropy (at T = 1) over log V: a teacher that knows is
    followed to its mode, one that does not is covered. After EdgeRazor, arXiv:2605.04062."""
    log_t = log_probabilities(teacher.detach())
    unsure = -(log_t.exp() * log_t).sum(dim=-1) / math.log(teacher.shape[1])
    return _mix(student, teacher, 1 - unsure.clamp(0, 1), temperature)
