"""Batches that the student writes and the teacher grades (GKD, arXiv:2306.13649; MiniLLM, arXiv:2306.08543): training
meets the mistakes that the student really makes.

Shape letters: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeslm.data.batch import Batch
from edgeslm.data.written import Mix, WriteSettings, write_batch

# (student, prompts, longest text, seed) -> texts, each with its prompt: a faster writer may take the built-in's place
Writer = Callable[[nn.Module, list[list[int]], int, int], list[list[int]]]
Distance = Callable[[nn.Module, Batch], Tensor]  # (student, texts) -> [B]


@dataclass(frozen=True)
class OnPolicy:
    """A share of the batches, chosen by the seed, keep `prompt` tokens of their rows and are written on from there.
    `candidates`: so many texts are written for each row that is used, and those are used on which `distance`
    [B] (of student and teacher) is largest: written examples on which the two differ."""

    share: float
    prompt: int
    writer: Writer
    padding: int
    seed: int
    candidates: int = 1
    distance: Distance | None = None

    def __call__(
        self, index: int, batch: Batch, student: nn.Module, distance: Distance | None = None
    ) -> tuple[Batch, dict[str, Any]]:
        """The batch, or what was written in its place, and what the log says of it. `distance`: in place of its own."""
        if np.random.default_rng((self.seed, index)).random() >= self.share:
            return batch, {"written": 0}
        start = time.perf_counter()
        prompts = [row[: self.prompt].tolist() for row in batch.ids] * self.candidates
        texts = self.writer(student, prompts, batch.ids.shape[1], self.seed * 1_000_003 + index)
        written = self._batch(texts, batch.ids.shape[1]).to(batch.ids.device)
        tokens = sum(len(t) - self.prompt for t in texts)
        notes = {"written": tokens, "written_tokens_per_s": tokens / (time.perf_counter() - start)}
        if self.candidates == 1:
            return written, notes
        distance = distance or self.distance
        assert distance is not None, "several candidates, and nothing to choose by"
        far = distance(student, written).reshape(self.candidates, -1)  # [candidates, B]
        chosen = far.argmax(0) * len(batch) + torch.arange(len(batch), device=far.device)
        return Batch(written.ids[chosen], written.mask[chosen]), notes

    def _batch(self, texts: Sequence[list[int]], length: int) -> Batch:
        """Only what was written counts; a text that ended early is filled up with what does not count."""
        ids = torch.full((len(texts), length), self.padding, dtype=torch.int64)
        mask = torch.zeros(len(texts), length)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, self.prompt : len(text)] = 1.0
        return Batch(ids, mask)


def own_writer(
    settings: WriteSettings, stop: set[int], teacher: nn.Module | None = None, mix: Mix | None = None
) -> Writer:
    """Writes with the student's own modules and key-value caches; with a teacher, both write each token together from
    what `mix` makes of their logits."""

    def write(student: nn.Module, prompts: list[list[int]], length: int, seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        here = WriteSettings(
            len(prompts), length - len(prompts[0]), len(prompts), settings.temperature, settings.top_k,
            settings.top_p, seed,
        )  # fmt: skip
        authors = [student] if teacher is None else [student, teacher]
        was_training = student.training
        student.eval()
        try:
            return write_batch(authors, mix, prompts, here, stop, generator)
        finally:
            student.train(was_training)

    return write


def mixed(share: float) -> Mix:
    """log((1 - share) p_student + share p_teacher), [B, V]: MiniLLM's sampling, against texts that fall apart."""

    def mix(logits: Sequence[Tensor]) -> Tensor:
        student, teacher = (torch.softmax(x, dim=-1) for x in logits)
        return ((1 - share) * student + share * teacher).clamp(min=1e-30).log()

    return mix


def contrasted(strength: float) -> Mix:
    """(1 + strength) log p_teacher - strength log p_student, [B, V], up to a constant: an adversary that looks for text
    on which the student has most to learn (contrastive decoding, arXiv:2210.15097, turned against the student). Only
    outcomes that the teacher gives a tenth of its best one's probability are in question, or noise would win."""

    def mix(logits: Sequence[Tensor]) -> Tensor:
        student, teacher = (torch.log_softmax(x, dim=-1) for x in logits)
        plausible = teacher >= teacher.max(dim=-1, keepdim=True).values + math.log(0.1)
        return (teacher + strength * (teacher - student)).masked_fill(~plausible, float("-inf"))

    return mix
