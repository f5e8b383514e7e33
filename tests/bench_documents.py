"""Bench documents as `edgeslm bench` writes them: the real benchmark on a device that plays what a worker would say."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeslm.artifact import Artifact
from edgeslm.benchmark.run import bench
from edgeslm.benchmark.settings import Settings
from edgeslm.devices.base import Completed
from edgeslm.devices.fake import FakeDevice, Turn
from edgeslm.measurement import Measurement, Where

LAPTOP = {
    "id": "5f3a9c2110ab", "name": "Example Core 7, 4.6 GHz", "cpu": "Example Core 7, 4.6 GHz", "machine": "x86_64",
    "cores": 8, "memory_bytes": 16_700_000_000, "os": "Debian GNU/Linux 12", "governor": "powersave",
    "bandwidth_bytes_per_s": 48e9, "bandwidth_counts": "a numpy copy",
}  # fmt: skip
PI = {
    "id": "91bd01c2aa07", "name": "Raspberry Pi 5 Model B, 4x Cortex-A76", "cpu": "4x Cortex-A76", "machine": "aarch64",
    "cores": 4, "memory_bytes": 8_440_000_000, "os": "Debian GNU/Linux 12", "governor": "ondemand",
    "bandwidth_bytes_per_s": 11.8e9, "bandwidth_counts": "a numpy copy",
}  # fmt: skip
PHONE = {
    "id": "0c77de41b9f2", "name": "Example Phone 9", "cpu": "1x Cortex-X1 + 3x Cortex-A78 + 4x Cortex-A55",
    "machine": "aarch64", "cores": 8, "memory_bytes": 11_900_000_000, "os": "Android 15",
    "bandwidth_bytes_per_s": 26e9, "bandwidth_counts": "a numpy copy",
}  # fmt: skip
EMULATED = {**PI, "id": "eeee01c2aa07", "name": "Raspberry Pi 5 in an emulator", "stand_in": True}
SETTINGS = Settings(prefill=(32, 128), depths=(0, 128), new_tokens=8, processes=3, repeats=3, warmups=1, threads=4)


SHAPE = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 22, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49_152,
}  # fmt: skip


@dataclass(frozen=True)
class File:
    """What a file is, and how fast a device of speed 1 runs it."""

    name: str
    bytes: int
    parameters: int
    grid: str
    decode: float
    prefill: float
    kl: float | None = None
    perplexity: float | None = None

    @property
    def artifact(self) -> Artifact:
        sha = f"{sum(map(ord, self.name)):x}".rjust(64, "a")
        return Artifact(
            self.name, Path(self.name), "gguf", sha, self.bytes, int(self.bytes * 0.98), self.parameters, self.grid,
            shape=SHAPE,
        )  # fmt: skip


FILES = (
    File("teacher-f32.gguf", 540_212_480, 134_515_008, "f32", 15.4, 118, None, 18.62),
    File("student-q8_0.gguf", 115_400_000, 106_196_352, "q8_0", 41.0, 330, 0.241, 21.90),
    File("student-q4_0.gguf", 73_412_320, 106_196_352, "q4_0", 61.2, 402, 0.287, 24.31),
    File("student-q4_k.gguf", 76_100_000, 106_196_352, "q4_k", 54.9, 371, 0.302, 24.60),
    File("student-q2_k.gguf", 47_900_000, 106_196_352, "q2_k", 66.0, 365, 0.611, 33.15),
)


class Played(FakeDevice):
    """Answers each job with what `result` makes of the model's name."""

    def __init__(self, facts: dict[str, Any], result: Callable[[str], dict[str, Any]]):
        super().__init__(facts=facts)
        self.result = result

    def push(self, path: Path) -> str:  # the model files need not exist
        return str(path)

    def run(self, argv: list[str], timeout_s: float, on_line: Any = None, stdin: Any = None) -> Completed:
        job = json.loads(Path(argv[-1]).read_text(encoding="utf-8"))
        played = self.ceilings(job) if job["task"] == "ceilings" else self.result(Path(job["model"]).name)
        self.turns = [Turn(lines=('{"ok": true}',), files={"result.json": played})]
        return super().run(argv, timeout_s, on_line, stdin)

    def ceilings(self, job: dict[str, Any]) -> dict[str, Any]:
        width = float(self.facts["bandwidth_bytes_per_s"])
        rates = {"read_bytes_per_s": width, "copy_bytes_per_s": 1.1 * width, "flops_f32": 4 * width}
        return {"threads": job["threads"], **{key: [0.99 * value, value] for key, value in rates.items()}}


