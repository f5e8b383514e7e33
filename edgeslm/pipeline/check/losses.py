"""The part of `check` that looks at the objective and the scheme: losses that exist, options they take, values that
mean something, and signals that the teachers can give."""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from edgeslm.errors import RecipeError, instead
from edgeslm.pipeline.check import groups
from edgeslm.pipeline.processes import can_be_cut
from edgeslm.pipeline.ranks import cut
from edgeslm.recipe import Recipe

STRICT = ConfigDict(strict=True, allow_inf_nan=False)  # true is no number, and "2" neither


def losses(recipe: Recipe, found: Any) -> None:
    from edgeslm.knowledge import LOSSES

    for index, term in enumerate(recipe.distill.objective):
        where = f"distill.objective.{index}"
        if term.loss not in LOSSES:
            hint = instead(term.loss, LOSSES, f"known: {', '.join(LOSSES)}")
            found.problems.append(f"{where}: unknown loss '{term.loss}'; {hint}")
            continue
        options = options_of(LOSSES[term.loss].fn)
        for key, value in (term.model_extra or {}).items():
            if key not in options:
                found.problems.append(
                    f"{where}: '{term.loss}' has no option '{key}'; it takes {', '.join(options) or 'none'}"
                )
            elif wrong := mistake(value, options[key]):
                found.problems.append(f"{where}.{key}: {value!r} is not valid: {wrong}")
        found.problems += [f"{where}: {problem}" for problem in _signals(recipe, term, LOSSES[term.loss])]
    found.problems += _scheme(recipe)


def _scheme(recipe: Recipe) -> list[str]:
    """What scheme and objective together leave without an aim."""
    from edgeslm.knowledge import LOSSES
    from edgeslm.knowledge.base import Feature
    from edgeslm.recipe.distill import LossTerm

    distill, problems = recipe.distill, []
    scheme = distill.scheme
    named = [LOSSES[term.loss] for term in distill.objective if term.loss in LOSSES]
    outputs = [loss for loss in named if not isinstance(loss, Feature)]
    if scheme.kind == "online" and not scheme.outer_share and all(loss.needs_teacher for loss in outputs):
        problems.append(
            "distill.scheme: peers that only follow each other learn nothing; add {loss: cross_entropy} to the "
            "objective, or give the recipe's teacher an outer_share"
        )
    if not any(isinstance(loss, Feature) or loss.needs_teacher for loss in named):
        problems += [
            f"{what}: no loss of the objective has a teacher; add one, such as forward_kl, or leave it out"
            for what in _teachers_unheard(recipe)
        ]
    if scheme.kind == "codistill":
        problems += groups.problems(recipe)
    if distill.on_policy and not any(isinstance(loss, Feature) or loss.needs_teacher for loss in named):
        problems.append("distill.on_policy: nothing grades what the student writes; add a loss that has a teacher")
    if getattr(scheme, "exits", ()) and not outputs:
        problems.append("distill.scheme: exits have nothing to learn; add a loss on the output, such as forward_kl")
    if getattr(scheme, "exits", ()) and distill.train.compile:
        problems.append(
            "distill.scheme: exits read layers, which compiled layers do not show; set distill.train.compile: false"
        )
    if scheme.kind == "blockwise":
        loss = LOSSES.get(scheme.loss)
        if isinstance(loss, Feature):
            found = _signals(recipe, LossTerm(loss=scheme.loss), loss)
            problems += [f"distill.scheme.loss: {problem}" for problem in found]
        else:
            problems.append(f"distill.scheme.loss: '{scheme.loss}' is no loss on layers")
    return problems


def _teachers_unheard(recipe: Recipe) -> list[str]:
    """What the recipe says of teaching, beyond its first teacher, which it is judged by in any case."""
    scheme = recipe.distill.scheme
    said = {
        "teacher.more": bool(recipe.teacher.more),
        "teacher.format": recipe.teacher.format is not None,
        "distill.scheme": scheme.kind == "self" and scheme.teacher != "deep",
    }
    return [key for key, there in said.items() if there]


def _signals(recipe: Recipe, term: Any, loss: Any) -> list[str]:
    """What the recipe's teachers, targets and attention cannot give this term."""
    from edgeslm.knowledge.base import Feature

    distill, problems = recipe.distill, []
    recorded = distill.targets.kind != "live"
    if not isinstance(loss, Feature):
        if term.layers is not None:
            problems.append(f"'{term.loss}' looks at the output, not at layers; leave layers out")
        if getattr(term, "learn", "all") == "answers" and distill.on_policy and loss.needs_teacher:
            problems.append("what a student writes has no marked answers; leave learn out, or on_policy")
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
    if getattr(term, "learn", "all") == "answers":
        problems.append(f"'{term.loss}' looks at layers of whole rows; learn: answers is for losses on the output")
    if recorded:
        problems.append(f"'{term.loss}' looks at layers, which are not recorded; use targets: {{kind: live}}")
    if distill.scheme.kind in ("online", "self") and getattr(distill.scheme, "teacher", "") != "deep":
        problems.append(f"'{term.loss}' looks at layers, which scheme '{distill.scheme.kind}' does not exchange")
    if term.teacher and distill.scheme.kind == "route":
        problems.append("anchors of a route are one teacher each; leave teacher out of this term")
    if term.teacher > len(recipe.teacher.more):
        problems.append(f"teacher {term.teacher} is asked for, but there are {1 + len(recipe.teacher.more)}, from 0 on")
    if "attention" in loss.reads and distill.train.attention != "eager":
        problems.append(
            f"'{term.loss}' reads attention maps; set distill.train.attention: eager (slower, B H T T more)"
        )
    if 0 < term.teacher <= len(recipe.teacher.more) and recipe.teacher.more[term.teacher - 1].other_vocabulary:
        problems.append(f"'{term.loss}' compares layers token by token; a teacher of another vocabulary has others")
    if distill.train.compile:
        problems.append(
            f"'{term.loss}' reads layers, which compiled layers do not show; set distill.train.compile: false"
        )
    return problems + _rows(recipe, term, loss)


