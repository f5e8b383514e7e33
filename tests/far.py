"""A device for tests: `far_program.py` as its ssh or adb, a folder as its home, and what tests ask of them."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from edgeslm.devices.adb import AdbLink
from edgeslm.devices.remote import RemoteDevice
from edgeslm.devices.ssh import SshLink

PROGRAM = Path(__file__).with_name("far_program.py")


class Far:
    """Its `state` is what far_program.py documents."""

    def __init__(self, folder: Path):
        self.state = folder / "far"
        for name in ("home", "bin"):
            (self.state / name).mkdir(parents=True)
        for kind in ("ssh", "adb"):
            script = self.state / kind
            script.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {PROGRAM} {kind} {self.state} "$@"\n')
            script.chmod(0o755)

    @property
    def root(self) -> Path:
        return self.state / "home" / ".edgeslm-device"

    def ssh(self) -> SshLink:
        return SshLink("pi@far", program=str(self.state / "ssh"))

    def adb(self, serial: str = "SERIAL") -> AdbLink:
        return AdbLink(serial, program=str(self.state / "adb"), root='"$HOME"/.edgeslm-device')

    def device(self, keep: bool = False, grace_s: int = 0) -> RemoteDevice:
        device = RemoteDevice(self.ssh(), keep, grace_s=grace_s)
        device.pauses = (0.0, 0.1)
        return device

    def program(self, name: str, text: str) -> None:
        """A program of the device."""
        path = self.state / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def set(self, **values: object) -> None:
        for name, value in values.items():
            (self.state / name).write_text(value if isinstance(value, str) else json.dumps(value))

    def received(self) -> list[int]:
        """Bytes of stdin of each command that ended, those without left out."""
        lines = (self.state / "log").read_text().splitlines() if (self.state / "log").exists() else []
        return [n for line in lines if (n := json.loads(line)["bytes"])]

    def left(self) -> list[str]:
        """Everything below the device's root."""
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*"))

    def processes(self, words: str) -> list[int]:
        """Those of this machine whose command line holds `words` and that run for this device."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                line, home = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
            except OSError:
                continue
            if words.encode() in line and str(self.state / "home").encode() in home and int(path.name) != os.getpid():
                found.append(int(path.name))
        return found


def until(holds: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether it comes to hold in time: what a device does by itself takes a moment."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
