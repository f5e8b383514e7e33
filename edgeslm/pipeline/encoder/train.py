"""The trainings of an encoder's recipe: teachers tuned on their rows, the student distilled. Both are the one step."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgeslm.pipeline.encoder.making import recipe_of
from edgeslm.pipeline.stage import Context

TUNED = ({"loss": "cross_entropy"},)


def outputs(recipe: Any, tasks: Iterable[int]) -> int:
    """Width of a head for some of the recipe's tasks."""
    return {"span": 2, "similarity": 0}.get(recipe.task, sum(recipe.classes[t] for t in tasks))


def view(recipe: Any, tasks: Iterable[int]) -> Any:
    from edgeslm.encoders.view import EncoderView

    return EncoderView(recipe.task, recipe.length, recipe.classes, tuple(tasks))


def tune(context: Context, model: Any, at: int, folder: Path) -> None:
    """Cross-entropy on the labelled rows of the teacher's tasks; leaves the model tuned. Goes on from a checkpoint."""
    import shutil

    import torch

    from edgeslm.encoders.tokens import Table, read_order
    from edgeslm.quantize.masters import attach
    from edgeslm.recipe.encoder import EncoderTrain
    from edgeslm.schemes import offline
    from edgeslm.schemes.objective import Objective
    from edgeslm.schemes.step import Step

    recipe, part = recipe_of(context), recipe_of(context).teachers[at].tune
    assert part is not None
    train = EncoderTrain(steps=part.steps, batch_rows=part.batch_rows, lr=part.lr)
    folder.mkdir(exist_ok=True)
    table, served = Table.load(context.folders["data"]), recipe.served(at)
    model.to(context.compute.device)
    masters = attach(model, dict.fromkeys(dict(model.named_parameters()), "f32"), torch.float32)
    step = Step(model, masters, Objective.build(TUNED), settings(train), view(recipe, served))
    order = read_order(table, [(train.steps, table.of(served, ["train"]))], train.batch_rows, recipe.seed)
    offline.run([step], None, loop(context, table, order, train, folder, train.steps, lambda done: None), None)
    model.cpu()
    shutil.rmtree(folder)


def settings(train: Any) -> Any:
    from edgeslm.schemes.step import StepSettings

    own = train.loss_lr / train.lr
    return StepSettings(train.micro_rows, train.clip, train.weight_decay, train.betas, None, own_share=own)


def loop(context: Context, table: Any, order: Any, train: Any, folder: Path, grid_start: int, measure: Any) -> Any:
    from edgeslm.schemes.loop import Loop

    return Loop(
        rows=table.rows,
        order=order,
        batch_rows=train.batch_rows,
        train=train,
        grid_start=grid_start,
        folder=folder,
        progress=context.progress,
        device=context.compute.device,
        measure=measure,
        fields=table.fields,
    )


def teacher_models(context: Context) -> list[Any]:
    from edgeslm.encoders import model as models

    attention = recipe_of(context).distill.train.attention
    folders = [context.folders["tune"] / f"teacher-{at}" for at in range(len(recipe_of(context).teachers))]
    return [models.load(f, attention).to(context.compute.device).requires_grad_(False) for f in folders]


def teacher(context: Context, found: list[Any]) -> Any:
    """One, several mixed, or each for its own tasks."""
    from edgeslm.encoders.view import ByTask
    from edgeslm.teachers.ensemble import Ensemble
    from edgeslm.teachers.live import LiveTeacher

    recipe = recipe_of(context)
    each = [LiveTeacher(model, view(recipe, recipe.served(at)), at) for at, model in enumerate(found)]
    if len(each) == 1:
        return each[0]
    if all(len(recipe.served(at)) == len(recipe.tasks) for at in range(len(each))):
        return Ensemble(each, [t.weight for t in recipe.teachers], "weighted", each[0].view)
    owner = {task: at for at in range(len(each)) for task in recipe.served(at)}
    return ByTask(each, [owner[task] for task in range(len(recipe.tasks))])


def distill(context: Context, student: Any, folder: Path) -> tuple[Any, list[dict[str, Any]]]:
    """(the step with its masters, what was measured on held-out rows at the start, quarters and end)."""
    import torch

    from edgeslm.encoders import phases
    from edgeslm.encoders.objective import bound
    from edgeslm.encoders.tokens import PARTS, Table, read_order
    from edgeslm.pipeline.stage import read_json, write_json
    from edgeslm.quantize.masters import attach
    from edgeslm.quantize.plan import Plan, Rule
    from edgeslm.schemes.step import Step

    recipe, part = recipe_of(context), recipe_of(context).distill
    torch.manual_seed(recipe.seed)
    table, found = Table.load(context.folders["data"]), teacher_models(context)
    student.to(context.compute.device)
    shapes = {name: tuple(p.shape) for name, p in student.named_parameters()}
    plan = Plan(tuple(Rule(r.pattern, r.format, r.otherwise) for r in recipe.quantize.rules))
    masters = attach(student, plan.assign(shapes), torch.float32)
    generator = torch.Generator().manual_seed(recipe.seed)
    width = {"span": recipe.length, "similarity": 1}.get(recipe.task, sum(recipe.classes))
    objectives = [
        bound([t.model_dump() for t in p.objective], student, found, generator, width, context.compute.device)
        for p in part.phases
    ]
    every = range(len(recipe.tasks))
    seen = view(recipe, every)
    step = Step(student, masters, objectives[0], settings(part.train), seen, stages=objectives[1:])
    counts = phases.lengths([p.share for p in part.phases], part.train.steps)
    chosen = [table.of(every, PARTS[:2] if p.rows == "all" else [p.rows]) for p in part.phases]
    order = read_order(table, list(zip(counts, chosen, strict=True)), part.train.batch_rows, recipe.seed)
    points: list[dict[str, Any]] = []
    kept = folder / "points.json"
    if kept.exists():  # of an earlier start; points past its checkpoint are measured again
        points += read_json(kept)

    def measure(done: int) -> None:
        from edgeslm.encoders.judge import quick

        points[:] = [p for p in points if p["step"] < done]
        points.append({"step": done, **quick(student, seen, found, table, recipe)})
        write_json(kept, points)
        told = ", ".join(f"{key} {value:.4f}" for key, value in points[-1].items() if key != "step")
        context.progress.say(f"  distil: after {done} steps: {told}")

    start = round(recipe.quantize.start * part.train.steps)
    phases.run(
        step, teacher(context, found), loop(context, table, order, part.train, folder, start, measure), part.phases
    )
    student.cpu()
    return step, points
