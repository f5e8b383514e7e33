"""onnxruntime's block product as grids of their own: 2, 4 or 8 bits, blocks of 16 to 256, float32 scales.

    n4_b32    | d f32 | qs 16 x uint8 |             20 bytes   w = (q - 8) d     q in 0..15
    n4a_b32   | d f32 | z u8 | qs 16 x uint8 |      21 bytes   w = (q - z) d     q, z in 0..15

    qs byte j of b-bit codes:  weight (8/b) j in the lowest b bits, the next weight above it

`n<bits>[a]_b<block>`; `a` (asymmetric) has a whole zero point in every block, without it zero is the middle 2^(bits-1).
Scales are float32: the operators want scales of the activations' type, and float32 is what every CPU kernel computes
in. Widths, blocks (a power of two from 16) and zero points are those that onnxruntime 1.31's CPU kernels of MatMulNBits
and GatherBlockQuantized take. A zero point takes a byte here; an ONNX file packs those of a row like its codes.

Source: onnxruntime's contrib operators (docs/ContribOperators.md). Shape letters as in base.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeslm.formats.base import BlockFormat, Scales
from edgeslm.formats.bits import as_bytes, pack_runs, unpack_runs
from edgeslm.formats.lattice import inverse
from edgeslm.formats.one_scale import one_scale

SOURCE = "onnxruntime MatMulNBits"
BITS = (2, 4, 8)
BLOCKS = (16, 32, 64, 128, 256)
LEAST = 2.0**-120  # a smaller scale has no finite inverse and is kept as 0: all its weights are 0
SHRINK = {2: (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4), 4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75), 8: (1.0, 0.98)}
REFINEMENTS = 2  # least-squares scale for the codes, codes for the scale


def _store(d: Tensor) -> Tensor:
    """A scale as the file keeps it: float32, or 0 where it is too small to divide by."""
    return torch.where(d.abs() < LEAST, torch.zeros_like(d), d)


def _counts(w: Tensor, d: Tensor, zero: Tensor | int, most: int) -> Tensor:
    """q - zero as float32 [n, k]: how many scales a weight is worth, clamped to what the width can say."""
    return torch.round(w * inverse(d)).add_(zero).clamp_(0, most).sub_(zero)


def _float32_at_0(data: Tensor) -> Tensor:
    """Four bytes of every block as [n, 1]. Copied: a slice of a single row keeps the stride of a whole block."""
    return data[:, :4].clone(memory_format=torch.contiguous_format).view(torch.float32)


class _Search:
    """Keeps the scale and zero point of least weighted squared error per block among the trials it is shown.

    Scales are not rounded, so the best one for given counts c is the least-squares one, d = sum(u w c) / sum(u c c),
    and takes sum(u w c)^2 / sum(u c c) off the error: that gain is what trials are compared by.
    """

    def __init__(self, w: Tensor, importance: Tensor | None, most: int):
        self.unit = torch.exp2(torch.frexp(w.abs().amax(1, keepdim=True)).exponent.to(torch.float32))
        self.w, self.importance, self.most = w / self.unit, importance, most  # so that no square overflows
        self.gain, self.d, self.zero = (w.new_zeros(w.shape[0], 1) for _ in range(3))

    def show(self, d: Tensor, zero: Tensor) -> None:
        counts = _counts(self.w, d, zero, self.most)
        weighted = counts if self.importance is None else counts * self.importance
        norm, dot = (weighted * counts).sum(1, keepdim=True), (weighted * self.w).sum(1, keepdim=True)
        least = dot / norm
        gain = torch.where(norm > 0, dot * least, torch.zeros_like(dot))
        better = gain > self.gain
        self.gain = torch.where(better, gain, self.gain)
        self.d, self.zero = torch.where(better, least, self.d), torch.where(better, zero, self.zero)

    def found(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point after a few rounds of: codes for the scale, scale for the codes."""
        for _ in range(REFINEMENTS):
            self.show(self.d, self.zero)
        return _store(self.d * self.unit), self.zero


