"""The part of `check` that looks at the tokenizer, the texts, and what the exported file will say of both."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from edgeslm.artifact import file_sha256
from edgeslm.errors import DataError, ModelError
from edgeslm.pipeline.check.files import containers
from edgeslm.pipeline.stage import Context
from edgeslm.recipe import expand


def patterns(source: Any) -> Any:
    """Of the files that a source of text reads."""
    return source.seeds if source.kind == "written" else source.paths


def held_out(context: Context) -> None:
    """Raises DataError when a file is both trained on and judged by, whatever it is called."""
    recipe = context.recipe
    judged = {file_sha256(p): p for p in expand(recipe.evaluate.paths, context.base)}
    tuned = (recipe.sft.sources or ()) if recipe.sft else ()
    for source in (*recipe.data.sources, *tuned):
        for path in expand(patterns(source), context.base):
            if file_sha256(path) in judged:
                raise DataError(
                    f"{path.name} is both trained on and judged by; held-out text must share nothing with training"
                )


def texts(context: Context, found: Any, summary: Any) -> None:
    """Tokenizer against embedding, chat template, rows of chat and seeds, length of the text to judge by."""
    tokenizer = found.attempt(lambda: context.tokenizer)
    if tokenizer is None:
        return
    if len(tokenizer) > summary.vocab_size:
        raise ModelError(
            f"{context.recipe.teacher.model}: the tokenizer has {len(tokenizer)} tokens but the embedding "
            f"{summary.vocab_size} rows; they do not belong together"
        )
    most = summary.config.get("max_position_embeddings")
    for index, source in enumerate(context.recipe.data.sources):
        if source.kind == "written":
            found.attempt(partial(prompts, context, source, f"data.sources.{index}.max_new", most))
        elif source.kind == "chat":
            found.attempt(partial(_dialogues, context, source))
    if context.recipe.evaluate.prompts and not tokenizer.chat_template:
        found.problems.append("evaluate.prompts: the teacher's tokenizer has no chat template; leave the prompts out")
    elif context.recipe.evaluate.prompts:
        found.attempt(lambda: _answers(context, most))
    found.attempt(lambda: _judged(context))


def prompts(context: Context, source: Any, key: str, most: int | None) -> None:
    from edgeslm.data.written import prompts_from

    _room(prompts_from(expand(source.seeds, context.base), context.tokenizer), source.max_new, key, "seed", most)


def _answers(context: Context, most: int | None) -> None:
    from edgeslm.data.chat import template_ids

    part = context.recipe.evaluate
    asked = [[{"role": "user", "content": prompt}] for prompt in part.prompts]
    starts = [template_ids(context.tokenizer, messages, answer=True) for messages in asked]
    _room(starts, part.answer_tokens, "evaluate.answer_tokens", "prompt", most)


def _room(prompts: list[list[int]], new: int, key: str, what: str, most: int | None) -> None:
    """Raises DataError when the longest prompt and what is written after it are more than the teacher reads."""
    longest = max(map(len, prompts))
    if most is not None and longest + new > most:
        raise DataError(
            f"{key} asks for {new} tokens after a {what} of {longest}, but the teacher reads at most {most}; "
            f"ask for fewer or shorten the {what}"
        )


def _dialogues(context: Context, source: Any) -> None:
    from edgeslm.data.chat import documents

    documents(expand(source.paths, context.base), context.tokenizer)


def _judged(context: Context) -> None:
    from edgeslm.pipeline.heldout import heldout_windows

    heldout_windows(context)


def vocabulary(context: Context, found: Any) -> None:
    """What is kept of the teacher's tokens, and what cannot be had together with it."""
    recipe = context.recipe
    part = recipe.student.vocabulary
    if context.kept is None:
        return
    told = f"{len(context.kept):,} of {len(context.whole_tokenizer):,} tokens stay"
    own = part is not None and part.removed == "own_tokens"
    readers = "the student reads" if own else "teacher and student read"
    found.plan.append(("vocabulary", f"{told}; {readers} the text in them{', the teacher in all' if own else ''}"))
    if part is not None and part.folds and (recipe.distill.on_policy or recipe.teacher.format):
        found.problems.append(
            f"student.vocabulary.removed: {part.removed} needs the whole teacher beside the student, which neither "
            "distill.on_policy nor teacher.format has; use renormalise"
        )
    if own:
        found.problems += _not_certain(recipe)


def _not_certain(recipe: Any) -> list[str]:
    """What cannot be learned of a teacher that reads other tokens than its student, or where it is sure of the text."""
    from edgeslm.knowledge import LOSSES
    from edgeslm.teachers.folded import CERTAIN

    named = dict.fromkeys(term.loss for term in recipe.distill.objective if term.loss in LOSSES)
    wrong = [name for name in named if getattr(LOSSES[name], "needs_teacher", True) and name not in CERTAIN]
    return wrong and [
        f"student.vocabulary.removed: with own_tokens the teacher is at other tokens than the student, and certain of "
        f"the text between its own, which {', '.join(wrong)} cannot learn from; use {' or '.join(CERTAIN)}, or "
        "first_piece"
    ]


def positions(context: Context, found: Any, shape: Mapping[str, Any]) -> None:
    """Every length the recipe asks for against the teacher's longest context."""
    recipe, most = context.recipe, shape.get("max_position_embeddings")
    wanted = {"data.sequence": recipe.data.sequence, "evaluate.context": recipe.evaluate.context}
    if recipe.benchmark is not None:
        wanted["benchmark"] = recipe.benchmark.prompt_tokens + recipe.benchmark.new_tokens
    for key, length in wanted.items():
        if most is not None and length > most:
            found.problems.append(f"{key} asks for {length} tokens but the teacher reads at most {most}")


def exported(context: Context, summary: Any, shape: Mapping[str, Any]) -> None:
    """What a GGUF says of architecture and vocabulary, made once: what cannot be said is refused now, where the recipe
    asks for such a file. Raises ModelError."""
    asked = containers(context.recipe)
    if "onnx" in asked:
        from edgeslm.export.onnx import refuses_arch

        if reason := refuses_arch(shape.get("model_type", summary.arch), shape):
            raise ModelError(f"{asked['onnx']}: {reason}")
    if "gguf" not in asked:
        return
    from edgeslm.models.arch import ARCHS
    from edgeslm.models.gguf_vocab import metadata_from_tokenizer

    ARCHS[str(shape.get("model_type", summary.arch))].metadata(shape)
    metadata_from_tokenizer(context.tokenizer, summary.vocab_size)
