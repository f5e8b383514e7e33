"""What a model is, known from its headers alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeslm.errors import ModelError
from edgeslm.models.arch import ARCHS, Arch

FLOAT_FORMATS = ("f32", "f16", "bf16", "f64")


@dataclass(frozen=True)
class ModelSummary:
    """What a model is, known without its weights."""

    arch: str
    config: dict[str, Any]  # transformers' config.to_dict()
    vocab_size: int  # rows of the embedding
    parameters: int  # a tied tensor once
    weight_bytes: int  # of the tensors as stored
    formats: dict[str, int]  # {"q4_1": 210, "q8_0": 1, "f32": 61}: tensors per storage format
    tied: bool  # the head is the embedding
    notes: tuple[str, ...] = ()

    @property
    def dequantised(self) -> bool:
        """Whether some weights lie on a coarse grid already: a teacher "as dequantised", not full precision."""
        return any(name not in FLOAT_FORMATS for name in self.formats)


def known_arch(name: str, where: str) -> Arch:
    """Raises ModelError, naming the families there are."""
    if name not in ARCHS:
        raise ModelError(f"{where}: architecture '{name}' is not supported; supported are {', '.join(sorted(ARCHS))}")
    return ARCHS[name]


def known_architecture(name: str, where: str) -> Arch:
    """By a GGUF file's name for it. Raises ModelError, too."""
    return next((arch for arch in ARCHS.values() if arch.architecture == name), None) or known_arch(name, where)
