"""Files that are either whole or not there: written beside their place, synced, then moved into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgeslm import units
from edgeslm.errors import ExportError

MARGIN_BYTES = 1 << 20  # metadata and file-system overhead not counted by the caller


@contextmanager
def put_in_place(out: Path, needs_bytes: int) -> Iterator[Path]:
    """Yields a path beside `out` for a file or folder; moves it to `out` when the block ends well.

    When it does not, whatever was written is removed and an older `out` stays as it was. Raises ExportError when the
    disk has less than `needs_bytes` free or a write fails.
    """
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _require_space(out, needs_bytes)
        yield part
        _sync(part)
        _move(part, out)
    except OSError as error:
        # numpy's tofile raises a bare OSError on a short write, so a missing errno is most likely a full disk
        reason = error.strerror or "the disk took only a part of it"
        room = units.byte_count(needs_bytes)
        raise ExportError(
            f"{out} could not be written ({reason}); make {room} of room there or choose another folder"
        ) from error
    finally:
        _remove(part)


def _require_space(out: Path, needs_bytes: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < needs_bytes + MARGIN_BYTES:
        raise ExportError(
            f"{out} needs {units.byte_count(needs_bytes)} and its disk has {units.byte_count(free)} free; "
            "make room or choose another folder"
        )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """fsync of a file, or of every file of a folder and the folders themselves."""
    for entry in [*(path.rglob("*") if path.is_dir() else ()), path]:
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _move(part: Path, out: Path) -> None:
    """A file replaces its older self atomically; a folder's older self is moved away first, since it cannot be."""
    if part.is_dir() and out.exists():
        old = out.with_name(f".{out.name}.{os.getpid()}.old")
        os.replace(out, old)
        os.replace(part, out)
        _remove(old)
    else:
        os.replace(part, out)
