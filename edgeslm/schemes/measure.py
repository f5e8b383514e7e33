"""How close a student is to a teacher while both are torch modules: for curves and for choosing, not for the report.

Shape letters: R windows, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeslm.data.batch import Batch
from edgeslm.models.forward import head_weight, hidden_states, predictions

ROWS = 32  # rows of [V] float32 handled together: they stay in the cache


@dataclass(frozen=True)
class Closeness:
    """Means over `tokens` predictions: loss and KL in nats per token, top-1 agreement in 0..1."""

    loss: float
    kl: float
    top1: float
    tokens: int


@torch.no_grad()
def closeness(student: nn.Module, teacher: nn.Module, windows: Tensor, base: nn.Module | None = None) -> Closeness:
    """windows [R, T]; the second half of each is scored, as in the evaluation of shipped files. `base`: a model whose
    logits are added to the student's."""
    start = windows.shape[1] // 2 + 1  # the first half is context, as llama.cpp's perplexity counts
    loss = kl = top1 = 0.0
    for window in windows:
        ids = window[None]
        targets = window[start:]
        h_s, h_t = (hidden_states(m, ids)[0, start - 1 : -1] for m in (student, teacher))
        h_b = None if base is None else hidden_states(base, ids)[0, start - 1 : -1]
        for at in range(0, len(targets), ROWS):
            part = slice(at, at + ROWS)
            logits = _logits(student, h_s[part])
            if base is not None and h_b is not None:
                logits = logits + _logits(base, h_b[part])
            log_s, log_t = _log_probs(logits, _logits(teacher, h_t[part]))
            loss -= float(log_s.gather(1, targets[part][:, None]).cpu().double().sum())
            kl += float((log_t.exp() * (log_t - log_s)).cpu().double().sum())
            top1 += float((log_s.argmax(-1) == log_t.argmax(-1)).sum())
    tokens = windows.shape[0] * (windows.shape[1] - start)
    return Closeness(loss / tokens, kl / tokens, top1 / tokens, tokens)


@torch.no_grad()
def answer_loss(model: nn.Module, dialogues: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float:
    """Mean cross-entropy, in nats a token, of the tokens that are marked with 1 in (ids, marks), each dialogue read
    alone and from its beginning. The first token of a dialogue is never predicted."""
    head = head_weight(model)
    total = count = 0.0
    for ids, marks in dialogues:
        row = torch.tensor([ids], device=head.device)
        chosen = torch.tensor(marks[1:], device=head.device).bool()
        states, targets = hidden_states(model, row)[0, :-1][chosen], row[0, 1:][chosen]
        for at in range(0, len(targets), ROWS):
            logits, some = _logits(model, states[at : at + ROWS]), targets[at : at + ROWS]
            total += float(torch.nn.functional.cross_entropy(logits, some, reduction="none").cpu().double().sum())
        count += len(targets)
    return total / count


@torch.no_grad()
def row_distance(student: nn.Module, teacher: nn.Module, batch: Batch) -> Tensor:
    """Mean KL(teacher || student) over the targets of each row, [B], in nats."""
    h_s, h_t = (predictions(hidden_states(m, batch.ids)) for m in (student, teacher))
    mask = batch.mask[:, 1:]
    kl = torch.empty(mask.numel(), device=mask.device)
    for at in range(0, len(kl), ROWS):
        part = slice(at, at + ROWS)
        log_s, log_t = _log_probs(_logits(student, h_s[part]), _logits(teacher, h_t[part]))
        kl[part] = (log_t.exp() * (log_t - log_s)).sum(-1)
    return (kl.view_as(mask) * mask).sum(1) / mask.sum(1).clamp(min=1.0)


def _logits(model: nn.Module, states: Tensor) -> Tensor:
    return (states @ head_weight(model).T).float()


def _log_probs(student: Tensor, teacher: Tensor) -> list[Tensor]:
    """Of the outcomes that both have: vocabularies of a family may be padded differently."""
    width = min(student.shape[1], teacher.shape[1])
    return [torch.log_softmax(logits[:, :width], dim=-1) for logits in (student, teacher)]
