"""Offline distillation: a teacher that does not change, live or recorded, and a student that follows it (survey
arXiv:2006.05525, 4.1). With `on_policy` the student writes some of what it is graded on (GKD, arXiv:2306.13649)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeslm.schemes.loop import Loop, turns
from edgeslm.schemes.step import Step
from edgeslm.teachers.base import Teacher


def run(steps: Sequence[Step], teacher: Teacher | None, loop: Loop, part: Any) -> None:
    (step,) = steps
    for turn in turns(loop, steps):
        batch, objective, turn.notes = loop.read_or_written(turn.index, step)
        turn.log = step(batch, teacher, **turn.how, objective=objective)
