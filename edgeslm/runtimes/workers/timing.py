"""The task `bench`: load, warm up until stable, then timed rounds. Every phase of a round is timed apart.

One round visits every length of `prefill` and `depths` in ascending order: the cache is emptied, that many ids are fed
(a timed prefill where asked for), one is picked, and where the length is a depth `new_tokens` are decoded after it one
by one. End marks are ignored, batch is 1, times are monotonic. Memory is sampled all through the warm-ups and once
after each timed round, so timing is never disturbed. Standard library and numpy only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import Desk, JobError, MemoryWatch, memory, read_counters

Open = Callable[[Desk], Any]
Run = dict[str, Any]
Phase = tuple[str, int, int]  # kind, tokens, depth
SHORTEST_LOOK_S = 0.2  # the kernel counts busy time in steps of 10 ms: a shorter run says nothing about others
TICK_S = 1 / (os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100)


class Stopwatch:
    """What the device did while one phase ran: seconds, CPU seconds, others' load, clocks, temperatures, rails."""

    def __init__(self, job: dict[str, Any]):
        watch = job.get("watch", {})
        self.files = {kind: list(watch.get(kind, [])) for kind in ("khz", "millicelsius")}
        self.rails = list(job.get("rails", []))

    def start(self) -> None:
        self.before = {kind: read_counters(paths) for kind, paths in self.files.items()}
        self.counters, self.busy = read_counters(self.rails), busy_ticks()
        self.cpu, self.began = time.process_time(), time.perf_counter()

    def stop(self) -> Run:
        seconds, cpu_s = time.perf_counter() - self.began, time.process_time() - self.cpu
        busy = busy_ticks()
        counters = read_counters(self.rails)
        others = None
        if busy is not None and self.busy is not None and seconds >= SHORTEST_LOOK_S:
            others = max(0.0, ((busy - self.busy) * TICK_S - cpu_s) / seconds)
        return {
            "seconds": seconds,
            "cpu_s": cpu_s,
            "others_cores": others,
            "watch": {kind: [self.before[kind], read_counters(paths)] for kind, paths in self.files.items()},
            "rails": [self.counters, counters],
        }


def busy_ticks() -> int | None:
    """Ticks that all cores together were not idle since the start; None where the kernel does not say."""
    try:
        parts = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
        ticks = [int(part) for part in parts]
    except (OSError, ValueError):
        return None
    return sum(ticks) - ticks[3] - ticks[4] if len(ticks) == 8 else None


def one_round(engine: Any, job: dict[str, Any]) -> dict[Phase, Run]:
    """Every phase once."""
    prefill, depths, new = set(job["prefill"]), set(job["depths"]), int(job["new_tokens"])
    watch, runs = Stopwatch(job), {}
    for length in sorted(prefill | depths):
        engine.keep(0)
        token = job["prompt"][0]
        if length:
            watch.start()
            token = int(np.argmax(engine.feed(job["prompt"][:length])))
            run = watch.stop()
            if length in prefill:
                runs["prefill", length, 0] = {**run, "first_s": run["seconds"]}
        if length in depths:
            runs["decode", new, length] = decode(engine, token, new, watch)
    return runs


def decode(engine: Any, token: int, new_tokens: int, watch: Stopwatch) -> Run:
    """`new_tokens` more, greedily; the first step eats `token`."""
    latencies = []
    watch.start()
    for _ in range(new_tokens):
        begin = time.perf_counter()
        token = int(np.argmax(engine.feed([token])))
        latencies.append(time.perf_counter() - begin)
    return {**watch.stop(), "token_latency_s": latencies}


def warm_up(engine: Any, job: dict[str, Any], samples: list[dict[str, int]], desk: Desk) -> tuple[list[Any], bool]:
    """Rounds until the last two agree within `within` in every phase -> (rounds, whether they did)."""
    wanted = job["warmups"]
    rounds: list[dict[Phase, Run]] = []
    total = int(wanted["most"]) + int(job["repeats"])
    while len(rounds) < int(wanted["most"]):
        with MemoryWatch(samples):
            rounds.append(one_round(engine, job))
        desk.progress(len(rounds), total)
        if len(rounds) >= int(wanted["least"]) and (wanted["least"] >= wanted["most"] or steady(rounds, wanted)):
            break
    return rounds, steady(rounds, wanted)


