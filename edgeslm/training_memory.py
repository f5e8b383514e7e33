"""What training needs of memory, from shapes alone: an estimate, part by part. Plain data in and out.

Of the student: float32 masters, Adam's two moments and a float32 gradient for each weight, the module's own weights in
the type of computing; what the backward pass reads again (`activations`), counted tensor by tensor as autograd keeps
them in transformers' decoder layers with fused attention; the gradient of the head and the logits of a chunk. Of the
teacher: its weights, and one layer's work. What the process held before training is not in it.

These are not all there at once: activations go as gradients come. `parts` tells what is there when most is. On a CPU
what comes and goes leaves holes that the next does not fit (`allocator`): shares that were measured, by
benchmarks.memory_plan, with freed memory kept as edgeslm.compute has it.

Legend: D hidden width, F feed-forward units, Q and K heads and key-value heads times their dimensions, V vocabulary,
b bytes of a number in the type of computing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgeslm import cost

FLOAT = 4
ADAM_MOMENTS = 2
GROUP = 16  # weights that share a trained scale: 16 or 32 on nearly all grids
OPTIMISER = ("masters", "moments", "gradients")
CHUNK_TOKENS = 512  # edgeslm.schemes.head_loss, a test holds these three
SLICE_BYTES = 4 << 20
GPU_SLICE_BYTES = 256 << 20
SLICE_COPIES = 5  # of a slice of float32 logits while its loss is worked out: both models' logarithms, and between
HOLES = {"activations": 0.35, "head": 0.8}  # of their size; benchmarks.memory_plan measures
BOOKS_BYTES = 180 << 20  # while the tables are made by which codebook grids are searched
MOMENT_ROWS = 2  # edgeslm.pipeline.moments, a test holds the two
LAYER_NORMS = ("gpt2", "starcoder2")
UNITS = {"starcoder2": 2, "gpt2": 5}  # vectors of the feed-forward; GPT-2's gelu is written out
Shape = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """`number_bytes`: 2 for bfloat16, 4 for float32. `rows` run at once (micro_rows), `batches` of them make a step."""

    rows: int
    length: int
    number_bytes: int
    gpu: bool = False
    recompute: bool = False  # layers keep their inputs only and run again in the backward pass
    batches: int = 1
    offload: bool = False  # masters, moments and gradients lie in main memory
    heard: bool = True  # the teacher works beside the student; else it is there to judge by
    teachers: int = 1  # copies: one that teaches otherwise than it is (rounded, or folded) is there once more
    ranks: int = 1  # processes that share a step's rows; `parts` is of one of them
    held: float = 0.0  # share of the student's weights whose codes stay: of these only scales are trained
    cut: bool = False  # each holds its rows of the student (fsdp2), else all of it (ddp)

    @property
    def tokens(self) -> int:
        return self.rows * self.length


def parts(student: Shape, teacher: Shape | None, step: Step) -> dict[str, float]:
    """{what: bytes} on the device that computes, at the moment of a step when most is held; what is not there then is
    0. `teacher`: None where there is none."""
    b, own = step.number_bytes, dict.fromkeys(OPTIMISER, 0.0) if step.offload else optimiser(student, step.held)
    n = cost.counts(student).total
    if step.cut:
        own = {what: size / step.ranks for what, size in own.items()}
    gradients = own.pop("gradients")
    # cut weights lie in float32 and are cast where they are gathered
    held = {**own, "weights": FLOAT * n / step.ranks if step.cut else b * n}
    if step.ranks > 1 and not step.cut:
        held["buckets"] = b * n  # of gradients, as DistributedDataParallel sends them
    if teacher is not None:
        held["teacher"] = b * (step.teachers * cost.counts(teacher).total + step.tokens * int(teacher["hidden_size"]))
    working = teacher if step.heard else None
    earlier = {"gradients": gradients if step.batches > 1 else 0.0}  # of the micro-batches before this one
    moments = [
        earlier | {"activations": activations(student, step), "head": head_bytes(student, working, step)},
        {"gradients": gradients, "last gradient": last_gradient(student, step)},
    ]
    if working is not None:
        moments.append(earlier | {"teacher's work": step.tokens * layer_bytes(working, b)})
    holes = {} if step.gpu else {"allocator": sum(share * moments[0][what] for what, share in HOLES.items())}
    return held | max(moments, key=lambda moment: sum(moment.values())) | holes


def optimiser(student: Shape, held: float = 0.0) -> dict[str, float]:
    """{what: bytes} that the optimiser holds beside the weights, or with `offload` in main memory. `held`: share of the
    weights whose codes lie beside the masters, and of which factors are trained, one for each GROUP."""
    n = cost.counts(student).total
    stay, move = held * n, (1 - held) * n
    moments = ADAM_MOMENTS * FLOAT * move + (ADAM_MOMENTS + 1) * FLOAT * stay / GROUP
    return dict(zip(OPTIMISER, (FLOAT * n + stay, moments, FLOAT * n), strict=True))


def total(student: Shape, teacher: Shape | None, step: Step) -> float:
    return sum(parts(student, teacher, step).values())


def activations(student: Shape, step: Step) -> float:
    """What autograd keeps between the forward pass and the backward pass of a micro-batch."""
    b, layers = step.number_bytes, int(student["num_hidden_layers"])
    each = step.tokens * layer_bytes(student, b)
    kept = layers * step.tokens * b * int(student["hidden_size"]) + each if step.recompute else layers * each
    return kept + step.tokens * norm_bytes(student, b)


def head_bytes(student: Shape, teacher: Shape | None, step: Step) -> float:
    """The float32 gradient of the head [V, D] that grows chunk by chunk, and beside it either a chunk (its product
    with the states, logits of both models, slices of them in float32), or what hands that gradient on (scaled, and in
    the type of computing)."""
    b, v, d = step.number_bytes, int(student["vocab_size"]), int(student["hidden_size"])
    rows = GPU_SLICE_BYTES // (FLOAT * v)
    chunk = min(step.tokens, max(CHUNK_TOKENS, rows) if step.gpu else CHUNK_TOKENS)
    sliced = SLICE_COPIES * min(GPU_SLICE_BYTES if step.gpu else SLICE_BYTES, FLOAT * chunk * v)
    forward = b * v * d + (1 if teacher is None else 2) * chunk * v * b + sliced
    backward = (FLOAT + (b if b < FLOAT else 0)) * v * d
    return FLOAT * v * d + step.tokens * d * b + max(forward, backward)


def last_gradient(student: Shape, step: Step) -> float:
    """What is there beside all gradients when the backward pass comes to the embedding: its own in the type of
    computing, and once more that of a tied head, which waits to be added."""
    tied = bool(student.get("tie_word_embeddings", False))
    return (2 if tied else 1) * step.number_bytes * int(student["vocab_size"]) * int(student["hidden_size"])


def norm_bytes(shape: Shape, b: int) -> float:
    """What one norm keeps for a token. RMS norms are written out: their input in float32 (its own copy where b is 2),
    the normed stream before its weight, and after it for what reads it. Layer norms are one operation."""
    d = int(shape["hidden_size"])
    return 2 * b * d if shape.get("model_type") in LAYER_NORMS else (FLOAT + 2 * b) * d


def layer_bytes(shape: Shape, b: int) -> float:
    """What the backward pass of one layer reads again, for a token: norms, queries, keys and values as attention gets
    them, what it gives, and some vectors of the feed-forward."""
    kind, f = shape.get("model_type"), int(shape["intermediate_size"])
    q = int(shape["num_attention_heads"]) * cost.head_dim(shape)
    kv = int(shape.get("num_key_value_heads") or shape["num_attention_heads"]) * cost.head_dim(shape)
    heads = (FLOAT + b) * (q + kv) if kind in cost.HEAD_NORMS else 0  # of QK-norm; its result is what attention gets
    units = UNITS.get(str(kind), 4)
    return cost.NORMS.get(str(kind), 2) * norm_bytes(shape, b) + b * (2 * q + 2 * kv + units * f) + heads


def preparing(student: Shape, origin: Shape, step: Step, stages: Collection[str], moments: float) -> dict[str, float]:
    """{stage: bytes, when most is held} of those `stages` before training that look at what weights matter: equalise,
    plan, round. `moments`: of second moments that are held at a time. `origin`: the model that a stage reads whole, in
    float32, to make the student of it."""
    b, n = step.number_bytes, cost.counts(student).total
    table = FLOAT * int(student["vocab_size"]) * int(student["hidden_size"])
    one = replace(step, rows=1, recompute=False)
    both = (FLOAT + b) * n  # the student in float32, and cast for its gradients
    looking = both + moments + activations(student, replace(one, rows=MOMENT_ROWS))
    squares = both + FLOAT * n + last_gradient(student, one) + table + activations(student, one)
    trying = both + FLOAT * n - b * n + table  # floats to put back, the head that is compared with
    made = FLOAT * cost.counts(origin).total
    planned = max(squares, trying, FLOAT * n + made, looking if "round" in stages else 0.0)
    needs = {
        "equalise": max(looking, b * n + made),
        "plan": planned + BOOKS_BYTES,
        "round": max(looking + n, made) + BOOKS_BYTES,
    }
    return {stage: needs[stage] for stage in needs if stage in stages}


def alternatives(student: Shape, teacher: Shape | None, step: Step) -> list[tuple[str, float]]:
    """(what a recipe can ask for instead, bytes on the device then), for pairs that do not fit."""

    def changed(**how: Any) -> float:
        return total(student, teacher, replace(step, **how))

    found, all_of = list[tuple[str, float]](), dict[str, Any]()
    one = {"rows": 1, "batches": step.rows * step.batches}
    offered: list[tuple[str, dict[str, Any], bool]] = [
        ("distill.train.recompute: true", {"recompute": True}, not step.recompute),
        ("distill.train.micro_rows: 1", one, step.rows > 1),
        ("distill.train.offload: true", {"offload": True}, step.gpu and not step.offload and step.ranks == 1),
    ]
    for what, how, open_ in offered:
        if open_:
            found.append((what, changed(**how)))
            all_of |= how
    return [*found, ("all of these", changed(**all_of))] if len(found) > 1 else found
