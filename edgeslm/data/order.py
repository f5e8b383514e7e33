"""Which row is read when: a fixed number of rows, drawn from the sources by their shares, decided by the seed alone;
and which rows belong to which of several readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from edgeslm.data.rows import Rows
from edgeslm.errors import DataError


def order(
    rows: Rows, shares: Sequence[float], count: int, seed: int, read: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Indices [count] into `rows`. Every source is shuffled and read through before it repeats (and shuffled anew);
    the sources are interleaved so that any stretch of the order has nearly the wanted mix. Rows that were `read`
    before are the last of the first pass."""
    generator = np.random.default_rng(seed)
    wanted = np.asarray(shares, dtype=np.float64) / sum(shares)
    quotas = np.floor(wanted * count).astype(np.int64)
    quotas[np.argsort(-(wanted * count - quotas), kind="stable")[: count - quotas.sum()]] += 1
    places, picks = [], []
    for source, quota in enumerate(quotas):
        own = np.flatnonzero(rows.source.numpy() == source)
        passes = -(-quota // len(own)) if len(own) else 0
        passed = [generator.permutation(own) for _ in range(passes)] or [own]
        if read is not None:
            passed[0] = passed[0][np.argsort(np.isin(passed[0], read), kind="stable")]
        picks.append(np.concatenate(passed)[:quota])
        places.append((np.arange(quota) + generator.random(quota)) / max(1, quota))
    return np.concatenate(picks)[np.argsort(np.concatenate(places), kind="stable")]


def order_of_phases(rows: Rows, phases: Sequence[tuple[int, Sequence[float]]], seed: int) -> NDArray[np.int64]:
    """One phase after another, each (number of rows, shares of the sources). A phase reads of a source first what no
    phase before it has read."""
    found = np.empty(0, np.int64)
    for number, (count, shares) in enumerate(phases):
        found = np.concatenate([found, order(rows, shares, count, seed + number, found)])
    return found


def shard(rows: Rows, reader: int, readers: int, shared: Sequence[int] = ()) -> Rows:
    """Rows with those of other readers taken out of their sources (source -1). Decided by the rows' ids alone: together
    the readers have every row once, and of each source their numbers differ by one at most; `shared` rows they all
    have."""
    names, source = np.array(rows.row_ids()), rows.source.numpy()
    own = np.full(len(rows), -1, dtype=np.int64)
    for index in range(len(rows.sources)):
        of_source = np.setdiff1d(np.flatnonzero(source == index), shared)
        chosen = of_source[np.argsort(names[of_source], kind="stable")][reader::readers]
        own[chosen] = index
    everyones = np.asarray(shared, dtype=np.int64)
    own[everyones] = source[everyones]
    return replace(rows, source=torch.from_numpy(own))


def first_by_id(rows: Rows, count: int) -> list[int]:
    """Indices of the `count` rows whose ids come first. An id is a hash, so they are a fair sample, and the same one
    wherever the rows are packed. Raises DataError where there are fewer."""
    names = rows.row_ids()
    if count > len(names):
        raise DataError(f"{count} rows are asked for that all read, and the text has {len(names)}; ask for fewer")
    return sorted(range(len(names)), key=names.__getitem__)[:count]
