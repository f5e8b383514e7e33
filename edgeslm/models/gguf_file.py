"""Our reader of GGUF files, versions 2 and 3: metadata and tensor table, every number checked before it is used.

    file:  "GGUF" | u32 version | u64 tensors | u64 pairs | pairs | tensor infos | padding | tensor data
    pair:  string key | u32 type | value            string: u64 length | UTF-8 bytes
    array: u32 element type | u64 count | elements  info: string name | u32 n | n x u64 ne | u32 type | u64 offset

`ne` runs from the fastest dimension to the slowest, torch the other way round. Offsets count from the start of the
data section, which begins at the next multiple of `general.alignment` (32 unless the file says otherwise).
Source: the GGUF specification of ggml (docs/gguf.md).
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeslm.errors import ModelError

if TYPE_CHECKING:  # a header is read on machines without torch, too
    from torch import Tensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MAX_KEY_BYTES = 65535
MAX_NAME_BYTES = 63
LEAST_PAIR_BYTES = 8 + 4 + 1  # empty key, type, one byte of value
LEAST_INFO_BYTES = 8 + 4 + 4 + 8
U32, U64, INFO_END = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<IQ")

# metadata value type -> numpy type; 8 is a string, 9 an array
SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "|b1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
STRING, ARRAY, BOOL = 8, 9, 7

# enum ggml_type -> (name, weights in a block, bytes of a block); what a file may hold, decodable by us or not
GGML_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("f32", 1, 4),
    1: ("f16", 1, 2),
    2: ("q4_0", 32, 18),
    3: ("q4_1", 32, 20),
    6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24),
    8: ("q8_0", 32, 34),
    9: ("q8_1", 32, 40),
    10: ("q2_k", 256, 84),
    11: ("q3_k", 256, 110),
    12: ("q4_k", 256, 144),
    13: ("q5_k", 256, 176),
    14: ("q6_k", 256, 210),
    15: ("q8_k", 256, 292),
    16: ("iq2_xxs", 256, 66),
    17: ("iq2_xs", 256, 74),
    18: ("iq3_xxs", 256, 98),
    19: ("iq1_s", 256, 50),
    20: ("iq4_nl", 32, 18),
    21: ("iq3_s", 256, 110),
    22: ("iq2_s", 256, 82),
    23: ("iq4_xs", 256, 136),
    24: ("i8", 1, 1),
    25: ("i16", 1, 2),
    26: ("i32", 1, 4),
    27: ("i64", 1, 8),
    28: ("f64", 1, 8),
    29: ("iq1_m", 256, 56),
    30: ("bf16", 1, 2),
    34: ("tq1_0", 256, 54),
    35: ("tq2_0", 256, 66),
    39: ("mxfp4", 32, 17),
    40: ("nvfp4", 64, 36),
    41: ("q1_0", 128, 18),
    42: ("q2_0", 64, 18),
}


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies. `shape` is in torch order; `offset` counts from the start of the file, in bytes."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int
    nbytes: int

    @property
    def format(self) -> str:
        return GGML_TYPES[self.ggml_type][0]

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class GGUFFile:
    """A file whose header has been read and checked; the tensor data stays mapped and is read on demand."""

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    data: mmap.mmap

    @property
    def arch(self) -> str:
        """`general.architecture`. Raises ModelError when the file does not name one."""
        return str(self.need("general.architecture", str))

    def need(self, key: str, kind: type | tuple[type, ...]) -> Any:
        """A metadata value that must be there and of `kind`. Raises ModelError."""
        value = self.metadata.get(key)
        if value is None:
            raise ModelError(f"{self.path}: the metadata has no '{key}'; the file is not a complete model")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ModelError(f"{self.path}: metadata '{key}' is of type {type(value).__name__}; the file is damaged")
        return value

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise ModelError(f"{self.path}: there is no tensor '{name}'; the file is not a complete model")
        return self.tensors[name]

    def raw(self, name: str) -> Tensor:
        """uint8 [nbytes], the packed bytes, not copied. Raises ModelError when there is no such tensor."""
        import torch

        info = self._info(name)
        if not info.nbytes:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(self.data, dtype=torch.uint8, count=info.nbytes, offset=info.offset)

    def load(self, name: str) -> Tensor:
        """float32 of the tensor's shape, decoded. Raises ModelError for a type no format of ours decodes."""
        from edgeslm.formats import FORMATS, by_ggml_type  # here, so that a header can be read without them

        info = self._info(name)
        known = by_ggml_type(info.ggml_type)
        if known is None:
            raise ModelError(
                f"{self.path}: tensor '{name}' is stored as {info.format}, which cannot be decoded; "
                f"take a file in one of {', '.join(n for n, f in FORMATS.items() if f.ggml_type is not None)}"
            )
        return known.dequantize(self.raw(name), info.shape)


