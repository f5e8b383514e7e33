"""The task `likelihood`: how probable continuations are after a prefix, which is what multiple choice asks.

Letters: m rows of logits of one group, V vocabulary. Job: `groups`, a list of [prefix ids, [continuation ids, ...]].
An engine offers `follow(groups)`, which yields (number of the group, logits float [m, V], rows) in any order, where
`rows[c][j]` is the row that predicts id j of continuation c; a prefix is computed once, its last row serves all.

As soon as a group is done a line `{"group": i, "scores": [[nats, greedy], ...]}` is said: whoever listens keeps what
was done when the worker dies. Sums are taken in float64. Standard library and numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from common import Desk, JobError

Group = tuple[list[int], list[list[int]]]
Followed = tuple[int, np.ndarray, list[list[int]]]


def scores(logits: np.ndarray, rows: list[list[int]], continuations: list[list[int]]) -> list[list[Any]]:
    """[[log-probability of the continuation in nats, whether greedy decoding would write it], ...]"""
    needed = sorted({row for picked in rows for row in picked})
    largest, log_sum = {}, {}
    for row in needed:
        values = logits[row]
        top = int(values.argmax())
        peak = float(values[top])
        total = float(np.exp(values - values[top], dtype=np.float32).sum(dtype=np.float64))
        if not np.isfinite(peak) or not np.isfinite(total):
            raise JobError("the model's logits hold NaN or infinity; the file is damaged or overflows its format")
        largest[row], log_sum[row] = top, peak + float(np.log(total))
    found: list[list[Any]] = []
    for picked, ids in zip(rows, continuations, strict=True):
        pairs = list(zip(picked, ids, strict=True))
        nats = sum(float(logits[row, token]) - log_sum[row] for row, token in pairs)
        if not np.isfinite(nats):
            raise JobError("a token that was asked for has a probability of zero; the vocabulary is masked or damaged")
        found.append([nats, all(largest[row] == token for row, token in pairs)])
    return found


def cells(group: Group) -> int:
    """Ids that a group feeds: its prefix once, and each continuation but for its last id."""
    return len(group[0]) + sum(len(ids) - 1 for ids in group[1])


def check_groups(groups: list[Group], vocabulary: int, context: int) -> None:
    """Raises JobError for what cannot be scored: nothing may be scored wrongly for want of room."""
    for number, (prefix, continuations) in enumerate(groups):
        if not prefix or not continuations or not all(continuations):
            raise JobError(f"group {number} has an empty prefix or continuation; every one needs an id")
        longest = len(prefix) + max(map(len, continuations)) - 1
        if longest > context:
            raise JobError(f"group {number} has {longest} ids, more than the context of {context}")
        for ids in (prefix, *continuations):
            if min(ids) < 0 or max(ids) >= vocabulary:
                raise JobError(f"group {number} holds an id outside the model's vocabulary of {vocabulary}")


def packs(groups: list[Group], room: int, sequences: int) -> Iterator[list[tuple[int, int, Group]]]:
    """Groups laid together so that they fill a batch: lists of (number, first continuation, part of the group) that
    feed at most `room` ids and hold at most `sequences` continuations. A group too large for that comes in parts."""
    pack: list[tuple[int, int, Group]] = []
    fed = held = 0
    for number, (prefix, continuations) in enumerate(groups):
        start = 0
        while start < len(continuations):
            end, size = start, len(prefix)
            while end < len(continuations) and end - start < sequences and size + len(continuations[end]) - 1 <= room:
                size += len(continuations[end]) - 1
                end += 1
            part = (prefix, continuations[start : max(end, start + 1)])
            if pack and (fed + cells(part) > room or held + len(part[1]) > sequences):
                yield pack
                pack, fed, held = [], 0, 0
            pack.append((number, start, part))
            fed, held, start = fed + cells(part), held + len(part[1]), start + len(part[1])
    if pack:
        yield pack


def likelihood(open_engine: Any, desk: Desk) -> dict[str, Any]:
    """The task; see the module's text. Result: `engine` and the number of `groups`; the scores are said in lines."""
    engine = open_engine(desk)
    groups: list[Group] = [(prefix, continuations) for prefix, continuations in desk.job["groups"]]
    check_groups(groups, engine.vocabulary, engine.context)
    parts: dict[int, list[list[Any]]] = {}
    done = 0
    for number, logits, rows in engine.follow(groups):
        part = parts.setdefault(number, [])
        wanted = groups[number][1]
        part += scores(logits, rows, wanted[len(part) : len(part) + len(rows)])
        if len(part) == len(wanted):
            desk.say({"group": number, "scores": parts.pop(number)})
            done += 1
            desk.progress(done, len(groups))
    return {"engine": engine.info, "groups": done}
