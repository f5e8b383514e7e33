"""What a number format is: a grid with few pure verbs, of which only `encode` rounds.

Shape letters: n blocks, k weights in a block, b bytes of a packed block.

    fit(w [n, k], importance [n, k] | None) -> scales      searches scales, already on the grid the file stores
    encode(w [n, k], scales) -> codes [n, k]               rounds; the only lossy verb
    decode(codes [n, k], scales) -> float32 [n, k]         bit-equal to ggml
    pack(codes, scales) -> uint8 [n, b]                    moves bits; no float arithmetic
    unpack(uint8 [n, b]) -> (codes, scales)                moves bits; no float arithmetic

Codebook formats have one code for `per_code` weights (codes [n, k / per_code]), and which is nearest depends on what
those weigh: their `encode` takes importance [n, k] as well. `nearest` calls every format alike.

`scales` is a dict of tensors with leading dimension n, named as ggml names them (`d`, `m`, `dmin`, ...).

Every trainable grid is linear in what its scales mean, which is what lets scales be learned. With g groups in a block:

    levels(codes [n, k]) -> float32 [n, k]                 what a code counts: q - 8, a table's entry, ...
    spread(scales) -> (step [n, g], minimum [n, g] | None) decode = levels * step - minimum, in float32
    gather(step, minimum, scales) -> scales                puts both on the grid the file stores. Scales of scales
                                                           (K formats' `d`, `dmin`) are kept from the given scales
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edgeslm.errors import FormatError

Scales = dict[str, Tensor]


@dataclass(frozen=True)
class BlockFormat:
    """A number grid. Verbs that a read-only format lacks are None (some codebook types)."""

    name: str
    block: int  # weights per block
    bytes: int  # packed bytes per block
    ggml_type: int | None  # value of enum ggml_type; None where ggml has no such type
    decode: Callable[[Tensor, Scales], Tensor]
    pack: Callable[[Tensor, Scales], Tensor]
    unpack: Callable[[Tensor], tuple[Tensor, Scales]]
    fit: Callable[..., Scales] | None = None
    encode: Callable[..., Tensor] | None = None
    reference: Callable[[Tensor], Tensor] | None = None  # ggml's own quantiser, byte for byte: float [n, k] -> [n, b]
    levels: Callable[[Tensor], Tensor] | None = None
    spread: Callable[[Scales], tuple[Tensor, Tensor | None]] | None = None
    gather: Callable[[Tensor, Tensor | None, Scales], Scales] | None = None
    source: str = ""
    per_code: int = 1  # weights that one code stands for: codes are [n, k / per_code]

    @property
    def bits(self) -> float:
        """Stored bits per weight, scales included."""
        return 8 * self.bytes / self.block

    def nearest(self, w: Tensor, scales: Scales, importance: Tensor | None) -> Tensor:
        """encode, with the importance [n, k] or None that the scales were fitted with where that makes a difference."""
        assert self.encode is not None
        return self.encode(w, scales, importance) if self.per_code > 1 else self.encode(w, scales)

    def to_blocks(self, w: Tensor, name: str = "tensor") -> Tensor:
        """[..., K] -> [n, k], float32. Raises FormatError when a row is no whole number of blocks or not finite."""
        if w.shape[-1] % self.block:
            raise FormatError(
                f"{name}: rows of {w.shape[-1]} are no multiple of the {self.block}-weight blocks of {self.name}; "
                f"give this tensor a format with a block that divides {w.shape[-1]}"
            )
        if not torch.isfinite(w).all():
            raise FormatError(f"{name}: holds NaN or infinite weights, which {self.name} cannot store")
        return w.detach().to(torch.float32).reshape(-1, self.block)

    def dequantize(self, data: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Packed bytes (any shape, uint8) of a whole tensor -> float32 of `shape`."""
        codes, scales = self.unpack(data.reshape(-1, self.bytes))
        return self.decode(codes, scales).reshape(shape)
