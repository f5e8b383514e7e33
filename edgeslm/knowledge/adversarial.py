"""Knowledge through an adversary: a small network learns to tell teacher from student, the student to deceive it.

`fn` trains the student against the discriminator as it is; `judge` trains the discriminator, the student held fixed.
Both read log 2 where the discriminator is at chance. Its last layer begins at zero: at chance, and silent until it has
learned something. Shape letters: N tokens, V vocabulary, E width of the discriminator, B rows, T positions, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu, softplus

from edgeslm.knowledge.base import Layer, Params, Sizes
from edgeslm.knowledge.parts import hiddens, projection, unit_rms

WIDTH = 64  # E
SLOPE = 0.2


def _network(width: int, generator: torch.Generator | None) -> Params:
    return {
        "embed": torch.randn(width, WIDTH, generator=generator) / width**0.5,
        "bias": torch.zeros(WIDTH),
        "out": torch.zeros(WIDTH, 1),
        "out_bias": torch.zeros(1),
    }


def _score(x: Tensor, params: Params) -> Tensor:
    """Log-odds that x [..., width] is the teacher's, [...]."""
    inner = leaky_relu(x @ params["embed"] + params["bias"], SLOPE)
    return (inner @ params["out"] + params["out_bias"]).squeeze(-1)


def _deceive(student: Tensor, params: Params) -> Tensor:
    """-log D(student). The discriminator is held fixed."""
    return softplus(-_score(student, {name: p.detach() for name, p in params.items()}))


def _tell(student: Tensor, teacher: Tensor, params: Params) -> Tensor:
    """Mean of -log D(teacher) and -log(1 - D(student))."""
    return (softplus(-_score(teacher, params)) + softplus(_score(student.detach(), params))) / 2


def _centred(logits: Tensor) -> Tensor:
    """Log-probabilities less their mean, which are the logits less theirs."""
    logits = logits.float()
    return logits - logits.mean(dim=-1, keepdim=True)


def init_logit_discriminator(vocabulary: int, generator: torch.Generator | None) -> Params:
    """`embed` [V, E] and a layer to one number."""
    return _network(vocabulary, generator)


def logit_discriminator(student: Tensor, teacher: Tensor, targets: Tensor, *, params: Params) -> Tensor:
    """-log D of the student's distribution, nats [N]. After arXiv:1709.00513: D embeds centred log-probabilities in E
    numbers, a leaky rectifier, one log-odds."""
    return _deceive(_centred(student), params)


def judge_logits(student: Tensor, teacher: Tensor, targets: Tensor, *, params: Params) -> Tensor:
    """The discriminator's own loss: the teacher is real, the student is not, nats [N]."""
    return _tell(_centred(student), _centred(teacher.detach()), params)


def init_feature_discriminator(
    student: Sizes, teacher: Sizes, generator: torch.Generator | None, **options: object
) -> Params:
    """A discriminator of the smaller width. Where widths differ also `reduce`, which takes the wider model's features
    to it: random, orthonormal, and never trained, for the judge would make it tell the two apart and nothing else."""
    width = min(student.hidden, teacher.hidden)
    params = _network(width, generator)
    if student.hidden != teacher.hidden:
        params["reduce"] = projection(max(student.hidden, teacher.hidden), width, generator)
    return params


def _comparable(student: Layer, teacher: Layer, params: Params) -> tuple[Tensor, Tensor]:
    """Both in the smaller width, of root mean square 1 at each token."""
    s, t = hiddens(student, teacher)
    if s.shape[-1] > t.shape[-1]:
        s = s @ params["reduce"].detach()
    elif s.shape[-1] < t.shape[-1]:
        t = t @ params["reduce"].detach()
    return unit_rms(s), unit_rms(t)


def feature_discriminator(student: Layer, teacher: Layer, mask: Tensor, *, params: Params) -> Tensor:
    """-log D of the student's hidden state at each token, nats [B, T]. After adversarial network compression,
    arXiv:1803.10750."""
    return _deceive(_comparable(student, teacher, params)[0], params) * mask


def judge_features(student: Layer, teacher: Layer, mask: Tensor, *, params: Params) -> Tensor:
    """The discriminator's own loss, nats [B, T]."""
    return _tell(*_comparable(student, teacher, params), params) * mask
