"""onnxruntime for scoring and onnxruntime-genai for generation: folders with genai_config.json."""

from __future__ import annotations

from edgeslm.runtimes.base import Runtime

RUNTIME = Runtime(
    name="onnxruntime",
    title="onnxruntime",
    formats=("onnx",),
    worker="onnxruntime_worker.py",
    packages=("onnxruntime", "onnxruntime-genai"),
)
