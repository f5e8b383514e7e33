"""llama.cpp's importance matrix: how strongly text excites the input channels of every weight, as a file.

    GGUF      general.type "imatrix" | imatrix.datasets [string] | imatrix.chunk_count u32 | imatrix.chunk_size u32
              per weight  <GGUF name>.in_sum2  f32 [m, K]   sum of squared inputs
                          <GGUF name>.counts   f32 [m, 1]   tokens summed over
    legacy    i32 entries | entries | i32 chunks | i32 length | dataset        (the last three may be absent)
      entry   i32 length | name | i32 calls | i32 m * K | f32 m * K            mean square times calls

m is 1 but for mixtures of experts. A channel of an expert that saw no token counts 1, as in llama.cpp's quantiser.
Source: tools/imatrix/imatrix.cpp, common/imatrix-loader.cpp and tools/quantize/quantize.cpp of llama.cpp.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeslm.errors import ModelError
from edgeslm.models import gguf_file

SUMS, COUNTS = ".in_sum2", ".counts"
I32 = struct.Struct("<i")
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Entry:
    """`sums` float32 [m, K] of squared inputs over `counts` float32 [m] tokens."""

    sums: Floats
    counts: Floats

    def mean(self) -> Floats:
        """float32 [m * K], what llama.cpp's quantiser weighs squared errors with."""
        counts = self.counts[:, None]
        return np.where(counts > 0, self.sums / np.maximum(counts, np.float32(1)), np.float32(1)).reshape(-1)


@dataclass(frozen=True)
class ImportanceMatrix:
    """`entries` by GGUF tensor name. `chunk_size` is in tokens (0: a legacy file does not say)."""

    entries: dict[str, Entry]
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int

    def means(self, names: Mapping[str, str]) -> dict[str, Floats]:
        """{transformers name: float32 [K]} by an architecture's `names`; weights without an entry are left out."""
        return {ours: self.entries[theirs].mean() for ours, theirs in names.items() if theirs in self.entries}


