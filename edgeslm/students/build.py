"""Students from a teacher already in memory: `build(part, teacher, ids) -> Built`."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from edgeslm.models.shapes import SIZES
from edgeslm.students import depth, width


@dataclass(frozen=True)
class Built:
    """A student in the teacher's dtype, and what was measured to make it (written to importance.json). `new_weights`:
    they are not the teacher's, so that they have to be kept."""

    model: nn.Module
    facts: dict[str, Any] = field(default_factory=dict)
    new_weights: bool = False


def by_depth(part: Any, teacher: nn.Module, ids: Tensor) -> Built:
    rows = max(1, part.importance_tokens // ids.shape[1])
    used = ids[:rows]
    scores = depth.block_influence(teacher, used)
    kept, dropped = depth.choose(scores, part.layers)
    facts = {
        "method": "block_influence",
        "tokens": used.numel(),
        "scores": scores,
        "kept": kept,
        "dropped": dropped,
    }
    return Built(depth.prune(teacher, kept), facts)


def by_width(part: Any, teacher: nn.Module, ids: Tensor) -> Built:
    """Layers first, where fewer are asked for; what is then chosen and fitted sees the teacher without them."""
    facts: dict[str, Any] = {}
    if part.layers is not None:
        fewer = by_depth(part, teacher, ids)
        teacher, facts = fewer.model, fewer.facts
    used = ids[: max(1, part.importance_tokens // ids.shape[1])]
    sizes = {key: getattr(part, key) for key in SIZES if key != "layers"}
    student, chosen = width.prune(teacher, sizes, part.method, used)
    return Built(student, facts | chosen | {"method": f"width_{part.method}", "tokens": used.numel()}, True)


def copied(part: Any, teacher: nn.Module, ids: Tensor) -> Built:
    return Built(copy.deepcopy(teacher), {"method": "copy"})
