"""Formats whose blocks hold codes and one scale `d`: w = levels(q) d. What differs between them is given, the rest is
here once. Shape letters as in base.py."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from edgeslm.formats.base import BlockFormat, Scales
from edgeslm.formats.search import to_float16


def one_scale(
    name: str,
    *,
    block: int,
    size: int,
    ggml_type: int | None,
    best: Callable[[Tensor, Tensor | None], Tensor],
    encode: Callable[[Tensor, Scales], Tensor],
    levels: Callable[[Tensor], Tensor],
    pack: Callable[[Tensor, Scales], Tensor],
    unpack: Callable[[Tensor], tuple[Tensor, Scales]],
    store: Callable[[Tensor], Tensor] = to_float16,
    source: str = "ggml-quants.c",
) -> BlockFormat:
    """`best(w, importance)` is the scale [n, 1] of least error before `store` puts it on the grid the file keeps."""

    def fit(w: Tensor, importance: Tensor | None = None) -> Scales:
        return {"d": store(best(w, importance))}

    def decode(codes: Tensor, scales: Scales) -> Tensor:
        return levels(codes).mul_(scales["d"].float())

    def spread(scales: Scales) -> tuple[Tensor, Tensor | None]:
        return scales["d"].float(), None

    def gather(step: Tensor, minimum: Tensor | None, scales: Scales) -> Scales:
        return {"d": store(step)}

    return BlockFormat(
        name=name,
        block=block,
        bytes=size,
        ggml_type=ggml_type,
        decode=decode,
        pack=pack,
        unpack=unpack,
        fit=fit,
        encode=encode,
        levels=levels,
        spread=spread,
        gather=gather,
        source=source,
    )
