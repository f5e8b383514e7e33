"""Objectives of a recipe's phases, bound to an encoder and its teachers. Beside the maps of edgeslm.schemes.layer_map
a term may name `sentence`: the vector of the whole row in both models, whatever fields of the row they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from edgeslm.encoders.model import Encoder
from edgeslm.knowledge.base import Response
from edgeslm.schemes.objective import Objective, Term

SENTENCE = "sentence"


def bound(
    terms: Sequence[Mapping[str, Any]],
    student: Encoder,
    teachers: Sequence[Encoder],
    generator: torch.Generator,
    outcomes: int,
    device: torch.device,
) -> Objective:
    """`outcomes`: width of the output distribution. Raises RecipeError."""
    made: list[Term] = []
    for term in terms:
        whole = term.get("layers") == SENTENCE
        sizes = [_sizes(model, whole) for model in (student, *teachers)]
        teacher = teachers[term.get("teacher") or 0] if teachers else student
        layers = {"layers": [[student.depth + 1, teacher.depth + 1]]} if whole else {}
        one = Objective.build([{**term, **layers}])
        made += one.bound(sizes[0], sizes[1:], outcomes, generator, device).terms
    return Objective(tuple(made))


def _sizes(model: Encoder, whole: bool) -> tuple[int, Any]:
    return (model.depth + 1, model.sentence_sizes) if whole else (model.depth, model.sizes)


def annealed(objective: Objective, done: float) -> Objective:
    """At `done` (0 to 1) of a phase: terms that need a teacher have lost that share of their weight, those of the
    truth have gained it (BAM, arXiv:1907.04829)."""
    terms = []
    for term in objective.terms:
        of_truth = isinstance(term.loss, Response) and not term.loss.needs_teacher
        terms.append(replace(term, weight=term.weight * (done if of_truth else 1 - done)))
    return Objective(tuple(terms))
