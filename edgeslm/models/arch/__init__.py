"""The model families. A new one is a file and a line here."""

from edgeslm.models.arch import llama, qwen2
from edgeslm.models.arch.base import Arch

ARCHS: dict[str, Arch] = {
    "llama": llama.ARCH,
    "qwen2": qwen2.ARCH,
}
