"""A device that plays a recorded transcript: tests and dry runs need no machine and no model.

A transcript is a list of `Turn`s, one for each command in order. A turn may check the command it is played for, emits
its stdout lines and puts its files into the job's folder, as the worker would have done.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeslm.devices.base import Completed
from edgeslm.errors import DeviceError

FACTS: dict[str, Any] = {"id": "fake", "name": "a device that plays a transcript", "cpu": "none", "cores": 1}


@dataclass(frozen=True)
class Turn:
    """One command's recorded behaviour. `files` are written beside the job file: name -> JSON data or bytes."""

    lines: tuple[str, ...] = ()
    stderr: str = ""
    returncode: int = 0
    signal: int | None = None
    timed_out: bool = False
    oom: bool = False
    files: dict[str, Any] = field(default_factory=dict)
    expect: str = ""  # a piece of text the command must hold


class FakeDevice:
    """Plays `turns`; `ran` keeps the commands and `heard` the stdin lines it was given."""

    name = "fake"
    python = "python3"
    hosts: tuple[str, ...] = ("python",)
    root: Path | None = None

    def __init__(self, turns: Iterable[Turn] = (), facts: dict[str, Any] | None = None):
        self.turns = list(turns)
        self.ran: list[list[str]] = []
        self.heard: list[str] = []
        self.facts = dict(FACTS if facts is None else facts)

    def push(self, path: Path) -> str:
        if not Path(path).exists():
            raise DeviceError(f"{path} does not exist; export it again or correct the path")
        return str(path)

    def pull(self, remote: str, local: Path) -> None:
        if not Path(remote).is_file():
            raise DeviceError(f"{remote} is not on the device; the command that should have written it did not finish")
        if Path(remote) != Path(local):
            shutil.copyfile(remote, local)

    def run(
        self,
        argv: list[str],
        timeout_s: float,
        on_line: Callable[[str], None] | None = None,
        stdin: Iterable[str] | None = None,
    ) -> Completed:
        self.ran.append(list(argv))
        if not self.turns:
            raise DeviceError(f"the transcript has no turn left for the command '{' '.join(argv)}'; add one")
        turn = self.turns.pop(0)
        if turn.expect and turn.expect not in " ".join(argv):
            raise DeviceError(f"the transcript expected a command with '{turn.expect}', got '{' '.join(argv)}'")
        self.heard.extend(stdin or ())
        for name, data in turn.files.items():
            target = Path(argv[-1]).parent / name
            if isinstance(data, bytes):
                target.write_bytes(data)
            else:
                target.write_text(json.dumps(data), encoding="utf-8")
        for line in turn.lines:
            if on_line is not None:
                on_line(line)
        return Completed(
            returncode=turn.returncode,
            stdout_tail="".join(line + "\n" for line in turn.lines),
            stderr_tail=turn.stderr,
            wall_s=0.0,
            signal=turn.signal,
            timed_out=turn.timed_out,
            oom=turn.oom,
        )
