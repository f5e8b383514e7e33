"""A recipe's server: the process that runs groups' newest checkpoints so that the groups themselves need not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from edgeslm.errors import DataError
from edgeslm.pipeline.distill import DISTILL, plan_of, shapes_of
from edgeslm.pipeline.groups import common_hash, named, served
from edgeslm.pipeline.prepare import student_model
from edgeslm.pipeline.rounding import ROUND
from edgeslm.pipeline.run import run, stages
from edgeslm.pipeline.stage import Context, read_json
from edgeslm.progress import Progress
from edgeslm.recipe import Recipe


def server(recipe: Recipe, base: Path, runs: Path, progress: Progress, address: tuple[str, int]) -> Any:
    """A PeerServer, not yet started, for the groups of a recipe: it prepares rows and student as they do, in a run
    folder of its own. Raises EdgeSLMError, also where the address cannot be had."""
    from edgeslm.data.rows import Rows
    from edgeslm.quantize import activations
    from edgeslm.quantize.masters import attach
    from edgeslm.schemes.exchange_server import Desk, PeerServer

    recipe = served(recipe, base, runs)
    scheme: Any = recipe.distill.scheme
    place = named(scheme.folder, base)
    try:
        place.try_out(None)
    except OSError as error:
        raise DataError(f"{place}: cannot be read ({error}); mend this, groups write there") from error
    names = [stage.name for stage in stages(recipe) if stage is not ROUND]  # first codes come from the groups as well
    root = run(recipe, base, runs, progress, until=names[names.index(DISTILL.name) - 1])
    context = Context(recipe, base, root, progress)
    context.folders = {name: root / folder for name, folder in read_json(root / "run.json")["stages"].items()}
    rows = Rows.load(context.folders["data"] / "rows.safetensors")
    student = student_model(context)
    assigned = plan_of(context).assign(shapes_of(student))
    attach(student, assigned, context.compute.dtype)  # for the types of its weights; what they are comes from groups
    like = copy.deepcopy(student).requires_grad_(False)  # without the masters
    if recipe.quantize.activations is not None:
        activations.install(like, assigned, recipe.quantize.activations)
    common, micro, most = common_hash(context, rows), recipe.distill.train.micro_rows, recipe.batch_rows
    desk = Desk(place, common, like, rows, scheme.groups, scheme.share.k, micro, most)
    return PeerServer(address, desk, lambda what: progress.say(f"  serve: {what}"))
