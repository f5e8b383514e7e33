"""Which kernel attention runs on: `sdpa` is a choice that torch makes for each shape and device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def attention_kernel(shape: Mapping[str, Any], attention: str, length: int, chosen: Any) -> str | None:
    """ "math", "flash_attention", "efficient_attention", ...: what torch's own choice is for causal attention of a
    shape's heads over `length` positions in the type of computing. The name itself where nothing chooses, None on
    devices where torch does not tell."""
    import torch
    from torch.nn.attention import SDPBackend

    from edgeslm import cost

    if attention != "sdpa":
        return attention
    if chosen.device.type not in ("cpu", "cuda"):
        return None
    one = torch.zeros(
        1, int(shape["num_attention_heads"]), length, cost.head_dim(shape), dtype=chosen.dtype, device=chosen.device
    ).requires_grad_()
    return SDPBackend(torch._fused_sdp_choice(one, one, one, is_causal=True)).name.lower()
