"""What fine-tuning before distillation did: the loss on answers that were not trained on, before, after, and as
shipped."""

from __future__ import annotations

import math
from typing import Any

from edgeslm.report.blocks import Block, Note, Table
from edgeslm.report.folder import Run
from edgeslm.units import count


def tuned(run: Run) -> list[Block]:
    """Nothing for a recipe without an `sft` part."""
    facts = run.sft
    points = facts.get("points")
    points = [p for p in points if isinstance(p, dict) and _numbers(p, "tokens", "loss")] if points else []
    if not points:
        return []
    rows = [(f"After {count(p['tokens'])} tokens", f"{p['loss']:.4f}") for p in points]
    frozen = _dict(run.training.get("answers"))
    same = frozen.get("judged") == facts.get("judged")
    if same and _numbers(frozen, "loss"):
        rows.append(("After distillation, as shipped", f"{frozen['loss']:.4f}"))
    if _numbers(facts, "teacher_loss"):
        rows.append(("The teacher", f"{facts['teacher_loss']:.4f}"))
    columns = ("Fine-tuning", "Loss on answers, nats per token")
    blocks: list[Block] = [Table("Loss on answers", columns, tuple(rows), frozenset({1}), half=True)]
    told = _told(facts)
    if same and frozen.get("read"):
        told += (
            f" The distillation has read {frozen['read']} of these prompts, so the shipped student has no such figure."
        )
    return [*blocks, Note(told)] if told else blocks


def _told(facts: dict[str, Any]) -> str:
    judged, lora, parts = _dict(facts.get("judged")), _dict(facts.get("lora")), []
    if _numbers(judged, "answer_tokens", "dialogues"):
        said = f"{count(judged['answer_tokens'])} tokens of answers in {count(judged['dialogues'])} dialogues"
        parts.append(f"Judged on {said} that were not trained on.")
    if _numbers(facts, "answer_tokens", "rows", "row_tokens"):
        parts.append(
            f"Trained on {count(facts['rows'])} rows, {count(facts['answer_tokens'])} of whose "
            f"{count(facts['row_tokens'])} tokens are answers."
        )
    if _numbers(lora, "rank", "matrices", "parameters"):
        parts.append(
            f"LoRA of rank {lora['rank']} on {count(lora['matrices'])} matrices, {count(lora['parameters'])} weights, "
            "merged in float32."
        )
    return " ".join(parts)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _numbers(given: dict[str, Any], *keys: str) -> bool:
    return all(
        isinstance(given.get(k), int | float) and not isinstance(given[k], bool) and math.isfinite(given[k])
        for k in keys
    )
