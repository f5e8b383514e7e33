"""What looks personal in a document that is about to be shared: names of hosts and users, serials, addresses, paths.

Everything doubtful is named by its place and never repeated: an error may be shared too.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

# keys that have no business in a bench document, whatever they hold
KEYS = re.compile(
    r"(^|_)(serial|serialno|host|hostname|nodename|user|username|login|owner|account|email|imei|imsi|iccid|mac|ssid|"
    r"bssid|uuid|android_id|ip|address|path|cwd|home)($|_)",
    re.I,
)
PATTERNS = {
    "a path of some machine": re.compile(r"(^|[\s'\"=(,;:])((/[\w.@+-]+){2,}|~/\S|[A-Za-z]:\\\S|\\\\\w)|file://"),
    "an account or mail address": re.compile(r"[\w.+-]+@[\w-]+"),
    "a network address": re.compile(
        r"(?<![\w.])((25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(25[0-5]|2[0-4]\d|1?\d?\d)(?![\w.])"
        r"|(?<![\w:])([0-9a-f]{2}[:-]){5}[0-9a-f]{2}(?![\w:])|(?<![\w:])([0-9a-f]{1,4}:){4,7}[0-9a-f]{1,4}(?![\w:])",
        re.I,
    ),
    "a host's name": re.compile(r"\b[\w-]+\.(local|lan|home|internal|localdomain|intranet|corp|fritz\.box)\b", re.I),
    "an address in the web": re.compile(r"\bhttps?://", re.I),
}
# of device facts: serial numbers of phones (capitals and digits) and of boards (16 hexadecimal digits)
SERIAL = re.compile(r"^(?=.*\d)(?=.*[A-Z])[0-9A-Z]{10,20}$|^[0-9a-f]{16}$|^emulator-\d+$")
DIGESTS = frozenset({"id", "sha256", "artifact_sha256", "recipe_hash"})
COMMON = frozenset({"localhost", "localdomain", "root", "user", "raspberrypi", "ubuntu", "debian", "android", "runner"})
SHORTEST = 4  # a name of fewer letters is found in too many words
FACTS = re.compile(r"(^|\.)device\.")


def found(data: Any, owner: Sequence[str] = ()) -> list[str]:
    """A sentence for each kind of thing at each place, [] when nothing looks personal. `owner`: names to look for."""
    said: dict[str, None] = {}
    names = [re.compile(rf"(?<![\w-]){re.escape(n)}(?![\w-])", re.I) for n in owner
             if len(n) >= SHORTEST and n.lower() not in COMMON]  # fmt: skip
    for place, key, value in _leaves(data):
        spot = re.sub(r"\.\d+", "", place)  # once, not for each of a hundred measurements
        if KEYS.search(key):
            said.setdefault(f"{spot} names something personal by its key")
            continue
        for text in (key, value) if isinstance(value, str) else (key,):
            for what, pattern in PATTERNS.items():
                if pattern.search(text):
                    said.setdefault(f"{spot} looks like {what}")
            if any(name.search(text) for name in names):
                said.setdefault(f"{spot} holds a name of this machine or its user")
        if isinstance(value, str) and FACTS.search(place) and key not in DIGESTS and SERIAL.match(value):
            said.setdefault(f"{spot} looks like a serial number")
    return list(said)


def _leaves(value: Any, place: str = "", key: str = "") -> Iterator[tuple[str, str, Any]]:
    """(place, last key, plain value) of everything inside, keys of objects too."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{place}.{name}" if place else str(name), str(name))
        if not value and key:
            yield place, key, None
    elif isinstance(value, list):
        if value and all(isinstance(v, int | float) for v in value):
            yield place, key, None
            return
        for i, inner in enumerate(value):
            yield from _leaves(inner, f"{place}.{i}", key)
    else:
        yield place, key, value


def names_here() -> list[str]:
    """This machine's and its user's, as far as they can be told."""
    import getpass
    import socket

    known = [socket.gethostname(), socket.gethostname().partition(".")[0]]
    with contextlib.suppress(OSError, KeyError):
        known.append(getpass.getuser())
    return list(dict.fromkeys(name for name in known if name))
