"""One session on a device: its lock, its folder, and the process there that clears up whatever happens here."""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import time
import uuid

from edgeslm.devices.links import Anchor, ConnectionLost, Link, lost
from edgeslm.devices.scripts import ANCHOR, BUSY, LACKS, READY, filled
from edgeslm.errors import DeviceError

OPENING_S = 60.0
LEAVING_S = 30.0
GRACE_S = 600  # a broken push can go on for so long; then the device clears up by itself


class Session:
    """Open from `__init__` to `close`. `root` is the folder's path on the device. `ours` are tokens of this device's
    sessions that were cut: what they left there may be taken away. Raises DeviceError when somebody else holds it."""

    def __init__(self, link: Link, keep: bool = False, grace_s: int = GRACE_S, ours: frozenset[str] = frozenset()):
        self.link = link
        self.token = secrets.token_hex(8)
        values: dict[str, str | int] = {"token": self.token, "owner": owner(), "keep": int(keep), "grace": grace_s}
        values["also"] = link.also
        broken = ""
        for _ in range(2):  # once more when the holder turns out to be gone
            script = f"root={link.root}; " + filled(ANCHOR, broken=broken, **values)
            self.anchor = Anchor(link, script)
            line = self.anchor.line(OPENING_S)
            word, _, rest = (line or "").partition(" ")
            if word == READY:
                self.root = rest
                return
            code, err = self.anchor.leave(b"", 5.0)
            if word == LACKS:
                raise DeviceError(
                    f"{link.name} lacks the program {rest}, without which nothing is sent; install it there"
                )
            if word != BUSY:
                raise _refused(link, line, code, self.anchor.process.returncode, err)
            broken = abandoned(rest, ours)
            if not broken:
                break
        raise DeviceError(in_use(link.name, rest))

    @property
    def alive(self) -> bool:
        return self.anchor.alive

    def close(self) -> None:
        """Everything of this session is gone from the device when this returns, or, where the connection is cut, as
        soon as the device has noticed."""
        self.anchor.leave(b"bye\n", LEAVING_S)

    def abandon(self) -> None:
        """The connection is gone: only what is left on this machine ends here."""
        self.anchor.leave(b"", 2.0)


def machine_id() -> str:
    """Tells machines apart without saying which they are."""
    return hashlib.sha256(f"{uuid.getnode()} {platform.node()}".encode()).hexdigest()[:12]


def owner() -> str:
    return f"{machine_id()}.{os.getpid()}.{int(time.time())}"


def abandoned(held: str, ours: frozenset[str]) -> str:
    """The token of a lock whose program on this machine is gone though the device has not noticed; else empty."""
    token, machine, client, _ = _parts(held)
    if machine != machine_id() or not client.isdecimal():
        return ""
    if int(client) == os.getpid():
        return token if token in ours else ""
    try:
        os.kill(int(client), 0)
    except ProcessLookupError:
        return token
    except OSError:
        return ""
    return ""


def in_use(name: str, held: str) -> str:
    _, machine, client, since = _parts(held)
    who = f"process {client} of this machine" if machine == machine_id() else "another machine"
    when = time.strftime(" since %Y-%m-%d %H:%M", time.localtime(int(since))) if since.isdecimal() else ""
    return f"{name} is in use by another session ({who}{when}), and two would disturb each other; wait for it or end it"


def _parts(held: str) -> tuple[str, str, str, str]:
    """TOKEN, MACHINE, CLIENT, SINCE of a lock's text."""
    parts = [*held.split(".")[1:], "", "", "", ""]
    return parts[0], parts[1], parts[2], parts[3]


def _refused(link: Link, line: str | None, code: int | None, returncode: int, err: str) -> DeviceError:
    """Why there is no session."""
    words = next((text.strip() for text in reversed(err.splitlines()) if text.strip()), "no reason given")
    if line is not None:
        return DeviceError(
            f"the login shell of {link.name} prints text of its own ({line[:60]!r}), which spoils what is read "
            "from there; make its start-up files silent where nobody is typing"
        )
    if code is None:
        return ConnectionLost(lost(link, returncode, err))
    if "No space left" in err:
        return DeviceError(f"{link.name} is full: not even a folder can be made there; free some space")
    where = link.root.replace('"', "")
    return DeviceError(f"nothing can be written at {where} of {link.name} ({words}); make it writable")
