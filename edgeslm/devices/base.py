"""What a device is: three verbs and the facts of the machine. Devices know nothing of runtimes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

TAIL_CHARS = 16_384  # of stdout and of stderr, kept for error sentences


@dataclass(frozen=True)
class Completed:
    """How a command ended. `signal` is the number of the signal that ended it, None after a normal exit."""

    returncode: int
    stdout_tail: str
    stderr_tail: str
    wall_s: float
    signal: int | None = None
    timed_out: bool = False
    oom: bool = False  # killed by SIGKILL that was not ours: on Linux nearly always the out-of-memory killer

    @property
    def ok(self) -> bool:
        return self.returncode == 0 and not self.timed_out

    @property
    def last_error_line(self) -> str:
        lines = [line.strip() for line in self.stderr_tail.splitlines() if line.strip()]
        return lines[-1] if lines else ""


class Device(Protocol):
    """Where workers run. `hosts` says what kinds it can start, best first: "python" (a script, by the interpreter
    `python`), "native" (a program), "page" (in a browser). `facts` says what the machine is."""

    @property
    def name(self) -> str: ...

    @property
    def python(self) -> str: ...

    @property
    def hosts(self) -> tuple[str, ...]: ...

    @property
    def root(self) -> Path | None:
        """Below it lie the device's small files, as they were when it was opened; None: nothing is known."""
        ...

    @property
    def facts(self) -> dict[str, Any]: ...

    def run(
        self,
        argv: list[str],
        timeout_s: float,
        on_line: Callable[[str], None] | None = None,
        stdin: Iterable[str] | None = None,
    ) -> Completed:
        """Run to the end. `on_line` gets each stdout line. `stdin` lines are written as the iterable yields them and
        the pipe closes when it ends; with None the pipe stays open, empty, until the command ends (a worker takes a
        closed stdin as the order to leave). Raises DeviceError when the command cannot be started."""
        ...

    def push(self, path: Path) -> str:
        """Make a local file or folder available; returns its path on the device. Raises DeviceError."""
        ...

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file of the device to `local`. Raises DeviceError when it is not there."""
        ...
