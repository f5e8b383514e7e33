"""The part of `check` that looks at what will be written: containers, what they need here, and disk."""

from __future__ import annotations

import copy
import shutil
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from edgeslm.artifact import path_bytes
from edgeslm.errors import EdgeSLMError, RecipeError
from edgeslm.pipeline.ship import TEACHER_FILES, tasks_of
from edgeslm.pipeline.stage import Context, place
from edgeslm.recipe import Recipe

CHECKPOINT_BYTES = 12  # per parameter: master, two moments
FROZEN_BYTES, SHIPPED_BYTES = 2, 3  # per parameter: codes and scales; a student in both containers


def containers(recipe: Recipe) -> dict[str, str]:
    """{container: the key of the recipe that asks for it}, for students and teachers."""
    asked = dict.fromkeys(recipe.export.kinds, "export.kinds")
    return {TEACHER_FILES[choice][0]: "export.teacher" for choice in recipe.export.teacher} | asked


def tasks(context: Context) -> None:
    """Definitions and items of evaluate.tasks are read whole. Raises DataError, or RecipeError for a retention without
    a teacher's file to take it of."""
    part = context.recipe.evaluate
    if part.data and not part.tasks:
        raise RecipeError(
            ["evaluate.data: names a folder, but evaluate.tasks names no task; add tasks or leave it out"]
        )
    if part.limit is not None and not part.tasks:
        raise RecipeError(
            ["evaluate.limit: says how many items of each task are asked, and tasks names none; name some"]
        )
    if tasks_of(context) is not None and not any(choice.endswith("f32") for choice in context.recipe.export.teacher):
        raise RecipeError(
            ["evaluate.tasks: retention needs the teacher's file too; add gguf-f32 or onnx-f32 to export.teacher"]
        )


def runnable(recipe: Recipe, found: Any) -> None:
    """What writes and what runs every file must be installed."""
    from edgeslm.export import PACKAGES
    from edgeslm.runtimes import RUNTIMES

    for kind, key in containers(recipe).items():
        runtime = next(r for r in RUNTIMES.values() if kind in r.formats)
        missing = [p for p in (*PACKAGES[kind], *runtime.packages) if not installed(p)]
        if missing:
            found.problems.append(
                f"{key}: {kind} files cannot be made and evaluated here, {', '.join(missing)} is not installed; "
                "'edgeslm doctor' says how to get it"
            )


def installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def space(context: Context, student: int, teacher: Any, found: Any) -> None:
    """Disk for what is still to be written (checkpoint, shipped files, scored logits), so that a full disk is met now
    and not in an hour; a run that is done needs none. `student`: parameters, `teacher`: its summary."""
    recipe = context.recipe
    if not any(choice.endswith("f32") for choice in recipe.export.teacher):
        found.problems.append("export.teacher: names no float32 teacher, so that nothing could be judged; add gguf-f32")
    scored = recipe.evaluate.windows * recipe.evaluate.context // 2
    files = sum(4 if choice.endswith("f32") else 2 for choice in recipe.export.teacher)
    wanted = {
        "round": student * FROZEN_BYTES,
        "distill": student * (2 * CHECKPOINT_BYTES + FROZEN_BYTES),  # a new checkpoint is written beside the old one
        "export": student * SHIPPED_BYTES + teacher.parameters * files,
        "evaluate": scored * 4 * teacher.vocab_size,
    }
    held = unfinished(context)
    needed = sum(max(0, size - held[stage]) for stage, size in wanted.items() if stage in held)
    folder = next(p for p in (context.root, *context.root.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        found.problems.append(
            f"{folder}: {free / 1e9:.1f} GB free but the run may need {needed / 1e9:.1f} GB; "
            "free some space or use --runs"
        )


def unfinished(context: Context) -> dict[str, int]:
    """{stage that is still to be done: bytes that its folder holds already}."""
    from edgeslm.pipeline.run import stages

    left: dict[str, int] = {}
    context = copy.copy(context)
    context.folders = {}
    for stage in stages(context.recipe):
        try:
            folder = context.folders[stage.name] = place(stage, context)
        except (KeyError, OSError, EdgeSLMError):  # an earlier stage has yet to find out, or it is told elsewhere
            left[stage.name] = 0
            continue
        if not (folder / "done.json").exists() or (folder / "problems.json").exists():
            left[stage.name] = path_bytes(folder)
    return left
