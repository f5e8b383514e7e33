"""What to say of a format's name that is none."""

from __future__ import annotations

from edgeslm.errors import instead
from edgeslm.formats import FORMATS


def unknown_format(name: str) -> str:
    """With the nearest known name: people write Q4_K_M (a mix of llama.cpp's) and q4_O."""
    near = instead(name.lower(), FORMATS, "")
    return f"unknown format '{name}'; {near}{' ' if near else ''}'edgeslm formats' prints all"
