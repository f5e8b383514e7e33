"""Knowledge in the output distribution: the two directions of KL, hard and hand-made targets, distances of logits.

Temperatures enter in this file and in divergences.py and nowhere else, with the factor T**2 of Hinton et al., so that
the size of the gradient does not depend on T. (A distance that is linear in small differences, as `tvd` and `uld` are,
would need T and not T**2; those take no temperature.) Shape letters: N tokens, V vocabulary. Every function takes
student [N, V], teacher [N, V] (or None) and targets [N], computes in float32 and gives one value per token, [N].
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

Temperature = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Inside = Annotated[float, Field(gt=0, lt=1)]

# exp(FLOOR) is 0 in float32, so a forbidden token (logit -inf) still has probability 0, but 0 times its log is 0 and
# not NaN
FLOOR = -1e4


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / T) in float32, finite."""
    log_p = torch.log_softmax(logits.float() / temperature, dim=-1)
    return log_p.clamp_min(FLOOR) if log_p.requires_grad else log_p.clamp_min_(FLOOR)  # autograd keeps its output


def forward_kl(student: Tensor, teacher: Tensor, targets: Tensor, *, temperature: Temperature = 1.0) -> Tensor:
    """T^2 KL(teacher_T || student_T) in nats, [N]. Hinton, Vinyals, Dean, arXiv:1503.02531."""
    log_s, log_t = log_probabilities(student, temperature), log_probabilities(teacher.detach(), temperature)
    return temperature**2 * (log_t.exp() * (log_t - log_s)).sum(dim=-1)


def forward_kl_fused(
    student: Tensor, teacher: Tensor, targets: Tensor, *, temperature: Temperature = 1.0
) -> tuple[Tensor, Tensor]:
    """Value [N] and gradient T (softmax(s/T) - softmax(t/T)) [N, V] in one pass over rows that fit the cache."""
    log_s, log_t = log_probabilities(student, temperature), log_probabilities(teacher, temperature)
    p_t = log_t.exp()
    value = torch.linalg.vecdot(p_t, log_t.sub_(log_s)).mul_(temperature**2)
    return value, log_s.exp_().sub_(p_t).mul_(temperature)


def reverse_kl(student: Tensor, teacher: Tensor, targets: Tensor, *, temperature: Temperature = 1.0) -> Tensor:
    """T^2 KL(student_T || teacher_T) in nats, [N]: seeks a mode instead of covering all. MiniLLM, arXiv:2306.08543."""
    log_s, log_t = log_probabilities(student, temperature), log_probabilities(teacher.detach(), temperature)
    return temperature**2 * (log_s.exp() * (log_s - log_t)).sum(dim=-1)


def reverse_kl_fused(
    student: Tensor, teacher: Tensor, targets: Tensor, *, temperature: Temperature = 1.0
) -> tuple[Tensor, Tensor]:
    """Value [N] and gradient T p_s (log p_s - log p_t - KL) [N, V]."""
    log_s, log_t = log_probabilities(student, temperature), log_probabilities(teacher, temperature)
    p_s = log_s.exp()
    gap = log_s.sub_(log_t)
    value = torch.linalg.vecdot(p_s, gap)
    return value * temperature**2, gap.sub_(value[:, None]).mul_(p_s).mul_(temperature)


def soft_cross_entropy(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """-sum p_t log p_s in nats, [N]: forward_kl plus the teacher's entropy, so of the same gradient and not 0 at
    equality. The distillation term of codistillation, arXiv:1804.03235."""
    log_s, log_t = log_probabilities(student), log_probabilities(teacher.detach())
    return -(log_t.exp() * log_s).sum(dim=-1)


def soft_cross_entropy_fused(student: Tensor, teacher: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Value [N] and gradient softmax(s) - softmax(t) [N, V]."""
    log_s, log_t = log_probabilities(student), log_probabilities(teacher)
    p_t = log_t.exp_()
    value = torch.linalg.vecdot(p_t, log_s).neg_()
    return value, log_s.exp_().sub_(p_t)


def cross_entropy(student: Tensor, teacher: Tensor | None, targets: Tensor, *, label_smoothing: Share = 0.0) -> Tensor:
    """-log p(target), [N]; with smoothing e the target is (1 - e) one-hot + e uniform (Szegedy, arXiv:1512.00567). 0
    where the target is below 0: the truth is not known there."""
    return torch.nn.functional.cross_entropy(
        student.float(), targets.clamp_min(0), reduction="none", label_smoothing=label_smoothing
    ) * (targets >= 0)


def cross_entropy_fused(
    student: Tensor, teacher: Tensor | None, targets: Tensor, *, label_smoothing: Share = 0.0
) -> tuple[Tensor, Tensor]:
    """Value [N] and gradient p_s - target distribution [N, V]."""
    log_s = torch.log_softmax(student.float(), dim=-1)
    at, unknown = targets[:, None].clamp_min(0), targets < 0
    value = log_s.gather(1, at).squeeze(1).mul_(label_smoothing - 1)
    if label_smoothing:
        value.sub_(log_s.mean(dim=-1), alpha=label_smoothing)
    grad = log_s.exp_()
    if label_smoothing:
        grad.sub_(label_smoothing / student.shape[1])
    grad.scatter_add_(1, at, torch.full_like(at, label_smoothing - 1, dtype=grad.dtype))
    value[unknown], grad[unknown] = 0, 0
    return value, grad


def teacher_free(
    student: Tensor,
    teacher: Tensor | None,
    targets: Tensor,
    *,
    confidence: Inside = 0.9,
    temperature: Temperature = 1.0,
) -> Tensor:
    """Tf-KD_reg, arXiv:1909.11723: a virtual teacher gives the right token `confidence` and all others the same.
    T^2 times the cross-entropy of student_T to the virtual teacher_T, [N]; least, and then T^2 times the entropy of
    that teacher, where they agree."""
    log_s = torch.log_softmax(student.float() / temperature, dim=-1)
    others = student.shape[1] - 1
    # softmax(log p / T) has terms p^(1/T)
    right, wrong = confidence ** (1 / temperature), ((1 - confidence) / others) ** (1 / temperature)
    total = right + others * wrong
    at_target = log_s.gather(1, targets[:, None]).squeeze(1)
    return -(temperature**2) * ((right - wrong) * at_target + wrong * log_s.sum(dim=-1)) / total


def logit_mse(student: Tensor, teacher: Tensor, targets: Tensor, *, centre: bool = True) -> Tensor:
    """Mean over the vocabulary of the squared difference of logits, [N]. BERT to BiLSTM, arXiv:1903.12136. With
    `centre` each model's logits first lose their mean, which no probability shows; half of it is then what forward_kl
    tends to at high temperature."""
    gap = student.float() - teacher.detach().float()
    return (gap - gap.mean(dim=-1, keepdim=True) if centre else gap).square().mean(dim=-1)


def uld(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """Sum of |p_s - p_t|, each sorted, the shorter padded with zeros, [N]. Universal logit distillation, across
    tokenizers: arXiv:2402.12030. teacher [N, V'] may have another vocabulary, but its N positions must be the
    student's. Blind to which token has which probability."""
    p_s = torch.softmax(student.float(), dim=-1).sort(dim=-1, descending=True).values
    p_t = torch.softmax(teacher.detach().float(), dim=-1).sort(dim=-1, descending=True).values
    wider = max(p_s.shape[1], p_t.shape[1])
    p_s, p_t = (torch.nn.functional.pad(p, (0, wider - p.shape[1])) for p in (p_s, p_t))
    return (p_s - p_t).abs().sum(dim=-1)
