"""Codistillation (Anil et al., arXiv:1804.03235) on small language models, from scratch, on real text: does it reach a
single model's loss in fewer steps, does it matter who reads what, how stale may a peer be, and how much less do
retrained models disagree?

    python -m benchmarks.codistillation --text DIR --device cuda --workers 16 --budget-s 420
    python -m benchmarks.codistillation --text DIR --steps 40 --tiny                  the same on a CPU, to see it run

Every copy of every training is a process's work of its own; copies meet in a folder only. The learning rate of each arm
is the best of one grid for all on one half of the held-out text; figures are of the other half. It does not fall at the
end, so that a curve can be read at any step. Everything is decided and recorded before the first training.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import bare, codistillation_table, record
from benchmarks.codistillation_plan import Design, Results, ready
from benchmarks.codistillation_worker import Job, Setup, work

NAME = "codistillation"
SHAPES = {
    False: {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4},
    True: {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4},
}
VOCABULARY = {False: 1024, True: 512}
LRS = (0.002, 0.004, 0.008)
PASSES = 2  # over a shard of two, at most
ROOM_BYTES = 8 << 30  # wanted of a folder in memory
FEWEST = 4  # workers: copies of a training wait for each other
TIMED = 12  # steps of a training that is only timed
ROOM = 0.8  # of the time left, for trainings; the rest is for what was not foreseen


class Workers:
    """Processes that take jobs."""

    def __init__(self, device: str, count: int):
        context = multiprocessing.get_context("spawn")
        self.setups, self.jobs, self.results = (context.Queue() for _ in range(3))
        ends = self.setups, self.jobs, self.results
        self.each = [context.Process(target=work, args=(device, *ends), daemon=True) for _ in range(count)]
        for process in self.each:
            process.start()

    def begin(self, setup: Setup) -> None:
        for _ in self.each:
            self.setups.put(setup)
        for _ in self.each:
            kind, _, said = self.results.get(timeout=300)
            if kind == "broken":
                raise SystemExit(f"a worker could not start: {said}")

    def run(self, jobs: list[Job]) -> list[dict[str, Any]]:
        """All of them, at once as far as there are workers."""
        for job in jobs:
            self.jobs.put(job)
        return [self.take()[1] for _ in jobs]

    def take(self, timeout: float | None = None) -> tuple[Job, dict[str, Any]]:
        kind, job, found = self.results.get(timeout=timeout)
        if kind == "failed":
            print(f"{job.name}: {found}", file=sys.stderr)
            return job, {"failed": found.strip().splitlines()[-1]}
        return job, found

    def stop(self) -> None:
        for process in self.each:
            process.terminate()


def timing(workers: Workers, count: int) -> dict[str, Any]:
    """Seconds of a step, alone and beside others; and how many workers give the most steps a second."""
    single = Job("timing-0/0", "single", 0, 0, 1e-3, {}, TIMED, timed=True)
    workers.run([replace(single, name=f"timing-{i}/0") for i in range(count)])  # slower: kernels are loaded
    alone = {}
    for label, job in {"single": single, "double": replace(single, batches=2)}.items():
        (one,) = workers.run([job])
        alone[label] = one["step_seconds"]
    rates = {}
    for many in sorted({count, max(FEWEST, count // 2)}):
        found = workers.run([replace(single, name=f"timing-{i}/0") for i in range(many)])
        rates[many] = sum(1 / each["step_seconds"] for each in found)
    return {"step_seconds_alone": alone, "steps_per_second": rates}


def design_of(arguments: argparse.Namespace, steps: int) -> Design:
    every = max(1, steps // 24)
    stale = sorted({max(1, every // 12), steps // 6, steps // 3, steps // 2} - {every, 0})
    return Design(steps, tuple(arguments.lrs), arguments.seeds, every, tuple(stale), (0.0, 0.3), arguments.weight)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    bare.stand_in()
    from benchmarks.codistillation_text import prepare

    if arguments.text is None or arguments.workers < FEWEST:
        raise SystemExit(f"--text DIR is needed, and {FEWEST} --workers at least: copies wait for each other")
    start = time.monotonic()
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > ROOM_BYTES
    folder = Path(tempfile.mkdtemp(prefix="codistillation-", dir=memory if roomy else None))
    workers = Workers(arguments.device, arguments.workers)
    try:
        size = VOCABULARY[arguments.tiny]
        text = prepare(arguments.text, arguments.judge, size, arguments.length, arguments.windows, folder)
        say(start, f"text: {text['training_tokens']:,} tokens, {text['judged_tokens']:,} to judge by")
        setup = Setup(
            folder, {**SHAPES[arguments.tiny], "vocab_size": text["vocabulary"]}, arguments.length,
            arguments.batch_tokens, arguments.device, 48, 0.05, (0.9, 0.98), 1.0, 1,
        )  # fmt: skip
        workers.begin(setup)
        say(start, f"{arguments.workers} workers are ready")
        return measured(arguments, setup, text, workers, start)
    finally:
        workers.stop()
        shutil.rmtree(folder, ignore_errors=True)


def measured(
    arguments: argparse.Namespace, setup: Setup, text: dict[str, Any], workers: Workers, start: float
) -> dict[str, Any]:
    timed: dict[str, Any] = {}
    count, steps = arguments.workers, arguments.steps
    if not steps:
        timed = timing(workers, count)
        rates = timed["steps_per_second"]
        count = max(rates, key=rates.__getitem__)
        left = ROOM * (arguments.budget_s - (time.monotonic() - start))
        most = PASSES * text["training_tokens"] // (2 * setup.batch_tokens)
        steps = max(48, min(most, int(left * rates[count] / design_of(arguments, 480).units)) // 48 * 48)
        say(start, f"{rates}; {steps} steps with {count} workers")
    design = design_of(arguments, steps)
    plan = {
        "kind": "plan", "run": time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()), "design": asdict(design),
        "text": text, **{k: v for k, v in asdict(setup).items() if k != "work"}, **timed, "workers": count,
        "budget_s": arguments.budget_s, "versions": record.versions("torch", "transformers"), **card(setup),
    }  # fmt: skip
    record.append(NAME, plan)
    done = trained(workers, design, count, start + arguments.budget_s, plan["run"], start)
    workers.stop()
    return codistillation_table.summary(setup, design, done, plan["run"])


def card(setup: Setup) -> dict[str, str]:
    import torch

    return {"accelerator": torch.cuda.get_device_name()} if setup.device == "cuda" else {}


def trained(workers: Workers, design: Design, count: int, end: float, name: str, start: float) -> Results:
    """All trainings that fit the time, `count` at once; each is recorded when it is done. Copies of a training that has
    begun go before everything else: its other copies wait for them."""
    done, asked = dict[str, dict[str, Any]](), dict[str, Job]()
    running = 0
    while time.monotonic() < end:
        begun = {job.training for job in asked.values()}
        waiting = [job for job in ready(design, done) if job.name not in asked]
        for job in sorted(waiting, key=lambda job: job.training not in begun)[: count - running]:
            asked[job.name] = job
            workers.jobs.put(job)
            running += 1
        if not running:
            break
        try:
            job, found = workers.take(timeout=min(5.0, max(0.1, end - time.monotonic())))
        except queue.Empty:
            continue
        running -= 1
        record.append(NAME, {"kind": "training", "run": name, **told(job), **found})
        if "failed" not in found:
            done[job.name] = found
            say(start, f"{job.name}: {found['curve'][-1][3]:.4f} in {found['seconds']:.0f} s")
    return done


def told(job: Job) -> dict[str, Any]:
    return {k: v for k, v in asdict(job).items() if v not in ({}, (), None)}


def say(start: float, words: str) -> None:
    print(f"{time.monotonic() - start:6.1f} s  {words}", file=sys.stderr, flush=True)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", type=Path, help="folder of .txt and .gz files")
    parser.add_argument("--judge", default="chesterton-*.txt", help="names of .txt files that are held out")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--workers", type=int, default=FEWEST, help="processes that train at the same time")
    parser.add_argument("--budget-s", type=float, default=420.0, help="the number of steps is chosen to fit")
    parser.add_argument("--steps", type=int, help="so many instead")
    parser.add_argument("--batch-tokens", type=int, default=32768)
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--windows", type=int, default=512, help="held-out rows, half of them to tune by")
    parser.add_argument("--lrs", type=float, nargs="+", default=list(LRS))
    parser.add_argument("--seeds", type=int, default=3, choices=[1, 2, 3])
    parser.add_argument("--weight", type=float, default=1.0, help="of the term between copies")
    parser.add_argument("--tiny", action="store_true", help="a smaller model, to see it run")


if __name__ == "__main__":
    record.main(NAME, run, codistillation_table.show, options)