def from_means(
    means: Mapping[str, Floats], tokens: int, names: Mapping[str, str], datasets: tuple[str, ...], chunk_size: int
) -> ImportanceMatrix:
    """{transformers name: mean squared inputs [K]} over `tokens` tokens, named as GGUF does.

    Raises ModelError for a weight that the architecture's `names` does not hold or a mean that is not finite.
    """
    entries = {}
    for ours, mean in sorted(means.items()):
        if ours not in names:
            raise ModelError(f"{ours}: the architecture has no GGUF name for this weight; take the model's own map")
        if not np.isfinite(mean).all():
            raise ModelError(f"{ours}: its inputs overflow on this text; gather statistics in float32")
        sums = np.asarray(mean, np.float32).reshape(1, -1) * np.float32(tokens)
        entries[names[ours]] = Entry(sums, np.array([tokens], np.float32))
    return ImportanceMatrix(entries, datasets, -(-tokens // chunk_size), chunk_size)


def write(matrix: ImportanceMatrix, path: Path) -> None:
    """The GGUF form, in place only when it is whole. Raises ModelError when there is nothing to write."""
    from gguf import GGUFValueType, GGUFWriter

    if not matrix.entries or not matrix.datasets:  # llama.cpp refuses a file without either
        raise ModelError(f"{path}: an importance matrix needs entries and the name of the text they were gathered on")
    part = path.with_name(path.name + ".part")
    writer = GGUFWriter(part, "imatrix")
    writer.kv_data[0].clear()  # llama.cpp's own files name no architecture
    writer.add_type("imatrix")
    writer.add_key_value("imatrix.datasets", list(matrix.datasets), GGUFValueType.ARRAY)
    writer.add_uint32("imatrix.chunk_count", matrix.chunk_count)
    writer.add_uint32("imatrix.chunk_size", matrix.chunk_size)
    for name, entry in sorted(matrix.entries.items()):
        writer.add_tensor(name + SUMS, np.ascontiguousarray(entry.sums, np.float32))
        writer.add_tensor(name + COUNTS, np.ascontiguousarray(entry.counts, np.float32).reshape(-1, 1))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    os.replace(part, path)


def read(path: Path) -> ImportanceMatrix:
    """Either form. Raises ModelError for whatever is wrong with the file."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(4)
            matrix = None if head == gguf_file.MAGIC else _legacy(path, head + file.read())
    except OSError as error:
        raise ModelError(f"{path}: cannot be read as an importance matrix ({error}); check the path") from error
    matrix = matrix or _gguf(path)
    for name, entry in matrix.entries.items():
        finite = np.isfinite(entry.sums).all() and np.isfinite(entry.counts).all()
        if not finite or (entry.sums < 0).any() or (entry.counts < 0).any():
            raise ModelError(f"{path}: '{name}' holds negative or infinite sums of squares; the file is damaged")
    return matrix


def _gguf(path: Path) -> ImportanceMatrix:
    file = gguf_file.read(path)
    if file.metadata.get("general.type", "imatrix") != "imatrix":
        raise ModelError(f"{path}: is a GGUF {file.metadata['general.type']}, no importance matrix; check the path")
    datasets = file.need("imatrix.datasets", list)
    if not all(isinstance(d, str) for d in datasets):
        raise ModelError(f"{path}: metadata 'imatrix.datasets' holds something else than names; the file is damaged")
    entries = {}
    for name in sorted(n.removesuffix(SUMS) for n in file.tensors if n.endswith(SUMS)):
        sums, counts = _floats(file, name + SUMS), _floats(file, name + COUNTS)
        if not sums.size or not counts.size or sums.size % counts.size:
            raise ModelError(
                f"{path}: '{name}' has {sums.size} sums and {counts.size} counts, which do not belong together; "
                "the file is damaged"
            )
        entries[name] = Entry(sums.reshape(counts.size, -1), counts)
    if not entries:
        raise ModelError(f"{path}: has no tensor that ends in '{SUMS}'; it is no importance matrix")
    chunks, size = file.need("imatrix.chunk_count", int), file.need("imatrix.chunk_size", int)
    return ImportanceMatrix(entries, tuple(datasets), chunks, size)


def _floats(file: gguf_file.GGUFFile, name: str) -> Floats:
    """A float32 tensor, flat (ggml leaves out dimensions of 1), copied out of the mapped file."""
    info = file.tensors.get(name)
    if info is None or info.format != "f32":
        what = "is missing" if info is None else f"is stored as {info.format} where float32 is needed"
        raise ModelError(f"{file.path}: tensor '{name}' {what}; the file is no complete importance matrix")
    return np.frombuffer(file.data, "<f4", info.nbytes // 4, info.offset).astype(np.float32)


def _legacy(path: Path, blob: bytes) -> ImportanceMatrix:
    """The .dat form; every length is checked against what is left of the file."""
    at = 0

    def take(nbytes: int, what: str) -> bytes:
        nonlocal at
        if nbytes < 0 or nbytes > len(blob) - at:
            raise ModelError(f"{path}: ends inside {what}; it is neither GGUF nor a whole legacy importance matrix")
        at += nbytes
        return blob[at - nbytes : at]

    def integer(what: str) -> int:
        return int(I32.unpack(take(4, what))[0])

    def text(what: str) -> str:
        return take(integer(what), what).decode("utf-8", "replace")

    entries = {}
    for index in range(_at_least_one(path, integer("the number of entries"), "entries")):
        name = text(f"the name of entry {index}")
        calls = integer(f"entry '{name}'")
        values = _at_least_one(path, integer(f"entry '{name}'"), f"values in entry '{name}'")
        sums = np.frombuffer(take(4 * values, f"entry '{name}'"), "<f4").astype(np.float32)
        # quantize.cpp divides by the calls, and by nothing when there were none
        entries[name] = Entry(sums[None], np.array([max(calls, 1)], np.float32))
    chunks = integer("the number of chunks") if at < len(blob) else 0
    datasets = (text("the name of the dataset"),) if at < len(blob) else ()
    return ImportanceMatrix(entries, datasets, chunks, 0)


def _at_least_one(path: Path, count: int, what: str) -> int:
    if count < 1:
        raise ModelError(f"{path}: claims {count} {what}; it is neither GGUF nor a legacy importance matrix")
    return count
