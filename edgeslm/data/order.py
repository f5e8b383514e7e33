"""Which row is read when: a fixed number of rows, drawn from the sources by their shares, decided by the seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeslm.data.rows import Rows


def order(rows: Rows, shares: Sequence[float], count: int, seed: int) -> NDArray[np.int64]:
    """Indices [count] into `rows`. Every source is shuffled and read through before it repeats (and shuffled anew);
    the sources are interleaved so that any stretch of the order has nearly the wanted mix."""
    generator = np.random.default_rng(seed)
    wanted = np.asarray(shares, dtype=np.float64) / sum(shares)
    quotas = np.floor(wanted * count).astype(np.int64)
    quotas[np.argsort(-(wanted * count - quotas), kind="stable")[: count - quotas.sum()]] += 1
    places, picks = [], []
    for source, quota in enumerate(quotas):
        own = np.flatnonzero(rows.source.numpy() == source)
        passes = -(-quota // len(own)) if len(own) else 0
        picks.append(np.concatenate([generator.permutation(own) for _ in range(passes)] or [own])[:quota])
        places.append((np.arange(quota) + generator.random(quota)) / max(1, quota))
    return np.concatenate(picks)[np.argsort(np.concatenate(places), kind="stable")]
