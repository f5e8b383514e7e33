"""Which grids onnxruntime's n-bit product holds exactly. Free of the onnx package: `check` asks without it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NBits:
    """How a grid's codes become the operator's: u = code + shift, in `bits` bits, so that u - 2^(bits-1) is exact."""

    bits: int
    shift: int


GRIDS: dict[str, NBits] = {
    "q4_0": NBits(4, 0),
    "q4_0_portable": NBits(4, 0),
    "q5_0": NBits(8, 112),  # (q - 16) = (q + 112) - 128
    "q8_0": NBits(8, 128),
}
