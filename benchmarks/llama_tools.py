"""llama.cpp's own tools, from the sources inside the llama-cpp-python package: `python -m benchmarks.llama_tools`.

Built once for this CPU (some minutes) and kept under `${XDG_CACHE_HOME:-~/.cache}/edgeslm/llama-tools/<key>/`; the key
covers version, flags and CPU. Same ggml sources and the same switch against AMX as the wheel that runtimes use.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from edgeslm.runtimes.native import VERSION, cache_root, cpu_key

TOOLS = ("llama-perplexity", "llama-bench")
WITHOUT_AMX = "-U__AMX_TILE__ -U__AMX_INT8__ -U__AMX_BF16__"
FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_UI=OFF",
)


def folder() -> Path:
    key = hashlib.sha256(repr((VERSION, FLAGS, WITHOUT_AMX, cpu_key())).encode()).hexdigest()[:16]
    return cache_root() / "llama-tools" / key


def tool(name: str) -> Path:
    """The path of a tool, built when it is missing. Raises SystemExit with one sentence."""
    path = folder() / name
    if not path.is_file():
        build()
    return path


def build() -> None:
    missing = [program for program in ("cmake", "c++") if shutil.which(program) is None]
    if missing:
        raise SystemExit(
            f"error: {missing[0]} is missing, and llama.cpp's tools are built with it; install {missing[0]}"
        )
    out = folder()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as work:
        place = Path(work)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "-d", work]
        _run([*command, f"llama-cpp-python=={VERSION}"], "the sources of llama-cpp-python could not be downloaded")
        with tarfile.open(next(place.glob("*.tar.gz"))) as archive:
            archive.extractall(place, filter="data")
        source = next(place.glob("llama_cpp_python-*")) / "vendor" / "llama.cpp"
        machine = [f"-DCMAKE_{language}_FLAGS={WITHOUT_AMX}" for language in ("C", "CXX")] if _x86() else []
        _run(
            ["cmake", "-S", str(source), "-B", f"{work}/build", *FLAGS, *machine], "cmake could not configure llama.cpp"
        )
        jobs = str(os.cpu_count() or 1)
        targets = [argument for name in TOOLS for argument in ("--target", name)]
        _run(["cmake", "--build", f"{work}/build", "--parallel", jobs, *targets], "llama.cpp's tools did not build")
        made = place / "made"
        made.mkdir()
        for name in TOOLS:
            shutil.copy2(place / "build" / "bin" / name, made / name)
        shutil.rmtree(out, ignore_errors=True)
        os.replace(made, out)


def _x86() -> bool:
    import platform

    return platform.machine() in ("x86_64", "AMD64")


def _run(command: list[str], sentence: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr.strip().splitlines() or done.stdout.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"error: {sentence} ({words})")


if __name__ == "__main__":
    for name in TOOLS:
        print(tool(name))
