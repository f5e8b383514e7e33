"""The head and the losses on it, in chunks: [N, V] logits of both models never exist.

Shape letters: N predictions, V vocabulary, D hidden width (student), C predictions of a chunk, R rows of a slice.

One `autograd.Function` makes the gradients of the hidden states and of the head weight in its forward, so there is one
forward and one backward of the module per micro-batch and the hooks of data-parallel wrappers hold. Two chunk sizes:
matrix products want C in the hundreds, softmax arithmetic wants R rows of V floats to stay in the cache (measured on
two cores, V = 49,152: R = 16 takes 0.6 of the time of R = 512).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from edgeslm.knowledge.base import Response
from edgeslm.schemes.objective import Term, masked_mean
from edgeslm.schemes.terms import judge_response, response
from edgeslm.teachers.base import Output, Sparse, dense

CHUNK_TOKENS = 512
SLICE_BYTES = 4 << 20  # one float32 slice of [R, V]
GPU_BYTES = 256 << 20  # the same on a GPU, where no cache would hold it and every kernel has to be launched
TEXT = -1  # in a teacher's place, for terms that look at the text alone
# {teacher: (what it gives for a chunk, weight of each prediction [C])}; 0 is the recipe's own, or all that are mixed
Given = dict[int, tuple[Tensor | Sparse | None, Tensor]]


@dataclass(frozen=True)
class HeadInput:
    """Everything about a micro-batch that the loss needs and that has no gradient. `base`: logits of an earlier student
    that this one is added to. `answers`: what a prediction weighs in terms that learn from answers alone, as a multiple
    of what it weighs in others; 0 where nobody answers."""

    targets: Tensor  # [N] true outcomes
    mask: Tensor  # [N] 1.0 where the prediction counts
    count: float  # unmasked predictions of the whole optimiser step
    teacher: Output | None
    base: Output | None = None
    foreign: Mapping[int, tuple[Output, Tensor]] = field(default_factory=dict)
    answers: Tensor | None = None  # [N]


def head_loss(hidden: Tensor, head: Tensor, batch: HeadInput, terms: tuple[Term, ...]) -> tuple[Tensor, Tensor]:
    """hidden [N, D], head [V, D] -> (loss, sum over predictions of each term / count [terms]).

    The loss is differentiable in `hidden` and `head`; the terms are plain numbers for the log. Weights that terms have
    of their own get their gradients here, in the forward.
    """
    loss, sums = _HeadLoss.apply(hidden, head, batch, terms)
    return loss, sums


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, head: Tensor, batch: HeadInput, terms: tuple[Term, ...]
    ) -> tuple[Tensor, Tensor]:
        d_hidden = torch.empty_like(hidden)
        d_head = torch.zeros(head.shape, dtype=torch.float32, device=head.device)
        sums = torch.zeros(len(terms), dtype=torch.float64)  # on the CPU: MPS has no float64
        token_scale = batch.mask.float() / batch.count  # weights of the mean: chunks and micro-batches add up
        step = CHUNK_TOKENS if hidden.device.type == "cpu" else max(CHUNK_TOKENS, _rows(hidden, head.shape[0]))
        for at in range(0, hidden.shape[0], step):
            part = slice(at, at + step)
            targets = batch.targets[part]
            logits = hidden[part] @ head.T  # [C, V]
            if batch.base is not None:
                logits += dense(batch.base.rows(part, targets))
            teacher = None if batch.teacher is None else batch.teacher.rows(part, targets)
            given: Given = {0: (teacher, token_scale[part]), TEXT: (None, token_scale[part])}
            for index, (output, known) in batch.foreign.items():
                given[index] = output.rows(part, targets), token_scale[part] * known[part]
            _to_gradient(logits, given, targets, terms, sums, None if batch.answers is None else batch.answers[part])
            torch.mm(logits, head, out=d_hidden[part])
            d_head += logits.T @ hidden[part]
        ctx.save_for_backward(d_hidden, d_head)
        ctx.head_dtype = head.dtype
        weights = torch.tensor([t.weight for t in terms], dtype=torch.float64)
        ctx.mark_non_differentiable(sums)
        return (sums * weights).sum().float().to(hidden.device), sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        d_hidden, d_head = ctx.saved_tensors
        return d_hidden * grad.to(d_hidden.dtype), (d_head * grad).to(ctx.head_dtype), None, None


def _rows(values: Tensor, vocabulary: int) -> int:
    """Of a slice of float32 logits on the device of `values`."""
    return max(1, (SLICE_BYTES if values.device.type == "cpu" else GPU_BYTES) // (4 * vocabulary))


def _to_gradient(
    logits: Tensor, given: Given, targets: Tensor, terms: tuple[Term, ...], sums: Tensor, answers: Tensor | None
) -> None:
    """Overwrites logits [C, V] with the gradient of the mean loss on them; adds each term's share to `sums`."""
    rows = _rows(logits, logits.shape[1])
    for at in range(0, logits.shape[0], rows):
        part = slice(at, at + rows)
        total: Tensor | None = None
        for index, term in enumerate(terms):
            taught = isinstance(term.loss, Response) and term.loss.needs_teacher
            whole, scale = given[(term.teacher if term.teacher in given else 0) if taught else TEXT]
            if term.learn == "answers":
                assert answers is not None, "a term learns from answers, and the rows do not say where they are"
                scale = scale * answers
            teacher = whole.part(part) if isinstance(whole, Sparse) else None if whole is None else whole[part]
            value, grad = response(term, logits[part], teacher, targets[part])
            if term.params:
                judge_response(
                    term, logits[part], None if teacher is None else dense(teacher), targets[part], scale[part]
                )
            sums[index] += masked_mean(value, scale[part], 1.0).cpu()
            grad.mul_((term.weight * scale[part])[:, None])
            total = grad if total is None else total.add_(grad)
        assert total is not None
        logits[part] = total
