"""The part of `check` that looks at memory: what a training step needs, and what could be changed where that is more
than there is. Estimates from shapes (edgeslm.training_memory); nothing is run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgeslm import training_memory, units
from edgeslm.pipeline.stage import SHARE, Context

DOUBT = 1.3  # estimates are within 15 % of what was measured
SMALLER_STEP = "lower micro_rows, set recompute: true,"
WITHOUT = {
    "equalise": "say quantize.equalise: false,",
    "plan": "give quantize.plan in place of quantize.target,",
    "round": "say quantize.rounding: nearest,",
}


def lines(context: Context, student: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[tuple[str, str]]:
    """`teacher` is loaded in any case, to judge by; one whose targets were recorded does no work beside the student.
    Further teachers (`teacher.more`) are not counted."""
    step, there = distil_step(context, student), available_bytes(context)
    held = training_memory.parts(student, teacher, step)
    needs = _of_all(held, step)
    each = f", each of {step.ranks} processes" if step.ranks > 1 else ""
    found = [(f"memory to train{each} (an estimate)", _told(held))]
    if before := preparing(context, student, teacher):
        told = ", ".join(f"{stage} {units.byte_count(size)}" for stage, size in before.items())
        found.insert(0, ("memory before training (an estimate)", told))
    if step.offload:
        found.append(("main memory beside it (an estimate)", _told(training_memory.optimiser(student, step.held))))
    if context.exact is not context:
        told = f"{units.byte_count(context.exact_bytes)} in main memory at most, the card has no room for them"
        found.append(("float32 copies, before and after", told))
    if there is None:
        return found
    if needs <= SHARE * there:
        return [*found, ("memory there is", f"{units.byte_count(there)}, enough")]
    found.append(
        ("memory there is", f"{units.byte_count(there)}, which is too little; what would be needed (estimates):")
    )
    for what, size in training_memory.alternatives(student, teacher, step):
        found.append((f"  {what}", units.byte_count(size) + (", fits" if size <= SHARE * there else "")))
    return found


def preparing(context: Context, student: Mapping[str, Any], teacher: Mapping[str, Any]) -> dict[str, float]:
    """{stage: bytes} of the stages between student and training that this recipe has."""
    from edgeslm.models.shapes import parameter_shapes
    from edgeslm.pipeline.moments import most_bytes
    from edgeslm.quantize.loss_moments import WIDEST

    part = context.recipe.quantize
    asked = {"equalise": part.equalise, "plan": part.target is not None, "round": part.feeds_back}
    matrices = [shape for shape in parameter_shapes(dict(student)).values() if len(shape) == 2]
    sizes = [4 * (k**2 + (o**2 if part.by_loss and o <= WIDEST else 0)) for o, k in matrices]
    held = max(max(sizes), min(most_bytes(context), 2 * sum(sizes)))  # of two halves of the text
    stages = [stage for stage, there in asked.items() if there]
    origin = teacher if context.recipe.student.kind in ("copy", "depth") else student  # others keep their weights
    return training_memory.preparing(student, origin, step_of(context), stages, held)


def distil_step(context: Context, student: Mapping[str, Any]) -> training_memory.Step:
    """Of a distillation, which may leave codes as they are."""
    step = step_of(context)
    return replace(step, held=_held_share(context, student)) if context.recipe.quantize.holds_codes else step


def _held_share(context: Context, student: Mapping[str, Any]) -> float:
    """Of the student's weights: those of matrices on a grid."""
    from edgeslm.models.shapes import parameter_shapes
    from edgeslm.pipeline.distill import plan_of
    from edgeslm.quantize.plan import FLOATS

    shapes = parameter_shapes(dict(student))
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if context.recipe.quantize.target is not None:
        on_grid = [name for name, shape in shapes.items() if len(shape) > 1]
    else:
        on_grid = [name for name, chosen in plan_of(context).assign(shapes).items() if chosen not in FLOATS]
    return sum(sizes[name] for name in on_grid) / sum(sizes.values())


def needed(context: Context, student: Mapping[str, Any], teacher: Mapping[str, Any]) -> float:
    """Bytes that a training step takes."""
    step = distil_step(context, student)
    return _of_all(training_memory.parts(student, teacher, step), step)


def _of_all(held: Mapping[str, float], step: training_memory.Step) -> float:
    """What all processes take that share one memory: those without cards do."""
    return sum(held.values()) * (1 if step.gpu else step.ranks)


def impossible(what: str, needs: float, context: Context, lower: str = SMALLER_STEP) -> list[str]:
    """A problem where an estimate is beyond all doubt more than there is. `lower`: what the recipe can have instead."""
    there = available_bytes(context)
    if there is None or needs <= DOUBT * there:
        return []
    return [
        f"{what} would take about {units.byte_count(needs)} of memory and there are {units.byte_count(there)}; {lower} "
        "or take a smaller student or teacher"
    ]


def problems(context: Context) -> list[str]:
    """What `distill.train.offload` cannot be had with."""
    recipe, device = context.recipe, context.compute.device.type
    if not recipe.distill.train.offload or device == "cuda":
        return []
    return [
        f"distill.train.offload: is for a CUDA card; on '{device}' masters, moments and gradients are in main memory "
        "already, set it to false"
    ]


def _told(held: Mapping[str, float]) -> str:
    each = ", ".join(f"{name} {units.byte_count(size)}" for name, size in held.items() if size)
    return f"{units.byte_count(sum(held.values()))}: {each}"


def step_of(context: Context) -> training_memory.Step:
    from edgeslm import parallel
    from edgeslm.pipeline.distill import taught_live

    train, compute, heard = context.recipe.distill.train, context.compute, taught_live(context)
    vocabulary = context.recipe.student.vocabulary
    folded = vocabulary is not None and vocabulary.folds
    cut = train.parallel.kind == "fsdp2"
    ranks = max(parallel.size(), 2 if cut else 1)  # a recipe that is for several is told for two where none are there
    rows = min(train.micro_rows, -(-context.recipe.batch_rows // ranks))
    return training_memory.Step(
        rows=rows,
        length=context.recipe.data.sequence,
        number_bytes=compute.dtype.itemsize,
        gpu=compute.device.type == "cuda",
        recompute=train.recompute,
        batches=-(-context.recipe.batch_rows // (rows * ranks)),
        ranks=ranks,
        cut=cut,
        offload=train.offload,
        heard=heard,
        teachers=1 + (heard and (folded or context.recipe.teacher.format is not None)),
    )


def available_bytes(context: Context) -> float | None:
    """Of the card, or of the machine; None where nobody tells."""
    from edgeslm import compute

    return compute.memory_bytes(context.compute.device)
