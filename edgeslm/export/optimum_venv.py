"""An environment of its own for optimum's exporter: its released version wants a transformers older than ours.

    ${XDG_CACHE_HOME:-~/.cache}/edgeslm/venvs/optimum-<key>/    a venv; made.json is written last

What goes into it is the extra `optimum` of this package, read from its own metadata; the key covers that list and the
Python. An environment that is not whole (killed while it was made, its Python gone, a package removed) is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from filelock import FileLock
from packaging.requirements import Requirement

from edgeslm.errors import ExportError
from edgeslm.models.pypi import cache_folder

EXTRA = "optimum"
NOTE = "made.json"
INSTALL_TIMEOUT_S = 1800
PYTHON = Path("Scripts/python.exe" if os.name == "nt" else "bin/python")


def pins() -> list[str]:
    """The extra's requirements, without its marker. Raises ExportError for an installation whose metadata lacks it."""
    try:
        every = [Requirement(line) for line in requires("edgeslm") or ()]
    except PackageNotFoundError:
        every = []
    own = [
        r for r in every if r.marker and r.marker.evaluate({"extra": EXTRA}) and not r.marker.evaluate({"extra": ""})
    ]
    for requirement in own:
        requirement.marker = None
    if not own:
        raise ExportError(f"the installed edgeslm knows no extra '{EXTRA}'; install it again from its sources")
    return sorted(map(str, own))


def python(say: Callable[[str], None] = lambda text: None) -> Path:
    """The environment's Python; made (a minute, and the package index) when it is not there. Raises ExportError."""
    wanted = pins()
    key = hashlib.sha256(repr((wanted, sys.version_info[:2])).encode()).hexdigest()[:16]
    folder = cache_folder().parent / "venvs" / f"{EXTRA}-{key}"
    program = folder / PYTHON
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            if not sound(folder, program):
                say("making an environment for optimum (once, about a minute)")
                _make(folder, program, wanted)
    except OSError as error:
        raise ExportError(f"{folder}: cannot be made ({error}); free space or set XDG_CACHE_HOME") from error
    return program


def sound(folder: Path, program: Path) -> bool:
    """Whether everything that was installed is still there, and its Python starts."""
    try:
        there = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        whole = all((folder / place).is_dir() for place in there)
        return whole and subprocess.run([program, "-c", ""], check=False, timeout=60).returncode == 0
    except (OSError, ValueError, TypeError, subprocess.TimeoutExpired):
        return False


def _make(folder: Path, program: Path, wanted: list[str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    # constraints of the environment this runs in are for our transformers, not for the older one
    environment = {k: v for k, v in os.environ.items() if k not in ("PIP_CONSTRAINT", "PYTHONPATH")}
    for command, missing in (
        ([sys.executable, "-m", "venv", str(folder)], "Python's venv module (on Debian: python3-venv)"),
        ([str(program), "-m", "pip", "install", "--quiet", *wanted], "the package index"),
    ):
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ExportError(f"{folder}: took over {INSTALL_TIMEOUT_S} s to make; try again") from error
        if done.returncode:
            said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            raise ExportError(
                f"the environment for optimum could not be made ({said[-1] if said else 'no message'}); "
                f"it needs {missing}"
            )
    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.dist-info"))
    (folder / NOTE).write_text(json.dumps(found), encoding="utf-8")