def steady(rounds: list[dict[Phase, Run]], wanted: dict[str, Any]) -> bool:
    if len(rounds) < 2:
        return False
    pairs = [(rounds[-2][phase]["seconds"], rounds[-1][phase]["seconds"]) for phase in rounds[-1]]
    return all(abs(a - b) <= float(wanted["within"]) * max(a, b) for a, b in pairs)


def sustained(engine: Any, job: dict[str, Any]) -> list[Run]:
    """Decode at the first depth again and again for `sustained_s` seconds: how a device slows down as it warms."""
    found: list[Run] = []
    length, seconds = int(job["depths"][0]), float(job.get("sustained_s", 0))
    began = time.perf_counter()
    while (at := time.perf_counter() - began) < seconds:
        engine.keep(0)
        token = job["prompt"][0]
        if length:
            token = int(np.argmax(engine.feed(job["prompt"][:length])))
        run = decode(engine, token, int(job["new_tokens"]), Stopwatch(job))
        found.append({"at_s": at, "seconds": run["seconds"], "tokens": int(job["new_tokens"]), "watch": run["watch"]})
    return found


def pin(job: dict[str, Any]) -> None:
    """Keep this process on the CPUs of the job. Raises JobError when it may not."""
    if job.get("cpus"):
        try:
            os.sched_setaffinity(0, {int(cpu) for cpu in job["cpus"]})
        except (OSError, ValueError, AttributeError) as error:
            raise JobError(
                f"cannot keep to the CPUs {job['cpus']} ({error}); name CPUs that this device has"
            ) from error


def check_prompt(job: dict[str, Any], vocabulary: int) -> None:
    """Raises JobError for a prompt or lengths that cannot be run."""
    prompt, lengths = job["prompt"], [*job["prefill"], *job.get("depths", [])]
    if not prompt or min(prompt) < 0 or max(prompt) >= vocabulary or int(job["new_tokens"]) < 1:
        raise JobError(f"the prompt must hold ids below {vocabulary} and new_tokens must be at least 1")
    if not lengths or min(lengths) < 0 or max(lengths) > len(prompt) or 0 in job["prefill"]:
        raise JobError(f"lengths must be between 1 (depths: 0) and {len(prompt)}, the length of the prompt")


def wall_minus_monotonic() -> float:
    """It changes when somebody sets the clock; times here are monotonic and do not."""
    return time.time() - time.perf_counter()


def bench(open_engine: Open, desk: Desk) -> dict[str, Any]:
    """The task, one fresh process."""
    job = desk.job
    pin(job)
    before_load, clock = memory(), wall_minus_monotonic()
    engine = open_engine(desk)
    check_prompt(job, engine.vocabulary)
    samples = [memory()]
    warmups, stable = warm_up(engine, job, samples, desk)
    rounds, most = [], int(job["warmups"]["most"])
    for done in range(int(job["repeats"])):
        rounds.append(one_round(engine, job))
        samples.append(memory())
        desk.progress(most + done + 1, most + int(job["repeats"]))
    curve = sustained(engine, job) if job.get("sustained_s") else []
    phases = [
        {"kind": kind, "tokens": tokens, "depth": depth, "warmups": [r[kind, tokens, depth] for r in warmups],
         "runs": [r[kind, tokens, depth] for r in rounds]}
        for kind, tokens, depth in rounds[0]
    ]  # fmt: skip
    return {
        "engine": engine.info,
        "load_s": engine.load_s,
        "phases": phases,
        "sustained": curve,
        "stable": stable,
        "kv_cache_bytes": getattr(engine, "kv_cache_bytes", None),
        "memory": {"before_load": before_load, "samples": samples},
        "steps": {"wall_minus_monotonic_s": [clock, wall_minus_monotonic()]},
    }
