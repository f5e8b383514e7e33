"""RAPL: energy counters of Intel and AMD processors, one sensor a zone.

/sys/class/powercap/intel-rapl:N{,:M}/{name,energy_uj,max_energy_range_uj}, microjoules, beginning again at the range
(Linux kernel documentation, power/powercap). A sub-zone such as `core` lies inside its package, so zones are never
added up. Recent kernels let only root read the counters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeslm.meters.sensors.base import Sample, Sensor, Texts, microjoules, on_device, text

SYSFS = Path("/sys")
MOST_W = 2000.0  # of one socket
NOTE = "other programs on the machine are included"


@dataclass(frozen=True)
class Rail:
    """One counter: `name` as "package-0" or "package-0/dram", its file, and where it wraps, in microjoules."""

    name: str
    path: Path
    range_uj: int


def rails(sysfs: Path = SYSFS) -> list[Rail]:
    """The counters that can be read now. Zones without permission, range or number are no rails."""
    zones = _zones(sysfs)
    names = {zone.name: text(zone / "name") for zone in zones}
    found = []
    for zone in zones:
        counter, limit = text(zone / "energy_uj"), text(zone / "max_energy_range_uj")
        if microjoules(counter) is None or not microjoules(limit):
            continue
        parent = zone.name.rsplit(":", 1)[0] if zone.name.count(":") > 1 else ""
        name = names[zone.name] or zone.name
        found.append(Rail(f"{names[parent]}/{name}" if names.get(parent) else name, zone / "energy_uj", int(limit)))
    return found


def _zones(sysfs: Path) -> list[Path]:
    return sorted((sysfs / "class/powercap").glob("intel-rapl:*"))


def joules(before_uj: int, after_uj: int, range_uj: int) -> float:
    """Energy between two readings of a counter that wrapped at most once."""
    spent = after_uj - before_uj
    return (spent if spent >= 0 else spent + range_uj) / 1e6


def look(root: Path) -> tuple[list[Sensor], str]:
    found = [
        Sensor(
            name=f"rapl {rail.name}",
            covers=f"{rail.name} rail",
            read=reader(),
            files=(on_device(rail.path, root),),
            most_w=MOST_W,
            wraps_j=rail.range_uj / 1e6,
            note=NOTE,
        )
        for rail in rails(root / "sys")
    ]
    if found:
        return found, ""
    if _zones(root / "sys"):
        return [], "RAPL counters are there but may not be read; run as root or allow reading of energy_uj"
    return [], "no RAPL counters; they need a physical Intel or AMD machine with the kernel's powercap driver"


def reader() -> Callable[[Texts], Sample | None]:
    def read(texts: Texts) -> Sample | None:
        joules = microjoules(texts[0])
        return None if joules is None else Sample(joules=joules, raw={"energy_uj": texts[0] or ""})

    return read
