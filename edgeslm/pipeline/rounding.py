"""The rounding stage: codes and scales of every matrix before training, for a recipe that rounds with feedback.

A stage of its own, since steps, rates and objectives do not change it, and since processes that train together, whose
sums differ in their last bits, then all begin with the same codes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeslm.pipeline.distill import chosen_student, plan_of, shapes_of, student_arch
from edgeslm.pipeline.grid import importance_rows, rounded
from edgeslm.pipeline.groups import here, own_start, starts_apart
from edgeslm.pipeline.moments import gathered, groups_of
from edgeslm.pipeline.origin import metadata
from edgeslm.pipeline.prepare import student_model
from edgeslm.pipeline.stage import Context, Stage, computing


def _slice(context: Context) -> Any:
    part = context.recipe.quantize
    return (
        part.rounding,
        part.importance and part.importance.model_dump(mode="json"),
        plan_of(context).rules,
        _copies(context),
        context.recipe.seed,
        computing(context),
        chosen_student(context),
    )


def _copies(context: Context) -> tuple[int, ...]:
    """The groups of a codistillation whose copies have weights of their own; else one stands for all."""
    return here(context) if starts_apart(context.recipe) else (0,)


def _round(context: Context, folder: Path) -> None:
    from edgeslm.data.rows import Rows
    from edgeslm.models.arch.base import plain
    from edgeslm.quantize.freeze import freeze
    from edgeslm.quantize.masters import attach

    ids = importance_rows(context, Rows.load(context.folders["data"] / "rows.safetensors"), context.recipe.seed)
    for group in _copies(context):
        student = own_start(context, student_model(context), group)
        masters = attach(student, plan_of(context).assign(shapes_of(student)), context.compute.dtype)
        _feed_back(context, student, masters, ids)
        about = student_arch(context), plain(student.config), context.folders["teacher"] / "tokenizer"
        frozen = freeze(masters, *about, f"{context.recipe.name}-rounded", metadata(context))
        frozen.save(rounded(context, folder, group))


def _feed_back(context: Context, student: Any, masters: Any, ids: Any) -> None:
    """Scales and codes of GPTQ, or of its counterpart in the measure of the loss."""
    from edgeslm.quantize.feedback import round_model

    by_loss = context.recipe.quantize.by_loss
    on_grid = {m.name: m for m in masters.items if m.on_grid and m.value.dim() == 2}
    for group in groups_of(context, student, on_grid, by_loss):
        moments = gathered(context, student, ids, group, by_loss, context.recipe.seed)
        weights = {name: on_grid[name].value.data for name in group}
        formats = {name: on_grid[name].format.name for name in group}
        with context.progress.task("rounding with feedback", len(group), "tensors") as bar:
            for name, found in round_model(weights, **moments, assigned=formats):
                on_grid[name].adopt(found.weight, found.codes, found.scales)
                bar.advance(1)
        del moments  # before the next are gathered


ROUND = Stage("round", ("teacher", "data"), _slice, _round)
