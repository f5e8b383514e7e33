"""What a training step needs of memory, from shapes alone: an estimate, part by part. Plain data in and out.

Of the student: float32 masters, Adam's two moments and a float32 gradient for each weight, the module's own weights in
the type of computing; what the backward pass reads again (`activations`), counted tensor by tensor as autograd keeps
them in transformers' decoder layers with fused attention; the gradient of the head and the logits of a chunk. Of the
teacher: its weights, and one layer's work. What the allocator and libraries hold besides is not in it.

Legend: D hidden width, F feed-forward units, Q and K heads and key-value heads times their dimensions, V vocabulary,
b bytes of a number in the type of computing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeslm import cost

FLOAT = 4
ADAM_MOMENTS = 2
CHUNK_TOKENS = 512  # edgeslm.schemes.head_loss, a test holds it
GPU_CHUNK_BYTES = 256 << 20
EIGHT_BIT_MOMENT = 1.016  # bytes of a moment in 8 bits with one float32 a block of 256 (arXiv:2110.02861)
LAYER_NORMS = ("gpt2", "starcoder2")
UNITS = {"starcoder2": 2, "gpt2": 5}  # vectors of the feed-forward; GPT-2's gelu is written out
FUSED_KINDS = {8: 8.5, 4: 4.5}  # bits of a frozen teacher -> with scales


@dataclass(frozen=True)
class Step:
    """`number_bytes`: 2 for bfloat16, 4 for float32. `rows` run at once (micro_rows)."""

    rows: int
    length: int
    number_bytes: int
    gpu: bool = False
    recompute: bool = False  # layers keep their inputs only and run again in the backward pass
    moment_bytes: float = FLOAT
    teacher_bits: float | None = None  # None: in the type of computing


def parts(student: Mapping[str, Any], teacher: Mapping[str, Any] | None, step: Step) -> dict[str, float]:
    """{what: bytes}. `teacher`: the one that runs beside the student, None when none does."""
    n, tokens, b = cost.counts(student).total, step.rows * step.length, step.number_bytes
    layers, vocabulary = int(student["num_hidden_layers"]), int(student["vocab_size"])
    each = tokens * layer_bytes(student, b)
    kept = layers * tokens * b * int(student["hidden_size"]) + each if step.recompute else layers * each
    chunk = min(tokens, max(CHUNK_TOKENS, GPU_CHUNK_BYTES // (FLOAT * vocabulary)) if step.gpu else CHUNK_TOKENS)
    models = 1 if teacher is None else 2
    found = {
        "masters": FLOAT * n,
        "moments": ADAM_MOMENTS * step.moment_bytes * n,
        "gradients": FLOAT * n,
        "weights": b * n,
        "activations": kept + tokens * norm_bytes(student, b),
        "head": FLOAT * vocabulary * int(student["hidden_size"]) + models * chunk * vocabulary * b,
    }
    if teacher is not None:
        size = cost.counts(teacher).total
        found["teacher"] = size * (step.teacher_bits / 8 if step.teacher_bits else b) + tokens * layer_bytes(teacher, b)
    return found


def total(student: Mapping[str, Any], teacher: Mapping[str, Any] | None, step: Step) -> float:
    return sum(parts(student, teacher, step).values())


def norm_bytes(shape: Mapping[str, Any], b: int) -> float:
    """What one norm keeps for a token. RMS norms are written out: their input in float32 (its own copy where b is 2),
    the normed stream before its weight, and after it for what reads it. Layer norms are one operation."""
    d = int(shape["hidden_size"])
    return 2 * b * d if shape.get("model_type") in LAYER_NORMS else (FLOAT + 2 * b) * d


def layer_bytes(shape: Mapping[str, Any], b: int) -> float:
    """What the backward pass of one layer reads again, for a token: norms, queries, keys and values as attention gets
    them, what it gives, and some vectors of the feed-forward."""
    kind, f = shape.get("model_type"), int(shape["intermediate_size"])
    q = int(shape["num_attention_heads"]) * cost.head_dim(shape)
    kv = int(shape.get("num_key_value_heads") or shape["num_attention_heads"]) * cost.head_dim(shape)
    heads = (FLOAT + b) * (q + kv) if kind in cost.HEAD_NORMS else 0  # of QK-norm; its result is what attention gets
    units = UNITS.get(str(kind), 4)
    return cost.NORMS.get(str(kind), 2) * norm_bytes(shape, b) + b * (2 * q + 2 * kv + units * f) + heads


def alternatives(
    student: Mapping[str, Any], teacher: Mapping[str, Any] | None, step: Step
) -> list[tuple[str, float, bool]]:
    """(what would be changed, bytes then, whether a recipe can ask for it) for pairs that do not fit."""

    def changed(**how: Any) -> float:
        return total(student, teacher, Step(**{**vars(step), **how}))

    found = [("distill.train.recompute: true", changed(recompute=True), True)]
    if step.rows > 1:
        found.append(("distill.train.micro_rows: 1", changed(rows=1), True))
    found.append(("both", changed(rows=1, recompute=True), True))
    small = {"rows": 1, "recompute": True, "moment_bytes": EIGHT_BIT_MOMENT}
    found.append(("both, and moments in 8 bits", changed(**small), False))
    if teacher is not None:
        for bits, stored in FUSED_KINDS.items():
            found.append((f"the same, and the teacher in {bits} bits", changed(**small, teacher_bits=stored), False))
        found.append(
            (
                "the same, and no teacher beside the student",
                total(student, None, Step(**{**vars(step), **small})),
                False,
            )
        )
    return found
