"""Where the groups of a codistillation meet: a folder, or a bucket of an object store that fsspec has a filesystem for
(s3://, gs://, abfs://). Either way

    PLACE/group-1/step-00000200.safetensors    of group 1 after 200 updates

is there whole or not at all, and a group alone writes its own. A folder is moved into; an object appears when its last
byte has come. Credentials, end points and timeouts of a bucket are what its filesystem's package finds in the
environment and in fsspec's own configuration.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fsspec.core import url_to_fs

from edgeslm.errors import DataError

NAME = re.compile(r"step-(\d+)\.safetensors")
Result = TypeVar("Result")


class Place(Protocol):
    """All of it raises OSError where the place is out of reach or says no."""

    @property
    def rest_s(self) -> float:
        """For how long a reader that waits leaves it alone between two looks, at the least."""

    def steps(self, group: int) -> list[int]:
        """Steps of which there are files, newest first; none where nobody has written yet."""

    def put(self, group: int, step: int, write: Callable[[Path], object]) -> None:
        """Puts the file that `write(path)` makes in its place. Raises OSError, and then it is as it was."""

    def copy(self, group: int, step: int, into: Path) -> None:
        """Raises FileNotFoundError where it is gone."""

    def remove(self, group: int, steps: Iterable[int]) -> None:
        """Removes a group's own files, as far as they are there."""


def name_of(step: int) -> str:
    return f"step-{step:08}.safetensors"


def _numbers(names: Iterable[str]) -> list[int]:
    return sorted((int(found[1]) for name in names if (found := NAME.fullmatch(name))), reverse=True)


class Folder:
    """A file is written beside its place and moved there. Where moving is not atomic (a bucket that is mounted), the
    file's digest shows it."""

    rest_s = 0.0

    def __init__(self, root: Path):
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def path(self, group: int, step: int) -> Path:
        return self._of(group) / name_of(step)

    def _of(self, group: int) -> Path:
        return self.root / f"group-{group}"

    def steps(self, group: int) -> list[int]:
        place = self._of(group)
        return _numbers(path.name for path in place.iterdir()) if place.is_dir() else []

    def put(self, group: int, step: int, write: Callable[[Path], object]) -> None:
        path = self.path(group, step)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._sweep(group)
        part = path.with_name(f"{path.name}.part-{os.getpid()}")
        try:
            part.touch()
            mode = part.stat().st_mode
            write(part)
            part.chmod(mode)  # a library may let nobody else read it, and peers may be other users
            with part.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def copy(self, group: int, step: int, into: Path) -> None:
        shutil.copyfile(self.path(group, step), into)

    def remove(self, group: int, steps: Iterable[int]) -> None:
        self._sweep(group)
        for step in steps:
            self.path(group, step).unlink(missing_ok=True)

    def _sweep(self, group: int) -> None:
        """Removes what a writer that was killed had begun: a group is the only writer of its folder."""
        for left in self._of(group).glob("*.part-*"):
            left.unlink(missing_ok=True)

    def try_out(self, group: int | None) -> None:
        """Raises OSError where that group, or none that only reads, could not do its part. Makes nothing."""
        if group is None:
            return
        place = next(p for p in (self._of(group), *self._of(group).parents) if p.exists())
        wrong = 0 if os.access(place, os.W_OK | os.X_OK) else errno.EACCES
        if wrong := wrong if place.is_dir() else errno.ENOTDIR:
            raise OSError(wrong, os.strerror(wrong), str(place))


