"""What the groups of a codistillation used of each other, step by step: how old it was, and what went wrong."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from edgeslm.report.blocks import Block, Chart, Note, Section, Table
from edgeslm.report.folder import Run
from edgeslm.report.learned_charts import Line, lines

MOST = 6  # lines that can be told apart
POINTS = 60  # of a line
SHOWN = 8  # exchanges that went wrong


def peers(run: Run) -> Section | None:
    """None for a run that is no codistillation."""
    steps = [s for s in run.steps if "peer_weight" in s]
    if not steps:
        return None
    blocks: list[Block] = [_ages(steps), _taught(steps), *_problems(steps)]
    return Section("peers", "What copies learned from each other", blocks)


def _used(steps: Sequence[dict[str, Any]]) -> Iterator[tuple[int, tuple[int, int], int, int]]:
    """(step, (group, peer), the peer's step, age), of entries that are whole."""
    for step in steps:
        for used in step["used"] if isinstance(step.get("used"), list) else ():
            names = ("group", "peer", "step", "age")
            found: list[Any] = [used.get(name) if isinstance(used, dict) else None for name in names]
            if all(isinstance(value, int) for value in found):
                group, peer, theirs, age = found
                yield int(step["step"]), (group, peer), theirs, age


def _ages(steps: Sequence[dict[str, Any]]) -> Chart | Note:
    pairs: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for step, pair, theirs, age in _used(steps):
        pairs.setdefault(pair, []).append((step, theirs, age))
    if not pairs:
        return Note("No copy learned from another: there was no checkpoint of a peer that could be used.", "missing")
    drawn, legend, rows = [], [], []
    for number, (pair, found) in enumerate(sorted(pairs.items()), start=1):
        ages, name = [age for *_, age in found], f"group {pair[0]} from group {pair[1]}"
        thin = found[:: max(1, len(found) // POINTS)]
        points = [
            (float(s), float(max(0, a)), f"step {s}: {name}'s step {theirs}, {a} steps old") for s, theirs, a in thin
        ]
        if number <= MOST:
            drawn.append(Line(f"r{number}", points))
            legend.append((f"r{number}", name))
        taken = len({theirs for _, theirs, _ in found})
        last = found[-1]
        rows.append((name, str(len(found)), str(taken), f"{statistics.median(ages):g}", str(max(ages)), str(last[1])))
    columns = ("Who", "Steps taught", "Checkpoints used", "Age, median", "Age, most", "Last one's step")
    table = Table("Peers", columns, tuple(rows), frozenset({1, 2, 3, 4, 5}))
    svg = lines("peers", "Age of what peers taught", drawn, "step", "steps behind")
    return Chart("Age of what peers taught", svg, table, tuple(legend), "0: as old as the copy itself")


def _taught(steps: Sequence[dict[str, Any]]) -> Note:
    """In which of the steps that were to learn from peers anybody taught: a server may have been out of reach, and
    predictions teach where shared rows are read."""
    wanted = [step for step in steps if step["peer_weight"]]
    found = sum(bool(step.get("used")) for step in wanted)
    return Note(f"Peers taught in {found} of the {len(wanted)} steps that follow the burn-in.")


def _problems(steps: Sequence[dict[str, Any]]) -> list[Block]:
    said = [(str(s["step"]), str(p)) for s in steps for p in s.get("exchange_problems") or ()]
    if not said:
        return []
    rows = said[:SHOWN]
    more = [("", f"and {len(said) - SHOWN} more, in the log")] if len(said) > SHOWN else []
    return [Table("Exchanges that went wrong", ("Step", "What"), (*rows, *more))]
