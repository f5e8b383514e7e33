"""One term of an objective on what student and teacher gave: its values, and for the output its gradient.

Shape letters: N predictions, V vocabulary, K recorded outcomes, B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from edgeslm.knowledge.base import Feature, Layer, Response
from edgeslm.knowledge.response import FLOOR
from edgeslm.schemes.objective import Term, masked_mean
from edgeslm.teachers.base import Sparse

SMALLEST = torch.finfo(torch.float32).tiny
ANY_VOCABULARY = ("uld",)  # compares sorted probabilities: outcomes need not be the same ones


def response(term: Term, student: Tensor, teacher: Tensor | Sparse | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Nats per token [N] and gradient on the student's logits [N, V], float32, weight not applied. Where vocabularies
    are padded to different sizes the ids that both have are compared."""
    loss = term.loss
    assert isinstance(loss, Response)
    if not loss.needs_teacher:
        teacher = None
    if isinstance(teacher, Sparse):
        return _sparse(term, student, teacher)
    ours, theirs = _shared(term, student, teacher)
    if loss.fused is not None:
        value, grad = loss.fused(ours, theirs, targets, **term.options)
    else:
        with torch.enable_grad():
            leaf = ours.detach().float().requires_grad_()
            own = {"params": term.params[0]} if term.params else {}
            value = loss.fn(leaf, theirs, targets, **own, **term.options)
            (grad,) = torch.autograd.grad(value.sum(), leaf)
        value = value.detach()
    if (more := student.shape[1] - ours.shape[1]) > 0:
        grad = torch.nn.functional.pad(grad, (0, more))
    return value, grad


def _shared(term: Term, student: Tensor, teacher: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Logits of the outcomes that both have."""
    if teacher is None or term.name in ANY_VOCABULARY:
        return student, teacher
    width = min(student.shape[1], teacher.shape[1])
    return student[:, :width], teacher[:, :width]


def judge_response(term: Term, student: Tensor, teacher: Tensor | None, targets: Tensor, scale: Tensor) -> None:
    """Adds to the gradients of an adversary's weights those of its own loss, the mean over tokens."""
    assert isinstance(term.loss, Response) and term.loss.judge is not None
    with torch.enable_grad():
        ours, theirs = _shared(term, student.detach().float(), teacher)
        values = term.loss.judge(ours, theirs, targets, params=term.params[0], **term.options)
        masked_mean(values, scale, 1.0).backward()


def _sparse(term: Term, student: Tensor, teacher: Sparse) -> tuple[Tensor, Tensor]:
    """Against recorded outcomes, at the temperature they were recorded with. A sample of the distribution serves the
    forward KL without bias: -sum w log s has the gradient of the KL in expectation. Kept outcomes and one bucket for
    the rest serve every f-divergence; by the data-processing inequality it never exceeds the dense one."""
    heat = teacher.temperature
    log_s = torch.log_softmax(student.float() / heat, dim=-1)
    kept = log_s.gather(1, teacher.ids)  # [N, K]
    if teacher.tail is None:
        assert teacher.entropy is not None
        value = -(teacher.weights * kept).sum(-1) - teacher.entropy
        grad = log_s.exp_().scatter_add_(1, teacher.ids, -teacher.weights)
        return value * heat**2, grad.mul_(heat)
    rest = log_s.scatter_(1, teacher.ids, -torch.inf)
    left = rest.logsumexp(-1, keepdim=True).clamp_min_(FLOOR)
    theirs = torch.cat([teacher.weights, teacher.tail[:, None]], dim=1).clamp_min_(SMALLEST).log()
    with torch.enable_grad():
        ours = torch.cat([kept, left], dim=1).requires_grad_()  # logits of K + 1 buckets
        options = {k: v for k, v in term.options.items() if k != "temperature"}
        assert isinstance(term.loss, Response)
        value = term.loss.fn(ours, theirs, torch.zeros(len(ours), dtype=torch.long, device=ours.device), **options)
        (of_buckets,) = torch.autograd.grad(value.sum(), ours)
    grad = rest.sub_(left).exp_().mul_(of_buckets[:, -1:])  # an outcome's share of its bucket
    grad.scatter_(1, teacher.ids, of_buckets[:, :-1])
    return value.detach() * heat**2, grad.mul_(heat)


def feature(
    term: Term,
    student: Mapping[int, Layer],
    teacher: Mapping[int, Layer],
    mask: Tensor,
    *,
    judged: bool = False,
) -> Tensor:
    """Values [B, T] or [B] of a loss on layers, the mean over its pairs. `judged`: the adversary's own loss."""
    loss = term.loss
    assert isinstance(loss, Feature)
    fn = loss.judge if judged else loss.fn
    assert fn is not None
    pairs = [(student[s], _mean_layer([teacher[t] for t in many])) for s, many in term.pairs]
    if loss.joint:
        own = {"params": term.params[0]} if term.params else {}
        ours, theirs = [s for s, _ in pairs], [t for _, t in pairs]
        return fn(ours, theirs, mask, **own, **term.options)
    values = []
    for index, (ours_, theirs_) in enumerate(pairs):
        own = {"params": term.params[index]} if term.params else {}
        values.append(fn(ours_, theirs_, mask, **own, **term.options))
    return torch.stack(values).mean(0)


def _mean_layer(layers: Sequence[Layer]) -> Layer:
    """What several layers hold on average."""
    if len(layers) == 1:
        return layers[0]
    fields = {}
    for name in ("hidden", "attention", "query", "key", "value"):
        held = [getattr(layer, name) for layer in layers]
        fields[name] = None if held[0] is None else torch.stack(held).mean(0)
    return Layer(**fields)
