"""The supervised stage: the student as built learns the answers of dialogues, before anything is put on a grid.

The one optimiser step and the offline loop do it, with a single term: cross-entropy on answers. With `lora` the
weights that move are adapters; the stage leaves a plain model either way, in float32.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from edgeslm.artifact import file_sha256
from edgeslm.pipeline import lora
from edgeslm.pipeline.prepare import built_how, built_student, hashes_of, marked, separator
from edgeslm.pipeline.sft_figures import AnswerPoints, answers_loss, split
from edgeslm.pipeline.stage import Context, Stage, computing, files, read_json, version_of, write_json

TERM = {"loss": "cross_entropy", "learn": "answers"}


def sources(context: Context) -> list[Any]:
    """Where dialogues come from."""
    part = context.recipe.sft
    assert part is not None
    return list(part.sources or (s for s in context.recipe.data.sources if s.kind != "text"))


def _slice(context: Context) -> Any:
    part = context.recipe.sft
    assert part is not None
    read = hashes_of(context, sources(context)), files(part.judge, context.base)
    recompute = context.recipe.distill.train.recompute
    where = [s.model_dump(mode="json") for s in sources(context)]
    told: tuple[Any, ...] = (
        part.model_dump(mode="json"),
        where,
        context.recipe.data.sequence,
        context.recipe.seed,
        recompute,
    )
    if part.lora is not None:
        told = (*told, version_of("peft"))
    return told, read, computing(context), built_how(context)


def rows_of(context: Context, found: list[list[Any]]) -> tuple[Any, list[Any]]:
    """(rows to train on, dialogues to judge by) from the dialogues of each source. Raises DataError."""
    from edgeslm.data.rows import Rows, pack_whole

    learned, judged = split(context, [d for some in found for d in some])
    left, parts = {id(d) for d in learned}, []
    for index, some in enumerate(found):
        mine = [d for d in some if id(d) in left]
        name = f"sft.sources.{index}"
        ids, answers = [d.ids for d in mine], [d.answers for d in mine]
        parts.append(pack_whole(ids, answers, context.recipe.data.sequence, separator(context), name))
    return Rows.join(parts), judged


def _sft(context: Context, folder: Path) -> None:
    import torch

    from edgeslm import compute
    from edgeslm.data.order import order
    from edgeslm.models.turned import save
    from edgeslm.schemes import offline
    from edgeslm.schemes.loop import Loop

    part, seed = context.recipe.sft, context.recipe.seed
    assert part is not None
    torch.manual_seed(seed)
    rows, judged = _text(context, folder)
    student = built_student(context)
    if context.recipe.distill.train.recompute:
        compute.recompute_layers(student)
    torch.manual_seed(seed)
    adapted = lora.adapt(student, part.lora) if part.lora else None
    step = _step(context, student)
    batch_rows = part.batch_tokens // context.recipe.data.sequence
    points = AnswerPoints(context, student, judged, folder)
    loop = Loop(
        rows=rows,
        order=order(rows, [s.share or s.decay_share for s in sources(context)], part.steps * batch_rows, seed),
        batch_rows=batch_rows,
        train=part,
        grid_start=part.steps,
        folder=folder,
        progress=context.progress,
        device=context.compute.device,
        measure=points,
        fields={"answers": rows.answers},
        name="sft",
    )
    offline.run([step], None, loop, None)
    if adapted is None:
        for master in step.masters.items:
            master.weight.data = master.value.data
        save(student, folder / "model")
    else:
        lora.write(adapted, step.masters, folder / "adapter", "../base")
        points.student = None
        del adapted, student, step, loop
        _merged(context, folder, part.lora.keep)  # type: ignore[union-attr]
    _note(context, folder, rows, points)


def _text(context: Context, folder: Path) -> tuple[Any, list[Any]]:
    """Rows and judged dialogues, made once: a training that goes on reads what it read before."""
    from edgeslm.data.answers import Dialogue
    from edgeslm.data.rows import Rows

    rows_file, judged_file = folder / "rows.safetensors", folder / "judged.json"
    if rows_file.exists():
        return Rows.load(rows_file), [Dialogue(*kept) for kept in read_json(judged_file)["dialogues"]]
    if context.recipe.sft and context.recipe.sft.sources:
        found = [marked(context, source, index) for index, source in enumerate(sources(context))]
    else:
        kept = read_json(context.folders["data"] / "dialogues.json")
        found = [[Dialogue(*dialogue) for dialogue in some] for some in kept]
    rows, judged = rows_of(context, found)
    write_json(judged_file, {"dialogues": [[d.ids, d.answers] for d in judged]})
    part = rows_file.with_name(rows_file.name + ".part")
    rows.save(part)
    os.replace(part, rows_file)
    return rows, judged


def _step(context: Context, student: Any) -> Any:
    """All weights that take a gradient, none of them on a grid."""
    from edgeslm.quantize.masters import attach
    from edgeslm.schemes.objective import Objective
    from edgeslm.schemes.step import Step, StepSettings

    part = context.recipe.sft
    assert part is not None
    masters = attach(student, {name: "f32" for name, _ in student.named_parameters()}, context.compute.dtype)
    settings = StepSettings(part.micro_rows, part.clip, part.weight_decay, part.betas, None, lr_key="sft.lr")
    return Step(student, masters, Objective.build([TERM]), settings)


def _merged(context: Context, folder: Path, keep: bool) -> None:
    """The float32 student as built, with the adapter added to it."""
    from edgeslm.models import adapter
    from edgeslm.models.load import write_tokenizer
    from edgeslm.models.turned import save

    model = built_student(context)
    if keep:
        save(model, folder / "base")
        write_tokenizer(context.tokenizer, folder / "base")
    adapter.merge(model, folder / "adapter")
    save(model, folder / "model")
    if not keep:
        shutil.rmtree(folder / "adapter")


def _note(context: Context, folder: Path, rows: Any, points: AnswerPoints) -> None:
    """What the report and later stages read: figures in the type of training, the teacher's beside them, and which
    weights were made."""
    part = context.recipe.sft
    assert part is not None and rows.answers is not None
    teacher = answers_loss(context, context.load_teacher(context.compute.dtype).model, points.judged)
    facts: dict[str, Any] = {
        "steps": part.steps,
        "tokens": part.steps * part.batch_tokens,
        "rows": len(rows),
        "row_tokens": int(rows.mask.sum()),
        "answer_tokens": int(rows.answers.sum()),
        "judged": points.told,
        "points": points.points,
        "teacher_loss": teacher,
        "weights": file_sha256(folder / "model" / "model.safetensors"),
    }
    if part.lora is not None:
        shapes = {n: tuple(p.shape) for n, p in built_student(context).named_parameters()}
        matrices, parameters = lora.parameters(part.lora, shapes)
        facts["lora"] = {**part.lora.model_dump(mode="json"), "matrices": matrices, "parameters": parameters}
    write_json(folder / "sft.json", facts)
    first, last = points.points[0]["loss"], points.points[-1]["loss"]
    context.progress.say(
        f"  sft: loss on answers {first:.4f} before, {last:.4f} after, {teacher:.4f} the teacher's, nats a token"
    )
    if last > first:
        context.progress.say(
            "  sft: WARNING: fine-tuning made answers that it was not trained on worse; lower sft.lr (three times is a "
            "fair first try), take fewer steps or more dialogues"
        )


SFT = Stage("sft", ("teacher", "data"), _slice, _sft, resumes=True)
