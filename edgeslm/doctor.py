"""What works on this machine. Each finding says how to get what does not."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    ("torch", "training", "pip install torch", False),
    ("transformers", "training", "pip install 'transformers>=5'", False),
    ("gguf", "writing GGUF files", "pip install gguf", False),
    ("llama-cpp-python", "running GGUF files", "python -m edgeslm.runtimes.native", True),
    ("onnxruntime", "running ONNX files", "pip install 'edgeslm[onnx]'", True),
    ("onnxruntime-genai", "building and running ONNX files", "pip install 'edgeslm[onnx]'", True),
    ("optimum", "exporting in optimum's layout", "pip install 'edgeslm[optimum]' in an environment of its own", True),
)


@dataclass(frozen=True)
class Finding:
    name: str
    ok: bool
    detail: str
    remedy: str
    optional: bool


def examine() -> list[Finding]:
    """Packages, compiler, CPU, memory, energy sensors, disk. Loads nothing heavy."""
    found = [
        Finding("python", sys.version_info >= (3, 10), sys.version.split()[0], "install Python 3.10 or later", False)
    ]
    for package, use, remedy, optional in PACKAGES:
        try:
            found.append(Finding(package, True, f"{version(package)}, for {use}", remedy, optional))
        except PackageNotFoundError:
            found.append(Finding(package, False, f"not installed, needed for {use}", remedy, optional))
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    found.append(
        Finding(
            "C++ compiler",
            compiler is not None,
            Path(compiler).name if compiler else "none, needed to build llama-cpp-python",
            "apt-get install g++ (Debian), xcode-select --install (macOS)",
            True,
        )
    )
    return [*found, *_machine()]


def _machine() -> list[Finding]:
    from edgeslm.devices.facts import facts
    from edgeslm.meters.energy import rails as readable_rails

    known = facts(measure=False)
    memory = known.get("memory_bytes") or 0
    free = shutil.disk_usage(Path.cwd()).free
    rails = [rail.name for rail in readable_rails()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        Finding(
            "CPU", True, f"{known.get('cpu', 'unknown')}, {cores} cores, {' '.join(known.get('simd', []))}", "", True
        ),
        Finding(
            "memory", memory >= 6e9, f"{memory / 1e9:.1f} GB (the quickstart needs 6)", "use a larger machine", True
        ),
        Finding(
            "disk", free >= 6e9, f"{free / 1e9:.1f} GB free here (the quickstart needs 6)", "free some space", True
        ),
        Finding(
            "energy counters",
            bool(rails),
            ", ".join(rails)
            or "none readable: energy is estimated when benchmark.watts_per_core is given, else left out",
            "RAPL needs a physical Intel or AMD machine and read permission on /sys/class/powercap",
            True,
        ),
    ]
