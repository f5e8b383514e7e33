"""The part of `check` that looks at the objective and the scheme: losses that exist, options they take, values that
mean something, and signals that the teachers can give."""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from edgeslm.recipe import Recipe

STRICT = ConfigDict(strict=True, allow_inf_nan=False)  # true is no number, and "2" neither


def losses(recipe: Recipe, found: Any) -> None:
    from edgeslm.knowledge import LOSSES

    for index, term in enumerate(recipe.distill.objective):
        where = f"distill.objective.{index}"
        if term.loss not in LOSSES:
            near = difflib.get_close_matches(term.loss, LOSSES, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(LOSSES)}"
            found.problems.append(f"{where}: unknown loss '{term.loss}'; {hint}")
            continue
        options = options_of(LOSSES[term.loss].fn)
        for key, value in (term.model_extra or {}).items():
            if key not in options:
                found.problems.append(
                    f"{where}: '{term.loss}' has no option '{key}'; it takes {', '.join(options) or 'none'}"
                )
            elif wrong := mistake(value, options[key]):
                found.problems.append(f"{where}.{key}: {value!r} does not do: {wrong}")
        found.problems += [f"{where}: {problem}" for problem in _signals(recipe, term, LOSSES[term.loss])]


def _signals(recipe: Recipe, term: Any, loss: Any) -> list[str]:
    """What the recipe's teachers, targets and attention cannot give this term."""
    from edgeslm.knowledge.base import Feature

    distill, problems = recipe.distill, []
    recorded = distill.targets.kind != "live"
    if not isinstance(loss, Feature):
        if term.layers is not None:
            problems.append(f"'{term.loss}' looks at the output, not at layers; leave layers out")
        if recorded and loss.needs_teacher:
            problems += _recorded(distill.targets, term, loss)
        more = recipe.teacher.more
        foreign = 0 < term.teacher <= len(more) and more[term.teacher - 1].other_vocabulary
        if term.teacher and not foreign:
            problems.append("teachers of one vocabulary are mixed by teacher.combine; leave teacher out of this term")
        if foreign and term.loss != "uld":
            problems.append(f"'{term.loss}' compares token by token; with a teacher of another vocabulary use uld")
        if foreign and distill.scheme.kind not in ("offline", "blockwise", "residual"):
            problems.append(f"a teacher of another vocabulary does not teach in scheme '{distill.scheme.kind}'")
        return problems
    if recorded:
        problems.append(f"'{term.loss}' looks at layers, which are not recorded; use targets: {{kind: live}}")
    if distill.scheme.kind in ("online", "self") and getattr(distill.scheme, "teacher", "") != "deep":
        problems.append(f"'{term.loss}' looks at layers, which scheme '{distill.scheme.kind}' does not exchange")
    if term.teacher > len(recipe.teacher.more):
        problems.append(f"teacher {term.teacher} is asked for, but there are {1 + len(recipe.teacher.more)}, from 0 on")
    if "attention" in loss.reads and distill.train.attention != "eager":
        problems.append(
            f"'{term.loss}' reads attention maps; set distill.train.attention: eager (slower, B H T T more)"
        )
    if distill.train.compile:
        problems.append(
            f"'{term.loss}' reads layers, which compiled layers do not show; set distill.train.compile: false"
        )
    return problems


def _recorded(targets: Any, term: Any, loss: Any) -> list[str]:
    """Law: a recorded target serves at the temperature it was recorded with, and a sample the forward KL alone."""
    heat = (term.model_extra or {}).get("temperature", 1.0)
    if heat != targets.temperature:
        return [f"targets are recorded at temperature {targets.temperature}, not {heat}; make them the same"]
    if targets.kind == "sampled" and term.loss != "forward_kl":
        return [f"sampled targets serve forward_kl alone, not '{term.loss}'; use kind: topk, or live"]
    if not loss.coarse:
        return [f"'{term.loss}' needs the teacher's whole distribution; use targets: {{kind: live}}"]
    return []


def layers(recipe: Recipe, student: int, teachers: Sequence[int], found: Any) -> None:
    """Layer maps and exits against the models' numbers of layers."""
    from edgeslm.knowledge import LOSSES
    from edgeslm.knowledge.base import Feature
    from edgeslm.schemes.layer_map import resolve

    for index, term in enumerate(recipe.distill.objective):
        if isinstance(LOSSES.get(term.loss), Feature) and term.layers is not None and term.teacher < len(teachers):
            where = f"distill.objective.{index}"
            found.attempt(partial(resolve, term.layers, student, teachers[term.teacher], where))
    scheme = recipe.distill.scheme
    for layer in getattr(scheme, "exits", ()):
        if layer >= student:
            found.problems.append(f"distill.scheme.exits: layer {layer} is not before the last of {student}")
    if scheme.kind == "blockwise":
        if scheme.blocks > student:
            found.problems.append(f"distill.scheme.blocks: {scheme.blocks} blocks of {student} layers; use fewer")
        if not isinstance(LOSSES.get(scheme.loss), Feature):
            found.problems.append(f"distill.scheme.loss: '{scheme.loss}' is no loss on layers")


def options_of(fn: Callable[..., Any]) -> dict[str, Any]:
    """{keyword argument: its annotation}, bounds included where it is `Annotated`."""
    hints = typing.get_type_hints(fn, include_extras=True)
    accepted = inspect.signature(fn).parameters.values()
    return {p.name: hints[p.name] for p in accepted if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name != "params"}


def mistake(value: Any, annotation: Any) -> str | None:
    """What is wrong with a value for an option of this type and these bounds."""
    try:
        TypeAdapter(annotation, config=STRICT).validate_python(value)
    except ValidationError as error:
        return "; ".join(str(e["msg"]) for e in error.errors())
    return None
