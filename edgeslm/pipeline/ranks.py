"""A recipe on several processes (torchrun -m edgeslm run RECIPE): the first does every stage, all train together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeslm.errors import RecipeError
from edgeslm.pipeline.stage import Context, Stage, place
from edgeslm.recipe import Recipe

TOGETHER = "distill"


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
    more than one cannot do."""
    if not many():
        return True
    from edgeslm import parallel

    _refuse(recipe, parallel.size())
    return parallel.join().first


def _refuse(recipe: Any, ranks: int) -> None:
    found = []
    if not isinstance(recipe, Recipe):
        raise RecipeError(["family: encoder: is trained by one process; start one"])
    if recipe.batch_rows < ranks:
        found.append(
            f"distill.train.batch_tokens: {recipe.batch_rows} rows a step leave some of {ranks} processes without any; "
            "raise it, or start fewer"
        )
    if recipe.distill.on_policy is not None:
        found.append("distill.on_policy: what a student writes is not shared out among processes; start one")
    if found:
        raise RecipeError(found)


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


def follow(context: Context, stages: tuple[Stage, ...], until: str | None) -> Path:
    """What every process but the first does: it waits for stages, and trains with the first."""
    from edgeslm import parallel

    ranks = parallel.join()
    for stage in stages:
        if stage.name == TOGETHER and ranks.told(None):
            stage.run(context, place(stage, context))
        ranks.wait()
        if stage.name in (TOGETHER, until):
            break
        context.folders[stage.name] = place(stage, context)
    parallel.leave()
    return context.root
