"""A device behind the system's own ssh: the user's configuration, keys, agent, jump hosts and known hosts as they are.

The session's process is also the master connection, so every later command takes one round trip and no new handshake.
Nothing ever asks a question (BatchMode), and a cable that was pulled is noticed after about 20 s.
"""

from __future__ import annotations

import re
import shlex
import tempfile
from dataclasses import dataclass, field

from edgeslm.devices.pushing import OnPush
from edgeslm.devices.remote import RemoteDevice
from edgeslm.devices.session import GRACE_S
from edgeslm.errors import DeviceError

TARGET = re.compile(r"(?:(?P<user>[^@\s]+)@)?(?P<host>\[[0-9A-Fa-f:%.\w]+\]|[^@:\s\[\]]+)(?::(?P<port>\d{1,5}))?")
ROOT = '"$HOME"/.edgeslm-device'
OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "20",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "4",
    "ClearAllForwardings": "yes",  # the user's own session may already hold those ports
    "ControlPersist": "no",  # or the connection would outlive the session
    "RemoteCommand": "none",
    "LogLevel": "ERROR",
}
# what ssh says -> why, and what to do; the first that is found counts
WORDS = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "{name} shows another host key than the one known for it: it was set up anew, or it is another machine; if you "
        "know why, remove the old key with `ssh-keygen -R {host}` and connect once by hand",
    ),
    (
        "Host key verification failed",
        "the host key of {name} is not known yet; connect once by hand (`{by_hand}`), check the key and accept it",
    ),
    (
        "Permission denied",
        "{name} refuses the log-in; it needs a key that it takes without a question (see that `{by_hand} true` works)",
    ),
    ("Could not resolve hostname", "no machine called {machine} can be found; correct the name or use its address"),
    ("Connection refused", "{name} is there but no ssh server answers; switch it on there, or correct the port"),
    (
        "Connection timed out|No route to host|Network is unreachable|Operation timed out|Host is down",
        "{name} does not answer; see that it is on, awake and in this network",
    ),
    ("Bad configuration option|terminating, \\d+ bad", "ssh refuses the user's configuration for {name}; correct it"),
    ("kex_exchange_identification|Connection closed by", "{name} closed the connection before it was made; try again"),
)  # fmt: skip


@dataclass
class SshLink:
    """`target` is `[user@]host[:port]`; `options` are further ssh options of a test."""

    target: str
    program: str = "ssh"
    options: tuple[str, ...] = ()
    root: str = ROOT
    also: str = ""
    _folder: tempfile.TemporaryDirectory[str] | None = field(default=None, init=False)  # of the control socket

    def __post_init__(self) -> None:
        found = TARGET.fullmatch(self.target)
        if found is None or self.target.startswith("-") or (found["host"] or "").startswith("-"):
            raise DeviceError(f"ssh:{self.target} names no machine; write ssh:[user@]host[:port]")
        self.host = found["host"].strip("[]")
        self.port = found["port"] or ""
        self.login = f"{found['user']}@{self.host}" if found["user"] else self.host

    @property
    def name(self) -> str:
        return f"ssh:{self.target}"

    def argv(self, script: str, hold: bool = False) -> list[str]:
        """The user's login shell, whichever it is, starts a plain sh."""
        if hold:
            self.close()
            self._folder = tempfile.TemporaryDirectory(prefix="edgeslm-")  # a socket's path must be short
        control = {
            "ControlMaster": "yes" if hold else "no",
            "ControlPath": f"{self._folder.name}/s" if self._folder else "none",
        }
        options = [word for key, value in (OPTIONS | control).items() for word in ("-o", f"{key}={value}")]
        port = ["-p", self.port] if self.port else []
        return [
            self.program,
            "-T",
            *options,
            *self.options,
            *port,
            "--",
            self.login,
            f"exec sh -c {shlex.quote(script)}",
        ]

    def why(self, returncode: int, stderr: str) -> str:
        by_hand = " ".join(["ssh", *(["-p", self.port] if self.port else []), self.login])
        host = f"[{self.host}]:{self.port}" if self.port and self.port != "22" else self.host
        for words, sentence in WORDS:
            if re.search(words, stderr):
                return sentence.format(name=self.name, machine=self.host, host=shlex.quote(host), by_hand=by_hand)
        return ""

    def close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


class SshDevice(RemoteDevice):
    """`SshDevice("pi@raspberrypi")`."""

    def __init__(
        self,
        target: str,
        keep: bool = False,
        on_push: OnPush | None = None,
        grace_s: int = GRACE_S,
        link: SshLink | None = None,
    ):
        super().__init__(link or SshLink(target), keep, on_push, grace_s)
