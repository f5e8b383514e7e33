"""Builds the llama-cpp-python wheel for this CPU, once, and installs it: `python -m edgeslm.runtimes.native`.

The wheel is kept under `${XDG_CACHE_HOME:-~/.cache}/edgeslm/wheels/<key>/`; the key covers version, flags, Python and
CPU, and a sha256 beside the wheel is checked before it is used again. Standard library only: it runs before anything
else is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "0.3.36"
HOOK = Path(__file__).with_name("native.cmake")
# no multimodal library, no TLS: nothing here calls them, and they are half of the build
FLAGS = ("-DLLAVA_BUILD=OFF", "-DLLAMA_OPENSSL=OFF", "-DCMAKE_BUILD_TYPE=Release")


def cpu_key(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Model and instruction sets: a wheel built with -march=native fits only this CPU."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.split("\t")[0].strip(": ") in wanted}))


def wheel_folder(cache: Path) -> Path:
    parts = (VERSION, *FLAGS, HOOK.read_text(encoding="utf-8"), platform.python_version_tuple()[:2], cpu_key())
    return cache / "wheels" / hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeslm"


def sound_wheel(folder: Path) -> Path | None:
    """The wheel of a finished build whose sha256 still holds."""
    for wheel in sorted(folder.glob("*.whl")):
        note = wheel.with_suffix(".whl.sha256")
        if note.exists() and note.read_text(encoding="ascii").strip() == _sha256(wheel):
            return wheel
    return None


def build(folder: Path) -> Path:
    """Compiles into a temporary folder and moves the wheel into place. Raises SystemExit with one sentence."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    cmake = " ".join((*FLAGS, f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={HOOK}"))
    environment = {**os.environ, "CMAKE_ARGS": cmake, "FORCE_CMAKE": "1"}
    environment.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    with tempfile.TemporaryDirectory(dir=folder.parent) as part:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-cache-dir", "-w", part]
        result = subprocess.run([*command, f"llama-cpp-python=={VERSION}"], env=environment, check=False)
        if result.returncode:
            raise SystemExit(
                f"error: llama-cpp-python {VERSION} did not build; it needs a C++ compiler and the package index"
            )
        wheel = next(Path(part).glob("*.whl"))
        wheel.with_suffix(".whl.sha256").write_text(_sha256(wheel), encoding="ascii")
        folder.mkdir(exist_ok=True)
        for file in sorted(Path(part).iterdir()):  # the wheel, then its hash: a wheel without one is built again
            os.replace(file, folder / file.name)
    return folder / wheel.name


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Build (or take from the cache) and install llama-cpp-python.")
    parser.add_argument("--build-only", action="store_true", help="fill the cache, install nothing")
    arguments = parser.parse_args()
    folder = wheel_folder(cache_root())
    wheel = sound_wheel(folder)
    sys.stderr.write(f"llama-cpp-python {VERSION}: {'from the cache' if wheel else 'building (2 to 8 minutes)'}\n")
    wheel = wheel or build(folder)
    if not arguments.build_only:
        install = [sys.executable, "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, str(wheel)], check=True)  # with what it needs
        subprocess.run([*install, "--force-reinstall", "--no-deps", str(wheel)], check=True)  # even over another build


if __name__ == "__main__":
    main()
