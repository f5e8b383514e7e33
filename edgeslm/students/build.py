"""Students from a teacher already in memory: `build(part, teacher, ids, progress) -> Built`."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgeslm.models.shapes import SIZES
from edgeslm.progress import Progress
from edgeslm.students import depth, scratch, width


@dataclass(frozen=True)
class Built:
    """A student in the teacher's dtype, and what was measured to make it (written to importance.json). `new_weights`:
    they are not the teacher's, so that they have to be kept. `rivals` {choice: the layers it keeps} are students that
    might have been made instead, to be compared."""

    model: nn.Module
    facts: dict[str, Any] = field(default_factory=dict)
    new_weights: bool = False
    rivals: dict[str, list[int]] = field(default_factory=dict)


def by_depth(part: Any, teacher: nn.Module, ids: Tensor, progress: Progress) -> Built:
    used = ids[: max(1, part.importance_tokens // ids.shape[1])]
    chosen = _layers(part, teacher, used, part.choose, part.contiguous, progress)
    compared = getattr(part, "compare", ())
    others = {name: _layers(part, teacher, used, name, False, progress).kept for name in compared}
    facts = asdict(chosen) | {"tokens": used.numel()}
    return Built(depth.prune(teacher, chosen.kept), facts, rivals=others)


def _layers(part: Any, teacher: Any, ids: Tensor, how: Any, contiguous: bool, progress: Progress) -> depth.Choice:
    times = depth.passes(teacher.config.num_hidden_layers, part.layers, how, contiguous)
    with progress.task("which layers matter", times * ids.numel(), "tokens") as bar:
        return depth.choose(teacher, ids, part.layers, how, contiguous, bar.advance)


def by_width(part: Any, teacher: nn.Module, ids: Tensor, progress: Progress) -> Built:
    """Layers first, where fewer are asked for; what is then chosen and fitted sees the teacher without them."""
    used = ids[: max(1, part.importance_tokens // ids.shape[1])]
    facts: dict[str, Any] = {}
    if part.layers is not None:
        layers = _layers(part, teacher, used, part.choose, part.contiguous, progress)
        teacher, facts = depth.prune(teacher, layers.kept, share=True), asdict(layers)
    sizes = {key: getattr(part, key) for key in SIZES if key != "layers"}
    with progress.task("which widths matter", width.passes(teacher, sizes) * used.numel(), "tokens") as bar:
        student, chosen = width.prune(teacher, sizes, part.method, used, on_tokens=bar.advance)
    return Built(student, facts | chosen | {"method": f"width_{part.method}", "tokens": used.numel()}, True)


def from_scratch(part: Any, teacher: nn.Module, ids: Tensor, progress: Progress) -> Built:
    """Weights are drawn by the seed that torch was given last."""
    student, facts = scratch.build(part, teacher, torch.initial_seed())
    return Built(student, facts, True)


def copied(part: Any, teacher: nn.Module, ids: Tensor, progress: Progress) -> Built:
    return Built(copy.deepcopy(teacher), {"method": "copy"})
