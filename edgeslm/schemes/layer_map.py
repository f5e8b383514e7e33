"""Which layer of the student follows which of the teacher's. Layer 0 is the embedding's output, L the last block's.

Shape letters: S student's layers, L teacher's layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from edgeslm.errors import RecipeError

# (student layer, the teacher's layers whose mean it follows)
Pair = tuple[int, tuple[int, ...]]
Explicit = Sequence[tuple[int, int | Sequence[int]]]


def uniform(student: int, teacher: int) -> list[Pair]:
    """Every student layer, spread evenly over the teacher's; both ends meet."""
    return [(s, (round(s * teacher / student),)) for s in range(1, student + 1)]


def last(student: int, teacher: int) -> list[Pair]:
    return [(student, (teacher,))]


def middle(student: int, teacher: int) -> list[Pair]:
    """One hint half-way (FitNets, arXiv:1412.6550)."""
    s = max(1, student // 2)
    return [(s, (max(1, round(s * teacher / student)),))]


def embedding(student: int, teacher: int) -> list[Pair]:
    return [(0, (0,))]


def all_and_embedding(student: int, teacher: int) -> list[Pair]:
    """TinyBERT (arXiv:1909.10351): the embedding and every layer."""
    return embedding(student, teacher) + uniform(student, teacher)


def groups(student: int, teacher: int) -> list[Pair]:
    """Many to one: the teacher's layers in as many runs as the student has layers, each run's mean taught."""
    ends = [round(s * teacher / student) for s in range(student + 1)]
    return [(s, tuple(range(a + 1, b + 1)) or (max(1, b),)) for s, (a, b) in enumerate(pairwise(ends), start=1)]


MAPS = {
    "uniform": uniform,
    "last": last,
    "middle": middle,
    "embedding": embedding,
    "all": all_and_embedding,
    "groups": groups,
}


def resolve(layers: str | Explicit, student: int, teacher: int, where: str) -> list[Pair]:
    """Pairs by name or as spelled out. Raises RecipeError for no pairs, and for a layer that one of the models does not
    have."""
    if isinstance(layers, str):
        if layers not in MAPS:
            raise RecipeError([f"{where}.layers: unknown map '{layers}'; known: {', '.join(MAPS)}, or pairs [[s, t]]"])
        return MAPS[layers](student, teacher)
    pairs = [(s, (t,) if isinstance(t, int) else tuple(t)) for s, t in layers]
    if not pairs:
        raise RecipeError([f"{where}.layers: names no pair; leave it out for the loss's own map"])
    for s, many in pairs:
        if not many:
            raise RecipeError([f"{where}.layers: names no layer of the teacher for the student's {s}"])
        if not 0 <= s <= student:
            raise RecipeError([f"{where}.layers: the student has layers 0 to {student}, not {s}"])
        if wrong := [t for t in many if not 0 <= t <= teacher]:
            raise RecipeError([f"{where}.layers: the teacher has layers 0 to {teacher}, not {wrong[0]}"])
    return pairs
