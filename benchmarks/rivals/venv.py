"""An environment of their own for rivals with packages of their own: versions pinned, made once, kept in the cache.

`${XDG_CACHE_HOME:-~/.cache}/edgeslm/rivals/<hash of the pins>`. torch is pinned to the CPU build where an index or a
folder offers one (`2.13.0+cpu`), to the plain release elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.rivals.base import RivalFailure
from edgeslm.runtimes.native import cache_root

TORCH = ("2.13.0+cpu", "2.13.0")  # the first that pip finds
PACKAGES: tuple[str, ...] = ("transformers", "auto-round", "GPTQModel", "torchao", "gguf", "sentencepiece")
PACKAGES += ("onnxruntime-genai", "onnxruntime", "onnx", "onnx-ir")
CONSTRAINTS = Path(__file__).with_name("constraints.txt")  # of everything that these bring along, torch aside
READY = "ready"


def pins() -> dict[str, str]:
    """{package: version} of the rivals themselves."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").split()
    found = {name.lower(): version for name, _, version in (line.partition("==") for line in lines)}
    return {name: found[name.lower()] for name in PACKAGES} | {"torch": TORCH[0]}


def folder() -> Path:
    text = f"{TORCH} {PACKAGES} {sys.version_info[:2]} {CONSTRAINTS.read_text(encoding='utf-8')}"
    return cache_root() / "rivals" / hashlib.sha256(text.encode()).hexdigest()[:12]


def installed() -> bool:
    return (folder() / READY).is_file()


def python() -> Path:
    """The environment's interpreter; made here when it is not there yet. Raises RivalFailure with pip's reason."""
    place = folder()
    interpreter = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    if installed():
        return interpreter
    shutil.rmtree(place, ignore_errors=True)  # a half-made one
    place.parent.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", str(place)])
    reasons = []
    for torch in TORCH:  # all in one resolution, so that nothing replaces the torch that was chosen
        wanted = [f"torch=={torch}", *PACKAGES]
        command = [str(interpreter), "-m", "pip", "install", "--quiet", "-c", str(CONSTRAINTS), *wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            (place / READY).write_text(torch, encoding="utf-8")
            return interpreter
        reasons.append((done.stderr.strip().splitlines() or ["no message"])[-1])
    raise RivalFailure(f"the rivals' environment could not be installed: {reasons[-1]}")


def work(worker: Path, job: dict[str, Any], scratch: Path, timeout_s: float) -> dict[str, Any]:
    """One worker in the environment -> the last line of its stdout. Raises RivalFailure with its last words."""
    path = scratch / f"{worker.stem}.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    threads = {key: str(job["threads"]) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    command = [str(python()), str(worker), str(path)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=environment | threads,
            cwd=scratch,
        )
    except subprocess.TimeoutExpired as error:
        raise RivalFailure(f"{worker.stem} took longer than {timeout_s:.0f} s; allow it more time") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        words = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RivalFailure(f"{worker.stem} ended with exit code {done.returncode}: {words[:300]}")
    said = json.loads(lines[-1])
    if not said["ok"]:
        raise RivalFailure(f"{worker.stem}: {said['error']}")
    return said


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RivalFailure(f"{command[0]} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
