"""Reading a device's tree of small files: "/" on this machine, a copied tree of another one, a fixture in a test.

Outputs of commands lie in a copied tree under `edgeslm/`, named by the command's words joined with "-".
"""

from __future__ import annotations

from edgeslm.meters.sensors.base import said
from edgeslm.meters.sensors.base import text as read_text

__all__ = ["cpu_list", "number", "read_text", "said"]


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
