"""A student that teaches itself.

`moving_average`: the running mean of its own weights teaches (mean teacher, arXiv:1703.01780). `snapshot`: its own
weights of a while ago (arXiv:1812.00123). `deep`: its last layer teaches the exits after earlier layers (be your own
teacher, arXiv:1905.08094); an outer teacher may go on teaching the last layer. A born-again student (arXiv:1805.04770)
needs no scheme: a second recipe names the first's run as its teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeslm.compute import release
from edgeslm.schemes.loop import Loop, turns
from edgeslm.schemes.step import Step
from edgeslm.teachers.base import Teacher
from edgeslm.teachers.live import LiveTeacher


def run(steps: Sequence[Step], teacher: Teacher | None, loop: Loop, part: Any) -> None:
    (step,) = steps
    if part.teacher == "deep":  # the step itself teaches the exits that its settings name
        for turn in turns(loop, steps):
            turn.log = step(loop.batch(turn.index), teacher, **turn.how)
        return
    shadow = step.engine.twin(step.model)
    kept = {name: value.data.float() for name, value in shadow.named_parameters()}  # bfloat16 would lose small changes
    guide = LiveTeacher(shadow)
    for turn in turns(loop, steps, kept):
        release(shadow)
        for name, value in shadow.named_parameters():
            value.data.copy_(kept[name])
        turn.log = step(loop.batch(turn.index), guide, **turn.how)
        if part.teacher == "moving_average":
            _follow(kept, step.model, part.decay)
        elif (turn.index + 1) % part.every == 0:
            _follow(kept, step.model, 0.0)


@torch.no_grad()
def _follow(kept: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    for name, value in model.named_parameters():
        kept[name].lerp_(value.data.float(), 1.0 - decay)
