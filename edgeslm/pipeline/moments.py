"""What layers see of a recipe's text, gathered within a bounded memory: what rounding with feedback rounds by, and what
a plan for such rounding counts on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from edgeslm.pipeline.stage import Context

MOMENT_BYTES = 2 << 30, 4 << 30  # of second moments held at a time: at least and at most
MOMENT_SHARE = 0.15  # of all memory in between; each group of them is one more pass over the text
ROWS = 2  # of text that run together


def groups_of(context: Context, student: Any, names: Collection[str], by_loss: bool, sets: int = 1) -> list[list[str]]:
    """`names` of matrices, in groups of which `sets` sets of moments fit into memory."""
    from edgeslm.quantize.loss_moments import moment_sizes

    weights = dict(student.named_parameters())
    sizes = moment_sizes(student, names) if by_loss else {n: 4 * weights[n].shape[1] ** 2 for n in names}
    return groups(context, {name: sets * size for name, size in sizes.items()})


def groups(context: Context, sizes: Mapping[str, int]) -> list[list[str]]:
    """Names of so many bytes, in groups that fit."""
    from edgeslm import compute
    from edgeslm.quantize.importance import moment_groups

    low, high = MOMENT_BYTES
    share = int(MOMENT_SHARE * (compute.memory_bytes(context.compute.device) or 0))
    return moment_groups(sizes, min(high, max(low, share)))


def halves(ids: Any) -> tuple[Any, Any]:
    """Of the rows: one to decide by, one to judge that on. One row has to do for both."""
    half = (len(ids) + 1) // 2
    return ids[:half], ids[half:] if len(ids) > 1 else ids


def gathered(context: Context, student: Any, ids: Any, names: list[str], by_loss: bool, seed: int) -> dict[str, Any]:
    """What `round_model` rounds by, of ids [R, T]."""
    from edgeslm.quantize.curvature import LOSS_DAMPENING
    from edgeslm.quantize.importance import input_statistics
    from edgeslm.quantize.loss_moments import loss_moments

    with context.progress.task("what layers see of the text", ids.numel(), "tokens") as bar:
        if not by_loss:
            return {"moments": input_statistics(student, ids, moments=names, on_progress=bar.reach).moments}
        found = loss_moments(student, ids, names, seed=seed, rows=ROWS, on_progress=bar.reach)
    return {"moments": found.inputs, "outputs": found.outputs, "dampening": LOSS_DAMPENING}


def left_by_feedback(context: Context, student: Any, ids: Any, names: Any, seed: int) -> dict[str, float]:
    """{matrix: share of its rounding's loss that feedback leaves, as far as inputs and outputs tell}, for a plan.
    One half of the rows of ids [R, T] says how errors are passed on, the other what that loses: on text of its own a
    curvature promises wide matrices far too much."""
    from edgeslm.quantize.curvature import DAMPENING_ACROSS, LOSS_DAMPENING, curvature, left_over
    from edgeslm.quantize.feedback import rows_together

    known, unseen = halves(ids)
    left = dict.fromkeys(names, 1.0)
    for group in groups_of(context, student, names, True, sets=2):
        by = gathered(context, student, known, group, True, seed)
        over = gathered(context, student, unseen, group, True, seed + 1)
        for name, moment in by["moments"].items():
            left[name] *= left_over(curvature(moment, LOSS_DAMPENING), over["moments"][name])
        for name, moment in by["outputs"].items():
            together = rows_together(len(moment), moment.device)
            left[name] *= left_over(curvature(moment, DAMPENING_ACROSS), over["outputs"][name], together)
        del by, over  # before the next are gathered
    return left
