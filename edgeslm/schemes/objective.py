"""The weighted terms of a recipe and the project's only reduction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from edgeslm.knowledge import LOSSES
from edgeslm.knowledge.base import Feature, Loss, Params, Response, Sizes
from edgeslm.schemes.layer_map import Pair, resolve
from edgeslm.teachers.base import Need

RESERVED = ("loss", "weight", "layers", "teacher", "learn")


def masked_mean(values: Tensor, mask: Tensor, count: Tensor | float) -> Tensor:
    """sum(values where mask) / count. `count` is the number of unmasked tokens of the whole optimiser step, so that
    micro-batches add up to the mean of the step whatever their size."""
    return (values * mask).sum() / count


@dataclass(frozen=True)
class Term:
    """One loss with its weight and options. `learn`: from all tokens, or from answers alone. `layers` and `teacher`
    (which of several) matter to losses on features; `pairs` and `params` (the loss's own weights, one set for each
    pair) are there once it is bound to two models."""

    name: str
    weight: float
    options: Mapping[str, Any]
    layers: Any = None
    teacher: int = 0
    pairs: tuple[Pair, ...] = ()
    params: tuple[Params, ...] = ()
    learn: str = "all"

    @property
    def loss(self) -> Loss:
        return LOSSES[self.name]


@dataclass(frozen=True)
class Objective:
    """Sum of weighted terms."""

    terms: tuple[Term, ...]

    @property
    def responses(self) -> tuple[Term, ...]:
        return tuple(t for t in self.terms if isinstance(t.loss, Response))

    @property
    def features(self) -> tuple[Term, ...]:
        return tuple(t for t in self.terms if isinstance(t.loss, Feature))

    @property
    def labels(self) -> list[str]:
        """One name for each term, responses first, as losses are summed; a second of a name is numbered."""
        names = [t.name for t in (*self.responses, *self.features)]
        return [n if names.index(n) == i else f"{n}.{names[:i].count(n) + 1}" for i, n in enumerate(names)]

    @property
    def needs_teacher(self) -> bool:
        return any(not isinstance(t.loss, Response) or t.loss.needs_teacher for t in self.terms)

    @property
    def taught(self) -> Objective:
        """Without the terms that look at the text alone: what a student wrote itself is no truth to learn from."""
        return Objective(tuple(t for t in self.terms if not isinstance(t.loss, Response) or t.loss.needs_teacher))

    @property
    def need(self) -> Need:
        """What to ask of teachers."""
        wants: dict[int, dict[int, frozenset[str]]] = {}
        for term in self.features:
            of_teacher = wants.setdefault(term.teacher, {})
            for _, many in term.pairs:
                for layer in many:
                    of_teacher[layer] = of_teacher.get(layer, frozenset()) | _reads(term)
        return Need(any(t.loss.needs_teacher for t in self.responses), wants)  # type: ignore[union-attr]

    @property
    def wants(self) -> dict[int, frozenset[str]]:
        """What is read of the student's own layers."""
        found: dict[int, frozenset[str]] = {}
        for term in self.features:
            for layer, _ in term.pairs:
                found[layer] = found.get(layer, frozenset()) | _reads(term)
        return found

    @classmethod
    def build(cls, terms: Sequence[Mapping[str, Any]]) -> Objective:
        """From a recipe's list of `{loss, weight, layers, teacher, learn, **options}`."""
        made = []
        for t in terms:
            options = {k: _frozen(v) for k, v in t.items() if k not in RESERVED}
            term = Term(t["loss"], float(t.get("weight", 1.0)), options, t.get("layers"), t.get("teacher") or 0)
            made.append(replace(term, learn=t.get("learn", "all")))
        return cls(tuple(made))

    def bound(
        self,
        student: tuple[int, Sizes],
        teachers: Sequence[tuple[int, Sizes]],
        vocabulary: int,
        generator: torch.Generator,
        device: str | torch.device = "cpu",
    ) -> Objective:
        """Layers mapped and weights of losses made, for models of these (layers, sizes). Raises RecipeError."""
        terms = [_bind(t, i, student, teachers, vocabulary, generator, device) for i, t in enumerate(self.terms)]
        return Objective(tuple(terms))


def _reads(term: Term) -> frozenset[str]:
    """The fields of a layer that the term needs; a loss that is told which relations to take needs only those."""
    assert isinstance(term.loss, Feature)
    return frozenset(term.options.get("relations", term.loss.reads))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _bind(
    term: Term,
    index: int,
    student: tuple[int, Sizes],
    teachers: Sequence[tuple[int, Sizes]],
    vocabulary: int,
    generator: torch.Generator,
    device: str | torch.device,
) -> Term:
    loss = term.loss
    if isinstance(loss, Response):
        if loss.init is None:
            return term
        return replace(term, params=(_trained(loss.init(vocabulary, generator, **term.options), device),))
    teacher = teachers[term.teacher]
    asked = loss.layers if term.layers is None else term.layers
    pairs = resolve(asked, student[0], teacher[0], f"distill.objective.{index}")
    params: list[Params] = []
    if loss.init is not None:
        count = len(pairs) if loss.joint else 1
        sizes = replace(student[1], layers=count), replace(teacher[1], layers=count)
        sets = 1 if loss.joint else len(pairs)
        params = [_trained(loss.init(*sizes, generator, **term.options), device) for _ in range(sets)]
    return replace(term, pairs=tuple(pairs), params=tuple(params))


def _trained(params: Params, device: str | torch.device) -> Params:
    return {name: value.to(device).requires_grad_() for name, value in params.items()}
