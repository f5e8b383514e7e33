"""Energy of phases against signals whose integral is known, and every reason for giving no figure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from edgeslm.meters.base import Reading
from edgeslm.meters.curve import Curve
from edgeslm.meters.integrate import integrate, readings_of
from edgeslm.meters.sensors import android_battery, external_csv, pi5_pmic, rapl
from edgeslm.meters.sensors.base import Sample, Sensor, number
from edgeslm.meters.sensors.look import plan

IDLE_W, PREFILL_W, DECODE_W = 2.0, 6.0, 4.0
RIPPLE_W, PERIOD_S = 0.5, 0.5  # every window below holds whole periods, so the ripple adds nothing
IDLE_S, PREFILL_S, DECODE_S, ANSWERS = 5.0, 1.0, 2.0, 4
PROMPT, NEW = 100, 20


def windows() -> list[dict[str, Any]]:
    found = [{"what": "idle", "begin_s": 0.0, "end_s": IDLE_S, "tokens": 0}]
    at = IDLE_S
    for _ in range(ANSWERS):
        found.append({"what": "prefill", "begin_s": at, "end_s": at + PREFILL_S, "tokens": PROMPT})
        found.append({"what": "decode", "begin_s": at + PREFILL_S, "end_s": at + PREFILL_S + DECODE_S, "tokens": NEW})
        at += PREFILL_S + DECODE_S
    return found


WINDOWS = windows()
END = WINDOWS[-1]["end_s"]
LEVEL = {"idle": IDLE_W, "prefill": PREFILL_W, "decode": DECODE_W}


def energy(t: float) -> float:
    """Joules since 0."""
    steps = sum(LEVEL[w["what"]] * max(0.0, min(t, w["end_s"]) - w["begin_s"]) for w in WINDOWS)
    return steps + RIPPLE_W * PERIOD_S / (2 * math.pi) * (1 - math.cos(2 * math.pi * t / PERIOD_S))


def power(t: float) -> float:
    now = next((w for w in WINDOWS if w["begin_s"] <= t < w["end_s"]), WINDOWS[-1])
    return LEVEL[now["what"]] + RIPPLE_W * math.sin(2 * math.pi * t / PERIOD_S)


def sampled(text: Callable[[float], str | None], interval: float = 0.1, end: float = END) -> list[list[Any]]:
    return [[k * interval, [text(k * interval)]] for k in range(round(end / interval) + 1)]


def counter(start_uj: int = 0, range_uj: int = 10**12) -> Callable[[float], str]:
    return lambda t: str((start_uj + round(energy(t) * 1e6)) % range_uj)


def rail(range_uj: int = 10**12) -> Sensor:
    return Sensor("rapl", "package-0 rail", rapl.reader(), most_w=2000.0, wraps_j=range_uj / 1e6)


WATTS = Sensor("meter", "whole device", external_csv.read_watts, most_w=100.0)


def by_metric(readings: list[Reading]) -> dict[tuple[str, str], Reading]:
    return {(r.metric, r.extra.get("phase", "")): r for r in readings}


def check(readings: list[Reading], rel: float) -> None:
    """Every figure against the signal's own integral: gross, and net of the 2 W it idles with."""
    found = by_metric(readings)
    prefill, decode = found["energy_per_token", "prefill"], found["energy_per_token", "decode"]
    assert prefill.values == pytest.approx([(PREFILL_W - IDLE_W) * PREFILL_S / PROMPT] * (ANSWERS - 1), rel=rel)
    assert prefill.extra["gross"] == pytest.approx([PREFILL_W * PREFILL_S / PROMPT] * (ANSWERS - 1), rel=rel)
    assert decode.values == pytest.approx([(DECODE_W - IDLE_W) * DECODE_S / NEW] * (ANSWERS - 1), rel=rel)
    assert decode.extra["gross"] == pytest.approx([DECODE_W * DECODE_S / NEW] * (ANSWERS - 1), rel=rel)
    assert decode.warmups == pytest.approx([(DECODE_W - IDLE_W) * DECODE_S / NEW], rel=rel)  # the first answer
    answer = found["energy_per_answer", ""]
    net = (PREFILL_W - IDLE_W) * PREFILL_S + (DECODE_W - IDLE_W) * DECODE_S
    assert answer.values == pytest.approx([net] * (ANSWERS - 1), rel=rel)
    assert answer.warmups == pytest.approx([net], rel=rel)
    assert (answer.extra["prompt_tokens"], answer.extra["new_tokens"]) == (PROMPT, NEW)
    per_joule = found["tokens_per_joule", "decode"]
    assert per_joule.values == pytest.approx([NEW / ((DECODE_W - IDLE_W) * DECODE_S)], rel=rel)
    assert per_joule.better == "higher" and decode.better == "lower"
    idle = found["idle_power", ""]
    assert idle.extra["mean"] == pytest.approx(IDLE_W, rel=rel) and len(idle.values) > 3
    assert min(idle.values) >= IDLE_W - RIPPLE_W and max(idle.values) <= IDLE_W + RIPPLE_W


