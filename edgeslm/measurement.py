"""A number that came back from a device: raw values, what they cover, and where they were taken.

Statistics are properties of the raw values and never stored. Two measurements may be compared only when they
differ in nothing but what is being compared (the artifact); anything else raises `UnlikeRuns`.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgeslm.errors import EdgeSLMError

Kind = Literal["measured", "modelled", "estimated"]
AT = ("prompt_tokens", "depth", "new_tokens", "phase", "tokens")  # of `extra`: what a figure was taken at


class UnlikeRuns(EdgeSLMError):
    """Two measurements that differ in device, runtime, job, threads or kind."""


@dataclass(frozen=True)
class Where:
    """What was run, by what, on what. `device` holds the facts of the machine as plain data (cpu, cores, ...)."""

    device: dict[str, Any]
    runtime: str
    runtime_version: str
    artifact: str  # a person's name for the file: "student.gguf", "teacher-f32.gguf"
    artifact_sha256: str
    artifact_format: str  # "gguf" or "onnx" or "torch"
    job: dict[str, Any]  # the task exactly as the worker got it, file paths left out
    threads: int
    temperature_c: float | None = None


@dataclass(frozen=True)
class Measurement:
    """One metric of one artifact. `values` are repeats in SI units; `warmups` were taken before and never count."""

    metric: str  # "decode", "prefill", "time_to_first_token", "load", "rss_anon_peak", "kl", ...
    unit: str  # "tokens/s", "s", "bytes", "J", "J/token", "nats/token", "1"
    values: tuple[float, ...]
    where: Where
    warmups: tuple[float, ...] = ()
    kind: Kind = "measured"
    covers: str = "process"  # "process", "device", "package rail", ...: part of the figure
    better: Literal["higher", "lower"] = "lower"
    note: str = ""  # an estimate's formula, a doubt about the run
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(float(v) for v in self.values))
        object.__setattr__(self, "warmups", tuple(float(v) for v in self.warmups))
        if not self.values:
            raise ValueError(f"measurement '{self.metric}' without a value: a missing sensor gives no measurement")

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def p10(self) -> float:
        return percentile(self.values, 10)

    @property
    def p90(self) -> float:
        return percentile(self.values, 90)

    def to_json(self) -> dict[str, Any]:
        """Plain data with the statistics written beside the raw values for readers; `from_json` ignores them."""
        data = asdict(self)
        data["statistics"] = {"n": self.n, "median": self.median, "p10": self.p10, "p90": self.p90}
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Measurement:
        fields = {k: v for k, v in data.items() if k != "statistics"}
        fields["where"] = Where(**fields["where"])
        return cls(**fields)


def percentile(values: Iterable[float], q: float) -> float:
    """Linear interpolation between closest ranks, q in 0..100 (numpy's default)."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * q / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def ratio(a: Measurement, b: Measurement) -> float:
    """Median of `a` over median of `b`. Raises UnlikeRuns unless only the artifact differs."""
    alike(a, b)
    return a.median / b.median


def alike(a: Measurement, b: Measurement) -> None:
    """Raises UnlikeRuns, with all that they differ in, unless it is the artifact only."""
    if wrong := unlike(a, b):
        raise UnlikeRuns(f"cannot compare {a.where.artifact} with {b.where.artifact} because of {'; '.join(wrong)}")


def unlike(a: Measurement, b: Measurement) -> list[str]:
    """In what two measurements differ besides their artifact, each with both sides; [] when they may be compared."""
    found = ["a stand-in, whose figures say nothing about a device"] if stand_in(a) or stand_in(b) else []
    for name, left, right in (
        ("metric", a.metric, b.metric),
        ("unit", a.unit, b.unit),
        ("kind", a.kind, b.kind),
        ("coverage", a.covers, b.covers),
        ("device", device_of(a), device_of(a) if same_device(a, b) else device_of(b)),
        ("runtime", f"{a.where.runtime} {a.where.runtime_version}", f"{b.where.runtime} {b.where.runtime_version}"),
        ("threads", a.where.threads, b.where.threads),
        *((f"job's {key}", a.where.job.get(key), b.where.job.get(key)) for key in _keys(a.where.job, b.where.job)),
        *((key.replace("_", " "), a.extra.get(key), b.extra.get(key)) for key in AT),
    ):
        if left != right and not (name == "job's threads" and a.where.threads != b.where.threads):
            found.append(f"{name} ({left} and {right})")
    return found


def stand_in(m: Measurement) -> bool:
    return bool(m.where.device.get("stand_in"))


def same_device(a: Measurement, b: Measurement) -> bool:
    return bool(a.where.device.get("id") == b.where.device.get("id"))


def device_of(m: Measurement) -> str:
    """Its id with the name a person knows it by."""
    facts = m.where.device
    return " ".join(str(facts[key]) for key in ("name", "id") if facts.get(key)) or "unnamed"


def _keys(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys([*a, *b]))


def dump(measurements: Iterable[Measurement], path: Path) -> None:
    """One JSON document: `{"schema": 1, "measurements": [...]}`."""
    text = json.dumps({"schema": 1, "measurements": [m.to_json() for m in measurements]}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def load(path: Path) -> list[Measurement]:
    data = json.loads(path.read_text(encoding="utf-8"))
    return [Measurement.from_json(m) for m in data["measurements"]]
