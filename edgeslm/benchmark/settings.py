"""What a benchmark is asked, and the job that every file gets from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeslm.meters import METERS
from edgeslm.meters.sensors.base import on_device


@dataclass(frozen=True)
class Settings:
    """`processes` fresh processes for each artifact; each warms up (`warmups` rounds at least, then until two rounds
    agree within `stable_within` or `most_warmups` are done) and gives `repeats` timed rounds: a prefill of each length
    of `prefill`, and `new_tokens` decoded at each of `depths` (ids already in the cache). `sustained_s` decodes on for
    that long. `threads` 0 takes as many as `cpus` names, or all cores; `cpus` keeps the workers on those. `cool_s`
    waits so long at most, before each process, for the device to be no warmer than at first (and 2 degrees).
    `energy_s` asks for so long a run under the device's energy sensors, `idle_s` of waiting before it.
    `watts_per_core` enables an energy estimate where no counter can be read. `strict` refuses a disturbed run instead
    of marking it."""

    prefill: tuple[int, ...] = (128,)
    depths: tuple[int, ...] = (128,)
    new_tokens: int = 64
    processes: int = 3
    warmups: int = 1
    most_warmups: int = 8
    stable_within: float = 0.03
    repeats: int = 3
    threads: int = 0
    cpus: tuple[int, ...] = ()
    seed: int = 0
    timeout_s: float = 600.0
    sustained_s: float = 0.0
    cool_s: float = 0.0
    energy_s: float = 0.0
    idle_s: float = 5.0
    watts_per_core: float | None = None
    strict: bool = False

    @property
    def longest(self) -> int:
        return max((*self.prefill, *self.depths), default=0)

    def problems(self) -> list[str]:
        low = [n for n in ("new_tokens", "processes", "repeats") if getattr(self, n) < 1]
        found = [f"benchmark.{name} must be at least 1" for name in low]
        found += [
            f"benchmark.{name} must not be negative" for name in ("warmups", "threads") if getattr(self, name) < 0
        ]
        if not self.prefill or min(self.prefill) < 1 or not self.depths or min(self.depths) < 0:
            found.append("benchmark.prefill needs lengths of at least 1, benchmark.depths of at least 0")
        if not 0 < self.stable_within < 1:
            found.append("benchmark.stable_within must lie between 0 and 1")
        if min(self.sustained_s, self.cool_s, self.energy_s, self.idle_s) < 0:
            found.append("benchmark.sustained_s, cool_s, energy_s and idle_s must not be negative")
        if self.watts_per_core is not None and self.watts_per_core <= 0:
            found.append("benchmark.watts_per_core must be positive, or left out")
        return found


def bench_task(prompt_ids: list[int], settings: Settings, cores: int, options: dict[str, Any]) -> dict[str, Any]:
    """The job all artifacts get, except for paths."""
    longest = max(settings.longest, 1)
    times = -(-longest // len(prompt_ids))
    task: dict[str, Any] = {
        "task": "bench",
        "prompt": (prompt_ids * times)[:longest],
        "prefill": sorted(set(settings.prefill)),
        "depths": sorted(set(settings.depths)),
        "new_tokens": settings.new_tokens,
        "warmups": {
            "least": settings.warmups,
            "most": max(settings.warmups, settings.most_warmups),
            "within": settings.stable_within,
        },
        "repeats": settings.repeats,
        "sustained_s": settings.sustained_s,
        "threads": threads_of(settings, cores),
        "cpus": list(settings.cpus),
        "context": longest + settings.new_tokens,
    }
    for meter in METERS.values():
        task |= meter.ask(options)
    return task


def threads_of(settings: Settings, cores: int) -> int:
    return settings.threads or len(settings.cpus) or cores


def watch_files(root: Path, cpus: tuple[int, ...] = ()) -> dict[str, list[str]]:
    """Clocks of the CPUs used and all thermal zones, as far as the device has them, by their paths there; `root` holds
    its small files."""
    clocks = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    used = [path for path in clocks if not cpus or int(path.parts[-3].removeprefix("cpu")) in cpus]
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*/temp"))
    return {"khz": [on_device(path, root) for path in used], "millicelsius": [on_device(path, root) for path in zones]}
