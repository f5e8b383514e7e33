"""A shipped file or folder: where it lies, its hash, its size, and what made it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Artifact:
    """`format` is "gguf" (a file) or "onnx" (an onnxruntime-genai folder). `name` is what reports call it."""

    name: str
    path: Path
    format: str
    sha256: str
    bytes: int  # everything a device must store to run it
    weight_bytes: int  # tensors only, metadata and tokenizer left out
    parameters: int
    grid: str  # "q4_0", "f16", "f32" or "mixed"
    recipe_hash: str = ""
    note: str = ""
    shape: dict[str, int] = field(default_factory=dict)  # the keys of transformers' config that `cost` reads
    unread_bytes: int = 0  # of the weights, what decoding a token leaves alone: the input table of an untied model

    @property
    def bits_per_weight(self) -> float:
        """8 x bytes of the tensors / parameters; embedding included, a tied tensor once, metadata left out."""
        return 8 * self.weight_bytes / self.parameters

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Artifact:
        return cls(**{**data, "path": Path(data["path"])})


def write_whole(path: Path, data: bytes) -> None:
    """At once or not at all: who reads meanwhile, or goes on after a kill, finds what was there. Raises OSError."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def path_sha256(path: Path) -> str:
    """A file's sha256; a folder's is the sha256 over its sorted `relative-name sha256` lines."""
    if path.is_file():
        return file_sha256(path)
    lines = [f"{p.relative_to(path).as_posix()} {file_sha256(p)}\n" for p in sorted(path.rglob("*")) if p.is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def path_bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
