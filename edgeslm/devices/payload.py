"""What is sent to a device: one stream of bytes with a known size and hash, made anew from any place in it.

A file is its own bytes. A folder is a tar stream without times and owners, its names sorted, so that the same files are
the same stream everywhere and a broken sending goes on where it stopped. With it travels SUMS, the sha256 of each
file, by which the device tells later whether all is there undamaged.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from edgeslm.artifact import file_sha256
from edgeslm.errors import DeviceError

CHUNK = 1 << 18
SUMS = ".edgeslm-sums"
LEFT_OUT = frozenset({"__pycache__", ".git", ".DS_Store"})  # never part of what a job needs
END = bytes(2 * tarfile.BLOCKSIZE)

Part = tuple[int, Path | bytes]  # a stretch of the stream: its length and where its bytes are


@dataclass(frozen=True)
class Payload:
    """`path` is an existing file or folder."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def is_folder(self) -> bool:
        return self.path.is_dir()

    @property
    def mode(self) -> str:
        return "755" if os.access(self.path, os.X_OK) else "644"

    @cached_property
    def files(self) -> list[Path]:
        """Those of a folder, in the order of their names."""
        below = (path for path in self.path.rglob("*") if not LEFT_OUT.intersection(path.relative_to(self.path).parts))
        return sorted((path for path in below if path.is_file()), key=lambda path: path.as_posix())

    @cached_property
    def signature(self) -> tuple[tuple[str, int, int], ...]:
        """Changes when any of it changes; much quicker than a hash."""
        about = [(path, path.stat()) for path in (self.files if self.is_folder else [self.path])]
        return (str(self.path), 0, 0), *((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in about)

    @cached_property
    def size(self) -> int:
        return sum(length for length, _ in self._parts)

    @property
    def extra_bytes(self) -> int:
        """What the device needs beside the stream: a folder is unpacked before its stream goes."""
        return self.size if self.is_folder else 0

    @cached_property
    def sha256(self) -> str:
        return self.prefix_sha256(self.size)

    @property
    def key(self) -> str:
        """Names the content: equal files are stored once."""
        return self.sha256[:16]

    def prefix_sha256(self, length: int) -> str:
        """Of the first `length` bytes."""
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk[:length])
            length -= len(chunk)
            if length <= 0:
                break
        return digest.hexdigest()

    def chunks(self, start: int = 0) -> Iterator[bytes]:
        """The stream from byte `start` on. Raises DeviceError when a file has shrunk meanwhile."""
        for length, source in self._parts:
            if start < length:
                if isinstance(source, bytes):
                    yield source[start:]
                else:
                    yield from _read(source, start, length)
            start = max(0, start - length)

    @cached_property
    def _parts(self) -> list[Part]:
        if not self.is_folder:
            return [(self.path.stat().st_size, self.path)]
        parts: list[Part] = []
        sums = ""
        for path in self.files:
            inside = f"{self.name}/{path.relative_to(self.path).as_posix()}"
            parts += _member(inside, path.stat().st_size, path, os.access(path, os.X_OK))
            sums += f"{file_sha256(path)}  {inside}\n"
        listed = sums.encode()
        return [*parts, *_member(SUMS, len(listed), listed, False), (len(END), END)]


def _member(name: str, size: int, source: Path | bytes, executable: bool) -> list[Part]:
    """One file of a tar stream: header, content, zeros up to the next block."""
    about = tarfile.TarInfo(name)
    about.size, about.mode = size, 0o755 if executable else 0o644
    header = about.tobuf(tarfile.GNU_FORMAT)
    padding = bytes(-size % tarfile.BLOCKSIZE)
    return [(len(header), header), (size, source), (len(padding), padding)]


def _read(path: Path, start: int, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(start)
        left = size - start
        while left:
            chunk = file.read(min(CHUNK, left))
            if not chunk:
                raise DeviceError(f"{path} became shorter while it was sent; let whatever writes it finish first")
            left -= len(chunk)
            yield chunk
