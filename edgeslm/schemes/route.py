"""Teachers taken one after another from the route of a single training (RCO, Jin et al., arXiv:1904.09149), or any
other chain of teachers, easiest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeslm.schemes.loop import Loop, turns
from edgeslm.schemes.step import Step
from edgeslm.teachers.base import Teacher


def run(steps: Sequence[Step], teacher: Teacher | None, loop: Loop, part: Any) -> None:
    """Equal shares of the steps for each anchor, the recipe's own teacher last."""
    (step,) = steps
    assert loop.load is not None
    current, guide = -1, teacher
    for turn in turns(loop, steps):
        anchor = turn.index * (len(part.anchors) + 1) // loop.train.steps
        if anchor != current:
            guide = None  # let go before the next is loaded
            guide = loop.load(part.anchors[anchor]) if anchor < len(part.anchors) else teacher
            current = anchor
        turn.log = step(loop.batch(turn.index), guide, **turn.how)
        turn.notes = {"anchor": anchor}
