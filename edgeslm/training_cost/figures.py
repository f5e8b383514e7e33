"""From what processes measured to figures of a point: pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from edgeslm.measurement import Measurement, Where
from edgeslm.training_cost.machine import Here

Result = Mapping[str, Any]


def step_s(result: Result) -> float:
    """Seconds of a step of one process: the median, or the mean where steps are of several kinds."""
    seconds = result["seconds"]
    return statistics.fmean(seconds) if result["mixed"] else statistics.median(seconds)


def tokens_per_s(result: Result) -> float:
    return float(result["tokens_per_step"]) / step_s(result)


def training_s(result: Result, steps: int) -> float:
    """An estimate for the whole training: its first steps as they were (compilation falls into them), the others at the
    pace of those that were timed."""
    first = result["warmup_seconds"][:steps]
    return float(sum(first) + (steps - len(first)) * step_s(result))


def speed(label: str, results: Sequence[Result], here: Here) -> Measurement:
    """Tokens/s, one value a process."""
    return _measurement("training", "tokens/s", "measured", "higher", label, results, here, map(tokens_per_s, results))


def duration(label: str, results: Sequence[Result], here: Here, steps: int) -> Measurement:
    """Seconds of the whole training, one value a process."""
    values = (training_s(result, steps) for result in results)
    return _measurement("training_time", "s", "estimated", "lower", label, results, here, values)


def _measurement(
    metric: str, unit: str, kind: Any, better: Any, label: str, results: Sequence[Result], here: Here, values: Any
) -> Measurement:
    where = Where(
        device={"id": here.id, "name": here.name},
        runtime="torch",
        runtime_version=here.versions["torch"],
        artifact=label,
        artifact_sha256="-",
        artifact_format="torch",
        job={"tokens_per_step": results[0]["tokens_per_step"]},
        threads=int(results[0]["threads"]),
    )
    extra = {"processes": len(results)}
    return Measurement(metric, unit, tuple(values), where, kind=kind, better=better, extra=extra)


def peaks(results: Sequence[Result]) -> list[int]:
    """Peak memory by rank, the largest over processes; [] where nobody tells."""
    found = [r["peak_memory_bytes"] for r in results if None not in r["peak_memory_bytes"]]
    return [max(ranks) for ranks in zip(*found, strict=True)]