def test_a_counter_gives_the_integral_exactly() -> None:
    readings, reasons = integrate(WINDOWS, sampled(counter()), rail())
    assert reasons == []
    check(readings, 1e-5)
    assert {r.kind for r in readings} == {"measured"}
    assert {r.covers for r in readings} == {
        "package-0 rail, above idle",
        "package-0 rail",
    }  # idle power is no net figure


def test_a_counter_that_wraps_in_the_middle_is_the_same() -> None:
    once = 10**7  # wraps after every 10 J, several times in the run
    readings, reasons = integrate(WINDOWS, sampled(counter(9_000_000, once)), rail(once))
    assert reasons == []
    check(readings, 1e-5)


def test_powers_give_the_integral_by_trapezoids() -> None:
    readings, reasons = integrate(WINDOWS, sampled(lambda t: repr(power(t)), 0.01), WATTS)
    assert reasons == []
    check(readings, 0.02)  # the steps between phases lie within one interval
    finer, _ = integrate(WINDOWS, sampled(lambda t: repr(power(t)), 0.001), WATTS)
    check(finer, 0.002)


def test_readings_of_the_wrong_clock_give_other_figures() -> None:
    """A meter whose clock is one second off is not quietly right."""
    late = [[at - 1.0, texts] for at, texts in sampled(lambda t: repr(power(t)), 0.01)]
    found = by_metric(integrate(WINDOWS[:-1], late, WATTS)[0])
    assert abs(found["energy_per_token", "prefill"].values[0] - (PREFILL_W - IDLE_W) * PREFILL_S / PROMPT) > 0.01


def test_a_csv_with_a_shifted_clock_is_put_back(tmp_path: Any) -> None:
    wall = 1_800_000_000.0
    rows = "".join(f"{wall + 3.0 + at:.3f},{texts[0]}\n" for at, texts in sampled(lambda t: repr(power(t)), 0.01))
    (tmp_path / "meter.csv").write_text("time,watts\n" + rows)
    sensor, samples = external_csv.opened(tmp_path / "meter.csv", wall, meter_ahead_s=3.0)
    check(integrate(WINDOWS, samples, sensor)[0], 0.02)
    unaware, samples = external_csv.opened(tmp_path / "meter.csv", wall + 3600.0)
    readings, reasons = integrate(WINDOWS, samples, unaware)
    assert readings == [] and "its readings cover -3597.0 s to" in reasons[0]


def test_a_meter_that_does_not_cover_the_run_is_refused() -> None:
    """It may have stopped early, or its clock may be off: then every figure would be wrong."""
    for samples in (sampled(counter(), end=12.0), sampled(counter())[5:]):
        readings, reasons = integrate(WINDOWS, samples, rail())
        assert readings == [] and len(reasons) == 1 and "of a run from 0 to 17.0 s" in reasons[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (lambda t: "text", "no plausible numbers, such as 'text'"),
        (lambda t: None, "no plausible numbers"),
        (lambda t: "nan", "no plausible numbers"),
        (lambda t: "-3.0", "no plausible numbers"),
        (lambda t: "5000", "no plausible numbers"),  # watts of a small meter
        (lambda t: "2.5", "never moved"),
        (lambda t: repr(power(t)) if int(t * 10) % 4 else "?", "no plausible numbers, such as '?'"),
    ],
)
def test_garbage_gives_a_reason_and_no_number(text: Callable[[float], str | None], says: str) -> None:
    readings, reasons = integrate(WINDOWS, sampled(text), WATTS)
    assert readings == [] and len(reasons) == 1 and says in reasons[0] and reasons[0].startswith("meter: ")


