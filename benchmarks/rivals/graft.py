"""A rival's packed matrices put into the student's own GGUF file, so that all rivals share vocabulary and norms.

Other tools write vocabularies of their own, or none. Here the float file's metadata is copied byte for byte and only
tensors are replaced; what a rival left in float (mostly the embedding) stays float32 until llama.cpp's quantiser puts
it on a grid (`llama_cpp.grid_the_rest`), which copies what already has its type.

    "GGUF" u32 version u64 tensors u64 pairs | pairs, copied | tensor infos, new | padding | tensor data
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig

from benchmarks.rivals.base import RivalFailure, Student
from edgeslm.models import gguf_file
from edgeslm.models.arch import ARCHS
from edgeslm.models.gguf_file import GGML_TYPES

Packed = tuple[str, NDArray[np.uint8]]  # name of the type, packed bytes in GGUF's row order


def matrices(path: Path) -> dict[str, Packed]:
    """{GGUF name: (type, bytes)} of every matrix of a rival's own GGUF file."""
    file = gguf_file.read(path)
    infos = {name: info for name, info in file.tensors.items() if len(info.shape) > 1}
    return {
        name: (info.format, np.frombuffer(file.data, np.uint8, info.nbytes, info.offset))
        for name, info in infos.items()
    }


def graft(student: Student, packed: Mapping[str, Packed], out: Path) -> Path:
    """Writes `out`: the student's float file with the tensors of `packed` in place of its own.

    Raises RivalFailure for a tensor the student does not have or whose bytes are not those of its shape.
    """
    numbers = {name: (number, block, size) for number, (name, block, size) in GGML_TYPES.items()}
    float_file = gguf_file.read(student.gguf)
    unknown = sorted(packed.keys() - float_file.tensors.keys())
    if unknown:
        raise RivalFailure(f"it wrote {unknown[0]}, which {student.name} does not have; it converts another model")
    alignment = float_file.metadata.get("general.alignment", gguf_file.DEFAULT_ALIGNMENT)
    infos, data, at = [], [], 0
    for name, info in float_file.tensors.items():
        kind, raw = packed.get(name) or ("f32", np.frombuffer(float_file.data, np.uint8, info.nbytes, info.offset))
        number, block, size = numbers[kind]
        if raw.nbytes * block != info.parameters * size:
            raise RivalFailure(f"{name} has {raw.nbytes} bytes of {kind}, not those of {info.parameters} weights")
        label, shape = name.encode(), info.shape[::-1]
        infos.append(struct.pack("<Q", len(label)) + label + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
        infos.append(struct.pack("<IQ", number, at))
        data.append(raw)
        at += -(-raw.nbytes // alignment) * alignment
    end = int(GGUFReader(student.gguf).tensors[0].field.offset)  # where the pairs end
    with student.gguf.open("rb") as source, out.open("wb") as file:
        file.write(source.read(end) + b"".join(infos))
        for raw in data:
            file.write(bytes(-file.tell() % alignment))
            file.write(raw.tobytes())
        file.write(bytes(-file.tell() % alignment))
    return out


def names_and_orders(student: Student) -> dict[str, tuple[str, Tensor | None]]:
    """{transformers' parameter name: (GGUF's, r with gguf_rows = hf_rows[r] or None)} for every weight."""
    config = AutoConfig.from_pretrained(student.folder).to_dict()
    arch = ARCHS[config["model_type"]]
    return {ours: (theirs, arch.row_order(ours, config)) for ours, theirs in arch.names(config).items()}
