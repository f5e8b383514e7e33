"""Energy of answers, apart from latency: a run of its own for each artifact while the device's sensors are read.

Sensors on the device are sampled by the worker, a phone's own recorder runs beside it, and a meter at the supply is a
CSV that is laid over the run afterwards. Several may be used at once; each gives figures of its own or says why not.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeslm.artifact import Artifact
from edgeslm.benchmark.settings import Settings, threads_of
from edgeslm.devices.base import Device
from edgeslm.errors import DataError, EdgeSLMError
from edgeslm.evaluate.execute import Outcome, execute, scratch
from edgeslm.measurement import Measurement, Where
from edgeslm.meters.base import Reading
from edgeslm.meters.integrate import integrate, readings_of
from edgeslm.meters.sensors import external_csv, look, pixel_rails
from edgeslm.meters.sensors.base import Recording, Sensor

LOADING_S = 60.0  # of the model, and the last answer: a recorder goes on so long beside what is timed
LEAVING_S = 10.0
OnProgress = Callable[[str, int, int], None]


def energy(
    artifacts: list[Artifact],
    prompt_ids: list[int],
    settings: Settings,
    *,
    device: Device,
    meter: Path | None = None,
    workdir: Path | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[list[Measurement], list[dict[str, str]]]:
    """`settings.energy_s` seconds of answers (the first prefill length, `new_tokens` after it) in each of
    `settings.processes` fresh processes of each artifact, after `settings.idle_s` of waiting. `meter` is a CSV that
    covers the runs. Returns (measurements, problems): what a sensor did not tell is a problem of that artifact."""
    sensors = look.found(device.root) if device.root is not None else []
    if not sensors and meter is None:
        return [], []
    planned = look.plan(s for s in sensors if s.recording is None)
    task = energy_task(prompt_ids, settings, threads_of(settings, int(device.facts.get("cores", 1))), planned)
    told: dict[str, list[list[Reading]]] = {artifact.name: [] for artifact in artifacts}
    places: dict[str, Where] = {}
    problems: dict[tuple[str, str], None] = {}
    seconds = settings.idle_s + settings.energy_s + LOADING_S
    rng = random.Random(settings.seed)
    done, total = 0, settings.processes * len(artifacts)
    for _ in range(settings.processes):
        for artifact in rng.sample(artifacts, len(artifacts)):
            done += 1
            if on_progress is not None:
                on_progress(f"energy of {artifact.name}", done, total)
            try:
                with scratch(workdir) as folder, Recorder(device, sensors, folder, seconds) as recorder:
                    outcome = execute(device, artifact, task, folder, timeout_s=settings.timeout_s + settings.energy_s)
                    traces, lost = recorder.traces()
                    readings, reasons = told_by(outcome, planned, sensors, traces, meter)
                    reasons += lost
            except EdgeSLMError as error:
                problems[artifact.name, f"energy: {error}"] = None
                continue
            problems |= {(artifact.name, f"energy: {reason}"): None for reason in reasons}
            told[artifact.name].append(readings)
            places.setdefault(artifact.name, outcome.where(artifact, device))
    found = [m for a in artifacts if a.name in places for m in together(told[a.name], places[a.name])]
    return found, [{"artifact": name, "what": what} for name, what in problems]


def together(processes: list[list[Reading]], where: Where) -> list[Measurement]:
    """The same figure of several processes as one. Processes that gave different numbers of values, as answers of
    different length do, count with their medians, and the values stay in `extra`."""
    by_figure: dict[tuple[Any, ...], list[Reading]] = {}
    for readings in processes:
        for one in readings:
            by_figure.setdefault((one.metric, one.covers, one.extra.get("phase")), []).append(one)
    found = []
    for same in by_figure.values():
        first, extra = same[0], {**same[0].extra, "processes": len(same)}
        if len({len(one.values) for one in same}) == 1:
            values = [value for one in same for value in one.values]
        else:
            values = [statistics.median(one.values) for one in same]
            extra["by_process"] = [list(one.values) for one in same]
        if "gross" in extra:
            extra["gross"] = [value for one in same for value in one.extra["gross"]]
        warmups = tuple(value for one in same for value in one.warmups)
        note = "; ".join(dict.fromkeys(one.note for one in same if one.note))
        about = (where, warmups, first.kind, first.covers, first.better, note, extra)
        found.append(Measurement(first.metric, first.unit, tuple(values), *about))
    return found


def energy_task(prompt_ids: list[int], settings: Settings, threads: int, planned: dict[str, Any]) -> dict[str, Any]:
    """The job of every artifact, except for paths."""
    length = settings.prefill[0]
    return {
        "task": "energy",
        "prompt": (prompt_ids * (-(-length // len(prompt_ids))))[:length],
        "prefill": [length],
        "new_tokens": settings.new_tokens,
        "idle_s": settings.idle_s,
        "seconds": settings.energy_s,
        "sample": planned,
        "threads": threads,
        "cpus": list(settings.cpus),
        "context": length + settings.new_tokens,
    }


def told_by(
    outcome: Outcome, planned: dict[str, Any], sensors: list[Sensor], traces: list[bytes], meter: Path | None
) -> tuple[list[Reading], list[str]]:
    """What all sensors say of one run -> (readings, why others say nothing)."""
    readings, reasons = readings_of(outcome.result, planned, sensors)
    parts: list[tuple[Sensor, list[list[Any]]]] = []
    try:
        for trace in traces:
            parts += pixel_rails.opened(trace)
        if meter is not None:
            parts.append(external_csv.opened(meter, float(outcome.result["wall_minus_monotonic_s"])))
    except DataError as error:
        reasons.append(str(error))
    for sensor, samples in parts:
        more, why = integrate(outcome.result["windows"], samples, sensor)
        readings, reasons = readings + more, reasons + why
    return readings, reasons


class Recorder:
    """Programs of the device that record by themselves for `seconds` while a `with` block runs."""

    def __init__(self, device: Device, sensors: list[Sensor], folder: Path, seconds: float):
        self.device, self.folder, self.seconds = device, folder, seconds
        self.recordings = [pixel_rails.recording(seconds) for sensor in sensors if sensor.recording is not None]
        self._threads = [threading.Thread(target=self._record, args=(one,), daemon=True) for one in self.recordings]

    def _record(self, recording: Recording) -> None:
        with contextlib.suppress(EdgeSLMError):  # then there is no trace, and `traces` says so
            self.device.run([*recording.argv], self.seconds + LEAVING_S, stdin=[recording.stdin])

    def traces(self) -> tuple[list[bytes], list[str]]:
        """Waits for the recordings to end and fetches them -> (what they left, why others left nothing)."""
        self._join()
        found, lost = [], []
        for at, recording in enumerate(self.recordings):
            local = self.folder / f"recording-{at}"
            try:
                self.device.pull(recording.output, local)
                found.append(local.read_bytes())
            except EdgeSLMError as error:
                lost.append(str(error))
        return found, lost

    def _join(self) -> None:
        for thread in self._threads:
            thread.join(self.seconds + LEAVING_S)

    def __enter__(self) -> Recorder:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._join()
