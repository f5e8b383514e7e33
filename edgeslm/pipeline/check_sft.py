"""The part of `check` that looks at answers: dialogues whose answers can be told from prompts, and the supervised stage
with what it will do and cost."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from edgeslm import cost, units
from edgeslm.errors import RecipeError
from edgeslm.pipeline import check_text, lora
from edgeslm.pipeline.prepare import marked
from edgeslm.pipeline.sft import rows_of, sources
from edgeslm.pipeline.stage import Context
from edgeslm.recipe import Recipe


def patterns(recipe: Recipe) -> list[Any]:
    """Of the files that the supervised stage names itself."""
    if recipe.sft is None:
        return []
    return [*map(check_text.patterns, recipe.sft.sources or ()), *([recipe.sft.judge] if recipe.sft.judge else [])]


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
    text = found.attempt(partial(_text, context, given, student.get("max_position_embeddings")))
    parameters = found.attempt(partial(_adapters, part.lora, student)) if part.lora else ""
    if text is None or parameters is None or found.problems:
        return
    from edgeslm import compute
    from edgeslm.pipeline.check import TYPICAL_SHARE

    flops = compute.matmul_flops(context.compute, seconds=0.2)
    bound = cost.training_bound(student, context.recipe.data.sequence, flops)
    tokens = part.steps * part.batch_tokens
    found.plan += [
        ("sft: before distillation", f"{part.steps} steps of {part.batch_tokens} tokens, loss on answers alone"),
        ("sft: dialogues", text),
        *([("sft: LoRA", parameters)] if parameters else []),
        ("sft: time", f"about {units.seconds(tokens / (bound * TYPICAL_SHARE))} (an estimate)"),
    ]


def _text(context: Context, given: list[Any], most: int | None) -> str:
    """What is known before the teacher writes. Raises DataError."""
    chat, told = [], []
    for index, source in enumerate(given):
        if source.kind == "chat":
            chat.append(marked(context, source, index))
        else:
            check_text.prompts(context, source, f"sft.sources.{index}.max_new", most)
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


def _adapters(part: Any, student: Mapping[str, Any]) -> str:
    """Raises RecipeError where peft is missing, or a target."""
    from edgeslm.models.shapes import parameter_shapes

    if not lora.installed():
        raise RecipeError([lora.INSTALL])
    shapes = parameter_shapes(student)
    matrices, count = lora.parameters(part, shapes)
    whole = cost.counts(student).total
    return f"rank {part.rank} on {matrices} matrices: {units.count(count)} of {units.count(whole)} weights are trained"
