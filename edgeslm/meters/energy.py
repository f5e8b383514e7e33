"""Energy of a generated token: measured by the processor's own counters (RAPL) where the kernel lets us read them,
otherwise estimated from CPU seconds if the user gave a power per busy core, otherwise no number at all.

RAPL: /sys/class/powercap/intel-rapl:N{,:M}/{name,energy_uj,max_energy_range_uj}, microjoules, wrapping at the range.
(Linux kernel documentation, power/powercap.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeslm.meters.base import Meter, Reading

SYSFS = Path("/sys")


@dataclass(frozen=True)
class Rail:
    """One counter: `name` as "package-0" or "package-0/dram", its file, and where it wraps, in microjoules."""

    name: str
    path: Path
    range_uj: int


def rails(sysfs: Path = SYSFS) -> list[Rail]:
    """The counters that can be read now. Zones without permission, range or number are no rails."""
    names = {zone.name: _text(zone / "name") for zone in _zones(sysfs)}
    found = []
    for zone in _zones(sysfs):
        counter, limit = _text(zone / "energy_uj"), _text(zone / "max_energy_range_uj")
        if not (counter.isdigit() and limit.isdigit() and int(limit) > 0):
            continue
        parent = zone.name.rsplit(":", 1)[0] if zone.name.count(":") > 1 else ""
        name = names[zone.name] or zone.name
        found.append(Rail(f"{names[parent]}/{name}" if names.get(parent) else name, zone / "energy_uj", int(limit)))
    return found


def _zones(sysfs: Path) -> list[Path]:
    return sorted((sysfs / "class/powercap").glob("intel-rapl:*"))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:  # on recent kernels only root may read energy_uj
        return ""


def joules(before_uj: int, after_uj: int, range_uj: int) -> float:
    """Energy between two readings of a counter that wrapped at most once."""
    spent = after_uj - before_uj
    return (spent if spent >= 0 else spent + range_uj) / 1e6


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


def _rail_reading(results: list[dict[str, Any]], rail: Rail, index: int) -> Reading | None:
    values = []
    for result in results:
        for run in result["runs"]:
            before, after = (side[index] if index < len(side) else None for side in run["rails"])
            if before is None or after is None:
                return None
            values.append(joules(before, after, rail.range_uj) / result["new_tokens"])
    if not any(values):  # a counter that never moves is not a sensor
        return None
    note = f"counter of {rail.name} over the decode phase; other programs on the machine are included"
    return Reading("energy_per_token", "J/token", tuple(values), covers=f"{rail.name} rail", note=note)


def _estimate(results: list[dict[str, Any]], watts_per_core: float) -> Reading:
    values = [
        run["decode_cpu_s"] * watts_per_core / result["new_tokens"] for result in results for run in result["runs"]
    ]
    note = (
        f"CPU seconds of the process while decoding x {watts_per_core:g} W per busy core (given by the user) / tokens; "
        "memory, storage and the rest of the device are not in it"
    )
    return Reading("energy_per_token", "J/token", tuple(values), kind="estimated", covers="CPU cores", note=note)


METER = Meter("energy", ask, read)