def _symmetric(bits: int, block: int) -> BlockFormat:
    middle, most = 1 << (bits - 1), (1 << bits) - 1

    def best(w: Tensor, importance: Tensor | None) -> Tensor:
        """Either sign may have the longer side of the grid; below factor 1 the largest weight is clipped."""
        search, zero = _Search(w, importance, most), w.new_full((w.shape[0], 1), float(middle))
        extreme = search.w.gather(1, w.abs().argmax(1, keepdim=True))
        for factor in SHRINK[bits]:
            search.show(extreme * (-factor / middle), zero)
            search.show(extreme * (factor / (middle - 1)), zero)
        return search.found()[0]

    def encode(w: Tensor, scales: Scales) -> Tensor:
        return torch.round(w * inverse(scales["d"])).add_(middle).clamp_(0, most).to(torch.uint8)

    def levels(codes: Tensor) -> Tensor:
        return codes.to(torch.float32).sub_(middle)

    def pack(codes: Tensor, scales: Scales) -> Tensor:
        return torch.cat([as_bytes(scales["d"]), pack_runs(codes, bits)], dim=1)

    def unpack(data: Tensor) -> tuple[Tensor, Scales]:
        return unpack_runs(data[:, 4:], bits), {"d": _float32_at_0(data)}

    return one_scale(
        f"n{bits}_b{block}",
        block=block,
        size=4 + block * bits // 8,
        ggml_type=None,
        best=best,
        encode=encode,
        levels=levels,
        pack=pack,
        unpack=unpack,
        store=_store,
        source=SOURCE,
    )


def _asymmetric(bits: int, block: int) -> BlockFormat:
    most = (1 << bits) - 1

    def fit(w: Tensor, importance: Tensor | None = None) -> Scales:
        """The grid always holds 0 (code z), so it spans the weights and 0; both ends are drawn in and judged."""
        search = _Search(w, importance, most)
        low, high = search.w.amin(1, keepdim=True).clamp_(max=0), search.w.amax(1, keepdim=True).clamp_(min=0)
        for factor in SHRINK[bits]:
            d = (high - low) * (factor / most)
            centre = torch.round(-low * factor * inverse(d))
            for shift in (-1, 0, 1) if bits < 8 else (0,):
                search.show(d, (centre + shift).clamp_(0, most))
        d, zero = search.found()
        return {"d": d, "z": zero.to(torch.uint8)}

    def encode(w: Tensor, scales: Scales) -> Tensor:
        return torch.round(w * inverse(scales["d"])).add_(scales["z"]).clamp_(0, most).to(torch.uint8)

    def levels(codes: Tensor) -> Tensor:
        return codes.to(torch.float32)

    def decode(codes: Tensor, scales: Scales) -> Tensor:
        return codes.to(torch.float32).sub_(scales["z"]).mul_(scales["d"])

    def pack(codes: Tensor, scales: Scales) -> Tensor:
        return torch.cat([as_bytes(scales["d"]), scales["z"], pack_runs(codes, bits)], dim=1)

    def unpack(data: Tensor) -> tuple[Tensor, Scales]:
        scales = {"d": _float32_at_0(data), "z": data[:, 4:5]}
        return unpack_runs(data[:, 5:], bits), scales

    def spread(scales: Scales) -> tuple[Tensor, Tensor | None]:
        """q d - z d: what `decode` computes as (q - z) d, up to the rounding of the two products."""
        return scales["d"], scales["d"] * scales["z"]

    def gather(step: Tensor, minimum: Tensor | None, scales: Scales) -> Scales:
        d = _store(step)
        assert minimum is not None
        return {"d": d, "z": torch.round(minimum * inverse(d)).clamp_(0, most).to(torch.uint8)}

    return BlockFormat(
        name=f"n{bits}a_b{block}",
        block=block,
        bytes=5 + block * bits // 8,
        ggml_type=None,
        decode=decode,
        pack=pack,
        unpack=unpack,
        fit=fit,
        encode=encode,
        levels=levels,
        spread=spread,
        gather=gather,
        source=SOURCE,
    )


NBITS: dict[str, BlockFormat] = {
    f.name: f for make in (_symmetric, _asymmetric) for bits in BITS for block in BLOCKS for f in [make(bits, block)]
}
