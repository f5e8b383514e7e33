"""The part of `check` that looks at teachers beside the recipe's first: others of an ensemble, those of a route, the
earlier student of a residual, and targets recorded elsewhere."""

from __future__ import annotations

from functools import partial
from typing import Any

from edgeslm.errors import ModelError
from edgeslm.pipeline import check_losses
from edgeslm.pipeline.stage import Context


def teachers(context: Context, found: Any, summary: Any, student: dict[str, Any]) -> None:
    """`summary` of the recipe's first teacher; `student`: its config. Everything named is found and speaks the same
    vocabulary; layers that the objective names are there."""
    recipe = context.recipe
    counts = [int(summary.config["num_hidden_layers"])]
    for index, more in enumerate(recipe.teacher.more):
        described = found.attempt(partial(_same_vocabulary, context, more, f"teacher.more.{index}"))
        counts.append(int(described.config["num_hidden_layers"]) if described else counts[0])
    scheme = recipe.distill.scheme
    for spec in getattr(scheme, "anchors", ()) + ((scheme.base,) if scheme.kind == "residual" else ()):
        found.attempt(partial(_same_vocabulary_as, context, spec, f"distill.scheme: {spec}"))
    check_losses.layers(recipe, int(student["num_hidden_layers"]), counts, found)
    folder = getattr(recipe.distill.targets, "folder", None)
    if folder is not None:
        from edgeslm.teachers.recorded import read_index

        index_ = found.attempt(partial(read_index, context.base / folder))
        if index_ is not None:
            found.problems += _other_targets(recipe.distill.targets, index_)
    if recipe.distill.on_policy and recipe.distill.on_policy.prompt >= recipe.data.sequence - 1:
        found.problems.append(
            f"distill.on_policy.prompt: {recipe.distill.on_policy.prompt} tokens leave the student nothing to write in "
            f"rows of {recipe.data.sequence} (data.sequence)"
        )


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


def _same_vocabulary_as(context: Context, spec: str, where: str) -> Any:
    return _described(context, context.resolve(spec), where)


def _described(context: Context, source: Any, where: str) -> Any:
    """Its summary. Raises ModelError when its tokens are not the first teacher's."""
    from edgeslm.models.agreement import vocabulary_difference
    from edgeslm.models.load import describe
    from edgeslm.models.tokenizer import load_tokenizer

    summary = describe(source)
    if difference := vocabulary_difference(context.tokenizer, load_tokenizer(source)):
        raise ModelError(
            f"{where}: speaks another vocabulary than the first teacher ({difference}); a teacher under teacher.more "
            "may, with other_vocabulary: true and the loss uld"
        )
    return summary


def _other_targets(part: Any, index: dict[str, Any]) -> list[str]:
    wanted = (part.k, 0) if part.kind == "topk" else (part.keep, part.samples)
    held = (index["count"], index["samples"])
    if (*wanted, part.temperature) == (*held, index["temperature"]):
        return []
    return [
        f"distill.targets.folder: was recorded with {held[0]} kept and {held[1]} sampled outcomes at temperature "
        f"{index['temperature']}; the recipe asks for {wanted[0]} and {wanted[1]} at {part.temperature}"
    ]
