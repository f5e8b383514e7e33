"""The part of `check` that looks at a codistillation: groups that would never meet, and what they tell each other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from edgeslm import units
from edgeslm.errors import DataError, RecipeError
from edgeslm.pipeline.check.files import unfinished
from edgeslm.pipeline.distill import DISTILL
from edgeslm.pipeline.groups import VARIABLE, here, named, servers, starts_apart
from edgeslm.pipeline.stage import Context
from edgeslm.recipe import Recipe


def problems(recipe: Recipe) -> list[str]:
    """Sentences about a recipe whose scheme is codistill."""
    scheme: Any = recipe.distill.scheme
    found = _meetings(scheme, recipe.distill.train.steps)
    if scheme.after == "average" and starts_apart(recipe):
        found.append("distill.scheme.after: copies that start apart have no common average; use after: pick")
    if scheme.after == "average" and recipe.quantize.holds_codes:
        found.append("distill.scheme.after: scales trained alone have no common average; use after: pick")
    if scheme.share.kind == "served":
        try:
            servers(recipe)
        except RecipeError as error:
            found += error.problems
        if scheme.group is None and scheme.folder is None and not os.environ.get(VARIABLE):
            found.append(
                "distill.scheme.share: one process that trains all groups meets them inside its run, where no server "
                f"looks; give each group a process (group, or {VARIABLE}), or name a folder"
            )
    return found


def _meetings(scheme: Any, steps: int) -> list[str]:
    """Copies that would never learn from each other."""
    from edgeslm.schemes.codistill import scheduled_step, takes

    learning = (done for done in range(1, steps) if takes(scheme, done, steps))
    if not steps or any(scheduled_step(scheme, done) for done in learning):
        return []
    return [
        f"distill.scheme: no copy would learn from another in {steps} steps: the first exchange that follows burn_in "
        f"({round(scheme.burn_in * steps)} steps), every {scheme.exchange_every} (lag {scheme.lag}), comes too late"
    ]


def place(context: Context, found: Any) -> None:
    """Where groups meet must be there for this process to write to; what it cannot reach stops no group that has begun
    (see codistill), and so not its next start either."""
    scheme: Any = context.recipe.distill.scheme
    if scheme.kind != "codistill" or scheme.folder is None:
        return
    held = unfinished(context).get(DISTILL.name)
    if held is None:  # it has met them
        return
    try:
        meeting = named(scheme.folder, context.base)
        for group in here(context):
            meeting.try_out(group)
    except DataError as error:
        found.problems.append(f"distill.scheme.folder: {error}")
    except OSError as error:
        what = f"{scheme.folder} cannot be written to ({error})"
        if held:
            found.plan.append(("codistillation, where groups meet", f"{what}; the run that has begun goes on"))
        else:
            found.problems.append(f"distill.scheme.folder: {what}; let this process write there, or name another place")


def lines(context: Context, student: Mapping[str, Any], parameters: int) -> list[tuple[str, str]]:
    """What a group tells the others, in bytes; nothing where the scheme knows no groups."""
    from edgeslm.teachers.targets import bytes_per_token

    recipe = context.recipe
    scheme: Any = recipe.distill.scheme
    if scheme.kind != "codistill":
        return []
    share, every = scheme.share, scheme.exchange_every
    checkpoint = units.byte_count(parameters * context.compute.dtype.itemsize)
    if share.kind == "weights":
        peers = scheme.groups - 1 if scheme.learn_from == "all" else scheme.learn_from
        held = units.byte_count(peers * parameters * context.compute.dtype.itemsize)
        return [
            ("codistillation", f"a checkpoint of {checkpoint} from each group, every {every} steps"),
            ("codistillation, for its peers", f"{held} more memory in each group"),
        ]
    token, predictions = bytes_per_token(share.k, 0, student["vocab_size"]), recipe.data.sequence - 1
    if share.kind == "predictions":
        size = units.byte_count(share.rows * (predictions * token + 8))
        return [
            (
                "codistillation",
                f"predictions on {share.rows} shared rows from each group, {token} bytes a token, {size} every "
                f"{every} steps",
            )
        ]
    size = units.byte_count(recipe.batch_rows * (predictions * token + 8))
    return [
        ("codistillation", f"predictions from a server, {token} bytes a token, {size} a peer and step"),
        ("codistillation, for the server", f"a checkpoint of {checkpoint} from each group, every {every} steps"),
    ]
