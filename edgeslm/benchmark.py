"""Time artifacts against each other on one device: fresh processes, order shuffled by a seed, rounds alternating.

Each round runs every artifact once, in a new random order, each in a process of its own (warm-ups, then timed runs);
so slow drifts of the machine fall on all alike.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeslm import cost, doubts
from edgeslm.artifact import Artifact
from edgeslm.devices.base import Device
from edgeslm.devices.facts import busy_cores, temperature_c
from edgeslm.errors import DataError, EdgeSLMError
from edgeslm.evaluate.execute import Outcome, execute, scratch
from edgeslm.measurement import Measurement, Where
from edgeslm.meters import METERS

SAME_WARMTH_C = 2.0
COOLING_LOOK_S = 1.0
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """`processes` fresh processes for each artifact; each warms up (`warmups` rounds at least, then until two rounds
    agree within `stable_within` or `most_warmups` are done) and gives `repeats` timed rounds: a prefill of each length
    of `prefill`, and `new_tokens` decoded at each of `depths` (ids already in the cache). `sustained_s` decodes on for
    that long. `threads` 0 takes as many as `cpus` names, or all cores; `cpus` keeps the workers on those. `cool_s`
    waits so long at most, before each process, for the device to be no warmer than at first (and 2 degrees).
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
        if self.sustained_s < 0 or self.cool_s < 0 or not 0 < self.stable_within < 1:
            found.append("benchmark.sustained_s and cool_s must not be negative, stable_within lies between 0 and 1")
        if self.watts_per_core is not None and self.watts_per_core <= 0:
            found.append("benchmark.watts_per_core must be positive, or left out")
        return found


def bench(
    artifacts: list[Artifact],
    prompt_ids: list[int],
    settings: Settings,
    *,
    device: Device,
    workdir: Path | None = None,
    on_progress: OnProgress | None = None,
    root: Path = Path("/"),
) -> tuple[list[Measurement], list[dict[str, str]]]:
    """Returns (measurements, problems); an artifact that fails is left out from then on and named in problems.

    `prompt_ids` is repeated or cut to the longest length asked for. `root` is where a local device's sensors are read.
    """
    wrong = settings.problems() + ([] if prompt_ids else ["the benchmark's prompt has no tokens"])
    if wrong:
        raise DataError("; ".join(wrong))
    options = {"sysfs": root / "sys" if device.name == "local" else None, "watts_per_core": settings.watts_per_core}
    task = bench_task(prompt_ids, settings, int(device.facts.get("cores", 1)), options)
    rng = random.Random(settings.seed)
    outcomes: dict[str, list[Outcome]] = {artifact.name: [] for artifact in artifacts}
    problems: dict[str, str] = {}
    state: dict[str, list[float | None]] = {"busy": [], "temperature": []}
    done, total = 0, settings.processes * len(artifacts)
    for _ in range(settings.processes):
        for artifact in rng.sample(artifacts, len(artifacts)):
            done += 1
            if artifact.name in problems:
                continue
            if on_progress is not None:  # before the work, so that a hang has a name
                on_progress(artifact.name, done, total)
            if device.name == "local":
                cool_down(root, state["temperature"][0] if state["temperature"] else None, settings.cool_s)
                state["busy"].append(busy_cores(root))
                state["temperature"].append(temperature_c(root))
            try:
                with scratch(workdir) as folder:
                    outcome = execute(device, artifact, task, folder, timeout_s=settings.timeout_s)
                outcomes[artifact.name].append(outcome)
            except EdgeSLMError as error:
                problems[artifact.name] = str(error)
    warmest = max((t for t in state["temperature"] if t is not None), default=None)
    busy = doubts.background(state["busy"], task["threads"])
    measurements = _bandwidth(device, task)
    for artifact in artifacts:
        if outcomes[artifact.name] and artifact.name not in problems:
            doubt = "; ".join(
                part for part in (busy, *doubts.of_results([o.result for o in outcomes[artifact.name]])) if part
            )
            if doubt and settings.strict:
                problems[artifact.name] = (
                    f"refused, the run was disturbed: {doubt}; let the device rest and run it again"
                )
                continue
            where = outcomes[artifact.name][0].where(artifact, device, warmest)
            measurements += measure(artifact, outcomes[artifact.name], where, options, doubt)
            measurements += bound(artifact, outcomes[artifact.name], where, settings)
    return measurements, [{"artifact": name, "what": what} for name, what in problems.items()]


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
        "threads": settings.threads or len(settings.cpus) or cores,
        "cpus": list(settings.cpus),
        "context": longest + settings.new_tokens,
    }
    if options.get("sysfs") is not None:
        task["watch"] = watch_files(options["sysfs"], settings.cpus)
    for meter in METERS.values():
        task |= meter.ask(options)
    return task


