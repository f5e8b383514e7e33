"""What to say of a format's name that is none."""

from __future__ import annotations

import difflib

from edgeslm.formats import FORMATS


def unknown_format(name: str) -> str:
    """With the nearest known name: people write Q4_K_M (a mix of llama.cpp's) and q4_O."""
    near = difflib.get_close_matches(name.lower(), FORMATS, n=1, cutoff=0.6)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown format '{name}'; {hint}'edgeslm formats' prints all"
