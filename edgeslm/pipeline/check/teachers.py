"""The part of `check` that looks at teachers beside the recipe's first: others of an ensemble, those of a route, the
earlier student of a residual, and targets recorded elsewhere."""

from __future__ import annotations

from functools import partial
from typing import Any

from edgeslm.errors import ModelError
from edgeslm.pipeline.check import losses
from edgeslm.pipeline.stage import Context


def teachers(context: Context, found: Any, summary: Any, student: dict[str, Any]) -> None:
    """`summary` of the recipe's first teacher; `student`: its config. Everything named is found and speaks the same
    vocabulary; layers that the objective names are there."""
    recipe = context.recipe
    configs = [summary.config]
    for index, more in enumerate(recipe.teacher.more):
        described = found.attempt(partial(_same_vocabulary, context, more, f"teacher.more.{index}"))
        configs.append(described.config if described else summary.config)
    found.problems += _by_scheme(context, found, summary, student)
    losses.layers(recipe, student, configs, found)
    if recipe.distill.targets.kind != "live":
        _targets(context, found, summary.vocab_size, int(student["vocab_size"]))
    if recipe.distill.on_policy and recipe.distill.on_policy.prompt >= recipe.data.sequence - 1:
        found.problems.append(
            f"distill.on_policy.prompt: {recipe.distill.on_policy.prompt} tokens leave the student nothing to write in "
            f"rows of {recipe.data.sequence} (data.sequence)"
        )


def _by_scheme(context: Context, found: Any, summary: Any, student: dict[str, Any]) -> list[str]:
    """What is wrong with the models that the scheme names."""
    from edgeslm.knowledge import LOSSES
    from edgeslm.knowledge.base import Feature

    recipe, problems = context.recipe, []
    scheme = recipe.distill.scheme
    for spec in getattr(scheme, "anchors", ()) + ((scheme.base,) if scheme.kind == "residual" else ()):
        described = found.attempt(
            lambda spec=spec: _described(context, context.resolve(spec), f"distill.scheme: {spec}")
        )
        if described is None:
            continue
        layers = any(isinstance(LOSSES.get(term.loss), Feature) for term in recipe.distill.objective)
        (ours, own), (theirs, other) = (losses.sizes(x.config) for x in (summary, described))
        if scheme.kind == "route" and layers and (ours, own) != (theirs, other):
            problems.append(
                f"distill.scheme: {spec}: has {theirs} layers of width {other.hidden}, the recipe's teacher {ours} of "
                f"{own.hidden}; losses on layers need anchors of one shape"
            )
        if scheme.kind == "residual" and described.vocab_size != student["vocab_size"]:
            problems.append(
                f"distill.scheme: {spec}: its head has {described.vocab_size} rows, the student's "
                f"{student['vocab_size']}; logits that are added must be of the same outcomes"
            )
    return problems


def _targets(context: Context, found: Any, teacher: int, student: int) -> None:
    """Recorded targets: `teacher` and `student` are the rows of their heads."""
    from edgeslm.teachers.recorded import read_index

    part: Any = context.recipe.distill.targets
    if part.folder is not None:
        index = found.attempt(partial(read_index, context.base / part.folder))
        if index is None:
            return
        found.problems += _other_targets(part, index)
        teacher = index["vocabulary"]
    if teacher > student:
        found.problems.append(
            f"distill.targets: the teacher's head has {teacher} rows, the student's {student}; what is recorded may "
            "name outcomes that the student does not have, use targets: {kind: live}"
        )


def origin(context: Context) -> Any:
    """Summary of the model that the student is or is cut from, None where that is the teacher. Raises ModelError."""
    from edgeslm.pipeline.vocabulary import origin_source

    key = "model" if context.recipe.student.kind == "existing" else "origin"
    source = origin_source(context)
    return _described(context, source, f"student.{key}") if source else None


def _same_vocabulary(context: Context, more: Any, where: str) -> Any:
    source = context.resolve(more.model, more.sha256, more.tokenizer)
    if more.other_vocabulary:
        from edgeslm.models.load import describe
        from edgeslm.models.pieces import pieces
        from edgeslm.models.tokenizer import load_tokenizer

        for tokenizer in (context.tokenizer, load_tokenizer(source)):
            pieces(tokenizer)  # raises ModelError where tokens have no known bytes
        return describe(source)
    return _described(context, source, where)


def _described(context: Context, source: Any, where: str) -> Any:
    """Its summary. Raises ModelError when its tokens are neither the first teacher's nor those that are kept."""
    from edgeslm.models.agreement import vocabulary_difference
    from edgeslm.models.load import describe
    from edgeslm.models.tokenizer import load_tokenizer
    from edgeslm.pipeline.vocabulary import cut_summary

    own, summary = load_tokenizer(source), describe(source)
    difference = vocabulary_difference(context.whole_tokenizer, own)
    if difference and (context.kept is None or vocabulary_difference(context.tokenizer, own)):
        raise ModelError(
            f"{where}: speaks another vocabulary than the first teacher ({difference}); a teacher under teacher.more "
            "may, with other_vocabulary: true and the loss uld"
        )
    return cut_summary(context, summary)


def _other_targets(part: Any, index: dict[str, Any]) -> list[str]:
    wanted = (part.k, 0) if part.kind == "topk" else (part.keep, part.samples)
    held = (index["count"], index["samples"])
    if (*wanted, part.temperature) == (*held, index["temperature"]):
        return []
    return [
        f"distill.targets.folder: was recorded with {held[0]} kept and {held[1]} sampled outcomes at temperature "
        f"{index['temperature']}; the recipe asks for {wanted[0]} and {wanted[1]} at {part.temperature}"
    ]
