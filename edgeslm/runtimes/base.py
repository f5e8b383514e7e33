"""What a runtime is: it makes a job for a worker and parses what came back. It runs nothing itself.

A task is plain data, e.g. {"task": "bench", "prompt": [...], "new_tokens": 64, "warmups": 1, "repeats": 5,
"threads": 4, "context": 256}; the tasks are `score`, `likelihood`, `bench`, `generate` and
`serve`, see workers/tasks.py, and `encode` of onnxruntime, see workers/encoding.py.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgeslm.errors import RuntimeFailure

WORKERS = Path(__file__).parent / "workers"
SHARED = ("common.py", "encoding.py", "likelihood.py", "scoring.py", "tasks.py")  # pushed beside every worker
RUN_SECONDS = ("prefill_s", "time_to_first_token_s", "decode_s", "decode_cpu_s")
LONG_LIST = 16  # lists longer than this are named by length and hash in a measurement
PATHS = frozenset({"model", "name", "reference_in", "reference_out", "rails", "rows"})  # say where, not what


@dataclass(frozen=True)
class Job:
    """`worker` and `files` are to be put into one folder on the device; `spec` is the job file's content."""

    worker: Path
    files: tuple[Path, ...]
    spec: dict[str, Any]

    def described(self) -> dict[str, Any]:
        """For `Where.job`: the spec without paths, long lists of ids as length and hash."""
        return {key: _shorten(value) for key, value in self.spec.items() if key not in PATHS}


@dataclass(frozen=True)
class Runtime:
    """One way to run an artifact. `defaults` join every task; `fallback` replaces options after a given signal."""

    name: str
    title: str
    formats: tuple[str, ...]
    worker: str
    packages: tuple[str, ...]
    defaults: dict[str, Any] = field(default_factory=dict)
    fallback: dict[int, dict[str, Any]] = field(default_factory=dict)

    def job(self, artifact_name: str, model: str, task: dict[str, Any]) -> Job:
        """`model` is the artifact's path on the device. The task's own options win over the defaults."""
        spec = {**self.defaults, **task, "name": artifact_name, "model": model}
        return Job(WORKERS / self.worker, tuple(WORKERS / name for name in SHARED), spec)

    def parse(self, result: Any, task: str) -> dict[str, Any]:
        """Check a result document's shape. Raises RuntimeFailure when a worker wrote something else."""
        shapes: dict[str, dict[str, type]] = {
            "score": {"engine": dict, "tokens": int, "arrays": dict},
            "likelihood": {"engine": dict, "groups": int},
            "bench": {"engine": dict, "load_s": float, "runs": list, "warmups": list, "memory": dict},
            "generate": {"engine": dict, "answers": list},
            "serve": {"engine": dict, "turns": int},
            "encode": {"engine": dict, "load_s": float, "latency_s": list, "warmup_s": list, "arrays": dict},
        }
        wrong = [k for k, kind in shapes[task].items() if not _has(result, k, kind)]
        inner: dict[str, Any] = {
            "score": {"arrays": lambda: all(isinstance(name, str) for name in result["arrays"].values())},
            "bench": {key: lambda key=key: all(map(_is_run, result[key])) for key in ("runs", "warmups")},
            "generate": {"answers": lambda: all(_has(answer, "ids", list) for answer in result["answers"])},
        }
        wrong = wrong or [key for key, holds in inner.get(task, {}).items() if not holds()]
        if wrong:
            raise RuntimeFailure(
                f"{self.title}: the worker's result of '{task}' is malformed (no usable {', '.join(wrong)}); "
                "the worker on the device may be of another version, push it again"
            )
        return result

    def versions(self) -> dict[str, str]:
        """Installed packages and their versions, read from metadata; missing ones are left out."""
        found = {}
        for package in self.packages:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
        return found


def _has(document: Any, key: str, kind: type) -> bool:
    return isinstance(document, dict) and isinstance(document.get(key), kind)


def _is_run(run: Any) -> bool:
    """One timed run of a bench: positive seconds, a list of latencies, two readings of the rails."""
    return (
        all(_has(run, key, float) and run[key] >= 0 for key in RUN_SECONDS)
        and min(run["prefill_s"], run["decode_s"]) > 0
        and all(_has(run, key, list) for key in ("token_latency_s", "rails"))
        and len(run["rails"]) == 2
    )


def _shorten(value: Any) -> Any:
    if isinstance(value, list) and value and (len(value) > LONG_LIST or isinstance(value[0], list)):
        digest = hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]
        return {"items": len(value), "sha256": digest}
    return value
