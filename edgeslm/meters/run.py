"""A sensor's readings of one run, once they are worth trusting: read, checked, and put together as energy over time.

A sensor that cannot be read, says implausible things, stands still, jumps, or refuses by itself gives no run but a
sentence that says which.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from edgeslm.meters.curve import Curve
from edgeslm.meters.sensors.base import Sample, Sensor, Timed

LEAST_INTERVALS = 3
MOST_GARBAGE = 0.1  # of all readings


@dataclass(frozen=True)
class Run:
    """A sensor's checked readings of one run: energy over time, when readings were new, and the samples themselves."""

    sensor: Sensor
    energy: Curve
    fresh: tuple[float, ...]
    samples: tuple[Timed, ...]
    note: str

    def intervals(self, begin: float, end: float) -> int:
        """Between new readings inside a stretch."""
        return max(0, bisect_right(self.fresh, end) - bisect_left(self.fresh, begin) - 1)

    def usable(self, begin: float, end: float) -> str:
        """Nothing, or why this stretch gives no figure."""
        inside = self.fresh[bisect_left(self.fresh, begin) : bisect_right(self.fresh, end)]
        if len(inside) <= LEAST_INTERVALS:
            many = "1 new reading" if len(inside) == 1 else f"{len(inside)} new readings"
            return f"{many} in {end - begin:.2g} s, at least {LEAST_INTERVALS + 1} are needed"
        edges = (begin, *inside, end)
        if max(b - a for a, b in pairwise(edges)) > (end - begin) / 2:
            return "readings are missing for more than half of it"
        return ""


def checked(samples: list[list[Any]], sensor: Sensor) -> tuple[Run | None, str]:
    """-> (run, "") or (None, why not): unreadable, implausible, refused, stuck."""
    timed: list[Timed] = []
    garbage: list[str] = []
    for at, texts in samples:
        one = sensor.read(texts)
        if one is not None and one.refused:
            return None, one.refused
        if one is None or (one.watts is not None and not 0 <= one.watts <= sensor.most_w):
            garbage.append(", ".join(repr((text or "")[:40]) for text in texts) or "nothing")
        elif not timed or at > timed[-1][0]:
            timed.append((float(at), one))
    if not samples:
        return None, "it was not sampled"
    if len(timed) < 2 or len(garbage) > MOST_GARBAGE * len(samples):
        example = f", such as {garbage[0]}" if garbage else ""
        return None, f"{len(garbage)} of {len(samples)} readings were no plausible numbers{example}"
    note = ""
    if sensor.settle is not None:
        timed, note, why = sensor.settle(timed)
        if why or len(timed) < 2:
            return None, why or "too few readings were left"
        if max(one.watts or 0.0 for _, one in timed) > sensor.most_w:
            return None, f"its readings mean more than the plausible {sensor.most_w:g} W"
    curve, why = energy_curve(timed, sensor)
    if curve is None:
        return None, why
    amounts = [_amount(one) for _, one in timed]
    changed = [at for (at, _), before, now in zip(timed[1:], amounts, amounts[1:], strict=False) if now != before]
    if not changed:
        return None, f"it never moved from {amounts[0]:g}: a sensor that stands still is none"
    fresh = changed if sensor.held else [at for at, _ in timed]
    return Run(sensor, curve, tuple(fresh), tuple(timed), "; ".join(p for p in (note, sensor.note) if p)), ""


def _amount(one: Sample) -> float:
    return next(value for value in (one.joules, one.watts, one.coulombs) if value is not None)


def energy_curve(timed: list[Timed], sensor: Sensor) -> tuple[Curve | None, str]:
    """Energy since the first sample, or why there is none: a counter that jumped."""
    times = [at for at, _ in timed]
    if timed[0][1].joules is None and timed[0][1].watts is not None:
        return Curve.of_rates(times, [one.watts or 0.0 for _, one in timed]), ""
    totals = [0.0]
    for (begin, before), (end, now) in pairwise(timed):
        if now.joules is not None and before.joules is not None:
            spent = now.joules - before.joules
            spent += sensor.wraps_j if spent < 0 else 0.0
        elif now.coulombs is not None and before.coulombs is not None and now.volts and before.volts:
            spent = (before.coulombs - now.coulombs) * (before.volts + now.volts) / 2
        else:
            return None, "its readings are of two kinds"
        if spent < 0 or (spent > sensor.most_w * (end - begin) and not sensor.held):
            return None, (
                f"its counter went from {_amount(before):.12g} to {_amount(now):.12g} in {end - begin:.2g} s, "
                "which no wrap and no plausible power explains"
            )
        totals.append(totals[-1] + spent)
    if totals[-1] > sensor.most_w * (times[-1] - times[0]):
        return None, f"its counter means more than the plausible {sensor.most_w:g} W"
    return Curve(tuple(times), tuple(totals)), ""
