"""The records benchmarks leave: one JSON object a line in `results/<name>.jsonl`, raw values, never rewritten."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def append(name: str, record: dict[str, Any]) -> Path:
    """Add one record; date and machine are put in where the benchmark did not."""
    path = RESULTS / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    line = json.dumps({"date": now, "machine": machine(), **record}, ensure_ascii=False)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    return path


def read(name: str) -> list[dict[str, Any]]:
    """All records, oldest first; none when the benchmark has never run."""
    path = RESULTS / f"{name}.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def machine() -> dict[str, Any]:
    """What a figure depends on, and nothing that names the machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "cpu": model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": pages * os.sysconf("SC_PAGE_SIZE") if pages else None,
        "os": f"{platform.system()} {platform.machine()}",
        **({"gpu": gpu()} if gpu() else {}),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


@cache
def gpu() -> str:
    """The first NVIDIA GPU's name as its driver tells it; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    return said.stdout.strip().split("\n")[0] if said.returncode == 0 else ""


def versions(*packages: str) -> dict[str, str]:
    """{package: version}; one that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def main(
    name: str,
    run: Callable[[argparse.Namespace], dict[str, Any]],
    show: Callable[[list[dict[str, Any]]], dict[str, Any]],
    options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> None:
    """`python -m benchmarks.NAME` runs and records; `--show` prints a table of the records instead.

    `run(arguments)` gives the record, `show(records)` prints a table and gives the figures of the last record, which
    are printed as one JSON object on the last line either way.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--show", action="store_true", help="print what was recorded, run nothing")
    if options is not None:
        options(parser)
    arguments = parser.parse_args()
    if not arguments.show:
        append(name, run(arguments))
    records = read(name)
    if not records:
        raise SystemExit(f"nothing recorded yet: run python -m benchmarks.{name} first")
    print(json.dumps(show(records)))
