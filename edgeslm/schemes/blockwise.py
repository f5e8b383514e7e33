"""Block by block (progressive blockwise distillation, after arXiv:1812.01839 and Wang et al., IJCAI 2018): runs of
layers learn what the teacher holds at their end, the first run first and the others still, then all learn the whole
objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeslm.models.blocks import layers_of
from edgeslm.schemes.loop import Loop, turns
from edgeslm.schemes.step import Step
from edgeslm.teachers.base import Teacher


def ends(layers: int, blocks: int) -> list[int]:
    """The last layer of each block, counted from 1."""
    return [round(layers * (b + 1) / blocks) for b in range(blocks)]


def terms(part: Any, student_layers: int, teacher_layers: int) -> list[list[dict[str, Any]]]:
    """One objective for each block: `part.loss` between the ends of the block in both models."""
    pairs = [(s, round(s * teacher_layers / student_layers)) for s in ends(student_layers, part.blocks)]
    return [[{"loss": part.loss, "layers": [[s, t]]}] for s, t in pairs]


def run(steps: Sequence[Step], teacher: Teacher | None, loop: Loop, part: Any) -> None:
    (step,) = steps
    first = round(part.share * loop.train.steps)  # steps that go block by block
    names = _names(step, part.blocks)
    for turn in turns(loop, steps):
        block = turn.index * part.blocks // first if turn.index < first else None
        if block is None:
            turn.log = step(loop.batch(turn.index), teacher, **turn.how)
        else:
            local = {"only": names[block], "objective": step.stages[block]}
            turn.log = step(loop.batch(turn.index), teacher, **turn.how, **local)
        turn.notes = {"block": block}


def _names(step: Step, blocks: int) -> list[frozenset[str]]:
    """Names of the tensors of each run of layers; the embedding belongs to the first."""
    layers = layers_of(step.model)
    owner = {id(p): index for index, layer in enumerate(layers, start=1) for p in layer.parameters()}
    embedding = {id(p) for p in step.model.get_input_embeddings().parameters()}  # type: ignore[operator]
    found, start = [], 0
    for end in ends(len(layers), blocks):
        own = [
            name
            for name, p in step.model.named_parameters()
            if start < owner.get(id(p), 0) <= end or (start == 0 and id(p) in embedding)
        ]
        found.append(frozenset(own))
        start = end
    return found
