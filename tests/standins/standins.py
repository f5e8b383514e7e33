"""Starts the stand-ins of roots.sh and run.sh, breaks their connections, and changes what they say of themselves."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from edgeslm.devices.adb import AdbDevice, AdbLink
from edgeslm.devices.ssh import SshDevice, SshLink
from edgeslm.devices.wheels import cache_root
from edgeslm.errors import DeviceError

HERE = Path(__file__).parent
PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "qemu-aarch64-static": "qemu-user-static",
    "update-binfmts": "binfmt-support",
    "ssh": "openssh-client",
    "adb": "adb",
    "unshare": "util-linux",
    "ip": "iproute2",
}
PI_PORT, PHONE_PORT = 22022, 5601
STARTING_S = 30.0


def built() -> Path:
    """The folder with both roots, built when this machine does not have them or they are of another version."""
    lacking = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    assert not lacking, f"the stand-ins need Debian's {', '.join(lacking)}; run `make standins`"
    assert os.geteuid() == 0, "the stand-ins need root: they mount, and start programs of another processor"
    files = sorted(path for path in HERE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    folder = cache_root() / "standins" / digest
    if not (folder / "phone").is_dir():
        shutil.rmtree(folder.parent, ignore_errors=True)
        subprocess.run([str(HERE / "roots.sh"), str(folder)], check=True)
    return folder


class StandIn:
    """One that runs. `init` is the process that everything in it comes from."""

    def __init__(self, what: str, folder: Path, port: int):
        self.root, self.port = folder / what, port
        self.process = subprocess.Popen(
            [str(HERE / "run.sh"), what, str(self.root), str(port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.outer = int(self.process.stdout.readline())

    @property
    def init(self) -> int:
        return next(pid for pid, parent in processes().items() if parent == self.outer)

    def inside(self) -> dict[int, int]:
        """Its processes and their parents, but its first."""
        every, first = processes(), self.init

        def below(pid: int) -> bool:
            return pid in every and (every[pid] == first or below(every[pid]))

        return {pid: parent for pid, parent in every.items() if below(pid)}

    def write(self, **files: str | None) -> None:
        """Files of the root by their path there; None removes one."""
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if text is not None:
                path.write_text(text + "\n")

    def stop(self) -> None:
        self.process.communicate(timeout=30)


class Pi(StandIn):
    def __init__(self, folder: Path):
        super().__init__("pi", folder, PI_PORT)
        self.key, self.known = folder / "id", folder / "known_hosts"
        host = (self.root / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
        self.known.write_text(f"[127.0.0.1]:{self.port} {host}")
        self.home = self.root / "home/pi"
        waited(lambda: subprocess.run(self.link().argv("exit 0"), capture_output=True, check=False).returncode == 0)

    def link(self, known: Path | None = None) -> SshLink:
        options = {"UserKnownHostsFile": known or self.known, "IdentityFile": self.key, "IdentitiesOnly": "yes"}
        words = tuple(word for key, value in options.items() for word in ("-o", f"{key}={value}"))
        return SshLink(f"pi@127.0.0.1:{self.port}", options=words)

    def device(self, keep: bool = False, grace_s: int = 600) -> SshDevice:
        return SshDevice("", keep, grace_s=grace_s, link=self.link())

    def cut(self) -> None:
        """Every connection goes: the server's processes for them die, what runs in them does not."""
        for pid in self.inside():
            with contextlib.suppress(OSError):
                if b"/usr/sbin/sshd" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)

    def left(self) -> list[str]:
        return sorted(path.name for path in self.home.iterdir() if path.name != ".ssh")


class Phone(StandIn):
    def __init__(self, folder: Path):
        super().__init__("phone", folder, PHONE_PORT)
        self.adb = folder / "adb"
        self.adb.write_text(f'#!/bin/sh\nexec nsenter -t {self.outer} --net -- adb "$@"\n')
        self.adb.chmod(0o755)
        self.serial = f"127.0.0.1:{self.port}"
        try:
            waited(self._connects)
            waited(lambda: subprocess.run(self.link().argv("exit 0"), capture_output=True, check=False).returncode == 0)
        except AssertionError:
            self.stop()
            raise

    def _connects(self) -> bool:
        try:
            self.link().connect()
        except DeviceError:
            return False
        return True

    def link(self) -> AdbLink:
        return AdbLink(self.serial, program=str(self.adb))

    def device(self, keep: bool = False) -> AdbDevice:
        return AdbDevice("", keep, link=self.link())

    def cut(self) -> None:
        """The phone goes out of reach, and comes back when it is called again."""
        subprocess.run([str(self.adb), "disconnect", self.serial], capture_output=True, check=True)

    def left(self) -> list[str]:
        return sorted(path.name for path in (self.root / "data/local/tmp").iterdir())

    def stop(self) -> None:
        subprocess.run([str(self.adb), "kill-server"], capture_output=True, check=False)
        super().stop()


def processes() -> dict[int, int]:
    """pid -> parent, of this machine; those that have ended and are only not waited for (adbd waits for none) left
    out."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            found |= {int(stat.parent.name): int(parent)} if state != "Z" else {}
    return found


def waited(holds: Callable[[], bool], seconds: float = STARTING_S) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.1)
