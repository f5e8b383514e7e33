"""The task `energy`: an idle stretch, then answers again and again while the device's sensors are read.

Apart from latency runs: reading a sensor costs time. What is read is kept as raw text; what it means is decided by
whoever asked. The task `ceilings`: what memory and arithmetic of the device can do. Standard library and numpy only.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import Desk
from timing import check_prompt, pin, wall_minus_monotonic

Open = Callable[[Desk], Any]
COMMAND_TIMEOUT_S = 2.0
BUFFER_BYTES = 256 << 20  # in all, far beyond ordinary caches


class Sampler:
    """Reads files and runs commands every `interval_s` from a thread while a `with` block runs."""

    def __init__(self, spec: dict[str, Any]):
        self.files, self.commands = list(spec.get("files", [])), list(spec.get("commands", []))
        self.interval_s = float(spec.get("interval_s", 0.1))
        self.samples: list[list[Any]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while True:
            texts = [_text(path) for path in self.files] + [_said(argv) for argv in self.commands]
            self.samples.append([time.perf_counter(), texts])
            if self._stop.wait(self.interval_s):
                return

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _said(argv: list[str]) -> str | None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def energy(open_engine: Open, desk: Desk) -> dict[str, Any]:
    """The task: `idle_s` with the loaded model waiting, then answers for at least `seconds`."""
    job = desk.job
    pin(job)
    engine = open_engine(desk)
    check_prompt(job, engine.vocabulary)
    length, new = int(job["prefill"][0]), int(job["new_tokens"])
    windows: list[dict[str, Any]] = []

    def window(what: str, begin: float, tokens: int) -> None:
        windows.append({"what": what, "begin_s": begin, "end_s": time.perf_counter(), "tokens": tokens})

    with Sampler(job["sample"]) as sampler:
        began = time.perf_counter()
        time.sleep(float(job["idle_s"]))
        window("idle", began, 0)
        start = time.perf_counter()
        while (spent := time.perf_counter() - start) < float(job["seconds"]):
            desk.progress(min(99, round(100 * spent / float(job["seconds"]))), 100)
            engine.keep(0)
            began = time.perf_counter()
            token = int(np.argmax(engine.feed(job["prompt"][:length])))
            window("prefill", began, length)
            began = time.perf_counter()
            for _ in range(new):
                token = int(np.argmax(engine.feed([token])))
            window("decode", began, new)
    return {
        "engine": engine.info,
        "windows": windows,
        "samples": sampler.samples,
        "wall_minus_monotonic_s": wall_minus_monotonic(),
    }


def ceilings(open_engine: Open, desk: Desk) -> dict[str, Any]:
    """The task: needs no model. numpy's reading, copying and float32 product, one thread a core."""
    job = desk.job
    pin(job)
    threads, seconds = int(job["threads"]), float(job.get("seconds", 1.0))
    if hasattr(os, "sched_setaffinity") and not job.get("cpus"):  # the product's own pool takes every core it sees
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:threads]))
    words = BUFFER_BYTES // threads // 2 // 8
    sources = [np.ones(words, np.int64) for _ in range(threads)]
    targets = [np.ones(words, np.int64) for _ in range(threads)]
    size = 1024
    left, right = np.ones((2, size, size), np.float32)
    moved = float(threads * words * 8)
    return {
        "threads": threads,
        "read_bytes_per_s": _rates(lambda i: sources[i].max(), threads, moved, seconds),
        "copy_bytes_per_s": _rates(lambda i: np.copyto(targets[i], sources[i]), threads, 2 * moved, seconds),
        "flops_f32": _rates(lambda i: left @ right, 1, 2.0 * size**3, seconds),
    }


def _rates(work: Callable[[int], Any], threads: int, amount: float, seconds: float) -> list[float]:
    """Amount per second of repeats that fill `seconds`, the first one (cold) left out."""
    found: list[float] = []
    began = time.perf_counter()
    while len(found) < 4 or time.perf_counter() - began < seconds:
        pool = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
        start = time.perf_counter()
        for thread in pool:
            thread.start()
        for thread in pool:
            thread.join()
        found.append(amount / (time.perf_counter() - start))
    return found[1:]
