"""The stage that records a teacher's targets, for recipes that ask for them: it can be run on another machine than the
training, and read by every student of the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeslm.pipeline.guides import more_sources, read_order, teachers
from edgeslm.pipeline.stage import Context, Stage, computing, files


def recording(context: Context) -> Any:
    """How the recipe wants targets kept."""
    from edgeslm.teachers.recorded import Recording

    part: Any = context.recipe.distill.targets
    seed = context.recipe.seed
    if part.kind == "topk":
        return Recording(part.k, 0, part.temperature, seed)
    return Recording(part.keep, part.samples, part.temperature, seed)


def _slice(context: Context) -> Any:
    recipe = context.recipe
    part: Any = recipe.distill.targets
    elsewhere = files((f"{part.folder}/index.json",), context.base) if getattr(part, "folder", None) else None
    sources = [s.share for s in recipe.data.sources]
    asked: list[Any] = [recipe.distill.train.steps * recipe.batch_rows, sources, recipe.seed]
    if recipe.data.decay_shares is not None:  # other rows, from another step on
        asked += [recipe.data.decay_shares, recipe.decay_steps]
    teacher = recipe.teacher.model_dump(mode="json"), [source.sha256 for source in more_sources(context)]
    return part.model_dump(mode="json"), elsewhere, asked, teacher, computing(context)


def _record(context: Context, folder: Path) -> None:
    from edgeslm.data.rows import Rows
    from edgeslm.teachers.base import Need
    from edgeslm.teachers.recorded import RecordedTeacher, record

    rows = Rows.load(context.folders["data"] / "rows.safetensors")
    chosen = sorted({int(i) for i in read_order(context, rows)})
    part: Any = context.recipe.distill.targets  # live ones have no such stage
    if part.folder is not None:
        RecordedTeacher(context.base / part.folder, rows, chosen)
        return
    teacher, how = teachers(context), recording(context)
    about = {"teacher": context.source.sha256, "sequence": context.recipe.data.sequence}
    with context.progress.task("record targets", len(chosen), "rows") as bar:
        record(
            lambda batch: teacher(batch, Need()).output,  # type: ignore[arg-type, return-value]
            rows,
            chosen,
            how,
            teacher.vocabulary,
            about,
            folder,
            context.compute.device,
            bar.reach,
        )
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    tokens = len(chosen) * (context.recipe.data.sequence - 1)
    context.progress.say(f"  record: {tokens:,} predictions, {size / tokens:.1f} bytes each")


def targets_folder(context: Context) -> Path:
    part = context.recipe.distill.targets
    elsewhere = getattr(part, "folder", None)
    return context.base / elsewhere if elsewhere else context.folders["record"]


RECORD = Stage("record", ("teacher", "data"), _slice, _record, resumes=True)
