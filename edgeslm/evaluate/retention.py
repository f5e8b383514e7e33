"""How much of a teacher's skill is left: paired statistics over the same items, answered by two files.

Retention of a task is (student - chance) / (teacher - chance), chance being what guessing gives on these very items.
Letters: n items. Standard errors treat items as independent draws.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgeslm.errors import DataError
from edgeslm.evaluate.harness.run import Item, TaskScore

FEWEST = 30  # items of which a retention is taken
ABOVE_CHANCE = 3.0  # standard errors that a teacher must be above chance for its skill to be a measure
SIGNIFICANT = 0.05
BINS = 10


@dataclass(frozen=True)
class Retention:
    """`value` None: there is nothing that could be retained, and `why` says so. `p` is McNemar's exact two-sided
    probability that two equally good files differ as much (items both have right or wrong say nothing), None where
    scores are not simply right or wrong; `difference` is "better", "worse" or "none" accordingly."""

    task: str
    items: int
    student: float
    teacher: float
    chance: float
    value: float | None
    standard_error: float | None
    why: str
    only_student: int  # right where the teacher is wrong
    only_teacher: int
    p: float | None
    difference: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def chances(items: Sequence[Item]) -> list[float]:
    """Of each item one over the number of choices; 0 where nothing is chosen from."""
    return [1 / len(item.nats) if item.nats else 0.0 for item in items]


def paired(student: TaskScore, teacher: TaskScore) -> list[tuple[Item, Item]]:
    """Raises DataError when the two did not answer the same items of the same task."""
    same = [i.digest for i in student.items] == [i.digest for i in teacher.items] and student.task == teacher.task
    if not same or (student.metric, student.shots, student.source) != (teacher.metric, teacher.shots, teacher.source):
        raise DataError(f"{student.task}: the two files did not answer the same items; evaluate both again together")
    return list(zip(student.items, teacher.items, strict=True))


def retention(student: TaskScore, teacher: TaskScore) -> Retention | None:
    """None for a task that gives no score item by item. The standard error is of the ratio, by the delta method over
    paired items."""
    pairs = paired(student, teacher)
    if not pairs:
        return None
    n, guesses = len(pairs), chances(student.items)
    s, t = [a.value for a, _ in pairs], [b.value for _, b in pairs]
    binary = {*s, *t} <= {0.0, 1.0}
    base = statistics.fmean(guesses)
    top, bottom = statistics.fmean(s) - base, statistics.fmean(t) - base
    why = _nothing_to_retain(t, guesses, bottom, binary)
    value = error = None
    if not why:
        value = top / bottom
        left = [(a - base) - value * (b - base) for a, b in zip(s, t, strict=True)]
        error = math.sqrt(statistics.variance(left) / n) / bottom
    only_student = sum(a > b for a, b in zip(s, t, strict=True))
    only_teacher = sum(b > a for a, b in zip(s, t, strict=True))
    p = mcnemar(only_student, only_teacher) if binary else None
    difference = "none" if p is None or p >= SIGNIFICANT else "better" if only_student > only_teacher else "worse"
    return Retention(
        student.task, n, statistics.fmean(s), statistics.fmean(t), base, value, error, why, only_student, only_teacher,
        p, difference,
    )  # fmt: skip


def _nothing_to_retain(teacher: list[float], guesses: list[float], above: float, binary: bool) -> str:
    """Why the teacher's score is no measure of skill; empty where it is one."""
    n = len(teacher)
    if not binary and any(guesses):
        return "scores are not right or wrong, so chance is not known"
    if n < FEWEST:
        return f"fewer than {FEWEST} items"
    by_chance = statistics.fmean(c * (1 - c) for c in guesses)  # variance of one guessed item
    spread = by_chance if by_chance > 0 else statistics.variance(teacher)
    return "" if above > max(ABOVE_CHANCE * math.sqrt(spread / n), 0.0) else "teacher not clearly above chance"


def mean_retention(found: Sequence[Retention]) -> tuple[float, float] | None:
    """Mean over tasks that have one, and its standard error (items of different tasks are independent)."""
    values = [(r.value, r.standard_error) for r in found if r.value is not None and r.standard_error is not None]
    if not values:
        return None
    return statistics.fmean(v for v, _ in values), math.sqrt(sum(e * e for _, e in values)) / len(values)


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided probability of a split of b + c discordant pairs at least as uneven (McNemar 1947)."""
    n, least = b + c, min(b, c)
    if n == 0:
        return 1.0
    log_half = n * math.log(2)
    tail = math.fsum(
        math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - log_half) for k in range(least + 1)
    )
    return min(1.0, 2 * tail)


def calibration(items: Sequence[Item]) -> dict[str, Any] | None:
    """Of multiple choice: confidence is the chosen option's share of the probability of all options; right is the
    item's score. None where nothing is chosen from, or where an answer is not simply right or wrong."""
    chosen = [item for item in items if item.nats]
    if not chosen or not {item.value for item in chosen} <= {0.0, 1.0}:
        return None
    confidence = [1 / math.fsum(math.exp(x - max(item.nats)) for x in item.nats) for item in chosen]
    return expected_calibration_error(confidence, [item.value for item in chosen])


def expected_calibration_error(confidence: Sequence[float], right: Sequence[float]) -> dict[str, Any]:
    """Expected calibration error over BINS equal bins of confidence (Guo et al., arXiv:1706.04599, equation 3), and the
    bins: how many, mean confidence, share that was right."""
    bins: list[list[tuple[float, float]]] = [[] for _ in range(BINS)]
    for c, r in zip(confidence, right, strict=True):
        bins[min(int(c * BINS), BINS - 1)].append((c, r))
    rows: list[dict[str, Any]] = [
        {
            "n": len(inside),
            "confidence": statistics.fmean(c for c, _ in inside) if inside else None,
            "right": statistics.fmean(r for _, r in inside) if inside else None,
        }
        for inside in bins
    ]
    error = sum(row["n"] * abs(row["confidence"] - row["right"]) for row in rows if row["n"]) / len(confidence)
    return {"error": error, "bins": rows, "n": len(confidence)}


def changed(one: TaskScore, other: TaskScore) -> dict[str, Any] | None:
    """Churn on items: how often two files choose differently (where there are choices) or score differently. None for
    a task that gives no score item by item."""
    pairs = paired(one, other)
    if not pairs:
        return None
    choices = [(a, b) for a, b in pairs if a.nats and b.nats]

    def first(item: Item) -> int:
        return max(range(len(item.nats)), key=item.nats.__getitem__)

    return {
        "task": one.task,
        "items": len(pairs),
        "choice_changes": statistics.fmean(first(a) != first(b) for a, b in choices) if choices else None,
        "score_changes": statistics.fmean(a.value != b.value for a, b in pairs),
    }
