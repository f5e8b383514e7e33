"""What sampled text means: energy of each phase of the task `energy`, less what the device takes when it waits.

    samples  --read-->  powers or counters  --check-->  a curve of energy over time
    idle windows        power of the waiting device with the loaded model (the baseline), with its spread
    prefill, decode     gross joules of each window; net = gross - baseline x duration
    an answer           a prefill and the decode after it

Figures are net; the gross ones are beside them in `extra`. The first of several answers is a warm-up (it reads the
weights for the first time). No figure is made of a sensor that says nothing plausible or does not cover the run, or of
a window with fewer than three intervals between readings: a sentence says why instead.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from edgeslm.meters.base import Reading
from edgeslm.meters.curve import Curve
from edgeslm.meters.run import LEAST_INTERVALS, Run, checked
from edgeslm.meters.sensors.base import Sensor, Timed
from edgeslm.meters.sensors.look import of_sensor

ABOVE_IDLE = ", above idle"  # part of what a net figure covers
SURE = 20  # intervals in a window, from which on its ends need no word
MOSTLY = 0.98  # of a row of answers must be answers
SLICES = 10  # of the idle stretch, for the baseline's spread
Span = tuple[float, float, int]  # begin, end, tokens
Window = dict[str, Any]  # {"what", "begin_s", "end_s", "tokens"}


def readings_of(
    result: dict[str, Any], planned: dict[str, Any], sensors: Iterable[Sensor]
) -> tuple[list[Reading], list[str]]:
    """All sampled sensors of one result of the task `energy`; `planned` is what it was asked to sample. One that makes
    a recording of its own is integrated apart, from what the recording holds."""
    readings: list[Reading] = []
    reasons: list[str] = []
    for sensor in (one for one in sensors if one.recording is None):
        found, why = integrate(result["windows"], of_sensor(sensor, planned, result["samples"]), sensor)
        readings += found
        reasons += why
    return readings, reasons


def integrate(windows: list[Window], samples: list[list[Any]], sensor: Sensor) -> tuple[list[Reading], list[str]]:
    """`samples` are this sensor's own texts -> (readings, sentences about what gives no figure)."""
    run, why = checked(samples, sensor)
    if run is None:
        return [], [f"{sensor.name}: {why}"]
    if not windows:
        return [], [f"{sensor.name}: the run has no idle stretch and no answers"]
    begin, end = min(w["begin_s"] for w in windows), max(w["end_s"] for w in windows)
    if not run.energy.covers(begin, end):
        first, last = run.energy.times[0] - begin, run.energy.times[-1] - begin
        return [], [
            f"{sensor.name}: its readings cover {first:.1f} s to {last:.1f} s of a run from 0 to {end - begin:.1f} s; "
            "let it read all the time, and set its clock right"
        ]
    idle, slices, why = baseline(run, windows)
    if why:
        return [], [f"{sensor.name}: no idle power ({why}), so nothing can be told from what the device takes anyway"]
    readings = [_reading(run, "idle_power", "W", slices, {"mean": idle}, net=False)]
    reasons: list[str] = []
    for made, why in (
        _per_token(run, windows, "prefill", idle),
        _per_token(run, windows, "decode", idle),
        _per_answer(run, windows, idle),
        _battery(run, windows),
    ):
        readings += made
        reasons += [f"{sensor.name}: {why}"] if why else []
    return readings, reasons