def test_one_bad_reading_among_many_is_left_out() -> None:
    samples = sampled(lambda t: repr(power(t)), 0.01)
    samples[700] = [7.0, ["?"]]
    check(integrate(WINDOWS, samples, WATTS)[0], 0.02)


@pytest.mark.parametrize("start", [10**9, 500])
def test_a_counter_that_falls_back_is_no_counter(start: int) -> None:
    """A reset in mid-run: neither without a range nor as a wrap of a range that would mean megawatts."""
    broken = sampled(counter(start))
    broken[60:] = [[at, [str(int(texts[0]) - int(broken[60][1][0]))]] for at, texts in broken[60:]]
    for sensor in (rail(), replace(rail(), wraps_j=0.0)):
        readings, reasons = integrate(WINDOWS, broken, sensor)
        assert readings == [] and "its counter went from" in reasons[0]


def test_a_counter_that_jumps_up_is_no_counter() -> None:
    jump = sampled(lambda t: str(int(counter()(t)) + (10**11 if t > 6 else 0)))
    assert "no plausible power explains" in integrate(WINDOWS, jump, rail())[1][0]


def test_too_few_readings_in_a_window_are_no_figure() -> None:
    readings, reasons = integrate(WINDOWS, sampled(counter(), 0.5), rail())
    found = by_metric(readings)
    assert ("energy_per_token", "prefill") not in found and ("energy_per_token", "decode") in found
    assert len(reasons) == 1 and "no figure for prefill: 3 new readings in 1 s, at least 4" in reasons[0]


def test_a_sensor_too_slow_for_one_answer_sees_all_of_them() -> None:
    readings, reasons = integrate(WINDOWS, sampled(counter(), 1.4), rail())
    answer = by_metric(readings)["energy_per_answer", ""]
    net = (PREFILL_W - IDLE_W) * PREFILL_S + (DECODE_W - IDLE_W) * DECODE_S
    assert answer.values == pytest.approx([net], rel=1 / 5) and answer.extra["answers_together"] == ANSWERS - 1
    assert answer.extra["intervals"] == 6 and "6 readings a window: its ends leave about 17% open" in answer.note
    assert len(reasons) == 2  # neither phase


def test_only_new_readings_count_of_a_sensor_that_holds_old_ones() -> None:
    held = sampled(lambda t: counter()(math.floor(t)))  # asked ten times a second, new once a second
    readings, reasons = integrate(WINDOWS, held, replace(rail(), held=True))
    assert [r.metric for r in readings] == ["idle_power", "energy_per_answer"] and len(reasons) == 2


def test_readings_missing_for_half_a_window() -> None:
    gap = [one for one in sampled(counter()) if not 9.3 < one[0] < 10.7]
    readings, _ = integrate(WINDOWS, gap, rail())
    assert by_metric(readings)["energy_per_token", "decode"].extra["left_out"] == 1


def test_without_idle_there_is_nothing_to_subtract() -> None:
    readings, reasons = integrate(WINDOWS[1:], sampled(counter()), rail())
    assert readings == [] and "no idle power (the run has no idle stretch)" in reasons[0]
    assert integrate([], sampled(counter()), rail())[0] == []
    short = [{**WINDOWS[0], "begin_s": 4.9}, *WINDOWS[1:]]
    assert "no idle power" in integrate(short, sampled(counter()), rail())[1][0]


def test_a_device_that_takes_no_more_than_idle_gives_no_figure() -> None:
    steady = sampled(lambda t: str(round((3.0 * t + 0.01 * math.sin(9 * t)) * 1e6)))
    readings, reasons = integrate(WINDOWS, steady, rail())
    assert [r.metric for r in readings if r.metric != "idle_power" and r.values[0] > 0.01] == []
    still = [{**WINDOWS[0], "begin_s": 5.0, "end_s": 8.0}, *[{**w, "begin_s": w["begin_s"]} for w in WINDOWS[1:]]]
    readings, reasons = integrate(still, sampled(counter()), rail())  # "idle" while it worked
    assert any("no more than when it waited" in reason for reason in reasons)


def battery_sensor() -> Sensor:
    names = ["status", "current_now", "voltage_now", "charge_full"]
    return Sensor(
        "android_battery",
        android_battery.COVERS,
        android_battery.reader(names, False),
        most_w=android_battery.MOST_W,
        held=True,
        settle=android_battery.settle,
    )


