"""Whether a file did well because its grid holds the grid the float student was once read from.

A student read from a 4-bit file lies on 16 levels a block. Other grids may hold those levels too: Q5_1 with half the
step holds all of Q4_1's, Q4_K and Q5_K nearly so. Such a file says nothing about quantising float weights, though no
tensor has its source's type. It shows in the error: far below what the same type leaves on Gaussian rows.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.rivals.base import FLOATS, Student
from edgeslm.models import gguf_file
from edgeslm.models.gguf_file import GGML_TYPES
from edgeslm.runtimes import libggml

ROWS = 64  # of every matrix
BELOW = 0.7  # of the Gaussian error; weights that are on no grid stay within a tenth of it
NEED_IMPORTANCE = frozenset({"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs"})  # ggml's quantiser refuses them without


def inherited(path: Path, student: Student) -> list[str]:
    """Types in the file whose error on matrices from a gridded source is below BELOW of that on Gaussian rows."""
    if not student.source_types:
        return []
    made, whole = gguf_file.read(path), gguf_file.read(student.gguf)
    sums: dict[str, NDArray[np.float64]] = {}
    for name in student.source_types:
        info = made.tensors[name]
        if info.format in FLOATS:
            continue
        rows, columns = min(ROWS, info.shape[0]), info.shape[1]
        packed = np.frombuffer(made.data, np.uint8, info.nbytes // info.shape[0] * rows, info.offset)
        weights = np.frombuffer(whole.data, "<f4", rows * columns, whole.tensors[name].offset).reshape(rows, columns)
        found = libggml.dequantize(info.ggml_type, packed.reshape(rows, -1), columns)
        part = np.array(
            [np.square(found - weights, dtype=np.float64).sum(), np.square(weights, dtype=np.float64).sum()]
        )
        sums[info.format] = sums.get(info.format, np.zeros(2)) + part
    return sorted(kind for kind, (wrong, all_of_it) in sums.items() if wrong < BELOW**2 * all_of_it * gaussian(kind))


@functools.cache
def gaussian(kind: str) -> float:
    """Squared error of ggml's quantiser on Gaussian rows, as a share of their squares."""
    number = next(n for n, (name, _, _) in GGML_TYPES.items() if name == kind)
    rows = np.random.default_rng(0).standard_normal((16, 1024), dtype=np.float32)
    weights = np.ones(rows.shape[1], np.float32) if kind in NEED_IMPORTANCE else None
    back = libggml.dequantize(number, libggml.quantize(number, rows, weights), rows.shape[1])
    return float(np.square(back - rows).sum() / np.square(rows).sum())
