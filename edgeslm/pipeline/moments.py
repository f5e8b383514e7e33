"""What layers see of a recipe's text, gathered within a bounded memory: what rounding with feedback rounds by, and what
a plan for such rounding counts on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from edgeslm.pipeline.stage import Context

MOMENT_BYTES = 2 << 30, 4 << 30  # of second moments held at a time: at least and at most
MOMENT_SHARE = 0.15  # of all memory in between; each group of them is one more pass over the text
ROWS = 2  # of text that run together


def groups_of(context: Context, student: Any, names: Collection[str], by_loss: bool) -> list[list[str]]:
    """`names` of matrices, in groups whose moments fit into memory."""
    from edgeslm.quantize.loss_moments import moment_sizes

    weights = dict(student.named_parameters())
    sizes = moment_sizes(student, names) if by_loss else {n: 4 * weights[n].shape[1] ** 2 for n in names}
    return groups(context, sizes)


def groups(context: Context, sizes: Mapping[str, int]) -> list[list[str]]:
    """Names of so many bytes, in groups that fit."""
    from edgeslm.quantize.importance import moment_groups

    return moment_groups(sizes, most_bytes(context))


def most_bytes(context: Context) -> int:
    """Of moments that are held at a time; a single weight's may be more."""
    from edgeslm import compute

    low, high = MOMENT_BYTES
    return min(high, max(low, int(MOMENT_SHARE * (compute.memory_bytes(context.compute.device) or 0))))


def in_halves(
    context: Context,
    model: Any,
    ids: Any,
    wanted: Mapping[str, list[str]],
    sizes: Mapping[str, int],
    seed: int,
    outputs: bool = True,
) -> Iterator[tuple[list[str], Any, Any]]:
    """(keys, LossMoments of one half of the rows of ids [R, T], of the other), group by group of keys whose weights
    `wanted`, of so many bytes a set of moments, fit into memory together. One half is to decide by and the other to
    judge that on: on text of its own a curvature promises wide matrices far too much. A single row has to do for both.
    """
    from edgeslm.quantize.loss_moments import loss_moments

    half = (len(ids) + 1) // 2
    parts = ids[:half], ids[half:] if len(ids) > 1 else ids
    for group in groups(context, {key: 2 * size for key, size in sizes.items()}):
        names, sides = [name for key in group for name in wanted[key]], list[Any]()
        for number, part in enumerate(parts, seed):
            with context.progress.task("what layers see of the text", part.numel(), "tokens") as bar:
                found = loss_moments(model, part, names, outputs=outputs, seed=number, rows=ROWS, on_progress=bar.reach)
                sides.append(found)
        yield group, sides.pop(0), sides.pop()
        del found  # before the next are gathered, as the reader has to


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


def left_by_feedback(context: Context, model: Any, ids: Any, names: Any, seed: int) -> dict[str, float]:
    """{matrix: share of its rounding's loss that feedback leaves, as far as inputs and outputs tell}, for a plan."""
    from edgeslm.quantize.curvature import DAMPENING_ACROSS, LOSS_DAMPENING, curvature, left_over
    from edgeslm.quantize.feedback import rows_together
    from edgeslm.quantize.loss_moments import moment_sizes

    left = dict.fromkeys(names, 1.0)
    sizes = moment_sizes(model, names)
    for _, known, unseen in in_halves(context, model, ids, {name: [name] for name in sizes}, sizes, seed):
        for name, moment in known.inputs.items():
            left[name] *= left_over(curvature(moment, LOSS_DAMPENING), unseen.inputs[name])
        for name, moment in known.outputs.items():
            together = rows_together(len(moment), moment.device)
            left[name] *= left_over(curvature(moment, DAMPENING_ACROSS), unseen.outputs[name], together)
        del known, unseen
    return left
