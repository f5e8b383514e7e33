"""What runs an artifact. The first runtime whose `formats` hold an artifact's format is the one for it."""

from edgeslm.runtimes import llama_cpp, onnxruntime, torch

RUNTIMES = {"llama_cpp": llama_cpp.RUNTIME, "onnxruntime": onnxruntime.RUNTIME, "torch": torch.RUNTIME}
