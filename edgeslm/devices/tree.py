"""Reading a device's tree of small files: "/" on this machine, a copied tree of another one, a fixture in a test.

Outputs of commands lie in a copied tree under `edgeslm/`, named by the command's words joined with "-".
"""

from __future__ import annotations

from pathlib import Path


def read_text(path: Path) -> str:
    """A file's text, stripped; empty when it is not there or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\x00\n ")
    except OSError:
        return ""


def said(root: Path, *argv: str) -> str:
    """What a command answered when the tree was copied, empty when it was not asked."""
    return read_text(root / "edgeslm" / "-".join(argv))


def number(text: str) -> int | None:
    """A whole decimal number, else None."""
    return int(text) if text.removeprefix("-").isdecimal() and len(text) <= 20 else None


def cpu_list(text: str) -> list[int]:
    """`0-3,6` -> [0, 1, 2, 3, 6]; spaces part as commas do."""
    found: list[int] = []
    for part in text.replace(",", " ").split():
        first, _, last = part.partition("-")
        if first.isdecimal():
            found += range(int(first), (int(last) if last.isdecimal() else int(first)) + 1)
    return found
