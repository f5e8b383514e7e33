"""What workers in Python need, fetched for a device and unpacked on this machine: nothing is compiled on a Pi.

pip unpacks wheels for another platform into `${XDG_CACHE_HOME:-~/.cache}/edgeslm/wheels-PLATFORM/KEY/site`, once; that
folder is then pushed like any other and named in the worker's PYTHONPATH.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgeslm.devices.probe import Interpreter
from edgeslm.errors import DeviceError

# onnxruntime's own dependencies, and the versions this machine has where it has them: the same runtime everywhere
PACKAGES = ("onnxruntime", "onnxruntime-genai", "numpy", "flatbuffers", "packaging", "protobuf")
PINNED = ("onnxruntime", "onnxruntime-genai", "numpy")
OLDEST_GLIBC = 17  # manylinux2014
TIMEOUT_S = 900


def cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeslm"


def site(python: Interpreter, device: str, cache: Path | None = None) -> Path:
    """The folder to push. Raises DeviceError when the wheels cannot be had."""
    tags = platform_tags(python)
    here = [f"{name}=={found}" if (found := installed(name)) else name for name in PACKAGES]
    wanted = [here, list(PACKAGES)]  # newest that fit its Python where this machine's versions do not
    said = ""
    for requirements in wanted if here != wanted[1] else wanted[1:]:
        parts = (python.version.split(".")[:2], tags, requirements)
        key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
        folder = (cache or cache_root()) / f"wheels-{python.platform}" / key
        if (folder / "site").is_dir():
            return folder / "site"
        said = fetch(command(python, tags, requirements), folder)
        if not said:
            return folder / "site"
    raise DeviceError(
        f"{', '.join(python.missing)} for {device} (Python {python.version}, {python.platform}) cannot be fetched "
        f"({said}); see to this machine's connection, or install them there"
    )


def installed(name: str) -> str:
    try:
        return version(name).partition("+")[0] if name in PINNED else ""
    except PackageNotFoundError:
        return ""


def platform_tags(python: Interpreter) -> list[str]:
    """What its C library runs, newest first: `manylinux_2_36_aarch64` ... `manylinux2014_aarch64`."""
    machine = python.platform.removeprefix("linux-")
    newest = python.glibc[1] if python.glibc[0] == 2 else OLDEST_GLIBC
    return [f"manylinux_2_{minor}_{machine}" for minor in range(newest, OLDEST_GLIBC - 1, -1)] + [
        f"manylinux2014_{machine}"
    ]


def command(python: Interpreter, tags: list[str], requirements: list[str]) -> list[str]:
    """All of pip but the place it installs to."""
    major, minor = python.version.split(".")[:2]
    return [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--only-binary=:all:"),
        *("--disable-pip-version-check", "--no-warn-conflicts", "--implementation", "cp"),
        *("--python-version", f"{major}.{minor}", "--abi", f"cp{major}{minor}", "--abi", "abi3", "--abi", "none"),
        *(word for tag in tags for word in ("--platform", tag)),
        *requirements,
    ]


def fetch(pip: list[str], folder: Path) -> str:
    """Fill `folder`/site, whole or not at all -> why not, in pip's words; empty when it is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="part-") as part:
        try:
            done = subprocess.run(
                [*pip, "--target", f"{part}/site"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
            return lines[-1].strip() if lines else f"pip ended with exit code {done.returncode}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        os.replace(f"{part}/site", folder / "site")
    return ""
