"""Containers a frozen student ships in. `REFUSES` says, before any work, why one cannot hold a format; `PACKAGES` are
those that only this container's export needs."""

from edgeslm.export import gguf, onnx

EXPORTERS = {"gguf": gguf.export, "onnx": onnx.export}
REFUSES = {"gguf": gguf.refuses, "onnx": onnx.refuses}
PACKAGES = {"gguf": ("gguf",), "onnx": ("onnx", "onnx-ir", "onnxruntime-genai")}