def _rows(recipe: Recipe, term: Any, loss: Any) -> list[str]:
    """Relations among rows exist inside a micro-batch only."""
    over = inspect.signature(loss.fn).parameters.get("over")
    if over is None or (term.model_extra or {}).get("over", over.default) != "rows":
        return []
    least, rows, micro = 3 if term.loss == "rkd_angle" else 2, recipe.batch_rows, recipe.distill.train.micro_rows
    fewest = rows % micro or min(rows, micro)
    if fewest >= least:
        return []
    return [
        f"'{term.loss}' compares {least} rows or more with each other, but {rows} rows a step (distill.train."
        f"batch_tokens) in parts of {micro} (micro_rows) leave {fewest} alone; change one of them, or say over: tokens"
    ]


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


def layers(recipe: Recipe, student: Mapping[str, Any], teachers: Sequence[Mapping[str, Any]], found: Any) -> None:
    """Layer maps, exits and options against layers and widths of the models, given by their configs."""
    from edgeslm.knowledge import LOSSES
    from edgeslm.knowledge.base import Feature

    scheme, count = recipe.distill.scheme, int(student["num_hidden_layers"])
    own, theirs = sizes(student), [sizes(config) for config in teachers]
    for index, term in enumerate(recipe.distill.objective):
        if isinstance(LOSSES.get(term.loss), Feature) and term.teacher < len(teachers):
            found.attempt(partial(_tried, term.model_dump(), f"distill.objective.{index}", own, theirs, found))
    for layer in getattr(scheme, "exits", ()):
        if layer >= count:
            found.problems.append(f"distill.scheme.exits: layer {layer} is not before the last of {count}")
    if scheme.kind == "blockwise" and scheme.blocks > count:
        found.problems.append(f"distill.scheme.blocks: {scheme.blocks} blocks of {count} layers; use fewer")
    elif scheme.kind == "blockwise" and isinstance(LOSSES.get(scheme.loss), Feature):
        block = {"loss": scheme.loss, "layers": ((1, 1),)}
        found.attempt(partial(_tried, block, "distill.scheme.loss", own, theirs, found))
    if cut(recipe) and not found.problems:
        found.attempt(partial(can_be_cut, recipe, own, theirs))


def sizes(config: Mapping[str, Any]) -> Any:
    """(number of layers, widths) of a model's config."""
    from edgeslm.models.blocks import sizes_of

    return sizes_of(SimpleNamespace(**config))


def _tried(term: dict[str, Any], where: str, student: Any, teachers: Sequence[Any], found: Any) -> None:
    """Maps the term's layers and, where nothing is wrong so far, calls the loss on zeros of the models' widths. Raises
    RecipeError."""
    import torch

    from edgeslm.knowledge import LOSSES
    from edgeslm.schemes.layer_map import resolve
    from edgeslm.schemes.objective import Objective
    from edgeslm.schemes.terms import feature

    loss, teacher = LOSSES[term["loss"]], teachers[term.get("teacher", 0)]
    asked = loss.layers if term.get("layers") is None else term["layers"]  # type: ignore[union-attr]
    pairs = resolve(asked, student[0], teacher[0], where)
    reads = term.get("relations", loss.reads)  # type: ignore[union-attr]
    if reads != ("hidden",) and any(0 in (s, *many) for s, many in pairs):
        raise RecipeError([f"{where}.layers: layer 0 is the embedding, which has no {reads[0]}; name others"])
    if found.problems:
        return
    (made,) = Objective.build([term]).bound(student, teachers, 1, torch.Generator()).terms
    rows, length = 3, 4
    ours = {s: _zeros(reads, student[1], rows, length) for s, _ in pairs}
    theirs = {t: _zeros(reads, teacher[1], rows, length) for _, many in pairs for t in many}
    try:
        feature(made, ours, theirs, torch.ones(rows, length))
    except ValueError as error:
        raise RecipeError([f"{where}: {error}"]) from error


def _zeros(reads: Sequence[str], of: Any, rows: int, length: int) -> Any:
    """A layer of a model of these sizes."""
    import torch

    from edgeslm.knowledge.base import Layer

    shapes = {"hidden": (rows, length, of.hidden), "attention": (rows, of.heads, length, length)}
    each = (rows, of.heads, length, of.head_width)
    return Layer(**{name: torch.zeros(shapes.get(name, each)) for name in reads})


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
        said = "; ".join(str(e["msg"]) for e in error.errors())
        return said + (f", and YAML reads this as text; write {float(value)!r}" if _reads_as_number(value) else "")
    return None


def _reads_as_number(value: Any) -> bool:
    """1e-1 is text to YAML 1.1, which wants 1.0e-1."""
    if not isinstance(value, str) or "e" not in value.lower():
        return False
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False
