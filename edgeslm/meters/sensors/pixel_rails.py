"""Pixel 6 and later: power rails measured on the phone, through Perfetto's data source `android.power`.

Perfetto records by itself while answers are timed; its trace holds, for each rail, energy since boot in microwatt
seconds with a time in milliseconds of CLOCK_BOOTTIME. Clock snapshots in the trace tell how that clock stands to
CLOCK_MONOTONIC, which workers use. Messages and field numbers (perfetto, protos/perfetto/trace):

    Trace.packet 1   TracePacket.clock_snapshot 6, .power_rails 40
    PowerRails.rail_descriptor 1 {index 1, rail_name 2, subsys_name 3}
              .energy_data 2 {index 1, timestamp_ms 2, energy 3}
    ClockSnapshot.clocks 1 {clock_id 1, timestamp 2, is_incremental 3, unit_multiplier_ns 4}, 3 MONOTONIC, 6 BOOTTIME

A rail may be fed from another one that is measured too, so rails are never added up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from edgeslm.errors import DataError
from edgeslm.meters.sensors.base import Recording, Sample, Sensor, Texts, microjoules, said
from edgeslm.meters.sensors.protobuf import fields, message, whole

MONOTONIC, BOOTTIME = 3, 6
PIXEL = re.compile(r"\[ro\.product\.model\]: \[Pixel (\d+)")
OUTPUT = "/data/misc/perfetto-traces/edgeslm.pftrace"  # where the shell may write a trace and read it again
POLL_MS = 100  # the shortest that Perfetto takes
MOST_W = 30.0
WHAT = "the Perfetto trace"


def look(root: Path) -> tuple[list[Sensor], str]:
    found = PIXEL.search(said(root, "getprop"))
    if found is None or int(found[1]) < 6:
        return [], "no power rails (Perfetto shows them on Pixel 6 and later)"
    sensor = Sensor("pixel_rails", "each power rail", nothing, recording=recording(600.0), most_w=MOST_W)
    return [sensor], ""


def nothing(texts: Texts) -> Sample | None:
    """Rails are known only after the recording."""
    return None


def recording(seconds: float) -> Recording:
    """The command, its config on stdin (Android does not let Perfetto read a config file of the shell's)."""
    return Recording(("perfetto", "--txt", "--config", "-", "--out", OUTPUT), config(seconds), OUTPUT)


def config(seconds: float) -> str:
    """Text form of a TraceConfig that records the rails for so long at most; an end signal stops it earlier."""
    return f"""buffers {{ size_kb: 16384 fill_policy: DISCARD }}
data_sources {{
  config {{
    name: "android.power"
    android_power_config {{ battery_poll_ms: {POLL_MS} collect_power_rails: true }}
  }}
}}
duration_ms: {round(seconds * 1000)}
"""


@dataclass
class Rail:
    name: str = ""
    subsystem: str = ""
    points: list[tuple[int, int]] = field(default_factory=list)  # (boot time in ms, microwatt seconds)


def opened(trace: bytes) -> list[tuple[Sensor, list[list[object]]]]:
    """A trace -> for each rail (sensor, samples [[monotonic s, [text]], ...]). Raises DataError."""
    rails, clocks = parse(trace)
    if not any(rail.points for rail in rails.values()):
        raise DataError(f"{WHAT} holds no power rails; this phone has none, or the recording was too short")
    if not clocks:
        raise DataError(f"{WHAT} holds no clock snapshot, so its times cannot be placed; record it again")
    shift_ms = sorted(clocks)[len(clocks) // 2] / 1e6
    found: list[tuple[Sensor, list[list[object]]]] = []
    for index, rail in sorted(rails.items()):
        name = rail.name or f"rail {index}"
        covers = f"{name} rail ({rail.subsystem})" if rail.subsystem else f"{name} rail"
        points = dict(sorted(rail.points))
        samples: list[list[object]] = [[(at - shift_ms) / 1000, [str(energy)]] for at, energy in points.items()]
        found.append((Sensor(f"pixel_rails {name}", covers, read, most_w=MOST_W, held=True), samples))
    return found


def read(texts: Texts) -> Sample | None:
    """Microwatt seconds since boot."""
    joules = microjoules(texts[0])
    return None if joules is None else Sample(joules=joules, raw={"energy_uws": texts[0] or ""})


def parse(trace: bytes) -> tuple[dict[int, Rail], list[int]]:
    """-> (rails by index, boot time minus monotonic time in nanoseconds at each snapshot)."""
    rails: dict[int, Rail] = {}
    clocks: list[int] = []
    for number, packet in fields(trace, WHAT):
        if number != 1:
            continue
        for part, value in fields(message(packet, WHAT), WHAT):
            if part == 40:
                _power_rails(message(value, WHAT), rails)
            elif part == 6:
                clocks += _snapshot(message(value, WHAT))
    return rails, clocks


def _power_rails(data: bytes, rails: dict[int, Rail]) -> None:
    for part, value in fields(data, WHAT):
        if part not in (1, 2):
            continue
        inner = dict(fields(message(value, WHAT), WHAT))
        rail = rails.setdefault(whole(inner.get(1, 0), WHAT), Rail())
        if part == 1:
            rail.name = message(inner.get(2, b""), WHAT).decode("utf-8", "replace")
            rail.subsystem = message(inner.get(3, b""), WHAT).decode("utf-8", "replace")
        elif 2 in inner and 3 in inner:
            rail.points.append((whole(inner[2], WHAT), whole(inner[3], WHAT)))


def _snapshot(data: bytes) -> list[int]:
    """Nothing unless both clocks are in it, counted from their beginning."""
    found: dict[int, int] = {}
    for part, value in fields(data, WHAT):
        if part != 1:
            continue
        clock = dict(fields(message(value, WHAT), WHAT))
        if not clock.get(3) and 1 in clock and 2 in clock:
            found[whole(clock[1], WHAT)] = whole(clock[2], WHAT) * whole(clock.get(4, 1), WHAT)
    return [found[BOOTTIME] - found[MONOTONIC]] if {BOOTTIME, MONOTONIC} <= set(found) else []
