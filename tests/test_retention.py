"""Paired statistics: retention, McNemar, calibration, churn; against scipy and by hand."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from edgeslm.errors import DataError
from edgeslm.evaluate.harness.run import Item, TaskScore
from edgeslm.evaluate.retention import (
    calibration,
    chances,
    changed,
    expected_calibration_error,
    mcnemar,
    mean_retention,
    retention,
)


def score(values: list[float], choices: int = 4, task: str = "arc_easy", seed: int = 0) -> TaskScore:
    draw = random.Random(seed)
    items = tuple(
        Item(str(i), v, tuple(draw.uniform(-9, -1) for _ in range(choices)) if choices else ())
        for i, v in enumerate(values)
    )
    return TaskScore(task, "acc", "1", 0, "file", {"acc": sum(values) / len(values)}, items)


def test_retention_is_the_share_of_skill_above_chance() -> None:
    teacher = score([1.0] * 75 + [0.0] * 25)
    student = score([1.0] * 50 + [0.0] * 50)
    found = retention(student, teacher)
    assert found.chance == 0.25 and found.value == pytest.approx(0.5) and found.items == 100
    assert (found.only_student, found.only_teacher) == (0, 25) and found.difference == "worse" and found.p < 1e-6
    same = retention(teacher, teacher)
    assert same.value == 1.0 and same.standard_error == 0.0 and same.p == 1.0 and same.difference == "none"


def test_the_standard_error_is_that_of_resampled_items() -> None:
    draw = random.Random(0)
    pairs = [(float(draw.random() < 0.6), float(draw.random() < 0.8)) for _ in range(600)]
    student, teacher = score([s for s, _ in pairs]), score([t for _, t in pairs])
    found = retention(student, teacher)
    values = []
    for _ in range(600):
        some = [pairs[draw.randrange(len(pairs))] for _ in pairs]
        s, t = (sum(side) / len(some) - 0.25 for side in zip(*some, strict=True))
        values.append(s / t)
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    assert found.standard_error == pytest.approx(spread, rel=0.12)


def test_a_teacher_at_chance_has_no_skill_to_retain() -> None:
    teacher, student = score([1.0] * 27 + [0.0] * 73), score([1.0] * 30 + [0.0] * 70)
    found = retention(student, teacher)
    assert found is not None and found.value is None and found.standard_error is None
    assert found.why == "teacher not clearly above chance" and found.p is not None
    good = retention(score([1.0] * 50 + [0.0] * 50), score([1.0] * 75 + [0.0] * 25))
    mean = mean_retention([found, good, good])
    assert mean is not None and mean[0] == pytest.approx(0.5)
    assert mean[1] == pytest.approx(good.standard_error / math.sqrt(2))  # type: ignore[operator]
    assert mean_retention([found]) is None


def test_a_few_lucky_items_are_no_skill() -> None:
    lucky = retention(score([1.0, 1.0], 2), score([1.0, 1.0], 2))
    assert lucky is not None and lucky.value is None and lucky.why == "fewer than 30 items"
    draw = random.Random(1)
    called = 0
    for _ in range(2000):  # guessers among two choices: about one in a thousand is above chance by three errors
        guesses = score([float(draw.random() < 0.5) for _ in range(40)], 2)
        found = retention(guesses, guesses)
        called += found is not None and found.value is not None
    assert called <= 12


def test_scores_that_are_not_right_or_wrong_have_no_chance() -> None:
    found = retention(score([0.4] * 50), score([0.6] * 50))
    assert found is not None and found.value is None and found.p is None and "not right or wrong" in found.why
    free = retention(score([0.4] * 50, 0), score([0.8] * 50, 0))  # nothing is chosen from: an F1, say
    assert free is not None and free.value == pytest.approx(0.5) and free.p is None and free.difference == "none"
    assert calibration(score([0.4] * 50).items) is None
    none = TaskScore("t", "", "1", 0, "f", {"ppl": 3.0}, ())
    assert retention(none, none) is None and changed(none, none) is None


def test_other_items_are_never_compared() -> None:
    one = score([1.0, 0.0])
    other = replace(one, items=one.items[::-1])
    for wrong in (other, replace(one, task="piqa"), replace(one, shots=1), replace(one, source="another file")):
        with pytest.raises(DataError, match="did not answer the same items"):
            retention(one, wrong)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (3, 9), (9, 3), (5, 5), (40, 61), (300, 402)])
def test_mcnemar_equals_scipys_exact_binomial(b: int, c: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(min(b, c), b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9)


def test_chance_is_of_the_very_items() -> None:
    assert chances((*score([1.0], 2).items, *score([1.0], 4).items)) == [0.5, 0.25]
    assert chances(score([1.0], 0).items) == [0.0]


def test_calibration_by_hand() -> None:
    found = expected_calibration_error([0.9, 0.9, 0.6, 1.0], [1, 0, 1, 1])
    # bins: 0.9 and 0.9 and 1.0 together (mean 0.9333, right 2/3), 0.6 alone
    assert found["error"] == pytest.approx((3 * abs(2.8 / 3 - 2 / 3) + abs(0.6 - 1)) / 4)
    assert sum(b["n"] for b in found["bins"]) == 4
    certain = calibration([Item("a", 1.0, (0.0, -100.0)), Item("b", 1.0, (-100.0, 0.0))])
    assert certain is not None and certain["error"] == pytest.approx(0.0)
    unsure = calibration([Item("a", 1.0, (-1.0, -1.0)), Item("b", 0.0, (-1.0, -1.0))])
    assert unsure is not None and unsure["error"] == pytest.approx(0.0)
    assert calibration([Item("a", 1.0)]) is None


def test_churn_counts_choices_and_scores() -> None:
    one = TaskScore("t", "acc", "1", 0, "f", {}, (Item("a", 1.0, (-1.0, -2.0)), Item("b", 0.0, (-1.0, -2.0))))
    two = replace(one, items=(Item("a", 0.0, (-2.0, -1.0)), Item("b", 0.0, (-1.0, -3.0))))
    assert changed(one, two) == {"task": "t", "items": 2, "choice_changes": 0.5, "score_changes": 0.5}
    assert changed(one, one) == {"task": "t", "items": 2, "choice_changes": 0.0, "score_changes": 0.0}
    bare = TaskScore("t", "acc", "1", 0, "f", {}, (Item("a", 1.0),))
    assert changed(bare, bare) == {"task": "t", "items": 1, "choice_changes": None, "score_changes": 0.0}
