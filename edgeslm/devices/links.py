"""A link: how a shell script reaches a device and its answer comes back. ssh.py and adb.py are links.

`ask` runs one script to its end with bytes in and bytes out; `Anchor` keeps one running beside everything else.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Protocol

from edgeslm.devices.scripts import unwrapped, wrapped
from edgeslm.errors import DeviceError

STALL_S = 60.0  # without a byte going out or an end
POLL_S = 0.05


class ConnectionLost(DeviceError):
    """The device was there and is gone, or never answered."""


class Link(Protocol):
    """`name` is the device's, as the user wrote it; `root` is sh text: the folder that is ours there. `also` is a file
    outside it that a program of the device's own may write for us, removed with the session; mostly empty."""

    @property
    def name(self) -> str: ...

    @property
    def root(self) -> str: ...

    @property
    def also(self) -> str: ...

    def argv(self, script: str, hold: bool = False) -> list[str]:
        """The program of this machine that runs `script` in the device's shell: stdin, stdout, stderr passed on as they
        are. `hold`: it lives as long as the session, later ones may go through it."""
        ...

    def why(self, returncode: int, stderr: str) -> str:
        """Why nothing was run, as a sentence with what to do; empty when its words say nothing known."""
        ...

    def close(self) -> None:
        """Whatever it keeps on this machine goes."""
        ...


@dataclass(frozen=True)
class Answer:
    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "replace")


def start(
    link: Link, script: str, stdout: int | IO[bytes], stderr: IO[bytes], hold: bool = False
) -> subprocess.Popen[bytes]:
    """The script on its way. Raises DeviceError when the program of this machine is not installed."""
    argv = link.argv(wrapped(script), hold)
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,  # a Ctrl-C is for us to handle, not for it to die of
            env=environment(),
        )
    except OSError as error:
        raise not_installed(argv[0], error) from error


def not_installed(program: str, error: OSError) -> DeviceError:
    return DeviceError(f"cannot start {os.path.basename(program)}: {error.strerror}; install it or correct the PATH")


def environment() -> dict[str, str]:
    """Messages are read by what they say, so they are asked for in English."""
    return {**os.environ, "LC_ALL": "C"}


def ask(
    link: Link,
    script: str,
    feed: Iterable[bytes] = (),
    out: IO[bytes] | None = None,
    stall_s: float = STALL_S,
) -> Answer:
    """Run a script to its end; what it says goes to `out` where one is given. Raises ConnectionLost."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as murmur:
        process = start(link, script, out or said, murmur)
        feeder = Feeder(process, feed)
        try:
            stalled = not _ended(process, feeder, stall_s)
        finally:
            end(process)
        feeder.thread.join(timeout=5.0)
        said.seek(0)
        murmur.seek(0)
        code, err = unwrapped(murmur.read().decode("utf-8", "replace"))
        if feeder.error is not None:
            raise feeder.error
        if code is None:
            raise ConnectionLost(lost(link, process.returncode, err, stalled))
        return Answer(code, said.read(), err)


def lost(link: Link, returncode: int, stderr: str, stalled: bool = False) -> str:
    if why := link.why(returncode, stderr):
        return why
    if stalled:
        return f"{link.name} stopped answering; see that it is on, awake and reachable, then run the same command again"
    words = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "nothing was said")
    return f"the connection to {link.name} was cut ({words}); connect it again and run the same command again"


class Feeder:
    """Writes the bytes from a thread, so that a device that stops reading is noticed."""

    def __init__(self, process: subprocess.Popen[bytes], feed: Iterable[bytes]):
        self.pipe, self.feed = process.stdin, feed
        self.moved_at, self.done = time.monotonic(), False
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._write, daemon=True)
        self.thread.start()

    def _write(self) -> None:
        assert self.pipe is not None
        try:
            for chunk in self.feed:
                self.pipe.write(chunk)
                self.pipe.flush()
                self.moved_at = time.monotonic()
        except (BrokenPipeError, ValueError):
            pass  # the other end is gone; its own words say why
        except (OSError, DeviceError) as error:  # what was to be sent cannot be read
            self.error = error
        with contextlib.suppress(OSError, ValueError):
            self.pipe.close()
        self.done, self.moved_at = True, time.monotonic()


def _ended(process: subprocess.Popen[bytes], feeder: Feeder, stall_s: float) -> bool:
    while True:
        try:
            process.wait(POLL_S)
            return True
        except subprocess.TimeoutExpired:
            if time.monotonic() - feeder.moved_at > stall_s:
                return False


def end(process: subprocess.Popen[bytes]) -> None:
    """Leave no process of this machine behind."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


class Anchor:
    """A script that keeps running. `line` waits for its next line; closing its stdin asks it to leave."""

    def __init__(self, link: Link, script: str):
        self.link = link
        self._murmur = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `leave`
        self.process = start(link, script, subprocess.PIPE, self._murmur, hold=True)
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(ValueError, OSError):
            for line in self.process.stdout or ():
                self._lines.put(line.decode("utf-8", "replace").rstrip("\r\n"))
        self._lines.put(None)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def line(self, timeout_s: float) -> str | None:
        """None when it has ended or says nothing in time."""
        try:
            return self._lines.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def leave(self, word: bytes, timeout_s: float) -> tuple[int | None, str]:
        """Say `word`, wait for its end -> (exit code if it told one, what it wrote to stderr)."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                self.process.stdin.write(word)
                self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout_s)
        end(self.process)
        if self._murmur.closed:
            return None, ""
        self._murmur.seek(0)
        code, err = unwrapped(self._murmur.read().decode("utf-8", "replace"))
        self._murmur.close()
        return code, err
