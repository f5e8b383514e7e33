"""Learning-rate schedules: step -> factor in 0..1. Warm-up is linear and part of every schedule."""

from __future__ import annotations

import math


def wsd(step: int, steps: int, warmup: int, decay: int) -> float:
    """Warm-up, stable, decay (MiniCPM, arXiv:2404.06395): linear down to 0 over the last `decay` steps."""
    return min(1.0, (step + 1) / max(1, warmup), (steps - step) / max(1, decay))


def cosine(step: int, steps: int, warmup: int, decay: int) -> float:
    """Half a cosine from the end of the warm-up to a tenth of the peak (Loshchilov & Hutter, arXiv:1608.03983)."""
    if step < warmup:
        return (step + 1) / max(1, warmup)
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))


SCHEDULES = {"wsd": wsd, "cosine": cosine}
