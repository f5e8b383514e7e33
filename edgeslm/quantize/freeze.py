"""Masters become integers, once. Everything after this only moves bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeslm.formats import FORMATS
from edgeslm.quantize.frozen import Frozen, FrozenTensor
from edgeslm.quantize.masters import Masters
from edgeslm.quantize.plan import FLOATS


@torch.no_grad()
def freeze(
    masters: Masters,
    arch: str,
    config: Mapping[str, Any],
    tokenizer: Path,
    name: str,
    metadata: dict[str, str],
    whole: Callable[[Tensor, Tensor], Tensor] = lambda blocks, value: blocks,
) -> Frozen:
    """The scales are those the last step trained with; a tensor that was never on its grid is fitted here. `whole`: all
    blocks of a value of which this process holds a part."""
    tensors = {}
    for master in masters.items:
        if master.on_grid and not master.scales:
            master.fit()
        tensors[master.name] = FrozenTensor(
            master.format.name,
            tuple(master.value.shape),
            whole(master.codes(), master.value).cpu(),
            {k: whole(v, master.value).cpu() for k, v in master.scales.items()},
        )
    return Frozen(arch, dict(config), tensors, tokenizer, name, metadata)


@torch.no_grad()
def freeze_floats(
    weights: Mapping[str, Tensor],
    format_name: str,
    arch: str,
    config: Mapping[str, Any],
    tokenizer: Path,
    name: str,
    metadata: dict[str, str],
) -> Frozen:
    """A model as it is in `f32`, `f16` or `bf16`; vectors stay float32. For full-precision teachers."""
    assert format_name in FLOATS
    tensors = {}
    for key, weight in weights.items():
        grid = FORMATS["f32" if weight.dim() < 2 else format_name]
        blocks = grid.to_blocks(weight.cpu(), key)
        tensors[key] = FrozenTensor(grid.name, tuple(weight.shape), grid.encode(blocks, {}), {})  # type: ignore[misc]
    return Frozen(arch, dict(config), tensors, tokenizer, name, metadata)
