"""Stages of an encoder's recipe up to the frozen student: teacher, data, tune, student, distill."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgeslm.artifact import file_sha256
from edgeslm.pipeline.stage import WEIGHTS, Context, Stage, computing, files, read_json, write_json

if TYPE_CHECKING:
    from edgeslm.recipe.encoder import EncoderRecipe

ROOMS = (*WEIGHTS, "encoders", "pipeline/encoder/making.py", "pipeline/encoder/train.py")


def recipe_of(context: Context) -> EncoderRecipe:
    return cast("EncoderRecipe", context.recipe)


def sources(context: Context) -> list[Any]:
    """The teachers' folders. Raises ModelError."""
    from edgeslm.encoders.find import find

    return [find(t.model, context.base, t.sha256) for t in recipe_of(context).teachers]


def tokenizer(context: Context) -> Any:
    """The first teacher's; check holds the others' to it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(sources(context)[0].path, local_files_only=True)


def _teacher_slice(context: Context) -> Any:
    return [source.sha256 for source in sources(context)]


def _teacher(context: Context, folder: Path) -> None:
    """What the teachers are; the tokenizer is written out for everything that follows."""
    tokenizer(context).save_pretrained(folder / "tokenizer")
    found = [{"spec": s.spec, "sha256": s.sha256} for s in sources(context)]
    configs = [read_json(s.path / "config.json") for s in sources(context)]
    write_json(folder / "teacher.json", [{**f, "config": c} for f, c in zip(found, configs, strict=True)])


def _data_slice(context: Context) -> Any:
    recipe = recipe_of(context)
    named = [files(s.paths, context.base) for t in recipe.tasks for p in _PARTS for s in getattr(t, p)]
    seen = recipe.student.model_dump() if recipe.student.kind == "pixels" else None
    return [t.model_dump(mode="json") for t in recipe.tasks], named, recipe.length, seen, recipe.seed


_PARTS = ("train", "transfer", "judge")


def items_of(context: Context) -> dict[tuple[int, str], list[Any]]:
    """{(task's place, part): its rows}. Raises RecipeError, DataError."""
    from edgeslm.encoders import SOURCES
    from edgeslm.recipe import expand

    found = {}
    for at, task in enumerate(recipe_of(context).tasks):
        for part in _PARTS:
            every = [SOURCES[s.kind](s, expand(s.paths, context.base)) for s in getattr(task, part)]
            found[at, part] = [item for items in every for item in items]
    return found


def _data(context: Context, folder: Path) -> None:
    """Rows of all tasks and parts in one table; data.json says how many each gave."""
    import torch

    from edgeslm.encoders import pixels
    from edgeslm.encoders.tokens import PARTS, tabulate

    recipe, found = recipe_of(context), items_of(context)
    names = tuple(f"{recipe.tasks[at].name}:{part}" for at, part in found)
    items = [item for rows in found.values() for item in rows]
    source = torch.tensor([at * len(PARTS) + PARTS.index(part) for (at, part), rows in found.items() for _ in rows])
    table = tabulate(items, source, names, tokenizer(context), recipe.length)
    if recipe.student.kind == "pixels":
        part = recipe.student
        texts = [item.text if item.pair is None else f"{item.text} | {item.pair}" for item in items]
        table.fields["pixels"] = pixels.render(texts, part.columns, part.patch, part.jitter, recipe.seed)
    table.save(folder)
    counts = {name: len(rows) for name, rows in zip(names, found.values(), strict=True)}
    write_json(folder / "data.json", {"rows": counts, "tokens": int(table.rows.mask.sum()), "length": recipe.length})
    for name, count in counts.items():
        if count:
            context.progress.say(f"  data: {name} has {count} rows")


def _tune_slice(context: Context) -> Any:
    recipe = recipe_of(context)
    return recipe.task, [t.model_dump(mode="json") for t in recipe.teachers], recipe.seed, computing(context)


def _tune(context: Context, folder: Path) -> None:
    """Every teacher gets a head and learns its tasks on labelled rows; teachers of similarity are only read."""
    from edgeslm.encoders import model as models
    from edgeslm.pipeline.encoder import train

    recipe = recipe_of(context)
    for at, (part, source) in enumerate(zip(recipe.teachers, sources(context), strict=True)):
        place = folder / f"teacher-{at}"
        if (place / models.PLAN).exists():  # finished before this stage was stopped
            continue
        teacher = models.read_bert(
            source.path, part.pool, recipe.task, train.outputs(recipe, recipe.served(at)), recipe.seed, "sdpa"
        )
        if part.tune is not None:
            train.tune(context, teacher, at, folder / f"tuning-{at}")
        models.save(teacher, place)


def _student_slice(context: Context) -> Any:
    recipe = recipe_of(context)
    return recipe.student.model_dump(mode="json"), recipe.classes, recipe.seed


def _student(context: Context, folder: Path) -> None:
    """The student before training."""
    from edgeslm.encoders import model as models
    from edgeslm.encoders import students
    from edgeslm.pipeline.encoder import train

    recipe = recipe_of(context)
    attention = recipe.distill.train.attention
    outputs = train.outputs(recipe, range(len(recipe.tasks)))
    teacher = models.load(context.folders["tune"] / "teacher-0", attention)
    if getattr(recipe.student, "start", "") == "pretrained":
        part = recipe.teachers[0]
        teacher = models.read_bert(sources(context)[0].path, part.pool, recipe.task, outputs, recipe.seed, attention)
    student = students.build(recipe.student, teacher, outputs, recipe.seed, attention)
    models.save(student, folder)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (teacher, student)]
    write_json(folder / "student.json", {"parameters_teacher": sizes[0], "parameters": sizes[1]})
    context.progress.say(f"  student: {sizes[1]:,} parameters, the teacher has {sizes[0]:,}")


def _distill_slice(context: Context) -> Any:
    recipe = recipe_of(context)
    parts = [part.model_dump(mode="json") for part in (recipe.quantize, recipe.distill, *recipe.teachers)]
    return parts, recipe.seed, computing(context), file_sha256(context.folders["student"] / "model.safetensors")


def _distill(context: Context, folder: Path) -> None:
    """The student follows its teachers through the recipe's phases on its plan, and is frozen."""
    from edgeslm.encoders import model as models
    from edgeslm.pipeline.encoder import train
    from edgeslm.quantize.freeze import freeze

    recipe = recipe_of(context)
    student = models.load(context.folders["student"], recipe.distill.train.attention)
    step, points = train.distill(context, student, folder)
    metadata = {"recipe_hash": recipe.training_hash, "base_model": recipe.teachers[0].model}
    kept = context.folders["teacher"] / "tokenizer"
    frozen = freeze(step.masters, "encoder", student.plan, kept, f"{recipe.name}-student", metadata)
    frozen.save(folder / "frozen")
    write_json(folder / "training.json", {"points": points})


TEACHER = Stage("teacher", (), _teacher_slice, _teacher, ROOMS)
DATA = Stage("data", ("teacher",), _data_slice, _data, ROOMS)
TUNE = Stage("tune", ("teacher", "data"), _tune_slice, _tune, ROOMS, resumes=True)
STUDENT = Stage("student", ("teacher", "tune"), _student_slice, _student, ROOMS)
DISTILL = Stage("distill", ("data", "tune", "student"), _distill_slice, _distill, ROOMS, resumes=True)
