"""The sub-command `bench`: options to settings, files and devices to one document, and how it is printed."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeslm import units
from edgeslm.artifact import write_whole
from edgeslm.benchmark.run import OnProgress, bench
from edgeslm.benchmark.settings import Settings
from edgeslm.errors import DataError, DeviceError
from edgeslm.measurement import Measurement
from edgeslm.progress import LINE_EVERY_S, Progress

Problems = list[dict[str, str]]
LARGE_BYTES = 4 << 20


@dataclass(frozen=True)
class Options:
    """As typed; `cpus` is "", "fast" or a list such as 0-3,6."""

    prefill: str
    depths: str
    new_tokens: int
    processes: int
    repeats: int
    warmups: int
    threads: int
    cpus: str
    sustained: float
    cool: float
    energy: float
    idle: float
    watts_per_core: float | None
    strict: bool
    seed: int


def settings_of(options: Options, facts: dict[str, Any]) -> Settings:
    """Raises DataError for a list that is none, or CPUs this device does not tell apart."""
    return Settings(
        prefill=numbers(options.prefill, "--prefill"),
        depths=numbers(options.depths, "--depths"),
        new_tokens=options.new_tokens,
        processes=options.processes,
        repeats=options.repeats,
        warmups=options.warmups,
        threads=options.threads,
        cpus=cpus_of(options.cpus, facts),
        sustained_s=options.sustained,
        cool_s=options.cool,
        energy_s=options.energy,
        idle_s=options.idle,
        watts_per_core=options.watts_per_core,
        strict=options.strict,
        seed=options.seed,
    )


def numbers(text: str, what: str) -> tuple[int, ...]:
    """`128,512` -> (128, 512); `0-3,6` -> (0, 1, 2, 3, 6)."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise DataError(f"{what} {text}: is no list of numbers; write it like 128,512 or 0-3")
        found += range(int(first), int(last or first) + 1)
    return tuple(dict.fromkeys(found))


def cpus_of(text: str, facts: dict[str, Any]) -> tuple[int, ...]:
    if text != "fast":
        return numbers(text, "--cpus") if text else ()
    clusters = facts.get("clusters") or []
    if not clusters:
        raise DataError("--cpus fast: this device does not say which of its cores are fast; name them, such as 4-7")
    return tuple(int(cpu) for cpu in clusters[0]["cpus"])


def bench_files(
    models: list[str], options: Options, on: list[str], keep: bool, meter: Path | None, progress: Progress
) -> dict[str, Any]:
    """Every file on every device with the same prompt ids, so that no tokenizer is part of what is compared -> one
    document. A device that cannot be reached is a problem of that device; raises DeviceError when there is no other."""
    from edgeslm.benchmark.energy import energy
    from edgeslm.cli.actions import artifact_of
    from edgeslm.devices.open import opened

    artifacts = [artifact_of(m) for m in models]
    names = [a.name for a in artifacts]
    if len(set(names)) != len(names):
        raise DataError(f"two of the files have the same name ({', '.join(sorted(names))}); give them different names")
    found: list[Measurement] = []
    problems: Problems = []
    for spec in dict.fromkeys(on or ["local"]):
        try:
            with opened(spec, keep, pushing(progress, spec)) as device, tempfile.TemporaryDirectory() as work:
                settings = settings_of(options, device.facts)
                prompt = list(range(100, 100 + max(1, settings.longest)))
                told: dict[str, Any] = {
                    "device": device,
                    "workdir": Path(work),
                    "on_progress": progress_on(progress, spec),
                }
                more, wrong = bench(artifacts, prompt, settings, **told)
                if options.energy:
                    joules, reasons = energy(artifacts, prompt, settings, meter=meter, **told)
                    more, wrong = more + joules, wrong + reasons
                place = {} if spec == "local" else {"device": str(device.facts.get("name", spec.partition(":")[0]))}
        except DeviceError as error:
            if len(on) < 2:
                raise
            more, wrong, place = [], [{"artifact": name, "what": str(error)} for name in names], {"device": spec}
        found += more
        problems += [{**problem, **place} for problem in wrong]
    return {
        "schema": 2,
        "measurements": [m.to_json() for m in found],
        "problems": problems,
        "artifacts": [{key: value for key, value in a.to_json().items() if key != "path"} for a in artifacts],
    }


def pushing(progress: Progress, spec: str) -> Callable[[str, int, int], None]:
    """Lines while a large file is on its way to a device."""
    said: dict[str, float] = {}

    def say(name: str, sent: int, total: int) -> None:
        now = time.monotonic()
        if total >= LARGE_BYTES and (now - said.get(name, 0.0) >= LINE_EVERY_S or sent >= total):
            said[name] = now
            progress.say(f"{spec}: {name}, {units.byte_count(sent)} of {units.byte_count(total)} are there")

    return say


def progress_on(progress: Progress, spec: str) -> OnProgress:
    """Lines such as `ssh:pi@kitchen: student.gguf, process 2 of 4`."""

    def say(name: str, done: int, total: int) -> None:
        progress.say(f"{spec}: {name}, process {done} of {total}")

    return say


def text(document: dict[str, Any]) -> str:
    """A line a figure: what, at which length, median, spread, and whether it was measured."""
    lines = []
    for m in map(Measurement.from_json, document["measurements"]):
        spread = f"  (p10 {units.number(m.p10, m.unit)}, p90 {units.number(m.p90, m.unit)}, n {m.n})" if m.n > 1 else ""
        mark = "" if m.kind == "measured" else f"  [{m.kind}]"
        shown = units.number(m.median, m.unit)
        lines.append(f"{m.where.artifact:24} {m.metric + length_of(m):28} {shown}{spread}{mark}")
    doubts = dict.fromkeys(m["note"] for m in document["measurements"] if m["metric"] == "decode" and m["note"])
    return "\n".join([*lines, *(f"note: {note}" for note in doubts)])


def length_of(m: Measurement) -> str:
    """@128 for a prompt's length or a decode's depth."""
    if m.metric in ("prefill", "time_to_first_token"):
        return f" of {m.extra['prompt_tokens']}"
    return f" at {m.extra['depth']}" if "depth" in m.extra else ""


def write(document: dict[str, Any], out: Path) -> None:
    """As one JSON file, atomically. Raises DataError where it cannot be written."""
    try:
        write_whole(out, (json.dumps(document, indent=1) + "\n").encode())
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror}); give --out another place") from error
