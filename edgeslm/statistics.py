"""How sure a figure is: intervals and ratios in which a fresh process is the unit of sampling.

Runs of one process share its memory layout, its threads' places and the moment it ran in, so they are no independent
sample of anything: nine runs of three processes are three observations. Each process gives its median; over those,
Student's t. This is the two-level design of Georges, Buytaert and Eeckhout, "Statistically Rigorous Java Performance
Evaluation" (OOPSLA 2007, section 3.2) and of Kalibera and Jones, "Rigorous Benchmarking in Reasonable Time" (ISMM
2013): variation of the highest level is what limits. A bootstrap over the 2 to 5 processes of a usual run covers far
too little (it cannot see beyond the few values it draws from); t knows how few they are.

Times, speeds and bytes are positive and differ by factors, so all is done on their logarithms: an interval never
crosses zero, and that of a speed is exactly that of the time turned over. Where a value is not positive (joules above
idle may be) the interval is taken on the values themselves and there is no ratio.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from edgeslm.measurement import Measurement, alike

CONFIDENCE = 0.95
# Two rounds count as steady, and two honest programs on one file as equal, within this share (benchmark.Settings'
# `stable_within`; the bound held against llama-bench): what differs by less is below what a benchmark can tell, since
# the order of linking or the size of the environment alone moves a program by as much or more (Mytkowicz, Diwan,
# Hauswirth and Sweeney, "Producing Wrong Data Without Doing Anything Obviously Wrong!", ASPLOS 2009).
BAND = 0.03
Verdict = Literal["higher", "lower", "no difference", "undecided"]


@dataclass(frozen=True)
class Interval:
    """Of the mean over processes of their medians (geometric where all are positive), at CONFIDENCE."""

    estimate: float
    low: float
    high: float
    processes: int

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Ratio:
    """One measurement over another. `low` and `high` are None where a side has a single process, or none that is
    known. `paired` says that processes of the same round were set against each other."""

    estimate: float
    low: float | None
    high: float | None
    processes: tuple[int, int]
    paired: bool

    @property
    def verdict(self) -> Verdict:
        """ "no difference" when the interval holds 1 or lies wholly within BAND of it: then there is either no
        difference to be seen, or one too small to matter (`equal` tells which)."""
        if self.low is None or self.high is None:
            return "undecided"
        if self.low <= 1 <= self.high or self.equal:
            return "no difference"
        return "higher" if self.low > 1 else "lower"

    @property
    def equal(self) -> bool:
        """Shown to be the same within BAND, not only not shown to differ (Schuirmann's two one-sided tests, J.
        Pharmacokin. Biopharm. 15, 1987, with a wider interval than they ask for)."""
        return self.low is not None and self.high is not None and self.low >= 1 / (1 + BAND) and self.high <= 1 + BAND

    def inverse(self) -> Ratio:
        low = None if self.high is None else 1 / self.high
        high = None if self.low is None else 1 / self.low
        return Ratio(1 / self.estimate, low, high, self.processes[::-1], self.paired)


def by_process(m: Measurement) -> tuple[tuple[float, ...], ...]:
    """`values` apart by the process they came from, in order; () when that is not known. A curve of several processes
    begins anew wherever its clock does."""
    times = m.extra.get("at_s")
    if isinstance(times, list) and len(times) == m.n:
        starts = [0, *(i for i in range(1, m.n) if times[i] < times[i - 1]), m.n]
        return tuple(m.values[a:b] for a, b in pairwise(starts))
    count = m.extra.get("processes")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1 or m.n % count:
        return ()
    each = m.n // count
    return tuple(m.values[i : i + each] for i in range(0, m.n, each))


def medians(m: Measurement) -> list[float]:
    """One value a process."""
    return [statistics.median(values) for values in by_process(m)]


def interval(m: Measurement) -> Interval | None:
    """None for fewer than two processes, or when it is not known which value came from which."""
    values = medians(m)
    if len(values) < 2:
        return None
    positive = min(values) > 0
    low, middle, high = _t(_logs(values) if positive else values)
    if positive:
        low, middle, high = math.exp(low), math.exp(middle), math.exp(high)
    return Interval(middle, low, high, len(values))


def ratio(a: Measurement, b: Measurement, paired: bool = False) -> Ratio | None:
    """`a` over `b`. `paired` where both come from the same rounds of one benchmark: process i of either ran in round i,
    so a drift of the machine falls on both and cancels (a randomised block design); otherwise Welch's interval. None
    where a value is not positive. Raises UnlikeRuns unless only the artifact differs."""
    alike(a, b)
    if min(*a.values, *b.values) <= 0:
        return None
    one, other = _logs(medians(a)), _logs(medians(b))
    counts = (len(one), len(other))
    if min(counts) == 0:
        return Ratio(a.median / b.median, None, None, counts, False)
    middle = statistics.fmean(one) - statistics.fmean(other)
    if min(counts) < 2:
        return Ratio(math.exp(middle), None, None, counts, False)
    paired = paired and counts[0] == counts[1]
    if paired:
        low, middle, high = _t([x - y for x, y in zip(one, other, strict=True)])
    else:
        low, middle, high = _welch(one, other)
    return Ratio(math.exp(middle), math.exp(low), math.exp(high), counts, paired)


def ratio_of_means(a: Measurement, b: Measurement) -> Ratio | None:
    """`a` over `b` where each is a mean over so many tokens that its `standard_error` (in `extra`) is normal: KL on
    held-out text. Both sides saw the same text, so this interval is too wide if anything. Raises UnlikeRuns."""
    plain = ratio(a, b)
    errors = [e for m in (a, b) if isinstance(e := m.extra.get("standard_error"), int | float) and e >= 0]
    if plain is None or len(errors) < 2:
        return plain
    middle = math.log(a.median / b.median)
    half = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    half *= math.hypot(errors[0] / a.median, errors[1] / b.median)
    return Ratio(math.exp(middle), math.exp(middle - half), math.exp(middle + half), plain.processes, False)


def _logs(values: Sequence[float]) -> list[float]:
    """Of positive ones; [] where one is not (then there is nothing to take a logarithm of)."""
    return [math.log(v) for v in values] if values and min(values) > 0 else []


def _t(values: Sequence[float]) -> tuple[float, float, float]:
    """(low, mean, high) of Student's interval; at least two values."""
    middle, n = statistics.fmean(values), len(values)
    half = student_t(n - 1) * statistics.stdev(values) / math.sqrt(n)
    return middle - half, middle, middle + half


