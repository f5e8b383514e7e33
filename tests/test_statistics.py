"""Intervals keep their promise, ratios refuse the unlike, and "no difference" is said when there is none."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import replace
from typing import Any

import pytest

from edgeslm import measurement
from edgeslm.measurement import Measurement, UnlikeRuns, Where, unlike
from edgeslm.statistics import (
    BAND,
    by_process,
    interval,
    medians,
    ratio,
    ratio_of_means,
    student_t,
)

RUNS = 3
DEVICE = {"id": "aaaa", "name": "A machine"}


def made(values: list[float], processes: int | None = None, **rest: Any) -> Measurement:
    where = Where(DEVICE, "llama.cpp", "1", "a.gguf", "0" * 64, "gguf", {"task": "bench", "context": 64}, 4)
    extra = {"depth": 128} | ({} if processes is None else {"processes": processes})
    fields: dict[str, Any] = {"metric": "decode", "unit": "tokens/s", "better": "higher", "extra": extra}
    return Measurement(values=tuple(values), where=where, **(fields | rest))


def two_level(rng: random.Random, processes: int, middle: float, drift: list[float] | None = None) -> list[float]:
    """Processes 5 % about the middle, runs 1 % about their process: what benchmarks look like."""
    out = []
    for i in range(processes):
        place = math.log(middle) + rng.gauss(0, 0.05) + (drift[i] if drift else 0.0)
        out += [math.exp(place + rng.gauss(0, 0.01)) for _ in range(RUNS)]
    return out


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (1e6, 1.960)]
)
def test_t_is_that_of_the_printed_tables(freedom: float, t: float) -> None:
    assert student_t(freedom) == pytest.approx(t, abs=6e-4)


def test_t_is_scipy_s_also_between_whole_freedoms() -> None:
    scipy = pytest.importorskip("scipy.stats")
    for freedom in (0.7, 1.0, 1.9, 2.5, 4.4, 17.3, 250.0):
        for confidence in (0.5, 0.9, 0.95, 0.99):
            assert student_t(freedom, confidence) == pytest.approx(scipy.t.ppf(0.5 + confidence / 2, freedom), rel=1e-9)


@pytest.mark.parametrize("processes", [2, 3, 5, 10])
def test_an_interval_covers_as_often_as_it_says(processes: int) -> None:
    rng = random.Random(processes)
    trials = 1200
    hits = naive = 0
    for _ in range(trials):
        values = two_level(rng, processes, 60.0)
        found = interval(made(values, processes))
        assert found is not None
        hits += found.holds(60.0)
        logs = [math.log(v) for v in values]  # what one gets who takes every run for a sample of its own
        half = student_t(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
        naive += abs(statistics.fmean(logs) - math.log(60.0)) <= half
    assert 0.93 <= hits / trials <= 0.97
    assert naive / trials < 0.9, "the simulation would not notice runs that are taken for independent"


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("processes", [3, 5])
def test_the_interval_of_a_ratio_covers_too(processes: int, paired: bool) -> None:
    """Paired under a drift of 20 % that falls on both alike; it must not widen what is told."""
    rng = random.Random(100 * processes + paired)
    trials, hits, widths = 1200, 0, []
    for _ in range(trials):
        drift = [rng.gauss(0, 0.2) for _ in range(processes)] if paired else None
        a = made(two_level(rng, processes, 66.0, drift), processes)
        b = made(two_level(rng, processes, 60.0, drift), processes)
        found = ratio(a, b, paired=paired)
        assert found is not None and found.low is not None and found.high is not None and found.paired == paired
        hits += found.low <= 1.1 <= found.high
        widths.append(found.high / found.low)
    assert 0.93 <= hits / trials <= 0.985  # Welch's is a little too careful with few
    assert statistics.median(widths) < 1.6, "a drift of both sides has not cancelled"


def test_twice_the_same_is_no_difference() -> None:
    rng = random.Random(1)
    for processes in (2, 3, 7):
        m = made(two_level(rng, processes, 60.0), processes)
        for paired in (False, True):
            found = ratio(m, m, paired)
            assert found is not None and found.estimate == 1 and found.verdict == "no difference"
    constant = made([5.0] * 6, 3)
    found = ratio(constant, constant)
    assert found is not None and found.verdict == "no difference" and found.equal


def test_no_difference_is_rarely_missed() -> None:
    """Of comparisons of a machine with itself about one in twenty may claim a difference, and not more."""
    rng = random.Random(5)
    said = []
    for _ in range(800):
        a, b = (made(two_level(rng, 5, 60.0), 5) for _ in range(2))
        found = ratio(a, b)
        assert found is not None
        said.append(found.verdict)
    assert set(said) <= {"no difference", "higher", "lower"}
    assert said.count("no difference") / len(said) > 0.94


def test_a_difference_is_seen_and_one_too_small_to_matter_is_none() -> None:
    def exact(middle: float) -> Measurement:
        return made([middle * f for f in (0.9995, 1.0, 1.0005)], 3)

    for factor, verdict in ((1.3, "higher"), (0.8, "lower"), (1 + BAND / 2, "no difference"), (1.05, "higher")):
        found = ratio(exact(60 * factor), exact(60))
        assert found is not None and found.verdict == verdict
        assert found.equal == (verdict == "no difference")
    wide = ratio(made([50, 60, 75], 3), made([52, 61, 70], 3))
    assert wide is not None and wide.verdict == "no difference" and not wide.equal


def test_a_speed_and_its_time_say_the_same() -> None:
    rng = random.Random(3)
    a, b = two_level(rng, 4, 61.0), two_level(rng, 4, 55.0)
    speeds = ratio(made(a, 4), made(b, 4))
    times = ratio(made([1 / v for v in a], 4), made([1 / v for v in b], 4))
    assert speeds is not None and times is not None
    turned = times.inverse()
    assert (turned.estimate, turned.low, turned.high) == pytest.approx((speeds.estimate, speeds.low, speeds.high))
    fast, slow = interval(made(a, 4)), interval(made([1 / v for v in a], 4))
    assert fast is not None and slow is not None and slow.low == pytest.approx(1 / fast.high)


def test_one_process_says_nothing_for_sure() -> None:
    for m in (made([1.0, 1.1, 1.2], 1), made([1.0, 1.1, 1.2]), made([1.0, 2.0, 3.0], 2)):  # 2 does not divide 3
        assert interval(m) is None
        found = ratio(m, made([1.0, 2.0], 2))
        assert found is not None and found.verdict == "undecided" and found.low is None and not found.equal


def test_values_are_apart_by_process() -> None:
    m = made([1, 2, 3, 4, 5, 60], 2)
    assert by_process(m) == ((1, 2, 3), (4, 5, 60)) and medians(m) == [2, 5]
    curve = made([9, 8, 7, 9, 8], 2, extra={"at_s": [0.0, 1.0, 2.0, 0.1, 1.1], "processes": 2})
    assert by_process(curve) == ((9, 8, 7), (9, 8))  # the second one begins where the clock does
    assert by_process(made([1.0, 2.0], None, extra={"processes": True})) == ()


def test_what_may_be_negative_has_an_interval_and_no_ratio() -> None:
    m = made([-0.1, 0.2, 0.3], 3, unit="J/token", metric="energy_per_token")
    found = interval(m)
    assert found is not None and found.low < 0 < found.high and found.estimate == pytest.approx(0.4 / 3)
    assert ratio(m, m) is None


BASE = made([60.0, 61.0, 62.0], 3)
W = BASE.where
UNLIKE = {
    "metric": replace(BASE, metric="prefill"),
    "unit": replace(BASE, unit="s"),
    "kind": replace(BASE, kind="estimated"),
    "coverage": replace(BASE, covers="device"),
    "device": replace(BASE, where=replace(W, device={"id": "bbbb", "name": "A machine"})),
    "runtime": replace(BASE, where=replace(W, runtime_version="2")),
    "threads": replace(BASE, where=replace(W, threads=2)),
    "job's context": replace(BASE, where=replace(W, job={"task": "bench", "context": 128})),
    "job's kv": replace(BASE, where=replace(W, job={**W.job, "kv": "f16"})),
    "depth": replace(BASE, extra={"depth": 0, "processes": 3}),
    "a stand-in": replace(BASE, where=replace(W, device={**DEVICE, "stand_in": True})),
}


@pytest.mark.parametrize("what", sorted(UNLIKE))
def test_unlike_runs_are_refused_and_the_reason_named(what: str) -> None:
    for pair in ((BASE, UNLIKE[what]), (UNLIKE[what], BASE)):
        (reason,) = unlike(*pair)
        assert reason.startswith(what)
        with pytest.raises(UnlikeRuns, match=what):
            ratio(*pair)


def test_nothing_is_let_through_that_the_plain_ratio_refuses() -> None:
    refused = []
    for what, other in UNLIKE.items():
        try:
            measurement.ratio(BASE, other)
        except UnlikeRuns:
            refused.append(what)
    assert len(refused) >= 8 and all(unlike(BASE, UNLIKE[what]) for what in refused)


def test_only_the_artifact_may_differ() -> None:
    other = replace(BASE, where=replace(W, artifact="b.gguf", artifact_sha256="1" * 64, temperature_c=50.0))
    assert unlike(BASE, other) == []
    several = replace(UNLIKE["threads"], kind="modelled")
    assert [r.partition(" ")[0] for r in unlike(BASE, several)] == ["kind", "threads"]  # all that differs is said


def test_means_with_a_standard_error_are_told_apart_by_it() -> None:
    def kl(value: float, error: float | None) -> Measurement:
        extra = {"tokens": 2040} | ({} if error is None else {"standard_error": error})
        return made([value], None, metric="kl", unit="nats/token", better="lower", extra=extra)

    far, near = ratio_of_means(kl(0.30, 0.005), kl(0.20, 0.005)), ratio_of_means(kl(0.21, 0.01), kl(0.20, 0.01))
    assert far is not None and far.verdict == "higher" and far.estimate == pytest.approx(1.5)
    assert near is not None and near.verdict == "no difference"
    none = ratio_of_means(kl(0.30, None), kl(0.20, 0.005))
    assert none is not None and none.verdict == "undecided"
