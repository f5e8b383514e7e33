"""How probable continuations are to a shipped file: pairs of ids in, log-probabilities out, through its own runtime.

Pairs that share a prefix are asked together, none twice, and none that the store already knows. What a worker said
before it died is kept: the same call goes on from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edgeslm.artifact import Artifact, file_sha256
from edgeslm.devices.base import Device
from edgeslm.errors import DataError, RuntimeFailure
from edgeslm.evaluate.execute import EXACT, execute_keeping, parse_line, runtime_for
from edgeslm.evaluate.store import Store, key_of
from edgeslm.runtimes.base import SHARED, WORKERS

Pair = tuple[Sequence[int], Sequence[int]]
STEP = 256  # contexts are rounded up to this many ids


@dataclass(frozen=True)
class Likelihood:
    """`nats`: log-probability of the whole continuation. `greedy`: greedy decoding would write exactly it."""

    nats: float
    greedy: bool


def truncated(pair: Pair, limit: int) -> Pair:
    """The pair with its prefix cut on the left to what `limit` positions hold, as lm-eval does; the last id of a
    continuation needs no position. Raises DataError when the continuation alone does not fit."""
    prefix, continuation = pair
    room = limit + 1 - len(continuation)
    if room < 1:
        raise DataError(f"a continuation of {len(continuation)} ids does not fit the model's {limit} positions")
    return (prefix[-room:] if len(prefix) > room else prefix), continuation


def likelihoods(
    artifact: Artifact,
    pairs: Sequence[Pair],
    *,
    threads: int,
    device: Device,
    workdir: Path,
    store: Store,
    on_progress: Callable[[int, int], None] | None = None,
    timeout_s: float = 24 * 3600.0,
) -> list[Likelihood]:
    """One Likelihood a pair, in order. Raises RuntimeFailure, DeviceError; what came before that is in the store."""
    if not pairs:
        return []
    where = conditions(artifact)
    keys = [key_of("likelihood", where, list(prefix), list(ids)) for prefix, ids in pairs]
    known = store.get(set(keys))
    groups: dict[tuple[int, ...], dict[tuple[int, ...], str]] = {}
    for key, (prefix, ids) in zip(keys, pairs, strict=True):
        if not _sound(known.get(key)):
            groups.setdefault(tuple(prefix), {})[tuple(ids)] = key
    if groups:
        asked = sorted(groups.items(), key=lambda g: -len(g[0]))  # the longest first: whatever fails, fails at once
        found = _ask(artifact, asked, threads, device, workdir, store, on_progress, timeout_s)
        known |= found
    missing = sum(not _sound(known.get(key)) for key in keys)
    if missing:
        raise RuntimeFailure(f"{artifact.name}: {missing} of {len(keys)} likelihoods never came; run the same again")
    return [Likelihood(float(known[key][0]), bool(known[key][1])) for key in keys]


def conditions(artifact: Artifact) -> list[Any]:
    """What besides file and ids decides an answer: runtime, versions, options, and our workers' code. What only picks
    the kernels (threads, repacked weights) changes the last bits of a sum and does not belong here."""
    runtime = runtime_for(artifact)
    options = {k: v for k, v in {**runtime.defaults, **EXACT}.items() if k != "use_extra_bufts"}
    return [runtime.name, runtime.versions(), options, _code(runtime.worker)]


@cache
def _code(worker: str) -> str:
    """sha256 over a worker and what is pushed beside it."""
    return key_of(*(file_sha256(WORKERS / name) for name in (worker, *SHARED)))


def _sound(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and isinstance(value[0], float)
        and math.isfinite(value[0]) and isinstance(value[1], bool)
    )  # fmt: skip


def _ask(
    artifact: Artifact,
    asked: list[tuple[tuple[int, ...], dict[tuple[int, ...], str]]],
    threads: int,
    device: Device,
    workdir: Path,
    store: Store,
    on_progress: Callable[[int, int], None] | None,
    timeout_s: float,
) -> dict[str, Any]:
    longest = max(len(prefix) + max(map(len, wanted)) for prefix, wanted in asked)
    task = {
        "task": "likelihood",
        "groups": [[list(prefix), [list(ids) for ids in wanted]] for prefix, wanted in asked],
        "context": -(-longest // STEP) * STEP,
        "threads": threads,
        **EXACT,
    }
    found: dict[str, Any] = {}

    def hear(line: str) -> None:
        said = parse_line(line)
        number, values = said.get("group"), said.get("scores")
        if not isinstance(number, int) or not 0 <= number < len(asked) or not isinstance(values, list):
            return
        wanted = list(asked[number][1].values())
        if len(values) == len(wanted) and all(map(_sound, values)):
            got = dict(zip(wanted, values, strict=True))
            store.put(got)
            found.update(got)

    total = sum(len(wanted) for _, wanted in asked)
    execute_keeping(
        device, artifact, task, workdir, found, total, timeout_s=timeout_s, on_progress=on_progress, on_line=hear
    )
    return found
