"""llama.cpp's own tools for this CPU, as `edgeslm.runtimes.build` makes them: `python -m benchmarks.llama_tools`."""

from __future__ import annotations

import sys
from pathlib import Path

from edgeslm.errors import RuntimeFailure
from edgeslm.runtimes import build


def tool(name: str) -> Path:
    """The path of a tool, built when it is missing (some minutes). Raises SystemExit with one sentence."""
    try:
        return build.tool(name, say=lambda line: print(line, file=sys.stderr))
    except RuntimeFailure as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    for name in build.TARGETS["native"].programs:
        print(tool(name))
