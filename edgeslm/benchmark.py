"""Time artifacts against each other on one device: fresh processes, order shuffled by a seed, rounds alternating.

Each round runs every artifact once, in a new random order, each in a process of its own (warm-ups, then timed runs);
so slow drifts of the machine fall on all alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeslm import cost
from edgeslm.artifact import Artifact
from edgeslm.devices.base import Device
from edgeslm.devices.facts import busy_cores, temperature_c
from edgeslm.errors import DataError, EdgeSLMError
from edgeslm.evaluate.execute import Outcome, execute, scratch
from edgeslm.measurement import Measurement, Where
from edgeslm.meters import METERS

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """`processes` fresh processes for each artifact, each with `warmups` then `repeats` timed runs of a prompt of
    `prompt_tokens` and `new_tokens` decoded. `threads` 0 takes all cores. `watts_per_core` enables an energy estimate
    where no counter can be read."""

    prompt_tokens: int = 128
    new_tokens: int = 64
    processes: int = 3
    warmups: int = 1
    repeats: int = 3
    threads: int = 0
    seed: int = 0
    timeout_s: float = 600.0
    watts_per_core: float | None = None

    def problems(self) -> list[str]:
        low = [n for n in ("prompt_tokens", "new_tokens", "processes", "repeats") if getattr(self, n) < 1]
        found = [f"benchmark.{name} must be at least 1" for name in low]
        found += [
            f"benchmark.{name} must not be negative" for name in ("warmups", "threads") if getattr(self, name) < 0
        ]
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

    `prompt_ids` is repeated or cut to `settings.prompt_tokens`. `root` is where a local device's sensors are read.
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
                state["busy"].append(busy_cores(root))
                state["temperature"].append(temperature_c(root))
            try:
                with scratch(workdir) as folder:
                    outcome = execute(device, artifact, task, folder, timeout_s=settings.timeout_s)
                outcomes[artifact.name].append(outcome)
            except EdgeSLMError as error:
                problems[artifact.name] = str(error)
    warmest = max((t for t in state["temperature"] if t is not None), default=None)
    busy = background_note(state["busy"], task["threads"])
    measurements = _bandwidth(device, task)
    for artifact in artifacts:
        if outcomes[artifact.name] and artifact.name not in problems:
            where = outcomes[artifact.name][0].where(artifact, device, warmest)
            measurements += measure(artifact, outcomes[artifact.name], where, options, busy)
            measurements += bound(artifact, outcomes[artifact.name], where, settings)
    return measurements, [{"artifact": name, "what": what} for name, what in problems.items()]


def bench_task(prompt_ids: list[int], settings: Settings, cores: int, options: dict[str, Any]) -> dict[str, Any]:
    """The job all artifacts get, except for paths."""
    times = -(-settings.prompt_tokens // len(prompt_ids))
    task: dict[str, Any] = {
        "task": "bench",
        "prompt": (prompt_ids * times)[: settings.prompt_tokens],
        "new_tokens": settings.new_tokens,
        "warmups": settings.warmups,
        "repeats": settings.repeats,
        "threads": settings.threads or cores,
        "context": settings.prompt_tokens + settings.new_tokens,
    }
    for meter in METERS.values():
        task |= meter.ask(options)
    return task


def measure(
    artifact: Artifact, outcomes: list[Outcome], where: Where, options: dict[str, Any], busy: str
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
                    note="; ".join(part for part in (reading.note, *notes, busy if timed else "") if part),
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
    context = settings.prompt_tokens + settings.new_tokens / 2
    moved = cost.decode_bytes(artifact.weight_bytes, kv, context, artifact.unread_bytes)
    weights = artifact.weight_bytes - artifact.unread_bytes
    note = f"memory bandwidth / bytes a token needs ({weights} of weights, {kv * context:.0f} of cache)"
    cache = where.device.get("last_level_cache_bytes", 0)
    if cache > moved:
        note += f"; it all fits into the last-level cache of {cache} bytes, so this is no hard ceiling here"
    value = cost.decode_bound(moved, bandwidth)
    runs = [run for outcome in outcomes for run in outcome.result["runs"]]
    if max(settings.new_tokens / run["decode_s"] for run in runs) > value:
        note += "; the fastest run exceeded it: other programs took bandwidth while it was measured, or caches helped"
    extra = {"bytes_per_token": moved, "bandwidth_bytes_per_s": bandwidth}
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


def background_note(busy: list[float | None], threads: int) -> str:
    """A doubt when others kept the machine busy before a run, looked at while no worker of ours ran."""
    worst = max((b for b in busy if b is not None), default=0.0)
    if worst < 0.3:
        return ""
    return f"others kept {worst:.1f} cores busy just before a run; {threads} threads shared the machine with them"