def watch_files(sysfs: Path, cpus: tuple[int, ...] = ()) -> dict[str, list[str]]:
    """Clocks of the CPUs used and all thermal zones, as far as this machine has them."""
    clocks = sorted((sysfs / "devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    used = [path for path in clocks if not cpus or int(path.parts[-3].removeprefix("cpu")) in cpus]
    zones = sorted((sysfs / "class/thermal").glob("thermal_zone*/temp"))
    return {"khz": [str(path) for path in used], "millicelsius": [str(path) for path in zones]}


def cool_down(root: Path, target_c: float | None, seconds: float, sleep: Callable[[float], None] = time.sleep) -> None:
    """Wait until the device is at most 2 degrees warmer than `target_c`, `seconds` at most; not without a sensor."""
    waited = 0.0
    while target_c is not None and waited < seconds:
        now = temperature_c(root)
        if now is None or now <= target_c + SAME_WARMTH_C:
            return
        sleep(COOLING_LOOK_S)
        waited += COOLING_LOOK_S


def measure(
    artifact: Artifact, outcomes: list[Outcome], where: Where, options: dict[str, Any], doubt: str
) -> list[Measurement]:
    """What every meter reads from one artifact's results."""
    results = [outcome.result for outcome in outcomes]
    notes = list(dict.fromkeys(outcome.note for outcome in outcomes if outcome.note))
    found = []
    for meter in METERS.values():
        for reading in meter.read(results, options):
            timed = reading.unit in ("s", "tokens/s", "J/token")
            found.append(
                Measurement(
                    metric=reading.metric,
                    unit=reading.unit,
                    values=reading.values,
                    where=where,
                    warmups=reading.warmups,
                    kind=reading.kind,
                    covers=reading.covers,
                    better=reading.better,
                    note="; ".join(part for part in (reading.note, *notes, doubt if timed else "") if part),
                    extra=reading.extra | {"processes": len(results)},
                )
            )
    return found


def bound(artifact: Artifact, outcomes: list[Outcome], where: Where, settings: Settings) -> list[Measurement]:
    """`decode_bound`: how fast memory would let this artifact decode; nothing when the bandwidth is not known."""
    bandwidth = where.device.get("bandwidth_bytes_per_s")
    if not bandwidth:
        return []
    engine = outcomes[0].result["engine"]
    shape = [engine.get(key) for key in ("layers", "kv_heads", "head_dim", "kv_element_bytes")]
    kv = 2.0 * shape[0] * shape[1] * shape[2] * shape[3] if all(shape) else 0.0
    deepest = max(outcomes[0].result["phases"], key=lambda phase: phase["depth"] if phase["kind"] == "decode" else -1)
    context = deepest["depth"] + settings.new_tokens / 2
    moved = cost.decode_bytes(artifact.weight_bytes, kv, context, artifact.unread_bytes)
    weights = artifact.weight_bytes - artifact.unread_bytes
    note = f"memory bandwidth / bytes a token needs ({weights} of weights, {kv * context:.0f} of cache)"
    cache = where.device.get("last_level_cache_bytes", 0)
    if cache > moved:
        note += f"; it all fits into the last-level cache of {cache} bytes, so this is no hard ceiling here"
    value = cost.decode_bound(moved, bandwidth)
    fastest = max(
        settings.new_tokens / run["seconds"]
        for outcome in outcomes
        for phase in outcome.result["phases"]
        if (phase["kind"], phase["depth"]) == ("decode", deepest["depth"])
        for run in phase["runs"]
    )
    if fastest > value:
        note += "; the fastest run exceeded it: other programs took bandwidth while it was measured, or caches helped"
    extra = {"depth": deepest["depth"], "bytes_per_token": moved, "bandwidth_bytes_per_s": bandwidth}
    return [
        Measurement(
            "decode_bound", "tokens/s", (value,), where, kind="modelled", covers="memory", better="higher",
            note=note, extra=extra,
        )
    ]  # fmt: skip


def _bandwidth(device: Device, task: dict[str, Any]) -> list[Measurement]:
    value = device.facts.get("bandwidth_bytes_per_s")
    if not value:
        return []
    where = Where(dict(device.facts), "-", "-", "-", "-", "-", {"task": "bandwidth"}, int(device.facts.get("cores", 1)))
    note = str(device.facts.get("bandwidth_counts", ""))
    return [Measurement("memory_bandwidth", "bytes/s", (value,), where, covers="device", better="higher", note=note)]
