"""The model families. A new one is a file and a line here."""

from edgeslm.models.arch import gemma3_text, gpt2, llama, phi3, qwen2, qwen3, smollm3, starcoder2
from edgeslm.models.arch.base import Arch

ARCHS: dict[str, Arch] = {
    "llama": llama.ARCH,
    "qwen2": qwen2.ARCH,
    "qwen3": qwen3.ARCH,
    "smollm3": smollm3.ARCH,
    "gemma3_text": gemma3_text.ARCH,
    "phi3": phi3.ARCH,
    "gpt2": gpt2.ARCH,
    "starcoder2": starcoder2.ARCH,
}
