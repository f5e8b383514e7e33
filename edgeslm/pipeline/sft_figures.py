"""What fine-tuning is judged by: the loss on answers of dialogues that are not trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeslm.errors import DataError
from edgeslm.pipeline.follow import placed
from edgeslm.pipeline.stage import Context, digest, read_json, write_json
from edgeslm.recipe import expand

SHARE = 5  # at most a fifth of the prompts is kept apart


def split(context: Context, found: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """(dialogues to train on, dialogues to judge by) as the recipe asks. What has one prompt stays together; hashes of
    the prompts decide, so that order and number of the files do not. Raises DataError."""
    from edgeslm.data.answers import dialogues

    part, length = context.recipe.sft, context.recipe.data.sequence
    assert part is not None
    if part.judge:
        judged = dialogues(expand(part.judge, context.base), context.tokenizer)
        learned, asked = list(found), {tuple(d.prompt) for d in found}
        if read := sum(tuple(d.prompt) in asked for d in judged):
            raise DataError(f"sft.judge: {read} of its prompts are trained on as well; take them out of sft.sources")
    else:
        by_prompt: dict[str, list[Any]] = {}
        for dialogue in found:
            by_prompt.setdefault(hashlib.sha256(repr(dialogue.prompt).encode()).hexdigest(), []).append(dialogue)
        if len(by_prompt) < 2:
            raise DataError("sft: one prompt leaves none to judge by; give more dialogues, or others as sft.judge")
        apart = sorted(by_prompt)[: min(part.apart, max(1, len(by_prompt) // SHARE))]
        judged = [d for name in apart for d in by_prompt[name]]
        chosen = set(apart)
        learned = [d for name, some in by_prompt.items() if name not in chosen for d in some]
    judged = [d for d in judged if 1 in d.answers[1:length]]
    for what, some in (("train on", learned), ("judge by", judged)):
        if not any(1 in d.answers[1:length] for d in some):
            raise DataError(
                f"sft: no answer to {what} begins in the first {length} tokens (data.sequence) of its dialogue; raise "
                "it, or look at the roles of the dialogues"
            )
    return learned, judged


def told(judged: Sequence[Any], length: int) -> dict[str, Any]:
    """Which dialogues a figure was taken on; those that are longer than a row are judged by their first tokens."""
    tokens = sum(sum(d.answers[1:length]) for d in judged)
    return {"dialogues": len(judged), "answer_tokens": tokens, "digest": digest([d.ids[:length] for d in judged])}


class AnswerPoints:
    """The loss on answers a few times a training; kept across a restart, but not across other dialogues."""

    def __init__(self, context: Context, student: Any, judged: Sequence[Any], folder: Path):
        self.context, self.student, self.judged, self.path = context, student, judged, folder / "points.json"
        self.length = context.recipe.data.sequence
        self.told = told(judged, self.length)
        kept: dict[str, Any] = read_json(self.path) if self.path.exists() else {}
        same = kept.get("judged") == self.told
        self.points: list[dict[str, float]] = kept["points"] if same else []

    def __call__(self, done: int) -> None:
        part = self.context.recipe.sft
        assert part is not None
        tokens = done * part.batch_tokens
        training = [module for module in self.student.modules() if module.training]
        self.student.eval()
        loss = answers_loss(self.context, self.student, self.judged)
        for module in training:
            module.training = True
        self.points = [p for p in self.points if p["tokens"] < tokens] + [{"tokens": tokens, "loss": loss}]
        write_json(self.path, {"judged": self.told, "points": self.points})
        self.context.progress.say(
            f"  sft: after {tokens:,} tokens the loss on answers is {loss:.4f} nats a token "
            f"({self.told['answer_tokens']:,} of {self.told['dialogues']} dialogues that are not trained on)"
        )


def answers_loss(context: Context, model: Any, judged: Sequence[Any]) -> float:
    """Nats a token over all answers of `judged`, each dialogue read from its beginning."""
    from edgeslm.compute import uncompiled
    from edgeslm.schemes.measure import answer_loss

    length = context.recipe.data.sequence
    with uncompiled():
        return answer_loss(model, [(d.ids[:length], d.answers[:length]) for d in judged])


def note_answers(context: Context, folder: Path, frozen: Any, student: Any) -> None:
    """Of a distillation after fine-tuning, beside its summary: the loss of the student as frozen, in float32, on the
    same answers; none where the distillation has read one of their prompts."""
    import torch

    from edgeslm.data.answers import Dialogue
    from edgeslm.data.rows import Rows

    if context.recipe.sft is None:
        return
    kept = read_json(context.folders["sft"] / "judged.json")
    judged = [Dialogue(ids, answers) for ids, answers in kept["dialogues"]]
    rows = Rows.load(context.folders["data"] / "rows.safetensors")
    note: dict[str, Any] = {"judged": told(judged, context.recipe.data.sequence)}
    note["read"] = sum(contains(rows.ids.numpy(), dialogue.prompt) for dialogue in judged)
    if not note["read"]:
        note["loss"] = answers_loss(placed(context, student, frozen, torch.float32), student, judged)
    write_json(folder / "summary.json", read_json(folder / "summary.json") | {"answers": note})


def contains(ids: Any, wanted: Sequence[int]) -> bool:
    """Whether int32 rows [R, T], one after another, hold these ids in a row."""
    import numpy as np

    stream, text, at = ids.astype("<i4").tobytes(), np.asarray(wanted, "<i4").tobytes(), 0
    while (at := stream.find(text, at)) >= 0:
        if at % 4 == 0:
            return True
        at += 1
    return False
