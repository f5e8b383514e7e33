"""Perplexity of each shipped file, and its distance from a reference: KL per token and agreement of the first choice.

Every file is scored by the runtime that will run it. The reference writes its log-probabilities once (float32
[T, V], memory-mapped, T x V x 4 bytes in `workdir`, removed afterwards); each candidate is compared with them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeslm.artifact import Artifact
from edgeslm.devices.base import Device
from edgeslm.errors import DataError, EdgeSLMError, RuntimeFailure
from edgeslm.evaluate.execute import EXACT, Outcome, execute, scratch
from edgeslm.measurement import Measurement, Where

PERCENTILES = (50, 90, 99, 99.9)
# of KL in nats; the first edge takes exact zeros, the last is open
EDGES = (0.0, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
RULE = "second half of each window, as llama.cpp's perplexity counts"
ALONE = {"nll", "confidence", "top1"}  # arrays of a score, and those it has beside a reference
BESIDE = {"kl", "reference_nll", "delta_p", "top5_overlap", "reference_top1"}
OnProgress = Callable[[str, int, int], None]
OnScored = Callable[[Artifact, list[Measurement], str], None]


@dataclass(frozen=True)
class Scores:
    """What one file gave for the scored tokens: arrays [T] by name (see workers/scoring.py), and where."""

    where: Where
    arrays: dict[str, Any]
    note: str = ""


def windows(ids: list[int], context: int, count: int) -> list[list[int]]:
    """Up to `count` consecutive windows of exactly `context` ids. Raises DataError when there is not even one."""
    if context < 4 or context % 2:
        raise DataError(f"a scoring context must be an even number of at least 4, not {context}")
    found = [ids[start : start + context] for start in range(0, len(ids) - context + 1, context)][:count]
    if not found:
        raise DataError(f"the text has {len(ids)} tokens, less than one window of {context}; give more text")
    return found


def even_windows(texts: list[list[int]], context: int, count: int) -> list[list[int]]:
    """`count` windows at most, taken evenly over the texts so that every author has a say. Raises DataError."""
    share = -(-count // len(texts))
    return [window for ids in texts for window in windows(ids, context, share)][:count]


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
    on_arrays: Callable[[Artifact, Scores], None] | None = None,
    timeout_s: float = 3600.0,
) -> tuple[list[Measurement], list[dict[str, str]]]:
    """Score the reference, then each candidate against it. `bos_id`: see `with_begin`.

    Returns (measurements, problems): a candidate that fails becomes a problem and the rest goes on; when the reference
    fails, candidates are scored alone (perplexity without KL). The reference itself gets a perplexity only.
    Candidates are taken one at a time, so a file may be made when it is asked for; `on_scored(artifact, measurements,
    what went wrong or "")` is called after each, and the file is not needed any more. `on_arrays` gets the figures of
    every token.
    """
    if not windows:
        raise DataError("there is no window to score; give text of at least one context length")
    context = max(len(window) for window in windows)
    task = {
        "task": "score",
        "windows": with_begin(windows, bos_id),
        "score_from": context // 2,
        "context": context,
        "threads": threads,
        **EXACT,
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
                scores = read(outcome, outcome.where(artifact, device))
            except EdgeSLMError as error:
                problems.append({"artifact": artifact.name, "what": str(error)})
                if on_scored is not None:
                    on_scored(artifact, [], str(error))
                continue
            found = measured(scores, reference.name)
            measurements += found
            if on_arrays is not None:
                on_arrays(artifact, scores)
            if on_scored is not None:
                on_scored(artifact, found, "")
            if artifact is reference:
                log_probs = folder / "reference" / "reference.npy"
    return measurements, problems


def _named(on_progress: OnProgress | None, name: str) -> Callable[[int, int], None] | None:
    if on_progress is None:
        return None
    return lambda done, total: on_progress(name, done, total)


def read(outcome: Outcome, where: Where) -> Scores:
    """Arrays of one score. Raises RuntimeFailure when one is missing, of another length or not finite."""
    wanted = ALONE | (BESIDE if "kl" in outcome.arrays else set())
    return Scores(where, {name: _array(outcome, name) for name in sorted(wanted)}, outcome.note)


def measured(scores: Scores, reference: str) -> list[Measurement]:
    """Perplexity, and beside a reference KL, agreement of the first choice and of the first five, root mean square of
    the change in the probability of the id that followed, and the ratio of perplexities."""
    arrays, tokens = scores.arrays, len(scores.arrays["nll"])
    shared = {"tokens": tokens, "rule": RULE}

    def figure(metric: str, unit: str, value: float, better: str = "lower", **extra: Any) -> Measurement:
        kept = shared | extra
        return Measurement(metric, unit, (value,), scores.where, better=better, note=scores.note, extra=kept)  # type: ignore[arg-type]

    nll, nll_error = mean_and_error(arrays["nll"])
    perplexity = math.exp(min(nll, 700.0))  # the largest exponent a float64 holds
    found = [figure("perplexity", "1", perplexity, nll_nats=nll, nll_standard_error=nll_error)]
    if "kl" not in arrays:
        return found
    beside: dict[str, Any] = {"reference": reference}
    mean, error = mean_and_error(arrays["kl"])
    spread: dict[str, Any] = {"percentiles": percentiles(arrays["kl"]), "histogram": histogram(arrays["kl"])}
    found.append(figure("kl", "nats/token", mean, standard_error=error, **beside, **spread))
    for metric, values in (
        ("top1_agreement", (arrays["top1"] == arrays["reference_top1"]).astype(float)),
        ("top5_agreement", arrays["top5_overlap"]),
    ):
        mean, error = mean_and_error(values)
        found.append(figure(metric, "1", mean, "higher", standard_error=error, **beside))
    change = arrays["delta_p"]
    mean, error = mean_and_error(change)
    found.append(
        figure("rms_delta_p", "1", float((change**2).mean() ** 0.5), mean_delta_p=mean, standard_error=error, **beside)
    )
    mean, error = mean_and_error(arrays["nll"] - arrays["reference_nll"])
    ratio = math.exp(min(mean, 700.0))
    found.append(figure("perplexity_ratio", "1", ratio, log_ratio=mean, log_standard_error=error, **beside))
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


def mean_and_error(values: Any) -> tuple[float, float]:
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
