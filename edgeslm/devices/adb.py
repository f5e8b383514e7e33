"""A phone behind the adb program: by cable, by Wi-Fi (`adb connect`), one of several by its serial.

Commands go through `adb shell` of Android 7 and later, which tells exit codes and keeps stdout, stderr and binary data
apart and whole. A phone's shell may run programs below /data/local/tmp.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from functools import cached_property

from edgeslm.devices.links import environment, not_installed
from edgeslm.devices.pushing import OnPush
from edgeslm.devices.remote import RemoteDevice
from edgeslm.devices.session import GRACE_S
from edgeslm.errors import DeviceError

ROOT = "/data/local/tmp/edgeslm"
TRACE = "/data/misc/perfetto-traces/edgeslm.pftrace"  # Android lets recordings be written nowhere else
ANSWER_S = 30.0
OVER_WIFI = re.compile(r"[\w.-]+:\d{1,5}|\[[0-9A-Fa-f:]+\]:\d{1,5}")
# what adb says -> why, and what to do
WORDS = (
    (
        "unauthorized",
        "{name} does not trust this machine yet; unlock it and accept the question about debugging on its screen",
    ),
    ("no permissions", "{name} is connected but this user may not use it; add a udev rule for it or the group plugdev"),
    (
        "device offline|offline",
        "{name} is asleep or stuck (offline); wake it, unplug it and plug it in again, or run `adb reconnect`",
    ),
    ("doesn't support PTY args|shell_v2", "{name} is older than Android 7, whose shell tells no exit codes"),
    (
        "device '[^']*' not found|no devices|device not found|device .*not found",
        "no device {name} is connected; see `adb devices`, switch USB debugging on, or give its address as HOST:PORT",
    ),
    ("cannot connect to daemon|failed to start daemon", "adb's own server does not start; see what `adb devices` says"),
)


@dataclass
class AdbLink:
    serial: str
    program: str = "adb"
    root: str = ROOT
    also: str = TRACE

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^\s-]\S*", self.serial):
            raise DeviceError("adb: names no phone; write adb:SERIAL as `adb devices` shows it, or adb:HOST:PORT")

    @property
    def name(self) -> str:
        return f"adb:{self.serial}"

    def argv(self, script: str, hold: bool = False) -> list[str]:
        return [self.program, "-s", self.serial, "shell", "-T", script]

    def why(self, returncode: int, stderr: str) -> str:
        for words, sentence in WORDS:
            if re.search(words, stderr):
                return sentence.format(name=self.name)
        return ""

    def connect(self) -> None:
        """Make sure the phone is there: over Wi-Fi it may have to be called first. Raises DeviceError."""
        if self.serial in listed(self.program) or not OVER_WIFI.fullmatch(self.serial):
            return
        said = asked(self.program, "connect", self.serial)
        if "connected to" not in said or "failed" in said or "unable" in said or "cannot" in said:
            raise DeviceError(
                f"{self.name} does not answer ({said.strip() or 'nothing was said'}); see that it is awake, in this "
                "network, and that wireless debugging is on (or `adb tcpip 5555` was run over the cable)"
            )

    def close(self) -> None:
        """The adb server is the user's; it stays."""


class AdbDevice(RemoteDevice):
    """`AdbDevice("R58M123ABC")` or `AdbDevice("192.168.1.5:5555")`."""

    def __init__(
        self,
        serial: str,
        keep: bool = False,
        on_push: OnPush | None = None,
        grace_s: int = GRACE_S,
        link: AdbLink | None = None,
    ):
        link = link or AdbLink(serial)
        link.connect()
        super().__init__(link, keep, on_push, grace_s)

    @cached_property
    def hosts(self) -> tuple[str, ...]:
        """A phone's Python, where it has one, belongs to an app that its shell cannot reach."""
        return tuple(host for host in super().hosts if host == "native")


def listed(program: str = "adb") -> dict[str, str]:
    """serial -> state ("device", "unauthorized", "offline", ...) of what is connected. Raises DeviceError."""
    pairs = (line.split("\t", 1) for line in asked(program, "devices").splitlines() if "\t" in line)
    return {serial.strip(): state.strip() for serial, state in pairs}


def asked(program: str, *argv: str) -> str:
    """What adb itself says. Raises DeviceError when it is not installed or hangs."""
    try:
        done = subprocess.run(
            [program, *argv],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_S,
            env=environment(),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(
            f"adb {argv[0]} gives no answer in {ANSWER_S:.0f} s; run `adb kill-server` and try again"
        ) from error
    except OSError as error:
        raise not_installed(program, error) from error
    return done.stdout + done.stderr
