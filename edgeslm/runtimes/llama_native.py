"""llama.cpp through our native worker: GGUF files on devices that have a shell but no Python."""

from __future__ import annotations

from edgeslm.runtimes import build, llama_cpp
from edgeslm.runtimes.base import Runtime

RUNTIME = Runtime(
    name="llama_native",
    title="llama.cpp (native worker)",
    formats=("gguf",),
    host="native",
    program=build.program,
    defaults=llama_cpp.RUNTIME.defaults,
    fallback=llama_cpp.RUNTIME.fallback,
)
