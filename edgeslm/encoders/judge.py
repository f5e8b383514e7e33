"""How good an encoder is on rows nobody was trained on, from its outputs alone, whatever computed them.

Shape letters: R rows, T tokens, V classes, S width of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeslm.encoders.tokens import Table
from edgeslm.encoders.view import inputs

BATCH = 64
PAIRS = 20_000

Array = NDArray[Any]


@torch.no_grad()
def outputs(model: Any, table: Table, chosen: torch.Tensor) -> Array:
    """The model's outputs on the chosen rows, batch by batch."""
    device = next(model.parameters()).device
    parts = [
        model(*inputs(model, table.batch(chosen[at : at + BATCH]).to(device))).float().cpu()
        for at in range(0, len(chosen), BATCH)
    ]
    return torch.cat(parts).numpy()


def figures(task: str, made: Array, rows: dict[str, Array], teacher: Array | None = None) -> dict[str, float]:
    """`made`: outputs of one model; `rows`: label, start and end of the same rows. Of similarity against the
    teacher's vectors."""
    if task == "classify":
        return _classes(made, rows["label"], teacher)
    if task == "span":
        return _spans(made, rows["start"], rows["end"], teacher)
    assert teacher is not None
    return _vectors(made, teacher)


def _classes(made: Array, label: Array, teacher: Array | None) -> dict[str, float]:
    chosen = made.argmax(axis=1)
    found = {"accuracy": float((chosen == label).mean())}
    found["majority"] = float(np.bincount(label).max() / len(label))
    if teacher is not None:
        found["agreement"] = float((chosen == teacher.argmax(axis=1)).mean())
    return found


def _spans(made: Array, start: Array, end: Array, teacher: Array | None) -> dict[str, float]:
    """Exact match, and how often the two ends are right; rows whose answer was cut away are left out."""
    there = start >= 0
    chosen = made.argmax(axis=2)  # [R, 2]
    right = chosen == np.stack([start, end], axis=1)
    found = {"exact": float(right.all(axis=1)[there].mean()), "first_token": float(right[there, 0].mean())}
    if teacher is not None:
        found["agreement"] = float((chosen == teacher.argmax(axis=2)).all(axis=1).mean())
    return found


def _vectors(made: Array, teacher: Array) -> dict[str, float]:
    """Spearman's correlation of the cosines of pairs of rows with the teacher's; and, of vectors of one width, how
    often a row's own vector is the nearest of the teacher's (chance: one in the number of rows)."""
    rng = np.random.default_rng(0)
    one, other = rng.integers(len(made), size=(2, PAIRS))
    one, other = one[one != other], other[one != other]
    ours, theirs = ((x[one] * x[other]).sum(axis=1) for x in (made, teacher))
    found = {"spearman": spearman(ours, theirs)}
    if made.shape[1] == teacher.shape[1]:
        near = made @ teacher.T
        found["retrieval"] = float((near.argmax(axis=1) == np.arange(len(made))).mean())
        found["chance"] = 1 / len(made)
        found["cosine"] = float((made * teacher).sum(axis=1).mean())
    return found


def spearman(a: Array, b: Array) -> float:
    """Correlation of ranks; ties get the mean of their ranks."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(x: Array) -> Array:
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    return ((ends - count + ends - 1) / 2)[place]


def known(table: Table, chosen: torch.Tensor) -> dict[str, Array]:
    return {name: table.fields[name][chosen].numpy().astype(np.int64) for name in ("label", "start", "end")}


def own_classes(recipe: Any, model_tasks: Sequence[int], task: int, made: Array) -> Array:
    """Of outputs over the classes of several tasks those of one."""
    first = sum(recipe.classes[t] for t in model_tasks[: model_tasks.index(task)])
    return made[:, first : first + recipe.classes[task]]


def quick(student: Any, seen: Any, teachers: Sequence[Any], table: Table, recipe: Any) -> dict[str, float]:
    """One figure for each task, in torch."""
    found = {}
    main = {"classify": "accuracy", "span": "exact", "similarity": "spearman"}[recipe.task]
    for task, part in enumerate(recipe.tasks):
        chosen = table.of([task], ["judge"])
        made, given = outputs(student, table, chosen), None
        if recipe.task == "classify":
            made = own_classes(recipe, list(seen.tasks), task, made)
        if recipe.task == "similarity":
            given = outputs(teachers[0], table, chosen)
        found[f"{part.name}.{main}"] = figures(recipe.task, made, known(table, chosen), given)[main]
    return found
