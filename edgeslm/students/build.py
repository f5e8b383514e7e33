"""Students from a teacher already in memory: `build(part, teacher, ids) -> Built`."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgeslm.models.shapes import SIZES
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


def by_depth(part: Any, teacher: nn.Module, ids: Tensor) -> Built:
    used = ids[: max(1, part.importance_tokens // ids.shape[1])]
    chosen = depth.choose(teacher, used, part.layers, part.choose, part.contiguous)
    others = {name: depth.choose(teacher, used, part.layers, name).kept for name in getattr(part, "compare", ())}
    facts = asdict(chosen) | {"tokens": used.numel()}
    return Built(depth.prune(teacher, chosen.kept), facts, rivals=others)


def by_width(part: Any, teacher: nn.Module, ids: Tensor) -> Built:
    """Layers first, where fewer are asked for; what is then chosen and fitted sees the teacher without them."""
    used = ids[: max(1, part.importance_tokens // ids.shape[1])]
    facts: dict[str, Any] = {}
    if part.layers is not None:
        layers = depth.choose(teacher, used, part.layers, part.choose, part.contiguous)
        teacher, facts = depth.prune(teacher, layers.kept, share=True), asdict(layers)
    sizes = {key: getattr(part, key) for key in SIZES if key != "layers"}
    student, chosen = width.prune(teacher, sizes, part.method, used)
    return Built(student, facts | chosen | {"method": f"width_{part.method}", "tokens": used.numel()}, True)


def from_scratch(part: Any, teacher: nn.Module, ids: Tensor) -> Built:
    """Weights are drawn by the seed that torch was given last."""
    student, facts = scratch.build(part, teacher, torch.initial_seed())
    return Built(student, facts, True)


def copied(part: Any, teacher: nn.Module, ids: Tensor) -> Built:
    return Built(copy.deepcopy(teacher), {"method": "copy"})
