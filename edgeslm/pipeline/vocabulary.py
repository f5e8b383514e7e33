"""The tokens that a recipe's models speak: the teacher's own, or those of them that `student.vocabulary` keeps. Teacher
and student are then read in one vocabulary, so that everything after this is as for any other recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeslm.errors import ModelError
from edgeslm.pipeline.follow import placed
from edgeslm.pipeline.stage import Context
from edgeslm.recipe import expand

BYTES_A_TOKEN = 4  # of English, about: how long the pieces of text are that bits per byte are measured on


def kept_ids(context: Context) -> list[int] | None:
    """Ids of the teacher's vocabulary that stay, ascending; None where all do. Raises ModelError, DataError."""
    from edgeslm.models.subset import choose

    part = getattr(context.recipe.student, "vocabulary", None)
    if part is None:
        return _of_origin(context)
    if _of_origin(context) is not None:
        raise ModelError(
            "student.vocabulary: the model that the student is cut from has fewer tokens already; they are taken "
            "over, leave student.vocabulary out"
        )
    return choose(context.whole_tokenizer, context.token_counts, part.keep, part.min_count)


def counted(context: Context) -> Any:
    """How often each id is used in the text that the recipe names, teacher-written text left out."""
    from edgeslm.data import DOCUMENTS
    from edgeslm.data.written import prompts_from
    from edgeslm.models.subset import counts_of

    tokenizer, part = context.whole_tokenizer, context.recipe.student.vocabulary
    assert part is not None
    found = counts_of(DOCUMENTS["text"](expand(part.text, context.base), tokenizer))
    for source in context.recipe.data.sources:
        if source.kind == "written":
            found += counts_of(prompts_from(expand(source.seeds, context.base), tokenizer))
        else:
            found += counts_of(DOCUMENTS[source.kind](expand(source.paths, context.base), tokenizer))
    return found


def origin_source(context: Context) -> Any:
    """The model that the student is or is cut from, where it is not the teacher; None otherwise. Raises ModelError."""
    part: Any = context.recipe.student
    if part.kind == "existing":
        return context.resolve(part.model, part.sha256, part.tokenizer)
    origin = getattr(part, "origin", None)
    return context.resolve(origin) if origin else None


def _of_origin(context: Context) -> list[int] | None:
    """An earlier student of fewer tokens brings them along: its tokens by the teacher's ids."""
    from edgeslm.models.subset import ids_in
    from edgeslm.models.tokenizer import load_tokenizer

    source = origin_source(context)
    if source is None:
        return None
    own = load_tokenizer(source)
    if len(own) == len(context.whole_tokenizer):
        return None
    return ids_in(context.whole_tokenizer, own)  # None for another vocabulary, which `check` names


def cut_summary(context: Context, summary: Any) -> Any:
    """What `describe` says of a model, for the tokens that are kept."""
    kept = context.kept
    if kept is None or summary.vocab_size == len(kept):
        return summary
    heads = 1 if summary.tied else 2
    fewer = heads * (summary.vocab_size - len(kept)) * int(summary.config["hidden_size"])
    config = {**summary.config, "vocab_size": len(kept)}
    return replace(summary, config=config, vocab_size=len(kept), parameters=summary.parameters - fewer)


def facts(context: Context) -> dict[str, Any]:
    """For teacher.json: what is kept of the vocabulary, and of the text that decided it."""
    if context.kept is None:
        return {}
    told: dict[str, Any] = {"kept": len(context.kept), "of": len(context.whole_tokenizer)}
    part = context.recipe.student.vocabulary
    if part is not None:
        counts, kept = context.token_counts, set(context.kept)
        total = sum(counts.values())
        lost = sum(n for index, n in counts.items() if index not in kept)
        told |= {"removed": part.removed, "tokens_counted": total, "share_spelled_anew": lost / total if total else 0.0}
    return told


def pieces_of(context: Context) -> list[str]:
    """Pieces of the text to judge by, taken evenly over its files: `evaluate.windows` of about `evaluate.context`
    tokens each, cut by length, so that they are the same for every vocabulary."""
    from edgeslm.data.text import read

    part = context.recipe.evaluate
    texts = [read(path) for path in expand(part.paths, context.base)]
    size, found = part.context * BYTES_A_TOKEN, list[str]()
    for index, text in enumerate(texts):
        count = part.windows // len(texts) + (index < part.windows % len(texts))
        room = max(1, len(text) - size)
        found += [text[at : at + size] for at in (room * i // max(1, count) for i in range(count))]
    return found


def bits_per_byte(model: Any, tokenizer: Any, pieces: Sequence[str], separator: int) -> dict[str, float]:
    """Of texts, each read after `separator` or the token that the model's texts begin with; all tokens of a text are
    scored. Compares across vocabularies, as perplexity does not."""
    import torch

    from edgeslm.models.forward import head_weight, hidden_states
    from edgeslm.models.stop import begin_id

    first = begin_id(tokenizer)
    head, nats, tokens = head_weight(model), 0.0, 0
    with torch.no_grad():
        for piece in pieces:
            ids = tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
            row = torch.tensor([[separator if first is None else first, *ids]], device=head.device)
            states = hidden_states(model, row)[0, :-1]
            for at in range(0, len(ids), 256):
                logits = (states[at : at + 256] @ head.T).float()
                some = row[0, 1 + at : 1 + at + 256]
                nats += float(torch.nn.functional.cross_entropy(logits, some, reduction="sum"))
            tokens += len(ids)
    size = sum(len(piece.encode()) for piece in pieces)
    return {"bits_per_byte": nats / math.log(2) / size, "tokens_per_byte": tokens / size, "bytes": size}


def measured(context: Context, model: Any, whole: bool = False) -> dict[str, float]:
    """Bits per byte of `model` on the text to judge by, in the recipe's vocabulary or the teacher's `whole` one."""
    from edgeslm.pipeline.prepare import separator_of

    tokenizer = context.whole_tokenizer if whole else context.tokenizer
    return bits_per_byte(model, tokenizer, pieces_of(context), separator_of(tokenizer))


def note_bits(context: Context, folder: Path, frozen: Any, student: Any) -> None:
    """Of a training in fewer tokens, beside its summary: the student as frozen, in float32."""
    import torch

    from edgeslm.compute import uncompiled
    from edgeslm.pipeline.stage import read_json, write_json

    if context.kept is None:
        return
    here = placed(context, student, frozen, torch.float32)
    with uncompiled():
        write_json(folder / "summary.json", read_json(folder / "summary.json") | {"bits": measured(here, student)})
