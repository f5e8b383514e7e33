"""One point in fresh processes: make the command, run it, say what came of it. Only `run` touches the world."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeslm.training_cost.store import FAILED, NO_MEMORY

WORKER = "edgeslm.training_cost.worker"
TIMEOUT_S = 3600.0
LEAVING_S = 40.0  # torchrun waits 30 s for ranks that it has told to end
FRESH = {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}  # code that an earlier process compiled would not count
KILLED = re.compile(r"Signal 9|SIGKILL|exitcode: -9")  # as torchrun tells of a process that the system killed
SAID = re.compile(r"^(?:\[rank\d+\]: )?(\w[\w.]*(?:Error|Exception|Failure|Diverged)\b.*)")


def command(job: Path, result: Path, ranks: int) -> list[str]:
    """torchrun where several processes train together."""
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    return [sys.executable, *many, "-m", WORKER, str(job), str(result)]


def outcome(written: str | None, code: int, stderr: str) -> dict[str, Any]:
    """The document that the worker wrote, or why there is none."""
    if written is not None:
        return json.loads(written)
    if code in (-9, 137) or KILLED.search(stderr):
        return {"state": NO_MEMORY, "why": "the system killed a process, as it does when memory runs out"}
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    # torchrun's own lines come last; the worker's error is the last line that names one
    named = [found[1] for line in lines if (found := SAID.match(line)) and "ChildFailedError" not in line]
    return {"state": FAILED, "why": (named or lines or ["no message"])[-1][:300]}


def run(job: Mapping[str, Any], ranks: int, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """`job` with a folder of its own as `scratch`, which is removed afterwards. No process outlives this call."""
    with tempfile.TemporaryDirectory(prefix="edgeslm-cost-") as work:
        asked, answer = Path(work) / "job.json", Path(work) / "result.json"
        asked.write_text(json.dumps({**job, "scratch": work}), encoding="utf-8")
        process = subprocess.Popen(
            command(asked, answer, ranks),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **FRESH},
            start_new_session=True,
        )
        try:
            _, stderr = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return {"state": FAILED, "why": f"took longer than {timeout_s:g} s"}
        finally:
            end(process)
        written = answer.read_text(encoding="utf-8") if answer.exists() else None
        return outcome(written, process.returncode, stderr)


def end(process: subprocess.Popen[str]) -> None:
    """Ends what is left of it, after a stop by Ctrl-C too. torchrun gives each rank a session of its own, which no
    signal to its group reaches: it is asked to end them itself first."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LEAVING_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
