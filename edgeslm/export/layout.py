"""A frozen student in the tensors of a container: what an architecture adds to weights, tensors that follow from its
config, and, for ONNX, one tensor for each projection. Grids are untouched: codes and scales are moved by whole rows;
only float32 vectors change, and by the very sum that the model computes with them."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from edgeslm.models.arch import ARCHS
from edgeslm.quantize.frozen import Frozen, FrozenTensor


def laid_out(frozen: Frozen, container: str) -> Frozen:
    """By transformers' names; constants of a GGUF (rotary factors) by GGUF's, parts of a fused matrix by theirs."""
    arch = ARCHS.get(frozen.arch)
    if arch is None:  # encoders are laid out as they are
        return frozen
    tensors = {name: _raised(tensor, arch.offset(name)) for name, tensor in frozen.tensors.items()}
    if container == "gguf":
        tensors |= {name: _floats(values) for name, values in arch.constants(frozen.config).items()}
    else:
        tensors = {
            part: _rows(tensor, start, end) if part != name else tensor
            for name, tensor in tensors.items()
            for part, (start, end) in (arch.fused(name, frozen.config) or {name: (0, 0)}).items()
        }
    return replace(frozen, tensors=tensors)


def _raised(tensor: FrozenTensor, offset: float) -> FrozenTensor:
    """1 + weight as Gemma's norms compute it, in float32."""
    return _floats(offset + tensor.decode()) if offset else tensor


def _floats(values: Tensor) -> FrozenTensor:
    return FrozenTensor("f32", tuple(values.shape), values.float().reshape(-1, 1), {})


def _rows(tensor: FrozenTensor, start: int, end: int) -> FrozenTensor:
    blocks = tensor.codes.shape[0] // tensor.shape[0]  # of a row
    part = slice(start * blocks, end * blocks)
    scales = {key: value[part] for key, value in tensor.scales.items()}
    return FrozenTensor(tensor.format, (end - start, *tensor.shape[1:]), tensor.codes[part], scales)
