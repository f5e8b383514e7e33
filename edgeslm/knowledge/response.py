"""Knowledge in the output distribution. Temperatures enter here and nowhere else, with the factor T**2 of Hinton et
al., so that the size of the gradient does not depend on T. Shape letters: N tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

Temperature = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def forward_kl(student: Tensor, teacher: Tensor, targets: Tensor, *, temperature: Temperature = 1.0) -> Tensor:
    """T^2 KL(teacher_T || student_T) in nats, [N]. Hinton, Vinyals, Dean, arXiv:1503.02531."""
    log_s = torch.log_softmax(student.float() / temperature, dim=-1)
    log_t = torch.log_softmax(teacher.float() / temperature, dim=-1)
    return temperature**2 * (log_t.exp() * (log_t - log_s)).sum(dim=-1)


def forward_kl_fused(
    student: Tensor, teacher: Tensor, targets: Tensor, *, temperature: Temperature = 1.0
) -> tuple[Tensor, Tensor]:
    """Value [N] and gradient T (softmax(s/T) - softmax(t/T)) [N, V] in one pass over rows that fit the cache."""
    log_s = torch.log_softmax(student.float() / temperature, dim=-1)
    log_t = torch.log_softmax(teacher.float() / temperature, dim=-1)
    p_t = log_t.exp()
    value = torch.linalg.vecdot(p_t, log_t.sub_(log_s)).mul_(temperature**2)
    return value, log_s.exp_().sub_(p_t).mul_(temperature)


def cross_entropy(student: Tensor, teacher: Tensor | None, targets: Tensor, *, label_smoothing: Share = 0.0) -> Tensor:
    """-log p(target), [N]; with smoothing e the target is (1 - e) one-hot + e uniform (Szegedy, arXiv:1512.00567)."""
    return torch.nn.functional.cross_entropy(
        student.float(), targets, reduction="none", label_smoothing=label_smoothing
    )
