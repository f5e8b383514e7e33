"""Score token windows: negative log-likelihood per token, and the distance from a reference's distribution.

Letters: T scored tokens of all windows, V vocabulary. Numbers are nats, accumulated in float64.

A window is a list of ids. Of its logits only those at positions `score_from` .. len - 2 are scored, each against the
next id (llama.cpp's perplexity rule: the second half of each window, so that every scored token has context).
Standard library and numpy only.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from common import Desk, JobError

ROWS = 8  # rows of the vocabulary handled at once: float64 copies stay inside a core's cache
NEAR = 5  # first choices compared as sets


def log_probs(logits: np.ndarray) -> np.ndarray:
    """float [m, V] -> float64 [m, V]; the logarithm of the softmax, shifted by the maximum."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def divergence(reference: np.ndarray, student: np.ndarray) -> np.ndarray:
    """KL(reference || student) in nats, [m, V] log-probabilities twice -> [m].

    Summed as p (log p - log q) + q - p, whose every term is >= 0, so rounding cannot make it negative and equal
    inputs give exactly 0; the added terms cancel because both sides sum to one.
    """
    p, q = np.exp(reference), np.exp(student)
    terms = reference - student
    terms *= p
    terms += q
    terms -= p
    return np.maximum(terms.sum(axis=-1), 0.0)


def overlap(reference: np.ndarray, student: np.ndarray) -> np.ndarray:
    """Share of the reference's NEAR first choices that are among the student's, [m, V] twice -> [m]."""
    if reference.shape[-1] <= NEAR:
        return np.ones(len(reference))
    left, right = (np.argpartition(side, -NEAR, axis=-1)[:, -NEAR:] for side in (reference, student))
    return (left[:, :, None] == right[:, None, :]).any(axis=-1).mean(axis=-1)


def shared(reference: np.ndarray, student: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both over the ids that both have, [m, V] each: vocabularies of a family are padded to different sizes, and what
    lies in the padding is no token."""
    width = min(reference.shape[-1], student.shape[-1])
    if reference.shape == student.shape:
        return reference, student
    return log_probs(reference[:, :width]), log_probs(student[:, :width])


class Scorer:
    """Takes logits row block by row block, in the order of the windows; keeps what the job asked for."""

    def __init__(self, desk: Desk, tokens: int, vocabulary: int):
        job = desk.job
        self.desk = desk
        self.arrays: dict[str, np.ndarray] = {name: np.zeros(tokens) for name in ("nll", "confidence")}
        self.arrays["top1"] = np.zeros(tokens, np.int32)
        self.at = 0
        self.out: np.memmap[Any, Any] | None = None
        self.reference: np.ndarray | None = None
        if job.get("reference_out"):
            needed, free = tokens * vocabulary * 4, shutil.disk_usage(desk.folder).free
            if needed > free:  # writing a mapped file to a full disk kills the process
                raise JobError(f"the reference needs {needed} bytes of disk, {free} are free; score fewer windows")
            self.out = np.lib.format.open_memmap(
                desk.folder / job["reference_out"], mode="w+", dtype=np.float32, shape=(tokens, vocabulary)
            )
        if job.get("reference_in"):
            self.reference = open_reference(Path(job["reference_in"]), tokens)
            self.arrays |= {name: np.zeros(tokens) for name in ("kl", "reference_nll", "delta_p", "top5_overlap")}
            self.arrays["reference_top1"] = np.zeros(tokens, np.int32)

    def take(self, logits: np.ndarray, targets: list[int]) -> None:
        """logits [m, V] and the m ids that followed."""
        for start in range(0, len(targets), ROWS):
            wanted = np.asarray(targets[start : start + ROWS], np.int64)
            rows = log_probs(logits[start : start + ROWS])
            if not np.isfinite(rows).all():
                raise JobError("the model's logits hold NaN or infinity; the file is damaged or overflows its format")
            single = rows.astype(np.float32)  # what a reference file stores; both sides are compared in this precision
            here = slice(self.at, self.at + len(wanted))
            index = np.arange(len(wanted))
            arrays = self.arrays
            arrays["nll"][here] = -rows[index, wanted]
            arrays["top1"][here] = top = single.argmax(axis=-1)
            arrays["confidence"][here] = np.exp(rows[index, top])
            if self.out is not None:
                self.out[here] = single
            if self.reference is not None:
                reference = np.asarray(self.reference[here], np.float64)
                both = shared(reference, single.astype(np.float64))
                arrays["kl"][here] = divergence(*both)
                arrays["reference_top1"][here] = reference.argmax(axis=-1)
                arrays["reference_nll"][here] = -reference[index, wanted]
                arrays["delta_p"][here] = np.exp(rows[index, wanted]) - np.exp(reference[index, wanted])
                arrays["top5_overlap"][here] = overlap(reference, single)
            self.at += len(wanted)

    def finish(self) -> dict[str, Any]:
        """Write the arrays beside the job and return their names and means."""
        if self.out is not None:
            self.out.flush()
        for name, values in self.arrays.items():
            self.desk.save_array(f"{name}.npy", values)
        means = {name: float(values.mean()) for name, values in self.arrays.items()}
        return {"tokens": self.at, "arrays": {name: f"{name}.npy" for name in self.arrays}, "means": means}


def open_reference(path: Path, tokens: int) -> np.ndarray:
    """Memory-map a reference's log-probabilities, float32 [T, V]. Raises JobError when it is of another shape."""
    reference = np.load(path, mmap_mode="r", allow_pickle=False)
    if reference.dtype != np.float32 or reference.ndim != 2 or len(reference) != tokens:
        raise JobError(
            f"the reference holds {reference.dtype} {list(reference.shape)}, this model scores {tokens} tokens: both "
            "must score the same windows"
        )
    return reference


def check_windows(windows: list[list[int]], score_from: int, vocabulary: int) -> int:
    """How many tokens will be scored. Raises JobError for windows that leave nothing to score or unknown ids."""
    for number, window in enumerate(windows):
        if len(window) < score_from + 2:
            raise JobError(f"window {number} has {len(window)} ids, scoring from {score_from} needs {score_from + 2}")
        if min(window) < 0 or max(window) >= vocabulary:
            raise JobError(f"window {number} holds an id outside the model's vocabulary of {vocabulary}")
    if not windows:
        raise JobError("no window to score; give text of at least one context length")
    return sum(len(window) - 1 - score_from for window in windows)


def score(open_engine: Any, desk: Desk) -> dict[str, Any]:
    """The task `score`; see the module's text. Result: arrays, each [T]: nll, confidence (probability of the first
    choice) and top1 (its id); beside a reference kl, delta_p (probability of the id that followed, less the
    reference's), top5_overlap, reference_nll and reference_top1."""
    engine = open_engine(desk)
    windows, first = desk.job["windows"], int(desk.job["score_from"])
    tokens = check_windows(windows, first, engine.vocabulary)
    scorer = Scorer(desk, tokens, engine.vocabulary)
    for number, window in enumerate(windows):
        at = first
        for rows in engine.score(window[:-1], first):
            scorer.take(rows, window[at + 1 : at + 1 + len(rows)])
            at += len(rows)
        desk.progress(number + 1, len(windows))
    return {"engine": engine.info, **scorer.finish()}
