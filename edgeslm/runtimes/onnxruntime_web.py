"""onnxruntime compiled to WebAssembly, as npm's onnxruntime-web carries it: ONNX folders in a browser."""

from __future__ import annotations

from edgeslm.runtimes.base import Runtime
from edgeslm.runtimes.wllama import page

RUNTIME = Runtime(
    name="onnxruntime_web",
    title="onnxruntime in the browser",
    formats=("onnx",),
    host="page",
    program=page,
)
