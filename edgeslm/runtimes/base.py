"""What a runtime is: it makes a job for a worker and parses what came back. It runs nothing itself.

A task is plain data, e.g. {"task": "bench", "prompt": [...], "new_tokens": 64, "warmups": 1, "repeats": 5,
"threads": 4, "context": 256}; the tasks are `score`, `likelihood`, `bench`, `generate` and
`serve`, see workers/tasks.py, and `encode` of onnxruntime, see workers/encoding.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from edgeslm.errors import RuntimeFailure

WORKERS = Path(__file__).parent / "workers"
SHARED = tuple(  # what lies beside every worker and is pushed with it
    sorted(p.name for p in WORKERS.glob("*.py") if not p.name.endswith("_worker.py") and p.name != "__init__.py")
)
LONG_LIST = 16  # lists longer than this are named by length and hash in a measurement
PHASES: dict[str, dict[str, type]] = {"prefill": {"first_s": float}, "decode": {"token_latency_s": list}}
PATHS = frozenset(
    {"model", "name", "reference_in", "reference_out", "rails", "rows", "sample", "watch"}
)  # say where, not what


@dataclass(frozen=True)
class Job:
    """`worker` lies in a `folder` that goes to the device as a whole (None: it goes alone), and is started there with
    the job file, whose content is `spec`, as its only argument."""

    worker: Path
    folder: Path | None
    spec: dict[str, Any]

    def described(self) -> dict[str, Any]:
        """For `Where.job`: the spec without paths, long lists of ids as length and hash."""
        return {key: _shorten(value) for key, value in self.spec.items() if key not in PATHS}


@dataclass(frozen=True)
class Runtime:
    """One way to run an artifact. `host` is what a device must offer for it: an interpreter for a `worker` of ours, the
    shell for a `program` built for that device, or a browser for a page (then `program` gives the page). `defaults`
    join every task; `fallback` replaces options after a given signal."""

    name: str
    title: str
    formats: tuple[str, ...]
    worker: str = ""
    packages: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    fallback: dict[int, dict[str, Any]] = field(default_factory=dict)
    host: Literal["python", "native", "page"] = "python"
    program: Callable[[dict[str, Any]], Path] | None = None  # the device's facts -> a local path. Raises RuntimeFailure

    def job(self, artifact_name: str, model: str, task: dict[str, Any], facts: dict[str, Any] | None = None) -> Job:
        """`model` is the artifact's path on the device, whose `facts` choose the program. The task's own options win
        over the defaults. Raises RuntimeFailure when there is no program for such a device."""
        spec = {**self.defaults, **task, "name": artifact_name, "model": model}
        if self.program is None:
            worker = WORKERS / self.worker
            return Job(worker, worker.parent, spec)
        program = self.program(facts or {})
        return Job(program, program.parent if self.host == "page" else None, spec)

    def parse(self, result: Any, task: str) -> dict[str, Any]:
        """Check a result document's shape. Raises RuntimeFailure when a worker wrote something else."""
        shapes: dict[str, dict[str, type]] = {
            "score": {"engine": dict, "tokens": int, "arrays": dict},
            "likelihood": {"engine": dict, "groups": int},
            "bench": {"engine": dict, "load_s": float, "phases": list, "memory": dict, "stable": bool},
            "energy": {"engine": dict, "windows": list, "samples": list},
            "ceilings": {"threads": int, "read_bytes_per_s": list, "copy_bytes_per_s": list},
            "generate": {"engine": dict, "answers": list},
            "serve": {"engine": dict, "turns": int},
            "encode": {"engine": dict, "load_s": float, "latency_s": list, "warmup_s": list, "arrays": dict},
        }
        wrong = [k for k, kind in shapes[task].items() if not _has(result, k, kind)]
        inner: dict[str, Any] = {
            "score": {"arrays": lambda: all(isinstance(name, str) for name in result["arrays"].values())},
            "bench": {"phases": lambda: bool(result["phases"]) and all(map(_is_phase, result["phases"]))},
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


def _is_phase(phase: Any) -> bool:
    """One kind of work at one length: its runs, warm-ups apart."""
    if not (_has(phase, "kind", str) and _has(phase, "tokens", int) and _has(phase, "depth", int)):
        return False
    needs = PHASES.get(phase["kind"])
    return (
        needs is not None
        and phase["tokens"] > 0
        and all(
            _has(phase, key, list) and all(_is_run(run, needs) for run in phase[key]) for key in ("runs", "warmups")
        )
        and bool(phase["runs"])
    )


def _is_run(run: Any, needs: dict[str, type]) -> bool:
    """Positive seconds, CPU seconds, two readings of the rails, and what this kind of phase tells besides."""
    return (
        all(_has(run, key, float) and run[key] >= 0 for key in ("seconds", "cpu_s"))
        and run["seconds"] > 0
        and all(_has(run, key, kind) for key, kind in needs.items())
        and _has(run, "rails", list)
        and len(run["rails"]) == 2
    )


def _shorten(value: Any) -> Any:
    if isinstance(value, list) and value and (len(value) > LONG_LIST or isinstance(value[0], list)):
        digest = hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]
        return {"items": len(value), "sha256": digest}
    return value
