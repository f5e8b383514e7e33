"""What comes before measuring: the recipe's stages up to its student, the machine, and what a step needs of memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from edgeslm.errors import RecipeError
from edgeslm.training_cost import fit, grid, of_recipe
from edgeslm.training_cost.grid import Point
from edgeslm.training_cost.machine import Here

LAST = "distill"  # the stage that is planned
SHAPE = ("hidden_size", "num_attention_heads", "head_dim")  # what decides the kernel of attention


@dataclass(frozen=True)
class Prepared:
    """`context` with the folders of all stages that training reads; shapes are transformers configs."""

    context: Any
    here: Here
    student: Mapping[str, Any]
    teacher: Mapping[str, Any]
    bound_tokens_per_s: float  # of a step on all of the machine, by one matrix product

    @property
    def own(self) -> Point:
        """The recipe as it is written, by one process."""
        train, rows = self.context.recipe.distill.train, self.context.recipe.batch_rows
        return Point(train.attention, min(train.micro_rows, rows), train.compile)

    @property
    def joined(self) -> tuple[str, str]:
        """How several processes share the work unless another way is asked for: as the recipe says, as is usual."""
        return self.context.recipe.distill.train.parallel.kind, self.here.backend

    def job(self, point: Point, steps: int, warmups: int) -> dict[str, Any]:
        context = self.context
        return {
            "kind": "recipe",
            "recipe": context.recipe.model_dump(mode="json"),
            "base": str(context.base),
            "root": str(context.root),
            "folders": {name: str(folder) for name, folder in context.folders.items()},
            "student": {key: self.student.get(key) for key in SHAPE},
            "point": point.to_json(),
            "steps": steps,
            "warmups": warmups,
        }

    def identity(self, steps: int, warmups: int) -> list[Any]:
        """What decides a figure beside the point: the training part of the recipe, the code and text behind the
        folders' names, the machine, versions, and how it was measured."""
        from edgeslm.pipeline.stage import PACKAGE, WEIGHTS, code_digest

        recipe = self.context.recipe
        told = recipe.model_dump(mode="json", include={"distill", "quantize", "data", "seed", "threads", "device"})
        train = told["distill"]["train"]
        for key in ("attention", "micro_rows", "compile"):  # these the point says
            train.pop(key)
        if train["parallel"]["kind"] == "ddp":
            train.pop("parallel")
        folders = sorted(folder.name for folder in self.context.folders.values())
        code = code_digest(PACKAGE, (*WEIGHTS, "training_cost"))
        return [told, folders, code, self.here.identity(), steps, warmups]

    def needs(self, point: Point) -> fit.Needs:
        from edgeslm.pipeline.check.memory import step_of

        recipe = self.context.recipe
        own = -(-recipe.batch_rows // point.ranks)  # rows of a rank
        rows = min(point.micro_rows, own)
        step = replace(step_of(self.context), rows=rows, batches=-(-own // rows))
        return fit.needs(self.student, self.teacher, point, step, int(getattr(recipe.distill.scheme, "peers", 1)))


def prepare(recipe: Any, base: Path, runs: Path, progress: Any, least: int) -> Prepared:
    """Runs what of the recipe's stages is missing, up to its student; a run that stands is left as it is. `least`:
    steps that will be run to measure a point. Raises EdgeSLMError."""
    from edgeslm import compute, cost, parallel
    from edgeslm.models.load import describe
    from edgeslm.pipeline.check import check
    from edgeslm.pipeline.distill import taught_live
    from edgeslm.pipeline.run import run
    from edgeslm.pipeline.stage import Context
    from edgeslm.pipeline.vocabulary import cut_summary
    from edgeslm.training_cost.machine import here

    of_recipe.refuse(recipe, least)
    if parallel.size() > 1:
        raise RecipeError(["plan-training starts the processes that it needs itself; run it without torchrun"])
    alone = by_one_process(recipe)
    context = Context(alone, base, runs / recipe.name, progress)
    before = stages_before(recipe)
    if stand(context, before):
        check(context).raise_if_any()
    else:
        with as_it_was(context.root / "run.json", context.root / "recipe.yaml"):
            run(alone, base, runs, progress, before[-1].name)
        stand(context, before)
    context.recipe = recipe
    found = here(context.compute)
    teacher = cut_summary(context, describe(context.source)).config
    student = student_config(context, teacher)
    flops = compute.matmul_flops(context.compute, seconds=0.2)
    live = teacher if taught_live(context) else None
    bound = cost.training_bound(student, recipe.data.sequence, flops, live)
    compute.return_freed_memory()  # the processes that are measured may want it
    return Prepared(context, found, student, teacher, bound)


@contextmanager
def as_it_was(*files: Path) -> Iterator[None]:
    """Files that were there are what they were afterwards: a finished run keeps its record."""
    before = {file: file.read_bytes() for file in files if file.exists()}
    try:
        yield
    finally:
        for file, content in before.items():
            file.write_bytes(content)


def stages_before(recipe: Any) -> tuple[Any, ...]:
    from edgeslm.pipeline.run import stages

    every = stages(recipe)
    return every[: [stage.name for stage in every].index(LAST)]


def stand(context: Any, stages: tuple[Any, ...]) -> bool:
    """Whether all stages are done; their folders are noted in the context as far as they are."""
    from edgeslm.pipeline.stage import place

    for stage in stages:
        folder = place(stage, context)
        if not (folder / "done.json").exists():
            return False
        context.folders[stage.name] = folder
    return True


def student_config(context: Any, teacher: Mapping[str, Any]) -> dict[str, Any]:
    """Of the student as built (edgeslm.pipeline.prepare.student_model), without its weights."""
    from edgeslm.models.load import describe
    from edgeslm.pipeline.stage import read_json
    from edgeslm.pipeline.vocabulary import origin_source

    folder = context.folders["student"]
    facts = read_json(folder / "importance.json")
    if "weights" in facts:
        return dict(read_json(folder / "model" / "config.json"))
    config = dict(describe(origin_source(context)).config if "source" in facts else teacher)
    return config | ({"num_hidden_layers": len(facts["kept"])} if "kept" in facts else {})


def by_one_process(recipe: Any) -> Any:
    """Stages before training are one process's whatever the recipe says of training."""
    from edgeslm.recipe.distill import DdpParallel

    train = recipe.distill.train.model_copy(update={"parallel": DdpParallel()})
    return recipe.model_copy(update={"distill": recipe.distill.model_copy(update={"train": train})})


def refusal(recipe: Any, point: Point, here: Here) -> str | None:
    """Why a point cannot be run here, as the end of a sentence; None where nothing stands against it."""
    from pydantic import ValidationError

    from edgeslm.pipeline.ranks import refuse

    try:
        made = of_recipe.begun(recipe.model_dump(mode="json"), point.to_json(), recipe.distill.train.steps)
        if point.ranks > 1:
            refuse(made, point.ranks)
    except ValidationError as error:
        return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
    except RecipeError as error:
        return error.problems[0]
    return here.refusal(point)


def offered(recipe: Any, point: Point, backend: str) -> bool:
    """Whether a recipe can ask for the point. `backend`: what its processes would speak over on this device."""
    if point.ranks > 1 and point.backend != backend:
        return False
    return point.attention in get_args(type(recipe.distill.train).model_fields["attention"].annotation)


def overrides(recipe: Any, point: Point, own: Point) -> list[str]:
    """What to add to the command for `point`, where it differs from the recipe as it is."""
    said = [
        f"distill.train.{key}={str(getattr(point, key)).lower()}"
        for key in ("attention", "micro_rows", "compile")
        if getattr(point, key) != getattr(own, key)
    ]
    kind = point.parallel if point.ranks > 1 else grid.PARALLEL[0]
    return said + ([f"distill.train.parallel.kind={kind}"] if kind != recipe.distill.train.parallel.kind else [])


def command(recipe: Any, point: Point, own: Point) -> str:
    """What starts the recipe as `point`; empty where that is how it would be started anyway."""
    said = overrides(recipe, point, own)
    if point.ranks == 1 and not said:
        return ""
    start = f"torchrun --nproc-per-node {point.ranks} -m edgeslm" if point.ranks > 1 else "edgeslm"
    return " ".join([start, "run RECIPE", *said])
