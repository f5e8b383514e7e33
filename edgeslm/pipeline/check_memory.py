"""The part of `check` that looks at memory: what a training step needs, and what could be changed where that is more
than there is. Estimates from shapes (edgeslm.training_memory); nothing is run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from edgeslm import training_memory, units
from edgeslm.pipeline.stage import Context

SHARE = 0.9  # of the memory there is, for a step; the rest is the allocator's and the libraries'


def lines(context: Context, student: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[tuple[str, str]]:
    """`teacher` is loaded in any case, to judge by; one whose targets were recorded does no work beside the student."""
    step, there = step_of(context), available_bytes(context)
    held = training_memory.parts(student, teacher, step)
    needs = sum(held.values())
    told = ", ".join(f"{name} {units.byte_count(size)}" for name, size in held.items())
    found = [("memory to train (an estimate)", f"{units.byte_count(needs)}: {told}")]
    if there is None:
        return found
    if needs <= SHARE * there:
        return [*found, ("memory there is", f"{units.byte_count(there)}, enough")]
    found.append(
        ("memory there is", f"{units.byte_count(there)}, which is too little; what would be needed (estimates):")
    )
    for what, size, offered in training_memory.alternatives(student, teacher, step):
        note = "" if offered else ", not built in"
        found.append((f"  {what}", units.byte_count(size) + note + (", fits" if size <= SHARE * there else "")))
    return found


def step_of(context: Context) -> training_memory.Step:
    train, compute = context.recipe.distill.train, context.compute
    return training_memory.Step(
        rows=min(train.micro_rows, context.recipe.batch_rows),
        length=context.recipe.data.sequence,
        number_bytes=compute.dtype.itemsize,
        gpu=compute.device.type == "cuda",
        recompute=train.recompute,
    )


def available_bytes(context: Context) -> float | None:
    """Of the card, or of the machine; None where nobody tells."""
    import torch

    device = context.compute.device
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "cpu" and "SC_PHYS_PAGES" in os.sysconf_names:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return None
