"""Layers of several kinds: a family whose layers slide or see everything, turn by position or do not, in a fixed
pattern (Gemma 3, SmolLM3). Runtimes know the pattern by place, so the j-th layer of a student has to be of the kind of
the teacher's j-th."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeslm.models.shapes import PER_LAYER

Path = tuple[float, tuple[int, ...]]  # influence kept, layers


def kinds(config: Any) -> list[tuple[Any, ...]]:
    """What tells layers apart, one entry a layer."""
    lists = [getattr(config, key, None) or [None] * config.num_hidden_layers for key in PER_LAYER]
    return list(zip(*lists, strict=True))


def most_influence(scores: Sequence[float], keep: int, kinds: Sequence[Any]) -> list[int]:
    """The `keep` layers of the largest sum of scores such that the j-th of them is of kind kinds[j]."""
    best: list[list[Path | None]] = [[(0.0, ())]]  # [layers looked at][layers kept]
    for index, score in enumerate(scores):
        row: list[Path | None] = []
        for count in range(min(index + 1, keep) + 1):
            options = [best[-1][count]] if count < len(best[-1]) else []
            if count and (before := best[-1][count - 1]) is not None and kinds[index] == kinds[count - 1]:
                options.append((before[0] + score, (*before[1], index)))
            row.append(max((o for o in options if o is not None), key=lambda o: o[0], default=None))
        best.append(row)
    found = best[-1][keep]
    assert found is not None  # the first `keep` layers always fit
    return list(found[1])
