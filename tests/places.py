"""Places where groups of a codistillation meet in tests: folders, and buckets in this process's memory."""

from __future__ import annotations

import random
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem
from torch import Tensor

from edgeslm.schemes import exchange
from edgeslm.schemes.exchange import Mark
from edgeslm.schemes.exchange_places import Bucket, Folder, Place


class Whole(MemoryFileSystem):
    """Objects appear whole, as a store's do, and are read as they were when reading began: fsspec's own shows an object
    while it is written, and shares one position in it between threads."""

    protocol = "whole"
    store: dict[str, Any] = {}  # noqa: RUF012 (as in the class above)
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.removeprefix(f"{cls.protocol}://"))

    def put_file(self, lpath, rpath, **more):
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def get_file(self, rpath, lpath, **more):
        path = self._strip_protocol(rpath)
        if path not in self.store:
            raise FileNotFoundError(path)
        Path(lpath).write_bytes(self.store[path].getvalue())


class Lost(Exception):
    """As clients have errors: no OSError."""


class Flaky(Whole):
    """Of its calls so many fail, by chance: before they do anything, or half way, or when all is done."""

    protocol = "flaky"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    share, dice, lock, failed = 0.0, random.Random(0), threading.Lock(), 0

    def _perhaps(self, what: str) -> str:
        with self.lock:
            if self.dice.random() >= self.share:
                return ""
            type(self).failed += 1
            how = self.dice.choice(["before", "half", "after"])
        if how == "before":
            self._fail(what)
        return how

    def _fail(self, what: str) -> None:
        raise self.dice.choice([Lost, TimeoutError, ConnectionResetError, PermissionError])(*([what] * 1))

    def ls(self, path, detail=True, **more):
        if self._perhaps("list"):
            self._fail("list")
        return super().ls(path, detail, **more)

    def put_file(self, lpath, rpath, **more):
        how = self._perhaps("put")
        if how != "half":  # half an upload is no object
            super().put_file(lpath, rpath)
        if how:
            self._fail("put")

    def get_file(self, rpath, lpath, **more):
        how = self._perhaps("get")
        super().get_file(rpath, lpath)
        if how == "half":
            Path(lpath).write_bytes(Path(lpath).read_bytes()[:-999])
        if how:
            self._fail("get")

    def rm_file(self, path):
        how = self._perhaps("remove")
        super().rm_file(path)
        if how:
            self._fail("remove")


for filesystem in (Whole, Flaky):
    fsspec.register_implementation(filesystem.protocol, filesystem, clobber=True)


def place(where: Path | Place) -> Place:
    return Folder(where) if isinstance(where, Path) else where


def bucket(kind: str, at: Path) -> Bucket:
    """One of its own for each test, `at` its temporary folder."""
    return Bucket(f"{kind}:/{at}")


@dataclass(frozen=True)
class File:
    """What a group put there."""

    place: Place
    group: int
    step: int

    def read_bytes(self) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            self.place.copy(self.group, self.step, Path(folder) / "copy")
            return (Path(folder) / "copy").read_bytes()

    def write_bytes(self, data: bytes) -> None:
        self.place.put(self.group, self.step, lambda path: path.write_bytes(data))

    def read(self) -> tuple[Mark, dict[str, Tensor]]:
        with tempfile.TemporaryDirectory() as folder:
            self.place.copy(self.group, self.step, Path(folder) / "copy")
            return exchange.read(Path(folder) / "copy")
