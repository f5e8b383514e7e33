"""What every rival gets and gives: a float32 student in, a file that llama.cpp or onnxruntime runs out.

A rival is two functions: `candidates(student, options)` names what it can make of this student, `make(candidate,
student, out, options)` writes one of them. Bits per weight are counted in the file that came out, never taken from a
name: 8 x bytes of the tensors / parameters, metadata left out, a tied tensor once.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeslm.artifact import Artifact, path_bytes, path_sha256
from edgeslm.errors import EdgeSLMError
from edgeslm.models import gguf_file

EMBEDDING = "token_embd.weight"
HEAD = "output.weight"  # where it is not the embedding
FLOATS = frozenset({"f32", "f16", "bf16"})


class RivalFailure(EdgeSLMError):
    """A rival that could not be installed or could not make the file; the sentence goes into the record."""


@dataclass(frozen=True)
class Student:
    """The one float32 model all rivals start from. `rows` are calibration windows [R][T] of ids, from text that shares
    no author with the text judged by; `importance` is llama.cpp's imatrix file gathered on them; `training_rows` is
    what training rivals see (`rows` where empty); `source_types` {GGUF tensor name: type} says how its teacher's file
    stored each weight matrix, empty for a true float model."""

    name: str
    gguf: Path
    folder: Path  # the same weights, transformers' layout
    rows: list[list[int]]
    importance: Path
    training_rows: list[list[int]] = field(default_factory=list)
    source_types: dict[str, str] = field(default_factory=dict)

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{GGUF tensor name: shape} of the float file."""
        return {name: tensor.shape for name, tensor in gguf_file.read(self.gguf).tensors.items()}

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())


@dataclass(frozen=True)
class Options:
    """How much a rival may spend. `tokens` is what a training rival may see: the budget of the student beside it."""

    threads: int = 1
    tokens: int = 131_072
    iterations: int = 200  # of auto-round's sign descent per block, its own default
    timeout_s: float = 7200.0


@dataclass(frozen=True)
class Candidate:
    """One file a rival may make; `settings` mean something to this rival only."""

    rival: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """What a rival made. `fallbacks` counts tensors that got another type than was asked for because of their rows."""

    path: Path
    seconds: float
    fallbacks: int = 0
    note: str = ""


@dataclass(frozen=True)
class Rival:
    """`needs_venv`: its packages live in an environment of their own, see venv.py."""

    name: str
    title: str
    candidates: Callable[[Student, Options], list[Candidate]]
    make: Callable[[Candidate, Student, Path, Options], Made]
    needs_venv: bool = False


def artifact(candidate: Candidate, made: Made, student: Student) -> Artifact:
    """The shipped file as `evaluate` wants it, its weight bytes counted in it."""
    container = "onnx" if made.path.is_dir() else "gguf"
    weight_bytes = onnx_bytes(made.path) if container == "onnx" else gguf_bytes(made.path)
    return Artifact(
        name=candidate.name,
        path=made.path,
        format=container,
        sha256=path_sha256(made.path),
        bytes=path_bytes(made.path),
        weight_bytes=weight_bytes,
        parameters=student.parameters,
        grid="mixed",
        note=made.note,
    )


def described(candidate: Candidate, made: Made, student: Student) -> dict[str, Any]:
    """The row of a record, without what scoring will add: name, bits, seconds, types, fallbacks, source grid."""
    shipped = artifact(candidate, made, student)
    types = matrix_types(made.path) if shipped.format == "gguf" else {}
    same = sorted(name for name, kind in types.items() if student.source_types.get(name) == kind)
    return {
        "rival": candidate.rival,
        "name": candidate.name,
        "container": shipped.format,
        "bits": shipped.bits_per_weight,
        "bytes": shipped.bytes,
        "sha256": shipped.sha256,
        "seconds": made.seconds,
        "types": dict(Counter(types.values()).most_common()),
        "embedding": types.get(EMBEDDING),
        "fallback_tensors": made.fallbacks,
        "fallback_share": made.fallbacks / len(types) if types else 0.0,
        "uses_source_grid": bool(same),
        "note": made.note,
    }


def gguf_bytes(path: Path) -> int:
    return sum(tensor.nbytes for tensor in gguf_file.read(path).tensors.values())


def matrix_types(path: Path) -> dict[str, str]:
    """{GGUF name of a weight matrix: its type}. Vectors stay float32 in every file and say nothing."""
    return {name: t.format for name, t in gguf_file.read(path).tensors.items() if len(t.shape) > 1}


def source_types(path: Path) -> dict[str, str]:
    """How a teacher's GGUF file stores each weight matrix; floats are no grid and are left out."""
    return {name: kind for name, kind in matrix_types(path).items() if kind not in FLOATS}


def onnx_bytes(folder: Path) -> int:
    """Bytes of all initialisers of model.onnx, external data counted by what each one refers to."""
    import onnx

    model = onnx.load(folder / "model.onnx", load_external_data=False)
    total = 0
    for tensor in model.graph.initializer:
        outside = {entry.key: entry.value for entry in tensor.external_data}
        total += int(outside["length"]) if "length" in outside else len(tensor.SerializeToString())
    return total