@pytest.mark.parametrize("unit", [1e6, 1e3])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_battery_with_either_sign_and_unit_gives_the_same(sign: int, unit: float) -> None:
    samples = [
        [at, ["Discharging", str(round(sign * unit * float(texts[0]) / 4.0)), "4000000", "4500000"]]
        for at, texts in sampled(lambda t: repr(power(t)), 0.01)
    ]
    readings, reasons = integrate(WINDOWS, samples, battery_sensor())
    assert reasons == []
    check(readings, 0.03)
    hour = by_metric(readings)["battery_per_hour", ""]
    mean_a = (PREFILL_W * PREFILL_S + DECODE_W * DECODE_S) / (PREFILL_S + DECODE_S) / 4.0
    assert hour.values == pytest.approx([mean_a / 4.5 * 100], rel=0.01) and hour.unit == "percent/h"
    assert hour.extra["idle"] == pytest.approx(IDLE_W / 4.0 / 4.5 * 100, rel=0.01)
    assert ("mA" if unit == 1e3 else "uA") in hour.note and ("negative" if sign < 0 else "positive") in hour.note


def test_a_battery_that_begins_to_charge_gives_nothing() -> None:
    samples = [[t / 10, ["Discharging" if t < 50 else "Charging", str(400_000 + t), "4000000", ""]] for t in range(141)]
    readings, reasons = integrate(WINDOWS, samples, battery_sensor())
    assert readings == [] and "charging" in reasons[0]


def test_a_battery_that_does_not_say_what_it_holds_gives_no_percent() -> None:
    samples = [
        [at, ["Discharging", str(round(1e6 * float(texts[0]) / 4.0)), "4000000", ""]]
        for at, texts in sampled(lambda t: repr(power(t)), 0.01)
    ]
    names = {r.metric for r in integrate(WINDOWS, samples, battery_sensor())[0]}
    assert "battery_per_hour" not in names and "energy_per_answer" in names


def test_charge_steps_times_voltage_are_energy() -> None:
    def read(texts: Any) -> Sample:
        return Sample(coulombs=number(texts[0]), volts=4.0, full_coulombs=16_200.0)

    charge = sampled(lambda t: repr(10_000 - energy(t) / 4.0))
    readings, reasons = integrate(WINDOWS, charge, Sensor("charge", "battery", read, held=True, most_w=40.0))
    assert reasons == []
    check(readings, 1e-5)
    hour = by_metric(readings)["battery_per_hour", ""]
    assert hour.values == pytest.approx([(14.0 / 3.0) / 4.0 * 3600 / 16_200 * 100], rel=1e-4)


def test_several_sensors_of_one_result() -> None:
    a = Sensor("a", "package-0 rail", rapl.reader(), files=("/a",))
    b = Sensor("b", "board", pi5_pmic.read, commands=(("vcgencmd", "pmic_read_adc"),))
    samples = [[t, [texts[0], "no rails here"]] for t, texts in sampled(counter())]
    result = {"windows": WINDOWS, "samples": samples, "wall_minus_monotonic_s": 0.0}
    readings, reasons = readings_of(result, plan([a, b]), [a, b])
    assert {r.extra["sensor"] for r in readings} == {"a"} and len(reasons) == 1 and reasons[0].startswith("b: ")


def test_kinds_are_never_mixed() -> None:
    """What a sensor is stays on every figure it gives."""
    readings, _ = integrate(WINDOWS, sampled(counter()), replace(rail(), kind="modelled"))
    assert {r.kind for r in readings} == {"modelled"}


def test_a_curve_between_and_beyond_its_moments() -> None:
    ramp = Curve.of_rates([0.0, 2.0, 4.0], [0.0, 2.0, 4.0])  # power t, energy t^2 / 2
    assert [ramp.total(t) for t in (0.0, 0.5, 1.0, 3.0, 4.0)] == pytest.approx([0.0, 0.125, 0.5, 4.5, 8.0])
    assert ramp.total(5.0) == pytest.approx(12.0) and ramp.between(1.0, 3.0) == pytest.approx(4.0)
    line = Curve((0.0, 1.0), (0.0, 3.0))
    assert line.between(-1.0, 2.0) == pytest.approx(9.0)
    assert line.covers(-2.0, 3.0) and not line.covers(-2.1, 1.0) and not line.covers(0.0, 3.1)
