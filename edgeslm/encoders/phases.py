"""Phases of one training, each with its own objective and rows: two are TinyBERT's stages (arXiv:1909.10351)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeslm.encoders.objective import annealed
from edgeslm.schemes.loop import Loop, turns
from edgeslm.schemes.step import Step
from edgeslm.teachers.base import Teacher


def lengths(shares: Sequence[float], steps: int) -> list[int]:
    """Steps of each phase; they add up to `steps`."""
    ends = [round(steps * sum(shares[: i + 1]) / sum(shares)) for i in range(len(shares))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def run(step: Step, teacher: Teacher | None, loop: Loop, phases: Sequence[Any]) -> None:
    """`step` holds the phases' objectives, in order."""
    objectives = (step.objective, *step.stages)
    counts = lengths([p.share for p in phases], loop.train.steps)
    for turn in turns(loop, [step]):
        phase = next(p for p in range(len(phases)) if turn.index < sum(counts[: p + 1]))
        objective = objectives[phase]
        if phases[phase].anneal:
            first = sum(counts[:phase])
            objective = annealed(objective, (turn.index - first) / max(1, counts[phase] - 1))
        turn.log = step(loop.batch(turn.index), teacher, objective=objective, **turn.how)
        turn.notes = {"phase": phase}
