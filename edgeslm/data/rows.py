"""Training rows: fixed length, stable ids, one file on disk.

Shape letters: R rows, T tokens of a row. A row's id is a hash of its tokens and its place among equal rows, so it does
not depend on batch size, seed or what other sources the recipe names.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgeslm.errors import DataError


@dataclass(frozen=True)
class Rows:
    """ids [R, T] int32, mask [R, T] uint8 (token counts as a target), source [R] index into `sources`."""

    ids: Tensor
    mask: Tensor
    source: Tensor
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return self.ids.shape[0]

    def whole(self) -> Tensor:
        """bool [R]: rows that are text for at least half their length; the last row of a source may be mostly
        padding, which says nothing about a model."""
        return self.mask.float().mean(dim=1) >= 0.5

    def row_ids(self) -> list[str]:
        """Stable ids, 16 hex digits each."""
        seen: Counter[bytes] = Counter()
        names = []
        for row in self.ids.numpy().astype("<i4"):
            digest = hashlib.blake2b(row.tobytes(), digest_size=8).digest()
            names.append(hashlib.blake2b(digest + seen[digest].to_bytes(4, "little"), digest_size=8).hexdigest())
            seen[digest] += 1
        return names

    def save(self, path: Path) -> None:
        tensors = {"ids": self.ids, "mask": self.mask, "source": self.source}
        save_file(tensors, path, metadata={"sources": "\n".join(self.sources)})

    @classmethod
    def load(cls, path: Path) -> Rows:
        with safe_open(path, framework="pt") as file:
            names = tuple(file.metadata()["sources"].split("\n"))
            return cls(file.get_tensor("ids"), file.get_tensor("mask"), file.get_tensor("source"), names)

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        offsets = np.cumsum([0] + [len(p.sources) for p in parts[:-1]])
        return cls(
            torch.cat([p.ids for p in parts]),
            torch.cat([p.mask for p in parts]),
            torch.cat([p.source + int(o) for p, o in zip(parts, offsets, strict=True)]),
            tuple(name for p in parts for name in p.sources),
        )


def pack(documents: Iterable[Sequence[int]], length: int, separator: int, name: str) -> Rows:
    """Documents one after another with `separator` between them, cut every `length` tokens. The last row is filled up
    with separators that do not count as targets. Raises DataError when there is nothing to pack."""
    stream: list[int] = []
    for document in documents:
        stream.extend(document)
        stream.append(separator)
    if len(stream) < 2:
        raise DataError(f"source '{name}' gives no text; look at its files")
    count = -(-len(stream) // length)
    padding = count * length - len(stream)
    ids = torch.tensor(stream + [separator] * padding, dtype=torch.int32).reshape(count, length)
    mask = torch.ones(count * length, dtype=torch.uint8)
    if padding:
        mask[-padding:] = 0
    return Rows(ids, mask.reshape(count, length), torch.zeros(count, dtype=torch.int64), (name,))
