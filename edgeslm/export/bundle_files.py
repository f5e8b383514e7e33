"""Names, limits and hashes of a bundle, known to those who write and those who read one. Standard library only.

DIR/edgeslm-bundle.json     the manifest: everything a program must know, and every other file's size and sha256
DIR/edgeslm-bundle.sha256   of the manifest itself, as `sha256sum --check` reads it
DIR/student.gguf            or student.gguf.part001, .part002, ... where a store limits the size of a file
DIR/student-onnx/...        instead, for onnxruntime
DIR/tokenizer/...  DIR/MODEL_CARD.md  DIR/LICENCE.md  ...
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

SCHEMA = 1
KIND = "edgeslm-bundle"
MANIFEST = "edgeslm-bundle.json"
SEAL = "edgeslm-bundle.sha256"
CARD = "MODEL_CARD.md"
LICENCE = "LICENCE.md"
CHUNK_BYTES = 1 << 20
LARGEST_MANIFEST_BYTES = 4 << 20
SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")
PART = ".part{:03d}"


def is_safe(name: Any) -> bool:
    """Whether a path of a manifest stays inside its folder, on every system."""
    return isinstance(name, str) and len(name) < 200 and SAFE_NAME.fullmatch(name) is not None


def chunks(file: BinaryIO, limit: int | None = None) -> Iterator[bytes]:
    """At most `limit` bytes, in pieces."""
    left = limit
    while left is None or left > 0:
        piece = file.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
        if not piece:
            return
        if left is not None:
            left -= len(piece)
        yield piece


def split(path: Path, part_bytes: int) -> list[dict[str, Any]]:
    """Cuts a file into parts beside it and removes it; returns their entries, in order."""
    entries: list[dict[str, Any]] = []
    with path.open("rb") as file:
        while True:
            target = path.with_name(path.name + PART.format(len(entries) + 1))
            digest, size = hashlib.sha256(), 0
            with target.open("wb") as out:
                for piece in chunks(file, part_bytes):
                    out.write(piece)
                    digest.update(piece)
                    size += len(piece)
            if not size:
                target.unlink()
                break
            entries.append({"path": target.name, "bytes": size, "sha256": digest.hexdigest()})
    path.unlink()
    return entries