def _welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """(low, difference of means, high) with unequal variances (Welch, Biometrika 34, 1947)."""
    middle = statistics.fmean(a) - statistics.fmean(b)
    u, v = statistics.variance(a) / len(a), statistics.variance(b) / len(b)
    if u + v == 0:
        return middle, middle, middle
    freedom = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1))
    half = student_t(freedom) * math.sqrt(u + v)
    return middle - half, middle, middle + half


@lru_cache(maxsize=1024)
def student_t(freedom: float, confidence: float = CONFIDENCE) -> float:
    """t that |T| stays below with probability `confidence`, for any `freedom` above 0.

    P(|T| > t) = I_x(freedom / 2, 1 / 2) with x = freedom / (freedom + t^2) (Abramowitz and Stegun 26.5.27);
    x is found by halving, since I_x grows with it.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        x = (low + high) / 2
        if _incomplete_beta(freedom / 2, 0.5, x) < 1 - confidence:
            low = x
        else:
            high = x
    return math.sqrt(freedom * (1 - x) / x)


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised I_x(a, b), by its continued fraction (Abramowitz and Stegun 26.5.8) with Lentz's method."""
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side only
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )  # fmt: skip
    tiny = 1e-300
    c, d = 1.0, 1 / ((1 - (a + b) * x / (a + 1)) or tiny)
    value = d
    for m in range(1, 300):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / ((1 + step * d) or tiny)
            c = (1 + step / c) or tiny
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * value / a
