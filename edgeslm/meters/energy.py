"""Energy of a generated token inside latency runs: measured by the processor's own counters (RAPL) where the kernel
lets us read them, otherwise estimated from CPU seconds if the user gave a power per busy core, otherwise no number.

Reading those counters costs microseconds, so they may be read beside a timed run. Every other sensor is sampled in a
run of its own, the task `energy`: see `sensors/` and `integrate.py`. Figures of this file are gross: nothing is
subtracted for what the machine takes when it waits, and their notes say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edgeslm.meters.base import Meter, Reading
from edgeslm.meters.sensors.rapl import SYSFS, Rail, joules, rails

__all__ = ["METER", "SYSFS", "Rail", "ask", "decoding", "joules", "rails", "read"]


def ask(options: dict[str, Any]) -> dict[str, Any]:
    sysfs = options.get("sysfs")
    found = rails(sysfs) if sysfs is not None else []
    return {"rails": [str(rail.path) for rail in found]} if found else {}


def read(results: list[dict[str, Any]], options: dict[str, Any]) -> list[Reading]:
    """`energy_per_token` of the decode phase: one reading a rail, or one estimate, or none."""
    sysfs = options.get("sysfs")
    found = rails(sysfs) if sysfs is not None else []
    readings = [r for i, rail in enumerate(found) if (r := _rail_reading(results, rail, i)) is not None]
    if readings:
        return readings
    watts = options.get("watts_per_core")
    return [_estimate(results, float(watts))] if watts else []


def decoding(results: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(tokens, run) of every timed decode at the shallowest depth of each result."""
    for result in results:
        phases = [phase for phase in result["phases"] if phase["kind"] == "decode"]
        for phase in sorted(phases, key=lambda phase: phase["depth"])[:1]:
            yield from ((phase["tokens"], run) for run in phase["runs"])


def _rail_reading(results: list[dict[str, Any]], rail: Rail, index: int) -> Reading | None:
    values = []
    for tokens, run in decoding(results):
        before, after = (side[index] if index < len(side) else None for side in run["rails"])
        if before is None or after is None:
            return None
        values.append(joules(before, after, rail.range_uj) / tokens)
    if not any(values):  # a counter that never moves is not a sensor
        return None
    note = (
        f"counter of {rail.name} over the decode phase, gross; other programs and what the machine takes when it waits "
        "are included"
    )
    extra = {"phase": "decode", "baseline": "not subtracted"}
    return Reading("energy_per_token", "J/token", tuple(values), covers=f"{rail.name} rail", note=note, extra=extra)


def _estimate(results: list[dict[str, Any]], watts_per_core: float) -> Reading:
    values = [run["cpu_s"] * watts_per_core / tokens for tokens, run in decoding(results)]
    note = (
        f"CPU seconds of the process while decoding x {watts_per_core:g} W per busy core (given by the user) / tokens; "
        "memory, storage and the rest of the device are not in it"
    )
    extra = {"phase": "decode"}
    return Reading(
        "energy_per_token", "J/token", tuple(values), kind="estimated", covers="CPU cores", note=note, extra=extra
    )


METER = Meter("energy", ask, read)
