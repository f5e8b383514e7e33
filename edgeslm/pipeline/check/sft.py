"""The part of `check` that looks at answers: dialogues whose answers can be told from prompts, and the supervised stage
with what it will do and cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from edgeslm import cost, training_memory, units
from edgeslm.errors import RecipeError
from edgeslm.pipeline import lora
from edgeslm.pipeline.check import memory, text
from edgeslm.pipeline.prepare import marked
from edgeslm.pipeline.sft import rows_of, sources
from edgeslm.pipeline.stage import Context
from edgeslm.recipe import Recipe


def patterns(recipe: Recipe) -> list[Any]:
    """Of the files that the supervised stage names itself."""
    if recipe.sft is None:
        return []
    return [*map(text.patterns, recipe.sft.sources or ()), *([recipe.sft.judge] if recipe.sft.judge else [])]


def answers(context: Context, found: Any) -> None:
    """Where a term of the objective learns from answers: every dialogue has to say where they are."""
    if any(term.learn == "answers" for term in context.recipe.distill.objective):
        for index, source in enumerate(context.recipe.data.sources):
            if source.kind == "chat":
                found.attempt(partial(marked, context, source, index))


def sft(context: Context, found: Any, student: Mapping[str, Any]) -> None:
    """`student`: its config."""
    part = context.recipe.sft
    if part is None:
        return
    given = sources(context)
    dialogues = found.attempt(partial(_text, context, given, student.get("max_position_embeddings")))
    adapters = found.attempt(partial(_adapters, part.lora, student)) if part.lora else (0, 0)
    if dialogues is None or adapters is None or found.problems:
        return
    from edgeslm import compute

    matrices, count = adapters
    flops = compute.matmul_flops(context.compute, seconds=0.2)
    bound = cost.training_bound(student, context.recipe.data.sequence, flops)
    tokens, needs = part.steps * part.batch_tokens, _memory(context, part, student, count)
    found.problems += memory.impossible("sft: a step", needs, context)
    found.plan += [
        ("sft: before distillation", f"{part.steps} steps of {part.batch_tokens} tokens, loss on answers alone"),
        ("sft: dialogues", dialogues),
        *([("sft: LoRA", _told(part.lora, matrices, count, cost.counts(student).total))] if part.lora else []),
        ("sft: memory (an estimate)", units.byte_count(needs)),
        ("sft: time", f"about {units.seconds(tokens / (bound * cost.TYPICAL_SHARE))} (an estimate)"),
    ]


def _text(context: Context, given: list[Any], most: int | None) -> str:
    """What is known before the teacher writes. Raises DataError."""
    chat, told = [], []
    for index, source in enumerate(given):
        if source.kind == "chat":
            chat.append(marked(context, source, index))
        else:
            if context.recipe.sft and context.recipe.sft.sources:  # those of data are looked at there
                text.prompts(context, source, f"sft.sources.{index}.max_new", most)
            told.append(f"{source.rows} texts that the teacher writes")
    length = context.recipe.data.sequence
    longer = sum(len(d.ids) > length for some in chat for d in some)
    if not told:
        rows, judged = rows_of(context, chat)
        marks = int(rows.answers.sum())
        told = [f"{marks:,} tokens of answers in {len(rows)} rows, {len(judged)} dialogues apart to judge by"]
    elif chat:
        told.append(f"{sum(map(len, chat))} dialogues")
    if longer:
        told.append(f"{longer} are longer than a row of {length} (data.sequence) and are cut")
    return "; ".join(told)


def _adapters(part: Any, student: Mapping[str, Any]) -> tuple[int, int]:
    """(matrices, weights) of the adapters. Raises RecipeError where peft is missing, or a target."""
    from edgeslm.models.shapes import parameter_shapes

    if not lora.installed():
        raise RecipeError([lora.INSTALL])
    return lora.parameters(part, parameter_shapes(student))


def _told(part: Any, matrices: int, adapters: int, whole: int) -> str:
    return (
        f"rank {part.rank} on {matrices} matrices: {units.count(adapters)} beside {units.count(whole)} frozen weights"
    )


def _memory(context: Context, part: Any, student: Mapping[str, Any], adapters: int) -> float:
    """Bytes of a step. Beside adapters the student has neither masters nor moments nor gradients."""
    batch_rows = part.batch_tokens // context.recipe.data.sequence
    rows = min(part.micro_rows, batch_rows)
    elsewhere = bool(adapters)  # or, here, nowhere
    step = replace(
        memory.step_of(context), rows=rows, batches=-(-batch_rows // rows), offload=elsewhere, ranks=1, cut=False
    )
    own = (training_memory.FLOAT * 2 + training_memory.ADAM_MOMENTS * training_memory.FLOAT) * adapters
    return own + sum(training_memory.parts(student, None, step).values())
