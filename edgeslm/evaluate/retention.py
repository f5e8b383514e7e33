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

ABOVE_CHANCE = 3.0  # standard errors that a teacher must be above chance for its skill to be a measure
SIGNIFICANT = 0.05
BINS = 10


@dataclass(frozen=True)
class Retention:
    """`value` None: the teacher itself is not clearly above chance, so there is nothing to retain. `p` is McNemar's
    exact two-sided probability that two equally good files differ as much (items both have right or wrong say nothing);
    `difference` is "better", "worse" or "none" accordingly."""

    task: str
    items: int
    student: float
    teacher: float
    chance: float
    value: float | None
    standard_error: float | None
    only_student: int  # right where the teacher is wrong
    only_teacher: int
    p: float
    difference: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def chance(items: Sequence[Item]) -> float:
    """Mean over items of one over the number of choices; 0 where nothing is chosen from."""
    return statistics.fmean(1 / len(item.nats) if item.nats else 0.0 for item in items)


def paired(student: TaskScore, teacher: TaskScore) -> list[tuple[Item, Item]]:
    """Raises DataError when the two did not answer the same items of the same task."""
    same = [i.digest for i in student.items] == [i.digest for i in teacher.items] and student.task == teacher.task
    if not same or (student.metric, student.shots, student.source) != (teacher.metric, teacher.shots, teacher.source):
        raise DataError(f"{student.task}: the two files did not answer the same items; evaluate both again together")
    return list(zip(student.items, teacher.items, strict=True))


def retention(student: TaskScore, teacher: TaskScore) -> Retention:
    """The standard error is of the ratio, by the delta method over paired items."""
    pairs = paired(student, teacher)
    n, base = len(pairs), chance(student.items)
    s, t = [a.value for a, _ in pairs], [b.value for _, b in pairs]
    top, bottom = statistics.fmean(s) - base, statistics.fmean(t) - base
    value = error = None
    if n > 1 and bottom > ABOVE_CHANCE * math.sqrt(statistics.variance(t) / n) and bottom > 0:
        value = top / bottom
        left = [(a - base) - value * (b - base) for a, b in zip(s, t, strict=True)]
        error = math.sqrt(statistics.variance(left) / n) / bottom
    only_student = sum(a > b for a, b in zip(s, t, strict=True))
    only_teacher = sum(b > a for a, b in zip(s, t, strict=True))
    p = mcnemar(only_student, only_teacher)
    difference = "none" if p >= SIGNIFICANT else "better" if only_student > only_teacher else "worse"
    return Retention(
        student.task, n, statistics.fmean(s), statistics.fmean(t), base, value, error, only_student, only_teacher, p,
        difference,
    )  # fmt: skip


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
    item's score. None where nothing is chosen from."""
    chosen = [item for item in items if item.nats]
    if not chosen:
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


def changed(one: TaskScore, other: TaskScore) -> dict[str, Any]:
    """Churn on items: how often two files choose differently (where there are choices) or score differently."""
    pairs = paired(one, other)
    choices = [(a, b) for a, b in pairs if a.nats and b.nats]

    def first(item: Item) -> int:
        return max(range(len(item.nats)), key=item.nats.__getitem__)

    return {
        "task": one.task,
        "items": len(pairs),
        "choice_changes": statistics.fmean(first(a) != first(b) for a, b in choices) if choices else None,
        "score_changes": statistics.fmean(a.value != b.value for a, b in pairs),
    }
