"""What runs an artifact. The first runtime whose `formats` hold an artifact's format is the one for it."""

from edgeslm.runtimes import llama_cpp, llama_native, onnxruntime, onnxruntime_web, torch, wllama

RUNTIMES = {
    "llama_cpp": llama_cpp.RUNTIME,
    "llama_native": llama_native.RUNTIME,
    "onnxruntime": onnxruntime.RUNTIME,
    "torch": torch.RUNTIME,
    "wllama": wllama.RUNTIME,
    "onnxruntime_web": onnxruntime_web.RUNTIME,
}
