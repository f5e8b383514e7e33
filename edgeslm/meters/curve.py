"""An amount that grows with time, known at some moments: energy from a counter, or of powers by the trapezoid rule."""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """`times` ascending; `totals` since the first. `rates` where powers were read: the total bends between moments as
    the rate goes straight from one to the next; otherwise the total itself goes straight."""

    times: tuple[float, ...]
    totals: tuple[float, ...]
    rates: tuple[float, ...] = ()

    @classmethod
    def of_rates(cls, times: Sequence[float], rates: Sequence[float]) -> Curve:
        totals = [0.0]
        for k in range(1, len(times)):
            totals.append(totals[-1] + (times[k] - times[k - 1]) * (rates[k] + rates[k - 1]) / 2)
        return cls(tuple(times), tuple(totals), tuple(rates))

    @property
    def step_s(self) -> float:
        """The usual time between two readings."""
        return statistics.median(b - a for a, b in zip(self.times, self.times[1:], strict=False))

    def covers(self, begin: float, end: float) -> bool:
        """Within two steps of the readings: a sampler starts and stops a moment beside what it samples."""
        slack = 2 * self.step_s
        return self.times[0] - slack <= begin and end <= self.times[-1] + slack

    def total(self, at: float) -> float:
        """Beyond the ends the last rate is held."""
        k = min(max(bisect_right(self.times, at) - 1, 0), len(self.times) - 2)
        since, width = at - self.times[k], self.times[k + 1] - self.times[k]
        if not self.rates:
            return self.totals[k] + (self.totals[k + 1] - self.totals[k]) * since / width
        if since < 0:
            return self.totals[k] + since * self.rates[k]
        if since > width:
            return self.totals[k + 1] + (since - width) * self.rates[k + 1]
        return self.totals[k] + since * (self.rates[k] + (self.rates[k + 1] - self.rates[k]) * since / width / 2)

    def between(self, begin: float, end: float) -> float:
        return self.total(end) - self.total(begin)
