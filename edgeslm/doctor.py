"""What works on this machine. Each finding says how to get what does not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    ("torch", "training", "pip install torch", False),
    ("transformers", "training", "pip install 'transformers>=5'", False),
    ("gguf", "writing GGUF files", "pip install gguf", False),
    ("llama-cpp-python", "running GGUF files", "python -m edgeslm.runtimes.native", True),
    ("onnx", "writing ONNX files", "pip install onnx onnxruntime onnxruntime-genai onnx-ir", True),
    ("onnx-ir", "writing ONNX files", "pip install onnx onnxruntime onnxruntime-genai onnx-ir", True),
    ("onnxruntime", "running ONNX files", "pip install onnx onnxruntime onnxruntime-genai onnx-ir", True),
    (
        "onnxruntime-genai",
        "building and running ONNX files",
        "pip install onnx onnxruntime onnxruntime-genai onnx-ir",
        True,
    ),
    ("peft", "training adapters (sft.lora)", "pip install peft", True),
)

RUNS = {
    "llama-cpp-python": "import llama_cpp; llama_cpp.llama_backend_init(); llama_cpp.llama_print_system_info()",
    "onnxruntime": "import onnxruntime; assert onnxruntime.get_available_providers()",
    "onnxruntime-genai": "import onnxruntime_genai",
}


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
        Finding("python", sys.version_info >= (3, 11), sys.version.split()[0], "install Python 3.11 or later", False)
    ]
    for package, use, remedy, optional in PACKAGES:
        try:
            detail = f"{version(package)}, for {use}"
            ok, why = _runs(package) if package in RUNS else (True, "")
            found.append(Finding(package, ok, f"{detail}{'; ' * bool(why)}{why}", remedy, optional))
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

    known = facts()
    memory = known.get("memory_bytes")
    free = shutil.disk_usage(Path.cwd()).free
    rails = [rail.name for rail in readable_rails()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        Finding(
            "CPU", True, f"{known.get('cpu', 'unknown')}, {cores} cores, {' '.join(known.get('simd', []))}", "", True
        ),
        Finding("memory", bool(memory and memory >= 6e9), _gigabytes(memory), "use a larger machine", True),
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


def _gigabytes(memory: float | None) -> str:
    return "unknown" if memory is None else f"{memory / 1e9:.1f} GB (the quickstart needs 6)"


def _runs(package: str) -> tuple[bool, str]:
    """Whether a native runtime loads, in a process of its own: one built for another CPU would crash this one."""
    code = RUNS[package]
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return False, "does not answer"
    return done.returncode == 0, "" if done.returncode == 0 else f"does not load (exit {done.returncode})"


def lines(findings: list[Finding]) -> list[str]:
    """As the terminal prints them, each missing thing with its remedy."""
    told = []
    for found in findings:
        told.append(f"{'ok     ' if found.ok else 'missing'} {found.name:22} {found.detail}")
        if not found.ok:
            told.append(f"        {'':22} {found.remedy}")
    return told
