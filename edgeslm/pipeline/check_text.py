"""The part of `check` that looks at the tokenizer, the texts, and what the exported file will say of both."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from edgeslm.artifact import file_sha256
from edgeslm.errors import DataError, ModelError
from edgeslm.pipeline.stage import Context
from edgeslm.recipe import expand


def held_out(context: Context) -> None:
    """Raises DataError when a file is both trained on and judged by, whatever it is called."""
    judged = {file_sha256(p): p for p in expand(context.recipe.evaluate.paths, context.base)}
    for source in context.recipe.data.sources:
        patterns = source.seeds if source.kind == "written" else source.paths
        for path in expand(patterns, context.base):
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
    for source in context.recipe.data.sources:
        if source.kind == "written":
            found.attempt(partial(_prompts, context, source))
        elif source.kind == "chat":
            found.attempt(partial(_dialogues, context, source))
    if context.recipe.evaluate.prompts and not tokenizer.chat_template:
        found.problems.append("evaluate.prompts: the teacher's tokenizer has no chat template; leave the prompts out")
    found.attempt(lambda: _judged(context))


def _prompts(context: Context, source: Any) -> None:
    from edgeslm.data.written import prompts_from

    prompts_from(expand(source.seeds, context.base), context.tokenizer)


def _dialogues(context: Context, source: Any) -> None:
    from edgeslm.data.chat import documents

    documents(expand(source.paths, context.base), context.tokenizer)


def _judged(context: Context) -> None:
    from edgeslm.pipeline.heldout import heldout_windows

    heldout_windows(context)


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
    """What a GGUF says of architecture and vocabulary, made once: what cannot be said is refused now.
    Raises ModelError."""
    from edgeslm.models.arch import ARCHS
    from edgeslm.models.gguf_vocab import metadata_from_tokenizer

    ARCHS[summary.arch].metadata(shape)
    metadata_from_tokenizer(context.tokenizer, summary.vocab_size)
