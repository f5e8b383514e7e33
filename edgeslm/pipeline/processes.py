"""A training on several processes: how they share student and teachers, and what the first one says of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edgeslm.pipeline.prepare import student_model
from edgeslm.pipeline.ranks import cut
from edgeslm.pipeline.stage import Context, read_json, write_json
from edgeslm.recipe import Recipe


def engine_of(context: Context, student: Any, masters: Any, objectives: Sequence[Any]) -> Any:
    """What trains this student here. Where each process is to hold a part of it, it is cut now. Raises ModelError."""
    from edgeslm import parallel
    from edgeslm.parallel.engine import Alone

    ranks = parallel.join()
    if ranks.size == 1:
        return Alone()
    if not cut(context.recipe):
        from edgeslm.parallel.replicas import Replicas

        return Replicas(student, masters, ranks, some=not all(objective.responses for objective in objectives))
    from edgeslm.parallel.shards import Shards

    wants = [objective.wants for objective in objectives if not objective.responses]
    return Shards(student, masters, context.compute.dtype, wants, ranks)


def can_be_cut(recipe: Recipe, student: Any, teachers: Sequence[Any]) -> None:
    """Whether a student can be trained in parts on the recipe's objectives, for models of these (layers, sizes). Raises
    ModelError."""
    import torch

    from edgeslm.parallel.shards import ends_inside
    from edgeslm.schemes import blockwise
    from edgeslm.schemes.objective import Objective

    given: list[Any] = [[term.model_dump() for term in recipe.distill.objective]]
    if recipe.distill.scheme.kind == "blockwise":
        given += blockwise.terms(recipe.distill.scheme, student[0], teachers[0][0])
    for terms in given:
        made = Objective.build(terms).bound(student, teachers, 1, torch.Generator())
        if not made.responses:
            ends_inside(made.wants)


def weight_type(context: Context) -> Any:
    """Of the modules' own weights: what is cut lies in float32 and is cast where it is gathered."""
    import torch

    return torch.float32 if cut(context.recipe) else context.compute.dtype


def spread_teachers(context: Context, models: Sequence[Any]) -> None:
    """Cuts them, where the recipe says so."""
    if getattr(context.recipe.distill.train.parallel, "teacher", "replicated") != "sharded":
        return
    from edgeslm.parallel.shards import spread_teacher

    for model in {id(model): model for model in models}.values():
        spread_teacher(model)


def changing(context: Context, load: Callable[[str], Any]) -> Callable[[str], Any]:
    """The same for teachers that are loaded while training goes on."""

    def loaded(spec: str) -> Any:
        teacher = load(spec)
        spread_teachers(context, [teacher.model])
        return teacher

    return loaded


def in_one_piece(context: Context, student: Any) -> Any:
    """The student as it is. Where it is cut, a copy of it on the first process and None elsewhere; all must call."""
    if not cut(context.recipe):
        return student
    from edgeslm import parallel
    from edgeslm.parallel.shards import weights_of

    weights = weights_of(student, parallel.join())
    if not parallel.join().first:
        return None
    model = student_model(context)
    for name, parameter in model.named_parameters():
        parameter.data = weights[name].to(parameter.device, context.compute.dtype)
    return model


def joined(context: Context) -> Callable[[Any, Any], Any]:
    """What `freeze` puts blocks of ranks together with."""
    if not cut(context.recipe):
        return lambda blocks, value: blocks
    from edgeslm import parallel
    from edgeslm.parallel.shards import gathered

    return partial(gathered, ranks=parallel.join())


def note(context: Context, folder: Path, held: Sequence[int], peaks: Sequence[int | None]) -> None:
    """`held`: bytes of weights, masters, scales and moments on each process between steps."""
    told = read_json(folder / "summary.json")
    found = {
        "ranks": len(peaks),
        "parallel": context.recipe.distill.train.parallel.model_dump(mode="json"),
        "tokens_per_s": told["tokens_per_s"],  # of all together
        "held_bytes": list(held),
        "peak_memory_bytes": list(peaks),
    }
    write_json(folder / "ranks.json", found)
    write_json(folder / "summary.json", told | {"processes": found})
