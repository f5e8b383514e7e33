"""This machine. Pushing and pulling move nothing unless the paths differ."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from edgeslm.devices import facts as machine
from edgeslm.devices.base import TAIL_CHARS, Completed
from edgeslm.errors import DeviceError

POLL_S = 0.05


class LocalDevice:
    """The machine this program runs on. `root` stands in for `/` when facts are read (tests give a fixture tree)."""

    name = "local"
    hosts: tuple[str, ...] = ("python", "native")

    def __init__(self, root: Path = Path("/"), python: str = "", facts: dict[str, Any] | None = None):
        self.root = root
        self.python = python or sys.executable
        self._given_facts = facts

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Facts of the machine."""
        if self._given_facts is not None:
            return self._given_facts
        return machine.facts(self.root)

    def push(self, path: Path) -> str:
        path = Path(path)
        if not path.exists():
            raise DeviceError(f"{path} does not exist; export it again or correct the path")
        return str(path.resolve())

    def pull(self, remote: str, local: Path) -> None:
        source = Path(remote)
        if not source.is_file():
            raise DeviceError(f"{remote} is not on the device; the command that should have written it did not finish")
        if source.resolve() != Path(local).resolve():
            shutil.copyfile(source, local)

    def run(
        self,
        argv: list[str],
        timeout_s: float,
        on_line: Callable[[str], None] | None = None,
        stdin: Iterable[str] | None = None,
    ) -> Completed:
        start = time.monotonic()
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # its own group, so that a hung worker dies with its children
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise DeviceError(f"cannot start {argv[0]}: {error.strerror}; install it or correct the path") from error
        timed_out = False
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        stderr: list[str] = []
        assert process.stdin and process.stdout and process.stderr
        readers = [
            threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True),
            threading.Thread(target=_read_tail, args=(process.stderr, stderr), daemon=True),
        ]
        if stdin is not None:
            threading.Thread(target=_feed, args=(process.stdin, stdin), daemon=True).start()
        for reader in readers:
            reader.start()
        try:
            tail, timed_out = _consume(lines, on_line, start + timeout_s)
            if not timed_out:  # stdout is closed; the process should be leaving
                try:
                    process.wait(max(0.0, start + timeout_s - time.monotonic()))
                except subprocess.TimeoutExpired:
                    timed_out = True
        finally:
            _end(process)
        readers[1].join(timeout=5.0)
        killed_by = -process.returncode if process.returncode < 0 else None
        return Completed(
            returncode=process.returncode,
            stdout_tail=tail,
            stderr_tail="".join(stderr)[-TAIL_CHARS:],
            wall_s=time.monotonic() - start,
            signal=killed_by,
            timed_out=timed_out,
            oom=killed_by == signal.SIGKILL and not timed_out,
        )


def _consume(
    lines: queue.SimpleQueue[str | None], on_line: Callable[[str], None] | None, deadline: float
) -> tuple[str, bool]:
    """Hand each stdout line on until the pipe closes or the deadline passes -> (tail, timed out)."""
    tail = ""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return tail, True
        try:
            line = lines.get(timeout=left)
        except queue.Empty:
            return tail, True
        if line is None:
            return tail, False
        tail = (tail + line)[-TAIL_CHARS:]
        if on_line is not None:
            on_line(line.rstrip("\n"))


def _read_lines(pipe: IO[str], lines: queue.SimpleQueue[str | None]) -> None:
    for line in pipe:
        lines.put(line)
    lines.put(None)


def _read_tail(pipe: IO[str], kept: list[str]) -> None:
    """Drain the pipe so that the child never blocks on it; keep only the end."""
    for line in pipe:
        kept.append(line)
        if len(kept) > 2000:
            del kept[:1000]


def _feed(pipe: IO[str], lines: Iterable[str]) -> None:
    """Write each line as it comes, then close: the worker's sign to leave. A child that is gone ends the feeding."""
    with contextlib.suppress(BrokenPipeError, ValueError):
        for line in lines:
            pipe.write(line if line.endswith("\n") else line + "\n")
            pipe.flush()
        pipe.close()


def _end(process: subprocess.Popen[str]) -> None:
    """Whatever happened, leave no process behind: end its whole group, then close stdin and wait."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError, OSError):
            process.stdin.close()
