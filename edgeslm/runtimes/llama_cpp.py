"""llama.cpp, reached through llama-cpp-python: GGUF files."""

from __future__ import annotations

import signal

from edgeslm.runtimes.base import Runtime

# The extra buffers hold weights repacked for special kernels, some of which (AMX) have crashed; without it is slower.
WITHOUT_REPACKING = {"use_extra_bufts": False}

RUNTIME = Runtime(
    name="llama_cpp",
    title="llama.cpp",
    formats=("gguf",),
    worker="llama_cpp_worker.py",
    packages=("llama_cpp_python",),
    defaults={"kv": "f16", "flash_attention": "auto", "use_extra_bufts": True},
    fallback={signal.SIGSEGV: WITHOUT_REPACKING, signal.SIGILL: WITHOUT_REPACKING},
)
