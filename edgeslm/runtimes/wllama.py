"""llama.cpp compiled to WebAssembly, as npm's @wllama/wllama carries it: GGUF files in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeslm.runtimes.base import Runtime
from edgeslm.runtimes.npm import page_folder


def page(facts: dict[str, Any]) -> Path:
    """The page that measures, the same for every browser. Raises RuntimeFailure when its packages are not to be had."""
    return page_folder() / "worker.html"


RUNTIME = Runtime(
    name="wllama",
    title="llama.cpp in the browser",
    formats=("gguf",),
    defaults={"kv": "f16", "flash_attention": "auto"},
    host="page",
    program=page,
)