def baseline(run: Run, windows: list[Window]) -> tuple[float, list[float], str]:
    """-> (mean idle watts, watts of equal slices of the idle stretches, "") or why there is none."""
    idle = [(w["begin_s"], w["end_s"]) for w in windows if w["what"] == "idle" and w["end_s"] > w["begin_s"]]
    if not idle:
        return 0.0, [], "the run has no idle stretch"
    for begin, end in idle:
        if why := run.usable(begin, end):
            return 0.0, [], why
    slices: list[float] = []
    for begin, end in idle:
        count = min(SLICES, max(1, run.intervals(begin, end) // LEAST_INTERVALS))
        edges = [begin + (end - begin) * k / count for k in range(count + 1)]
        slices += [run.energy.between(a, b) / (b - a) for a, b in pairwise(edges)]
    mean = sum(run.energy.between(*one) for one in idle) / sum(end - begin for begin, end in idle)
    return mean, slices, ""


@dataclass(frozen=True)
class Spent:
    """Joules a token of each usable span, net and gross, and why the others were left out. `intervals` is the fewest of
    a span: power changes at its ends and is read only so often, so about one part in so many is uncertain."""

    net: list[float]
    gross: list[float]
    left_out: list[str]
    intervals: int

    def extra(self, idle: float) -> dict[str, Any]:
        return {"gross": self.gross, "idle_w": idle, "left_out": len(self.left_out), "intervals": self.intervals}

    def none(self, what: str) -> str:
        """Why there is no figure of it, or nothing."""
        if not self.net:
            return f"no figure for {what}: {self.left_out[0] if self.left_out else 'the run has none'}"
        if statistics.median(self.net) <= 0 or sum(self.net) <= 0:
            return f"no figure for {what}: the device took no more than when it waited"
        return ""


def _spent(run: Run, spans: list[Span], idle: float) -> Spent:
    """Of (begin, end, tokens) spans."""
    net, gross, left_out, intervals = [], [], [], []
    for begin, end, tokens in spans:
        if tokens < 1 or (why := run.usable(begin, end)):
            left_out.append("it has no tokens" if tokens < 1 else why)
            continue
        joules = run.energy.between(begin, end)
        gross.append(joules / tokens)
        net.append((joules - idle * (end - begin)) / tokens)
        intervals.append(run.intervals(begin, end))
    return Spent(net, gross, left_out, min(intervals, default=0))


def _per_token(run: Run, windows: list[Window], phase: str, idle: float) -> tuple[list[Reading], str]:
    spans = [(w["begin_s"], w["end_s"], w["tokens"]) for w in windows if w["what"] == phase]
    warm, spent = (_spent(run, part, idle) for part in _apart(spans))
    if why := spent.none(phase):
        return [], why
    extra = spent.extra(idle) | {"phase": phase, "tokens": spans[0][2]}
    readings = [_reading(run, "energy_per_token", "J/token", spent.net, extra, warmups=warm.net)]
    if phase == "decode":  # per joule of all windows together: a single noisy window may be near zero
        net, gross = (len(values) / sum(values) for values in (spent.net, spent.gross))
        readings.append(_reading(run, "tokens_per_joule", "1/J", [net], extra | {"gross": [gross]}, "higher"))
    return readings, ""


def _per_answer(run: Run, windows: list[Window], idle: float) -> tuple[list[Reading], str]:
    pairs = [(a, b) for a, b in pairwise(windows) if (a["what"], b["what"]) == ("prefill", "decode")]
    first, spans = _apart([(a["begin_s"], b["end_s"], 1) for a, b in pairs])
    warm, spent, together = _spent(run, first, idle), _spent(run, spans, idle), 1
    if not spent.net and len(spans) > 1 and _gapless(spans):  # a slow sensor sees no single answer, but all in a row
        together = len(spans)
        spent = _spent(run, [(spans[0][0], spans[-1][1], together)], idle)
    if why := spent.none("answer"):
        return [], why
    tokens = {"prompt_tokens": pairs[0][0]["tokens"], "new_tokens": pairs[0][1]["tokens"]}
    extra = spent.extra(idle) | tokens | {"answers_together": together}
    return [_reading(run, "energy_per_answer", "J", spent.net, extra, warmups=warm.net)], ""


def _apart(spans: list[Span]) -> tuple[list[Span], list[Span]]:
    """The first one of several, and the rest."""
    return (spans[:1], spans[1:]) if len(spans) > 1 else ([], spans)


def _gapless(spans: list[Span]) -> bool:
    """Whether nearly all of the time from the first to the last is inside them."""
    inside = sum(end - begin for begin, end, _ in spans)
    return inside > MOSTLY * (spans[-1][1] - spans[0][0])


def _battery(run: Run, windows: list[Window]) -> tuple[list[Reading], str]:
    """Percent of a full battery an hour of answers takes, gross: the battery feeds the whole device."""
    full = next((one.full_coulombs for _, one in run.samples if one.full_coulombs), None)
    load = [w for w in windows if w["what"] in ("prefill", "decode")]
    if run.samples[0][1].coulombs is None and full is None:
        return [], ""
    if not full or not load:
        return [], "no percent of the battery an hour: it does not tell how much it holds when full"
    spans = {"load": (load[0]["begin_s"], load[-1]["end_s"])}
    idle = [(w["begin_s"], w["end_s"]) for w in windows if w["what"] == "idle"]
    spans["idle"] = idle[0]
    if why := run.usable(*spans["load"]):
        return [], f"no percent of the battery an hour: {why}"
    drained = _charge_curve(run.samples)
    per_hour = {what: drained.between(*span) / (span[1] - span[0]) * 3600 / full * 100 for what, span in spans.items()}
    extra = {"full_coulombs": full, "idle": per_hour["idle"], "seconds": spans["load"][1] - spans["load"][0]}
    return [_reading(run, "battery_per_hour", "percent/h", [per_hour["load"]], extra, net=False)], ""


def _charge_curve(samples: tuple[Timed, ...]) -> Curve:
    """Coulombs taken since the first sample."""
    times = [at for at, _ in samples]
    if all(one.amps is not None for _, one in samples):
        return Curve.of_rates(times, [one.amps or 0.0 for _, one in samples])
    first = samples[0][1].coulombs or 0.0
    return Curve(tuple(times), tuple(first - (one.coulombs or 0.0) for _, one in samples))


def _reading(
    run: Run,
    metric: str,
    unit: str,
    values: list[float],
    extra: dict[str, Any],
    better: Literal["higher", "lower"] = "lower",
    net: bool = True,
    warmups: Sequence[float] = (),
) -> Reading:
    few = extra.get("intervals", SURE)
    edges = f"{few} readings a window: its ends leave about {1 / few:.0%} open" if few < SURE else ""
    return Reading(
        metric=metric,
        unit=unit,
        values=tuple(values),
        warmups=tuple(warmups),
        kind=run.sensor.kind,
        covers=f"{run.sensor.covers}{ABOVE_IDLE if net else ''}",
        better=better,
        note="; ".join(part for part in (run.note, edges) if part),
        extra=extra | {"sensor": run.sensor.name},
    )