def result(file: File, settings: Settings, speed: float, rng: random.Random, others: float = 0.0) -> dict[str, Any]:
    """One process: its own place in a spread of 1 %, runs about it."""
    place = rng.gauss(0, 0.01)

    def run(seconds: float, tokens: int) -> dict[str, Any]:
        took = seconds * (1 + place) * rng.uniform(0.995, 1.005)
        step = [took / tokens * rng.uniform(0.9, 1.1) for _ in range(tokens)]
        return {"seconds": took, "cpu_s": 3.4 * took, "first_s": took, "token_latency_s": step, "rails": [[], []],
                "others_cores": others or None}  # fmt: skip

    phases = []
    for length in sorted({*settings.prefill, *settings.depths}):
        if length in settings.prefill:
            phases.append(("prefill", length, 0, length / (file.prefill * speed)))
        if length in settings.depths:
            slower = 1 + length / 2000
            phases.append(("decode", settings.new_tokens, length, settings.new_tokens / (file.decode * speed) * slower))
    sustained = []
    if settings.sustained_s:
        throttle = 1.0
        for i in range(60):
            throttle = 1.0 if i < 22 else max(0.68, throttle - 0.02)
            took = settings.new_tokens / (file.decode * speed * throttle) * rng.uniform(0.98, 1.02)
            heat = [[None], [1000 * min(82.0, 46 + 1.4 * i)]]
            sustained.append({"at_s": i * settings.sustained_s / 60, "seconds": took, "tokens": settings.new_tokens,
                              "watch": {"millicelsius": heat, "khz": [[], []]}})  # fmt: skip
    context, cache = 256, 2 * 22 * 3 * 64 * 2
    anon, mapped = int(48e6 + cache * context + place * 1e6), int(file.bytes * 0.99)
    memory = {"rss_anon": anon, "rss_file": mapped, "pss": anon + int(mapped * 0.97), "vm_hwm": anon + mapped,
              "vm_swap": 0}  # fmt: skip
    return {
        "engine": {"runtime": "llama.cpp", "version": "0.5.0", "layers": 22, "kv_heads": 3, "head_dim": 64,
                   "kv_element_bytes": 2, "context": context},
        "load_s": file.bytes / 2e9 / speed * (1 + place),
        "phases": [
            {"kind": kind, "tokens": tokens, "depth": depth, "warmups": [run(seconds * 1.2, tokens)],
             "runs": [run(seconds, tokens) for _ in range(settings.repeats)]}
            for kind, tokens, depth, seconds in phases
        ],
        "sustained": sustained,
        "stable": True,
        "kv_cache_bytes": cache * context,
        "memory": {"before_load": {"rss_anon": 20_000_000}, "samples": [memory]},
        "steps": {"wall_minus_monotonic_s": [0.0, 0.0]},
    }  # fmt: skip


def document(
    work: Path,
    facts: dict[str, Any] = LAPTOP,
    files: tuple[File, ...] = FILES,
    speed: float = 1.0,
    seed: int = 0,
    settings: Settings = SETTINGS,
    others: float = 0.0,
    factor: dict[str, float] | None = None,
) -> dict[str, Any]:
    """A bench document of `files` on one device. `factor` speeds single files up. `others` cores are busy all the time
    (which disturbs a run)."""
    rng = random.Random(seed)
    by_name = {f.name: f for f in files}

    def play(name: str) -> dict[str, Any]:
        file, by = by_name[name], (factor or {}).get(name, 1.0)
        return result(replace(file, decode=file.decode * by, prefill=file.prefill * by), settings, speed, rng, others)

    made = [f.artifact for f in files]
    found, problems = bench(made, list(range(40)), settings, device=Played(facts, play), workdir=work)
    document = {
        "schema": 2,
        "measurements": [m.to_json() for m in found],
        "problems": problems,
        "artifacts": [{key: value for key, value in a.to_json().items() if key != "path"} for a in made],
    }
    read: dict[str, Any] = json.loads(json.dumps(document))  # as it comes out of a file
    return read


def more(document: dict[str, Any], name: str, metric: str, unit: str, values: list[float], **rest: Any) -> None:
    """Add a figure of a file where its others were taken (what no fake worker can sample: energy, predictions)."""
    where = next(m["where"] for m in document["measurements"] if m["where"]["artifact"] == name)
    document["measurements"].append(Measurement(metric, unit, tuple(values), Where(**where), **rest).to_json())


def report(files: tuple[File, ...] = FILES) -> dict[str, Any]:
    """What a report's results.json says about quality."""
    job = {"text": "held-out", "windows": 8}
    found = []
    for f in files:
        a = f.artifact
        where = Where({**LAPTOP}, "llama.cpp", "0.5.0", a.name, a.sha256, "gguf", job, 2)
        for metric, unit, value in (("kl", "nats/token", f.kl), ("perplexity", "1", f.perplexity)):
            if value is not None:
                found.append(Measurement(metric, unit, (value,), where, extra={"tokens": 2040}).to_json())
    artifacts = [{key: value for key, value in f.artifact.to_json().items() if key != "path"} for f in files]
    return {"schema": 1, "run": {"name": "smol"}, "measurements": found, "artifacts": artifacts, "problems": []}


def write(path: Path, data: dict[str, Any]) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path
