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
    """ids [R, T] int32, mask [R, T] uint8 (token counts as a target), source [R] index into `sources`. `answers`
    [R, T] uint8: the token is an assistant's own (edgeslm.data.answers); None where nobody asked."""

    ids: Tensor
    mask: Tensor
    source: Tensor
    sources: tuple[str, ...]
    answers: Tensor | None = None

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
        if self.answers is not None:
            tensors["answers"] = self.answers
        save_file(tensors, path, metadata={"sources": "\n".join(self.sources)})

    @classmethod
    def load(cls, path: Path) -> Rows:
        with safe_open(path, framework="pt") as file:
            names = tuple(file.metadata()["sources"].split("\n"))
            answers = file.get_tensor("answers") if "answers" in file.keys() else None  # noqa: SIM118 (not a mapping)
            return cls(file.get_tensor("ids"), file.get_tensor("mask"), file.get_tensor("source"), names, answers)

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        offsets = np.cumsum([0] + [len(p.sources) for p in parts[:-1]])
        return cls(
            torch.cat([p.ids for p in parts]),
            torch.cat([p.mask for p in parts]),
            torch.cat([p.source + int(o) for p, o in zip(parts, offsets, strict=True)]),
            tuple(name for p in parts for name in p.sources),
            None if any(p.answers is None for p in parts) else torch.cat([p.answers for p in parts]),  # type: ignore[misc]
        )


def pack(
    documents: Iterable[Sequence[int]],
    length: int,
    separator: int,
    name: str,
    answers: Iterable[Sequence[int]] | None = None,
) -> Rows:
    """Documents one after another with `separator` between them, cut every `length` tokens. The last row is filled up
    with separators that do not count as targets. `answers`: 0 or 1 for each token of each document. Raises DataError
    when there is nothing to pack."""
    stream: list[int] = []
    for document in documents:
        stream.extend(document)
        stream.append(separator)
    if len(stream) < 2:
        raise DataError(f"source '{name}' gives no text; look at its files")
    count = -(-len(stream) // length)
    padding = count * length - len(stream)
    mask = torch.ones(count * length, dtype=torch.uint8)
    if padding:
        mask[-padding:] = 0
    marks = None
    if answers is not None:
        flat = [mark for some in answers for mark in (*some, 0)]
        marks = torch.tensor(flat + [0] * padding, dtype=torch.uint8).reshape(count, length)
    ids = torch.tensor(stream + [separator] * padding, dtype=torch.int32).reshape(count, length)
    return Rows(ids, mask.reshape(count, length), torch.zeros(count, dtype=torch.int64), (name,), marks)


def pack_whole(
    documents: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], length: int, separator: int, name: str
) -> Rows:
    """Documents that are not cut, so that no answer is read without its question: each goes into the fullest row that
    still has room for it, the longest first (best-fit packing, arXiv:2404.10830), rows are filled up with separators
    that count for nothing. Only a document longer than a row is cut, every `length` tokens. Raises DataError when there
    is nothing to pack."""
    pieces = [
        (list(d[at : at + length]), list(a[at : at + length]))
        for d, a in zip(documents, answers, strict=True)
        for at in range(0, len(d), length)
    ]
    if not pieces:
        raise DataError(f"source '{name}' gives no dialogue; look at its files")
    rows: list[tuple[list[int], list[int]]] = []
    open_rows: dict[int, list[int]] = {}  # room that is left -> rows
    for ids, marks in sorted(pieces, key=lambda piece: -len(piece[0])):
        room = next((r for r in range(len(ids), length + 1) if open_rows.get(r)), None)
        index = len(rows) if room is None else open_rows[room].pop()
        if room is None:
            rows.append(([], []))
        row, marked = rows[index]
        row += [*ids, separator][: length - len(row)]
        marked += [*marks, 0][: length - len(marked)]
        open_rows.setdefault(length - len(row), []).append(index)
    fill = [length - len(row) for row, _ in rows]
    ids_ = torch.tensor([row + [separator] * n for (row, _), n in zip(rows, fill, strict=True)], dtype=torch.int32)
    mask = torch.tensor([[1] * (length - n) + [0] * n for n in fill], dtype=torch.uint8)
    marks_ = torch.tensor([marked + [0] * n for (_, marked), n in zip(rows, fill, strict=True)], dtype=torch.uint8)
    return Rows(ids_, mask, torch.zeros(len(rows), dtype=torch.int64), (name,), marks_)
