"""A recipe on several processes (torchrun -m edgeslm run RECIPE): the first does every stage, all train together."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeslm.errors import EdgeSLMError, RecipeError
from edgeslm.pipeline.stage import Context, Stage, place
from edgeslm.recipe import Recipe

TOGETHER = "distill"
ALONE = (
    "distill.train.parallel: fsdp2 shares a student out among processes; start them with torchrun --nproc-per-node N "
    "-m edgeslm run RECIPE, or say {kind: ddp}"
)


def many() -> bool:
    """Whether torchrun started this process among others."""
    from edgeslm import parallel

    return parallel.size() > 1


def together() -> list[int]:
    """What the number of processes adds to the identity of a training: sums of other parts have other last bits."""
    from edgeslm import parallel

    return [parallel.size()] if many() else []


def first(recipe: Any) -> bool:
    """Whether this process is the first of those that run the recipe, or the only one. Raises RecipeError for what
    more than one cannot do, or one alone."""
    if not many():
        if isinstance(recipe, Recipe) and cut(recipe):
            raise RecipeError([ALONE])
        return True
    from edgeslm import parallel

    refuse(recipe, parallel.size())
    return parallel.join().first


def refuse(recipe: Any, ranks: int) -> None:
    """Raises RecipeError for what so many processes cannot train."""
    found = []
    if not isinstance(recipe, Recipe):
        raise RecipeError(["family: encoder: is trained by one process; start one"])
    if recipe.batch_rows < ranks:
        found.append(
            f"distill.train.batch_tokens: {recipe.batch_rows} rows a step leave some of {ranks} processes without any; "
            "raise it, or start fewer"
        )
    if recipe.distill.train.offload:
        found.append(
            "distill.train.offload: is for one process; for several, parallel: {kind: fsdp2} divides the memory"
        )
    found += _relations(recipe, ranks)
    if found:
        raise RecipeError(found)


def _relations(recipe: Recipe, ranks: int) -> list[str]:
    """Losses that compare the rows of a pass with each other compare other rows where ranks share a step otherwise."""
    from edgeslm.knowledge import LOSSES

    def over_rows(term: Any) -> bool:
        over = inspect.signature(LOSSES[term.loss].fn).parameters.get("over") if term.loss in LOSSES else None
        return over is not None and (term.model_extra or {}).get("over", over.default) == "rows"

    rows, most = recipe.batch_rows, recipe.distill.train.micro_rows
    named = [term.loss for term in recipe.distill.objective if over_rows(term)]
    if not named or rows % (ranks * most) == 0:
        return []
    return [
        f"distill.objective: '{named[0]}' compares the {min(rows, most)} rows of a pass with each other, and {ranks} "
        f"processes would not make the same passes of {rows} rows; set distill.train.micro_rows to a divisor of "
        f"{rows / ranks:g}, or say over: tokens"
    ]


def cut(recipe: Recipe) -> bool:
    """Whether each process holds a part of the student only."""
    return recipe.distill.train.parallel.kind == "fsdp2"


@contextmanager
def leading(context: Context, stage: Stage) -> Iterator[None]:
    """Around a stage that the first process does: the others wait for it, or train with it, and are let go then."""
    from edgeslm import parallel

    if not many() or TOGETHER in context.folders:
        yield
        return
    ranks = parallel.join()
    if stage.name == TOGETHER:
        ranks.told(not (place(stage, context) / "done.json").exists())
    yield
    ranks.wait()
    if stage.name == TOGETHER:
        parallel.leave()


@contextmanager
def _as_long_as_the_first() -> Iterator[None]:
    """Around waiting for the first process. Raises EdgeSLMError where that one has stopped: it says why."""
    try:
        yield
    except RuntimeError as error:
        raise EdgeSLMError("the first process has stopped; what it said is the reason") from error


def follow(context: Context, stages: tuple[Stage, ...], until: str | None) -> Path:
    """What every process but the first does: it waits for stages, and trains with the first."""
    from edgeslm import parallel

    ranks = parallel.join()
    for stage in stages:
        with _as_long_as_the_first():
            mine = stage.name == TOGETHER and ranks.told(None)
        if mine:
            stage.run(context, place(stage, context))
        with _as_long_as_the_first():
            ranks.wait()
        if stage.name in (TOGETHER, until):
            break
        context.folders[stage.name] = place(stage, context)
    parallel.leave()
    return context.root
