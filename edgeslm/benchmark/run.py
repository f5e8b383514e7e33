"""Time artifacts against each other on one device: fresh processes, order shuffled by a seed, rounds alternating.

Each round runs every artifact once, in a new random order, each in a process of its own (warm-ups, then timed runs);
so slow drifts of the machine fall on all alike.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeslm.artifact import Artifact
from edgeslm.benchmark import doubts
from edgeslm.benchmark.bounds import bounds, ceilings
from edgeslm.benchmark.settings import Settings, bench_task, watch_files
from edgeslm.devices.base import Device
from edgeslm.devices.facts import busy_cores, temperature_c
from edgeslm.errors import DataError, EdgeSLMError
from edgeslm.evaluate.execute import Outcome, execute, scratch
from edgeslm.measurement import Measurement, Where
from edgeslm.meters import METERS

SAME_WARMTH_C = 2.0
COOLING_LOOK_S = 1.0
HERE = ("local", "browser")  # devices whose sensors are this machine's
OnProgress = Callable[[str, int, int], None]


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
    here = device.name in HERE
    warmth = thermometer(device, root)
    if device.root is not None:
        task["watch"] = watch_files(root if here else device.root, settings.cpus)
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
            if here or settings.cool_s > 0:  # a look at a device behind a link is a round trip
                cool_down(warmth, state["temperature"][0] if state["temperature"] else None, settings.cool_s)
                state["temperature"].append(warmth())
            if here:
                state["busy"].append(busy_cores(root))
            try:
                with scratch(workdir) as folder:
                    outcome = execute(device, artifact, task, folder, timeout_s=settings.timeout_s)
                outcomes[artifact.name].append(outcome)
            except EdgeSLMError as error:
                problems[artifact.name] = str(error)
    warmest = max((t for t in state["temperature"] if t is not None), default=None)
    busy = doubts.background(state["busy"], task["threads"])
    ran = [artifact for artifact in artifacts if outcomes[artifact.name] and artifact.name not in problems]
    known = ceilings(device, ran, task, workdir)
    measurements = known.measurements(device)
    for artifact in ran:
        results = [outcome.result for outcome in outcomes[artifact.name]]
        doubt = "; ".join(part for part in (busy, *doubts.of_results(results)) if part)
        if doubt and settings.strict:
            problems[artifact.name] = f"refused, the run was disturbed: {doubt}; let the device rest and run it again"
            continue
        where = outcomes[artifact.name][0].where(artifact, device, warmest)
        measurements += measure(artifact, outcomes[artifact.name], where, options, doubt)
    measurements += bounds(ran, measurements, outcomes, known, settings.new_tokens)
    return measurements, [{"artifact": name, "what": what} for name, what in problems.items()]


def thermometer(device: Device, root: Path) -> Callable[[], float | None]:
    """Reads the device's warmest sensor anew; a device behind a link is looked at again."""
    refresh: Callable[[], Path] | None = getattr(device, "refresh", None)
    if device.name in HERE or refresh is None:
        return lambda: temperature_c(root) if device.name in HERE else None
    return lambda: temperature_c(refresh())


def cool_down(
    warmth: Callable[[], float | None],
    target_c: float | None,
    seconds: float,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until the device is at most 2 degrees warmer than `target_c`, `seconds` at most; not without a sensor."""
    waited = 0.0
    while target_c is not None and waited < seconds:
        now = warmth()
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