class Bucket:
    """Objects below a URL. A writer that is killed leaves no object; what it had sent of a large one is the store's to
    clear away (a lifecycle rule). Raises DataError where nothing here can speak to such a store."""

    rest_s = 2.0  # a look is a request, and requests are paid for

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        try:
            self.fs, root = url_to_fs(self.url)
        except ImportError as error:
            raise DataError(
                f"{url}: its filesystem is no part of this Python ({error}); install that package, or name a folder"
            ) from error
        except Exception as error:  # an unknown kind of address, credentials that are not to be found: each its own
            raise DataError(f"{url}: cannot be used ({_said(error)}); mend this, or name a folder") from error
        self.root = root.rstrip("/")

    def __str__(self) -> str:
        return self.url

    def _of(self, group: int) -> str:
        return f"{self.root}/group-{group}"

    def _key(self, group: int, step: int) -> str:
        return f"{self._of(group)}/{name_of(step)}"

    def steps(self, group: int) -> list[int]:
        with _reached():
            self.fs.invalidate_cache()  # what fsspec remembers of a listing is old
            try:
                found = self.fs.ls(self._of(group), detail=False)
            except FileNotFoundError:  # a prefix is there when an object is
                return []
        return _numbers(key.rpartition("/")[2] for key in found)

    def put(self, group: int, step: int, write: Callable[[Path], object]) -> None:
        with tempfile.TemporaryDirectory(prefix="edgeslm-exchange-") as scratch:
            path = Path(scratch) / name_of(step)
            write(path)
            with _reached():
                self.fs.put_file(str(path), self._key(group, step))

    def copy(self, group: int, step: int, into: Path) -> None:
        with _reached():
            self.fs.get_file(self._key(group, step), str(into))

    def remove(self, group: int, steps: Iterable[int]) -> None:
        for step in steps:
            self._remove(self._key(group, step))

    def _remove(self, key: str) -> None:
        with _reached(), suppress(FileNotFoundError):
            self.fs.rm_file(key)

    def try_out(self, group: int | None) -> None:
        """Raises OSError where that group, or none that only reads, could not do its part. What it writes to find out
        is no file of a group, and it removes it."""
        self.steps(group or 0)
        if group is None:
            return
        key = f"{self._of(group)}/try-{uuid.uuid4().hex}"
        with _reached():
            self.fs.pipe_file(key, b"edgeslm check")
        self._remove(key)


@contextmanager
def _reached() -> Iterator[None]:
    """What goes wrong on the way to a bucket is an OSError, as it would be with a folder: the filesystems' packages and
    the clients below them have errors of their own, which have no parent in common."""
    try:
        yield
    except OSError as error:
        if str(error):
            raise
        raise OSError(_said(error)) from error
    except Exception as error:
        raise OSError(_said(error)) from error


def _said(error: Exception) -> str:
    """A timeout, for one, says nothing but its name."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class Patient:
    """A bucket for groups that cannot go on without it: what fails is tried again until `patience_s` have passed.
    Raises DataError then, and FileNotFoundError at once where what is to be copied is gone."""

    def __init__(self, place: Place, patience_s: float, say: Callable[[str], None] = lambda what: None):
        self.place, self.patience_s, self.say = place, patience_s, say

    def __str__(self) -> str:
        return str(self.place)

    @property
    def rest_s(self) -> float:
        return self.place.rest_s

    def steps(self, group: int) -> list[int]:
        return self._again(lambda: self.place.steps(group))

    def put(self, group: int, step: int, write: Callable[[Path], object]) -> None:
        self._again(lambda: self.place.put(group, step, write))

    def copy(self, group: int, step: int, into: Path) -> None:
        self._again(lambda: self.place.copy(group, step, into), FileNotFoundError)

    def remove(self, group: int, steps: Iterable[int]) -> None:
        listed = list(steps)
        self._again(lambda: self.place.remove(group, listed))

    def _again(self, do: Callable[[], Result], at_once: tuple[Any, ...] | type[OSError] = ()) -> Result:
        end, told = time.monotonic() + self.patience_s, False
        while True:
            try:
                return do()
            except at_once:
                raise
            except OSError as error:
                if time.monotonic() > end:
                    raise DataError(
                        f"{self}: could not be used for {self.patience_s:g} s ({error}); start this group again when "
                        "it can be, it goes on from its checkpoint, or use exchange: newest"
                    ) from error
                if not told:
                    self.say(f"{self}: waits for it ({error})")
                told = True
            time.sleep(self.rest_s)
