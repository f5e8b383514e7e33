"""Packed ggml rows -> float32 for the verifier, with nothing that the writer uses: the gguf package's numpy code, and
small decoders here for the types its release does not know yet.

    q1_0  | d f16 | qs 16 bytes, bit j of byte i is weight 8i + j |        w = d where the bit is 1, else -d
    q2_0  | d f16 | qs 16 bytes, 2 bits each, weight 4i lowest |           w = (q - 1) d

Source: ggml-quants.c `dequantize_row_q1_0`, `dequantize_row_q2_0`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray


def _q1_0(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return np.where(np.unpackbits(blocks[:, 2:], axis=1, bitorder="little") == 1, d, -d)


def _q2_0(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    d = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").astype(np.int32)
    return (bits[:, 0::2] + 2 * bits[:, 1::2] - 1).astype(np.float32) * d


NEWER: dict[int, tuple[int, Callable[[NDArray[np.uint8]], NDArray[np.float32]]]] = {41: (18, _q1_0), 42: (18, _q2_0)}


def decode(rows: NDArray[np.uint8], ggml_type: int) -> NDArray[np.float32]:
    """uint8 [rows, bytes] -> float32 [rows, K]. Raises ValueError for a type that is unknown here as well."""
    if ggml_type in NEWER:
        size, decoder = NEWER[ggml_type]
        return decoder(rows.reshape(-1, size)).reshape(rows.shape[0], -1)
    kind: Any = GGMLQuantizationType(ggml_type)
    with np.errstate(all="ignore"):  # damaged scales may be anything; what comes out is compared bit by bit
        return dequantize(rows, kind)
