"""ggml's own quantisers and dequantisers, called through libggml: the oracle of our formats and a rival of our fits.

Row letters: r rows, K weights in a row, b bytes of a packed row. numpy only; the library that llama-cpp-python
installed is loaded at the first call. ggml answers a wrong argument by ending the process (`GGML_ASSERT`), so every
size is checked here before it is called. Source: ggml.h, `ggml_quantize_chunk` and `ggml_get_type_traits`.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeslm.errors import FormatError, RuntimeFailure

# what `ggml_quantize_chunk` has a case for: f32 f16, q4_0 .. q8_0, q2_k .. q6_k, iq*, bf16, tq*, mxfp4 nvfp4 q1_0 q2_0
QUANTIZED = frozenset({0, 1, 2, 3, 6, 7, 8, *range(10, 15), *range(16, 24), 29, 30, 34, 35, 39, 40, 41, 42})
LIBRARIES = ("libggml-base.so*", "libggml-base.*dylib", "ggml-base.dll")


class _TypeTraits(ctypes.Structure):
    """struct ggml_type_traits"""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    )


def type_facts(ggml_type: int) -> tuple[str, int, int]:
    """(ggml's name of the type, weights in a block, bytes of a block). Raises FormatError for a number ggml lacks."""
    traits = _traits(ggml_type)
    return traits.type_name.decode(), traits.blck_size, traits.type_size


def quantize(
    ggml_type: int, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Rows [r, K] -> packed uint8 [r, b] by ggml's quantiser; importance [K] weighs the columns, as an imatrix does.

    Raises FormatError where ggml would end the process: rows no block divides, weights or importance that are not
    finite, importance of another length or negative, a type that ggml cannot quantise or not without importance.
    """
    name, block, size = type_facts(ggml_type)
    library = _library()
    rows = _rows(rows, np.float32, block, name, "weights")
    if ggml_type not in QUANTIZED:
        raise FormatError(f"ggml cannot quantise to {name}; choose a type that weights can be stored in")
    if not np.isfinite(rows).all():
        raise FormatError(f"{name}: the rows hold NaN or infinite weights, which ggml cannot quantise; mend them first")
    if importance is None and library.ggml_quantize_requires_imatrix(ggml_type):
        raise FormatError(f"ggml quantises to {name} only with importance; give one weight per column")
    weights = None if importance is None else _importance(importance, rows.shape[1])
    out = np.empty((rows.shape[0], rows.shape[1] // block * size), np.uint8)
    # prepares the search tables of the iq types itself (`ggml_quantize_init`)
    library.ggml_quantize_chunk(
        ggml_type, _at(rows), _at(out), 0, *rows.shape, None if weights is None else _at(weights)
    )
    return out


def dequantize(ggml_type: int, data: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
    """Packed uint8 [r, b] -> float32 [r, columns] by ggml. Raises FormatError when b is not `columns` weights."""
    name, block, size = type_facts(ggml_type)
    data = _rows(data, np.uint8, size, name, "bytes")
    if columns <= 0 or data.shape[1] // size * block != columns:
        raise FormatError(
            f"{name}: rows of {data.shape[1]} bytes hold {data.shape[1] // size * block} weights, not {columns}; "
            "give the bytes of whole rows"
        )
    if ggml_type == 0:
        return data.view(np.float32).copy()
    to_float = _traits(ggml_type).to_float
    if not to_float:
        raise FormatError(f"ggml has no conversion of {name} to float32; choose a type that weights can be stored in")
    out = np.empty((data.shape[0], columns), np.float32)
    to_float(_at(data), _at(out), out.size)
    return out


def _rows(array: NDArray[Any], dtype: type, block: int, name: str, what: str) -> NDArray[Any]:
    """Contiguous [r, m], r and m at least one and m a whole number of blocks."""
    if array.dtype != dtype or array.ndim != 2 or not array.size:
        raise FormatError(
            f"{name}: {what} must be {np.dtype(dtype).name} rows [r, m], not {array.dtype.name} of shape {array.shape}"
        )
    if array.shape[1] % block:
        raise FormatError(f"{name}: rows of {array.shape[1]} {what} are no whole number of blocks of {block}")
    return np.ascontiguousarray(array)


def _importance(importance: NDArray[Any], columns: int) -> NDArray[np.float32]:
    if importance.shape != (columns,):
        raise FormatError(f"importance has shape {importance.shape}; give one weight for each of the {columns} columns")
    if not np.isfinite(importance).all() or importance.min() < 0:
        raise FormatError("importance holds negative, NaN or infinite weights; give mean squared activations")
    return np.ascontiguousarray(importance, dtype=np.float32)


def _at(array: NDArray[Any]) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


@functools.cache
def _library() -> ctypes.CDLL:
    spec = importlib.util.find_spec("llama_cpp")
    folders = [Path(place) / "lib" for place in (spec.submodule_search_locations or ())] if spec else []
    found = [path for folder in folders for pattern in LIBRARIES for path in sorted(folder.glob(pattern))]
    if not found:
        raise RuntimeFailure("ggml's library is not installed here; run: python -m edgeslm.runtimes.native")
    library = ctypes.CDLL(str(found[0]))
    library.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    library.ggml_get_type_traits.argtypes = [ctypes.c_int]
    library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    library.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    pointers, counts = [ctypes.c_void_p] * 2, [ctypes.c_int64] * 3
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, *pointers, *counts, ctypes.c_void_p]
    return library


def _traits(ggml_type: int) -> _TypeTraits:
    # ggml reads its table without looking at the bounds, so numbers above those known here are not asked for
    traits = _library().ggml_get_type_traits(ggml_type).contents if 0 <= ggml_type <= max(QUANTIZED) else None
    if traits is None or not traits.blck_size or not traits.type_size:
        raise FormatError(f"ggml has no type number {ggml_type}; the numbers are those of enum ggml_type in ggml.h")
    return traits
