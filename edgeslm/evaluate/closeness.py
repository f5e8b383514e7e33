"""Perplexity of each shipped file, and its distance from a reference: KL per token and agreement of the first choice.

Every file is scored by the runtime that will run it. The reference writes its log-probabilities once (float32
[T, V], memory-mapped, T x V x 4 bytes in `workdir`, removed afterwards); each candidate is compared with them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from edgeslm.artifact import Artifact
from edgeslm.devices.base import Device
from edgeslm.errors import DataError, EdgeSLMError, RuntimeFailure
from edgeslm.evaluate.execute import Outcome, execute, scratch
from edgeslm.measurement import Measurement, Where

PERCENTILES = (50, 90, 99, 99.9)
# of KL in nats; the first edge takes exact zeros, the last is open
EDGES = (0.0, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
RULE = "second half of each window, as llama.cpp's perplexity counts"
OnProgress = Callable[[str, int, int], None]
OnScored = Callable[[Artifact, list[Measurement], str], None]


def windows(ids: list[int], context: int, count: int) -> list[list[int]]:
    """Up to `count` consecutive windows of exactly `context` ids. Raises DataError when there is not even one."""
    if context < 4 or context % 2:
        raise DataError(f"a scoring context must be an even number of at least 4, not {context}")
    found = [ids[start : start + context] for start in range(0, len(ids) - context + 1, context)][:count]
    if not found:
        raise DataError(f"the text has {len(ids)} tokens, less than one window of {context}; give more text")
    return found


def with_begin(windows: list[list[int]], bos_id: int | None) -> list[list[int]]:
    """Each window's first id replaced by the one that begins every text of the model, as llama.cpp's perplexity does;
    None leaves them."""
    return windows if bos_id is None else [[bos_id, *window[1:]] for window in windows]


def evaluate(
    reference: Artifact,
    candidates: Iterable[Artifact],
    windows: list[list[int]],
    *,
    bos_id: int | None,
    threads: int,
    device: Device,
    workdir: Path,
    on_progress: OnProgress | None = None,
    on_scored: OnScored | None = None,
    timeout_s: float = 3600.0,
) -> tuple[list[Measurement], list[dict[str, str]]]:
    """Score the reference, then each candidate against it. `bos_id`: see `with_begin`.

    Returns (measurements, problems): a candidate that fails becomes a problem and the rest goes on; when the reference
    fails, candidates are scored alone (perplexity without KL). The reference itself gets a perplexity only.
    Candidates are taken one at a time, so a file may be made when it is asked for; `on_scored(artifact, measurements,
    what went wrong or "")` is called after each, and the file is not needed any more.
    """
    if not windows:
        raise DataError("there is no window to score; give text of at least one context length")
    context = max(len(window) for window in windows)
    exact = {"kv": "f32", "flash_attention": "off"}  # of llama.cpp: nothing but the file's own grids may round
    task = {
        "task": "score",
        "windows": with_begin(windows, bos_id),
        "score_from": context // 2,
        "context": context,
        "threads": threads,
        **exact,
    }
    measurements: list[Measurement] = []
    problems: list[dict[str, str]] = []
    with scratch(workdir) as folder:
        log_probs: Path | None = None
        for artifact in itertools.chain((reference,), candidates):
            extra: dict[str, Any] = {}
            try:
                if artifact is reference:
                    extra["reference_out"] = "reference.npy"
                elif log_probs is not None:
                    extra["reference_in"] = device.push(log_probs)
                outcome = execute(
                    device,
                    artifact,
                    task | extra,
                    folder / ("reference" if artifact is reference else "candidate"),
                    timeout_s=timeout_s,
                    on_progress=_named(on_progress, artifact.name),
                )
                found = read(outcome, outcome.where(artifact, device), reference.name)
            except EdgeSLMError as error:
                problems.append({"artifact": artifact.name, "what": str(error)})
                if on_scored is not None:
                    on_scored(artifact, [], str(error))
                continue
            measurements += found
            if on_scored is not None:
                on_scored(artifact, found, "")
            if artifact is reference:
                log_probs = folder / "reference" / "reference.npy"
    return measurements, problems


def _named(on_progress: OnProgress | None, name: str) -> Callable[[int, int], None] | None:
    if on_progress is None:
        return None
    return lambda done, total: on_progress(name, done, total)


def read(outcome: Outcome, where: Where, reference: str) -> list[Measurement]:
    """Arrays of one score -> measurements. Raises RuntimeFailure when an array is missing or no finite numbers."""
    nll = _array(outcome, "nll")
    tokens = len(nll)
    note = outcome.note
    mean, error = _mean_and_error(nll)
    shared = {"tokens": tokens, "rule": RULE}
    found = [
        Measurement(
            "perplexity",
            "1",
            (math.exp(min(mean, 700.0)),),  # the largest exponent a float64 holds
            where,
            note=note,
            extra={**shared, "nll_nats": mean, "nll_standard_error": error},
        )
    ]
    if "kl" not in outcome.arrays:
        return found
    kl, match = _array(outcome, "kl"), _array(outcome, "top1_match")
    mean, error = _mean_and_error(kl)
    found.append(
        Measurement(
            "kl",
            "nats/token",
            (mean,),
            where,
            note=note,
            extra={
                **shared,
                "reference": reference,
                "percentiles": percentiles(kl),
                "histogram": histogram(kl),
                "standard_error": error,
            },
        )
    )
    agreement, error = _mean_and_error(match)
    found.append(
        Measurement(
            "top1_agreement",
            "1",
            (agreement,),
            where,
            better="higher",
            note=note,
            extra={**shared, "reference": reference, "standard_error": error},
        )
    )
    return found


def _array(outcome: Outcome, name: str) -> Any:
    """One float64 array [T] of a score."""
    import numpy as np

    path = outcome.arrays.get(name)
    if path is None:
        raise RuntimeFailure(f"{outcome.runtime.title} gave no '{name}' for the scored tokens; push the worker again")
    values = np.load(path, allow_pickle=False).astype(np.float64)
    if values.ndim != 1 or len(values) != outcome.result["tokens"] or not np.isfinite(values).all():
        raise RuntimeFailure(f"{outcome.runtime.title} gave a damaged array '{name}' of shape {list(values.shape)}")
    return values


def _mean_and_error(values: Any) -> tuple[float, float]:
    """Mean, and its standard error taking tokens as independent (neighbours are not quite: a lower bound)."""
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return float(values.mean()), spread / math.sqrt(len(values))


def percentiles(values: Any) -> dict[str, float]:
    import numpy as np

    return {f"{q:g}": float(np.percentile(values, q)) for q in PERCENTILES}


def histogram(values: Any) -> dict[str, list[float]]:
    """Counts between EDGES; what lies above the last edge is counted in the last bin."""
    import numpy as np

    counts, _ = np.histogram(np.minimum(values, EDGES[-1]), bins=np.array(EDGES))
    return {"edges": list(EDGES), "counts": [int(c) for c in counts]}
