"""Students from a teacher already in memory: `build(part, teacher, ids) -> Built`."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from edgeslm.students import depth


@dataclass(frozen=True)
class Built:
    """A student in the teacher's dtype, and what was measured to make it (written to importance.json)."""

    model: nn.Module
    facts: dict[str, Any] = field(default_factory=dict)


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


def copied(part: Any, teacher: nn.Module, ids: Tensor) -> Built:
    return Built(copy.deepcopy(teacher), {"method": "copy"})
