"""The head and the loss on it, in chunks: [N, V] logits of both models never exist.

Shape letters: N tokens, V vocabulary, D hidden width (student), C tokens of a chunk, R rows of a slice.

One `autograd.Function` makes the gradients of the hidden states and of the head weight in its forward, so there is one
forward and one backward of the module per micro-batch and the hooks of data-parallel wrappers hold. Two chunk sizes:
matrix products want C in the hundreds, softmax arithmetic wants R rows of V floats to stay in the cache (measured on
two cores, V = 49,152: R = 16 takes 0.6 of the time of R = 512).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeslm.schemes.objective import Objective, masked_mean

CHUNK_TOKENS = 512
SLICE_BYTES = 4 << 20  # one float32 slice of [R, V]


@dataclass(frozen=True)
class HeadInput:
    """Everything about a micro-batch that the loss needs and that has no gradient."""

    targets: Tensor  # [N] next tokens
    mask: Tensor  # [N] 1.0 where the prediction counts
    count: float  # unmasked tokens of the whole optimiser step
    teacher_hidden: Tensor | None  # [N, D_teacher]
    teacher_head: Tensor | None  # [V, D_teacher]


def head_loss(hidden: Tensor, head: Tensor, batch: HeadInput, objective: Objective) -> tuple[Tensor, Tensor]:
    """hidden [N, D], head [V, D] -> (loss, sum over tokens of each term / count [terms]).

    The loss is differentiable in `hidden` and `head`; the terms are plain numbers for the log.
    """
    loss, terms = _HeadLoss.apply(hidden, head, batch, objective)
    return loss, terms


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, head: Tensor, batch: HeadInput, objective: Objective
    ) -> tuple[Tensor, Tensor]:
        d_hidden = torch.empty_like(hidden)
        d_head = torch.zeros(head.shape, dtype=torch.float32, device=head.device)
        sums = torch.zeros(len(objective.terms), dtype=torch.float64)  # on the CPU: MPS has no float64
        token_scale = batch.mask.float() / batch.count  # weights of the mean: chunks and micro-batches add up
        for at in range(0, hidden.shape[0], CHUNK_TOKENS):
            part = slice(at, at + CHUNK_TOKENS)
            logits = hidden[part] @ head.T  # [C, V]
            teacher = None
            if batch.teacher_hidden is not None and batch.teacher_head is not None:
                teacher = batch.teacher_hidden[part] @ batch.teacher_head.T
            _to_gradient(logits, teacher, batch.targets[part], token_scale[part], objective, sums)
            torch.mm(logits, head, out=d_hidden[part])
            d_head += logits.T @ hidden[part]
        ctx.save_for_backward(d_hidden, d_head)
        ctx.head_dtype = head.dtype
        weights = torch.tensor([t.weight for t in objective.terms], dtype=torch.float64)
        ctx.mark_non_differentiable(sums)
        return (sums * weights).sum().float().to(hidden.device), sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:  # type: ignore[override]
        d_hidden, d_head = ctx.saved_tensors
        return d_hidden * grad.to(d_hidden.dtype), (d_head * grad).to(ctx.head_dtype), None, None


def _to_gradient(
    logits: Tensor, teacher: Tensor | None, targets: Tensor, scale: Tensor, objective: Objective, sums: Tensor
) -> None:
    """Overwrites logits [C, V] with the gradient of the mean loss on them; adds each term's share to `sums`."""
    rows = max(1, SLICE_BYTES // (4 * logits.shape[1]))
    for at in range(0, logits.shape[0], rows):
        part = slice(at, at + rows)
        total: Tensor | None = None
        for index, term in enumerate(objective.terms):
            value, grad = term.value_and_grad(logits[part], None if teacher is None else teacher[part], targets[part])
            sums[index] += masked_mean(value, scale[part], 1.0).cpu()
            grad.mul_((term.weight * scale[part])[:, None])
            total = grad if total is None else total.add_(grad)
        assert total is not None
        logits[part] = total
