"""Why a command of a device did not start or how it ended, read from its exit code and its last words."""

from __future__ import annotations

import re
import signal
import struct
from pathlib import Path, PurePosixPath

MACHINES = {0x03: "i386", 0x3E: "x86_64", 0x28: "arm", 0xB7: "aarch64", 0xF3: "riscv64"}  # e_machine of ELF
RUNS = {  # what `uname -m` says -> kinds of program it can start
    "x86_64": ("x86_64", "i386"),
    "aarch64": ("aarch64", "arm"),
    "armv8l": ("arm",),
    "armv7l": ("arm",),
    "armv6l": ("arm",),
    "i686": ("i386",),
    "riscv64": ("riscv64",),
}
NO_LIBRARY = re.compile(r"error while loading shared libraries: ([^:\s]+):|library \"([^\"]+)\" not found")
WRONG_KIND = re.compile(
    r"exec format error|cannot execute binary file|not executable: \d+-bit|Syntax error: .*unexpected",
    re.IGNORECASE,
)
SHELLS_WORDS = ("Killed", "Segmentation fault", "Aborted", "Terminated", "Illegal instruction", "Bus error")


def program_kind(path: Path) -> str:
    """What processor an ELF file is for, e.g. "aarch64"; empty when it is no ELF file."""
    with path.open("rb") as file:
        head = file.read(20)
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return ""
    (machine,) = struct.unpack("<H" if head[5] == 1 else ">H", head[18:20])
    return MACHINES.get(machine, f"an unknown processor ({machine:#x})")


def wrong_kind(program: Path, machine: str, name: str) -> str:
    """A sentence when a program is for another processor than the device's; empty when it fits or nothing is known."""
    kind = program_kind(program)
    if not kind or machine not in RUNS or kind in RUNS[machine]:
        return ""
    return (
        f"{program.name} is built for {kind}, but {name} is {machine}; build it for that one "
        "(`edgeslm devices build-runtime`)"
    )


def not_started(argv0: str, code: int, stderr: str, name: str) -> str:
    """A sentence when the command never ran; empty when it did."""
    program = PurePosixPath(argv0).name
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "")
    if (found := NO_LIBRARY.search(stderr)) is not None:
        return (
            f"{program} cannot start on {name}: it needs the library {found[1] or found[2]}, which is not there; "
            "install it there or use a static build"
        )
    if code in (126, 127, 2) and WRONG_KIND.search(stderr):
        return f"{program} is not a program for {name}'s processor or system; build it for that device"
    if code == 127 and re.search(rf"(^|[\s:]){re.escape(argv0)}: .*(not found|No such file)", last):
        return (
            f"cannot start {program} on {name}: it is not there, or the loader that it needs is not "
            "(a program for another system); install it or use a static build"
        )
    if code == 126:
        return f"{name} may not start {program} ({last or 'no reason given'}); its folder may be mounted noexec"
    return ""


def signal_of(code: int) -> int | None:
    """Shells tell a signal as 128 + its number."""
    number = code - 128
    return number if number in {int(one) for one in signal.Signals} else None


def without_shells_words(stderr: str) -> str:
    """The shell's own remark that its command was killed, its last line, is no word of the command."""
    lines = stderr.rstrip().splitlines(keepends=True)
    said = bool(lines) and any(word in lines[-1] for word in SHELLS_WORDS)
    return "".join(lines[:-1]) if said else stderr