def read(path: Path) -> GGUFFile:
    """Read and check the header of a GGUF file. Raises ModelError for anything that is wrong with it."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            # copy-on-write: torch may look at the pages without a warning, nothing reaches the file
            blob = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise ModelError(f"{path}: cannot be read as a GGUF file ({error}); check the path") from error
    return _Cursor(path, blob).file()


class _Cursor:
    """A position in the mapped bytes; every step forward checks that the bytes are there."""

    def __init__(self, path: Path, blob: mmap.mmap):
        self.path, self.blob, self.size, self.at = path, blob, len(blob), 0

    def fail(self, what: str) -> ModelError:
        return ModelError(f"{self.path}: {what}; the file is damaged or incomplete, fetch it again")

    def take(self, nbytes: int, what: str) -> int:
        """Position of the next `nbytes` bytes, which are thereby passed. Raises ModelError when the file ends first."""
        start = self.at
        if nbytes > self.size - start:
            raise self.fail(f"ends inside {what} at byte {self.size}")
        self.at = start + nbytes
        return start

    def u32(self, what: str) -> int:
        return int(U32.unpack_from(self.blob, self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(U64.unpack_from(self.blob, self.take(8, what))[0])

    def string(self, what: str) -> str:
        length = self.u64(what)
        start = self.take(length, what)
        try:
            return self.blob[start : self.at].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8") from error

    def strings(self, count: int, what: str) -> list[str]:
        """An array of strings: the one long loop of a header (300,000 rounds), so without a call per string."""
        blob, at, size, unpack, found = self.blob, self.at, self.size, U64.unpack_from, []
        try:
            for _ in range(count):
                start = at + 8
                at = start + unpack(blob, at)[0]
                if at > size:
                    raise self.fail(f"ends inside {what} at byte {size}")
                found.append(blob[start:at].decode("utf-8"))
        except struct.error as error:
            raise self.fail(f"ends inside {what} at byte {size}") from error
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} holds a string that is not UTF-8") from error
        self.at = at
        return found

    def numbers(self, kind: int, count: int, what: str) -> np.ndarray:
        dtype = np.dtype(SCALARS[kind])
        start = self.take(count * dtype.itemsize, what)
        if kind == BOOL:  # any other byte than 0 and 1 would be undefined as a numpy bool
            return np.frombuffer(self.blob, np.uint8, count, start) != 0
        return np.frombuffer(self.blob, dtype, count, start)

    def value(self, key: str) -> Any:
        what = f"metadata '{key}'"
        kind = self.u32(what)
        if kind == STRING:
            return self.string(what)
        if kind in SCALARS:
            return self.numbers(kind, 1, what)[0].item()
        if kind != ARRAY:
            raise self.fail(f"{what} has the unknown value type {kind}")
        kind, count = self.u32(what), self.u64(what)
        if kind not in SCALARS and kind != STRING:
            raise self.fail(f"{what} is an array of the unsupported type {kind}")
        if count > self.size:  # before any allocation: an element takes at least one byte
            raise self.fail(f"{what} claims {count} elements, more than the file has bytes")
        return self.strings(count, what) if kind == STRING else self.numbers(kind, count, what).tolist()

    def count(self, what: str, least_bytes: int) -> int:
        count = self.u64(f"the number of {what}")
        if count > self.size // least_bytes:
            raise self.fail(f"claims {count} {what}, more than {self.size} bytes can hold")
        return count

    def file(self) -> GGUFFile:
        if self.blob[:4] != MAGIC:
            raise ModelError(f"{self.path}: does not begin with 'GGUF'; it is not a GGUF file")
        self.at = 4
        version = self.u32("the version")
        if version not in VERSIONS:
            raise ModelError(
                f"{self.path}: is GGUF version {version} (or of the other byte order); only versions 2 and 3, "
                "little-endian, can be read, convert it anew"
            )
        tensors = self.count("tensors", LEAST_INFO_BYTES)
        pairs = self.count("metadata pairs", LEAST_PAIR_BYTES)
        metadata: dict[str, Any] = {}
        for index in range(pairs):
            key = self.string(f"the key of metadata pair {index}")
            if key in metadata or not key or len(key) > MAX_KEY_BYTES:
                raise self.fail(f"metadata key '{key[:80]}' is empty, too long or given twice")
            metadata[key] = self.value(key)
        table = self.table(tensors, metadata.get("general.alignment", DEFAULT_ALIGNMENT))
        return GGUFFile(self.path, version, metadata, table, self.blob)

    def table(self, count: int, alignment: Any) -> dict[str, TensorInfo]:
        if not isinstance(alignment, int) or isinstance(alignment, bool) or alignment < 8 or alignment % 8:
            raise self.fail(f"general.alignment is {alignment!r}, which is no positive multiple of 8")
        found: dict[str, TensorInfo] = {}
        for index in range(count):
            info = self.info(index, alignment)
            if info.name in found:
                raise self.fail(f"tensor '{info.name}' is given twice")
            found[info.name] = info
        start = -(-self.at // alignment) * alignment
        placed = {t.name: TensorInfo(t.name, t.shape, t.ggml_type, start + t.offset, t.nbytes) for t in found.values()}
        end = start
        for tensor in sorted(placed.values(), key=lambda t: t.offset):
            if tensor.offset < end:
                raise self.fail(f"tensor '{tensor.name}' overlaps the one before it")
            end = tensor.offset + tensor.nbytes
            if end > self.size:
                raise self.fail(f"tensor '{tensor.name}' reaches byte {end} but the file ends at {self.size}")
        return placed

    def info(self, index: int, alignment: int) -> TensorInfo:
        """One entry of the tensor table; `offset` still counts from the start of the data section."""
        name = self.string(f"the name of tensor {index}")
        what = f"tensor '{name[:80]}'"
        if not name or len(name.encode()) > MAX_NAME_BYTES:
            raise self.fail(f"{what} has an empty name or one of more than {MAX_NAME_BYTES} bytes")
        dimensions = self.u32(what)
        if dimensions > MAX_DIMENSIONS:
            raise self.fail(f"{what} claims {dimensions} dimensions")
        shape = tuple(self.u64(what) for _ in range(dimensions))[::-1]
        ggml_type, offset = INFO_END.unpack_from(self.blob, self.take(INFO_END.size, what))
        if ggml_type not in GGML_TYPES:
            raise ModelError(
                f"{self.path}: {what} is of the unknown ggml type {ggml_type}; take a file in a known format"
            )
        name_of_type, block, block_bytes = GGML_TYPES[ggml_type]
        columns = shape[-1] if shape else 1
        if columns % block:
            raise self.fail(f"{what} has rows of {columns}, no multiple of the {block}-weight blocks of {name_of_type}")
        nbytes = math.prod(shape) // block * block_bytes
        if offset % alignment or nbytes > self.size:
            raise self.fail(f"{what} ({name_of_type}, shape {list(shape)}) does not fit the file at offset {offset}")
        return TensorInfo(name, shape, ggml_type, offset, nbytes)
