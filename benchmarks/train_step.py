"""The training step beside a plain transformers loop: same models, objective, rows, dtype, threads, attention, grid.

Plain: whole logits of both models, bfloat16 autocast over float32 weights, the Q4_0 grid as a parametrisation that
decodes in each forward (straight-through), one fused AdamW. Ours: `edgeslm.schemes.step`. Each side runs in a process
of its own, in turn; both see the same rows, so their losses must agree. Two rows: with each side's default allocator
setting, and with ours on both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks import record

NAME = "train_step"
SIDES = ("ours", "plain")
LAYERS, ROWS, LENGTH, LR = 24, 8, 256, 1e-4
WARMUPS = 2


def models() -> tuple[Any, Any, Any]:
    """(student in float32, teacher source, rows [steps, ROWS, LENGTH]): SmolLM2 and its 24-layer copy, shipped text."""
    from pathlib import Path

    import torch

    from edgeslm.data.text import documents
    from edgeslm.models.load import load
    from edgeslm.models.source import resolve
    from edgeslm.recipe import expand
    from edgeslm.recipe.parts import DEFAULT_TEACHER
    from edgeslm.students.depth import prune

    source = resolve(DEFAULT_TEACHER, Path.cwd())
    loaded = load(source, torch.float32)
    ids = [i for d in documents(expand(["package:text/learn/*.txt"], Path.cwd()), loaded.tokenizer) for i in d]
    count = len(ids) // (ROWS * LENGTH)
    rows = torch.tensor(ids[: count * ROWS * LENGTH]).reshape(count, ROWS, LENGTH)
    kept = [i for i in range(loaded.model.config.num_hidden_layers) if i not in (13, 14, 15, 17, 25, 26)]
    return prune(loaded.model, kept), load(source, torch.bfloat16).model, rows


def count_memory_from_here() -> None:
    """Reading the models is no part of a step: garbage goes back and the peak is counted anew, on both sides."""
    import gc

    from edgeslm import compute

    gc.collect()
    compute.reset_peak_memory(compute.resolve("cpu", "bf16", None))


def ours(steps: int) -> list[dict[str, float]]:
    import torch

    from edgeslm.data.batch import Batch
    from edgeslm.quantize.masters import attach
    from edgeslm.quantize.plan import Plan
    from edgeslm.schemes.objective import Objective
    from edgeslm.schemes.step import Step, StepSettings
    from edgeslm.teachers.live import LiveTeacher

    student, teacher, rows = models()
    count_memory_from_here()
    shapes = {n: tuple(p.shape) for n, p in student.named_parameters()}
    masters = attach(student, Plan.uniform("q4_0").assign(shapes), torch.bfloat16)
    masters.set_weights(grid=True, refit=True)
    settings = StepSettings(ROWS, clip=1.0, weight_decay=0.0, betas=(0.9, 0.98), refit_every=None)
    step = Step(student, masters, Objective.build([{"loss": "forward_kl"}]), settings)
    live, found = LiveTeacher(teacher), []
    for index in range(WARMUPS + steps):
        start = time.perf_counter()
        batch = Batch(rows[index % len(rows)], torch.ones(ROWS, LENGTH))
        log = step(batch, live, lr=LR, grid=True, index=index)
        found.append({"seconds": time.perf_counter() - start, "loss": log.loss})
    return found


def plain(steps: int) -> list[dict[str, float]]:
    import torch
    import torch.nn.functional as F
    from torch.nn.utils import parametrize

    from edgeslm.formats import FORMATS

    class OnGrid(torch.nn.Module):
        """decode(encode(w)) with a straight-through gradient; scales are fitted once, as ours."""

        def __init__(self) -> None:
            super().__init__()
            self.scales: Any = None

        def forward(self, w: torch.Tensor) -> torch.Tensor:
            grid, blocks = FORMATS["q4_0"], w.detach().reshape(-1, 32)
            assert grid.fit is not None and grid.encode is not None
            if self.scales is None:
                self.scales = grid.fit(blocks)
            decoded = grid.decode(grid.encode(blocks, self.scales), self.scales).reshape(w.shape)
            return w + (decoded - w).detach()

    student, teacher, rows = models()
    count_memory_from_here()
    for module in [*student.modules()]:
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)) and module is not student.lm_head:
            parametrize.register_parametrization(module, "weight", OnGrid())
    student.lm_head = torch.nn.Module()  # the head is the embedding, quantised once
    student.train()
    optimiser = torch.optim.AdamW(student.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    found = []
    for index in range(WARMUPS + steps):
        start = time.perf_counter()
        ids = rows[index % len(rows)]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            wanted = teacher(ids, use_cache=False).logits[:, :-1]
        with torch.autocast("cpu", torch.bfloat16), parametrize.cached():
            hidden = student.model(input_ids=ids, use_cache=False).last_hidden_state
            logits = F.linear(hidden, student.model.embed_tokens.weight)[:, :-1]
            log_s, log_t = F.log_softmax(logits.float(), -1), F.log_softmax(wanted.float(), -1)
            loss = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(-1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        found.append({"seconds": time.perf_counter() - start, "loss": float(loss.detach())})
    return found


def child(side: str, allocator: bool, steps: int, threads: int) -> None:
    """One side in this process; the last line of stdout is its JSON."""
    import torch

    from edgeslm import compute, cost
    from edgeslm.models.load import describe
    from edgeslm.models.source import resolve
    from edgeslm.recipe.parts import DEFAULT_TEACHER

    torch.set_num_threads(threads)
    if allocator:
        compute.keep_freed_memory()
    torch.manual_seed(0)
    found = {"ours": ours, "plain": plain}[side](steps)
    chosen = compute.resolve("cpu", "bf16", threads)
    peak = compute.peak_memory_bytes(chosen)
    flops = compute.matmul_flops(chosen)
    from pathlib import Path

    config = describe(resolve(DEFAULT_TEACHER, Path.cwd())).config
    bound = cost.training_bound({**config, "num_hidden_layers": LAYERS}, LENGTH, flops, config)
    result = {
        "seconds": [f["seconds"] for f in found[WARMUPS:]],
        "warmup_seconds": [f["seconds"] for f in found[:WARMUPS]],
        "losses": [f["loss"] for f in found],
        "peak_memory_bytes": peak,
        "matmul_flops_per_s": flops,
        "bound_tokens_per_s": bound,
    }
    print(json.dumps(result))


def one(side: str, allocator: bool, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.train_step", "--child", side, "--steps", str(arguments.steps)]
    command += ["--allocator"] if allocator else []
    command += ["--threads", str(arguments.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    rows = {
        "as each side comes": {"ours": True, "plain": False},
        "our allocator setting on both": {"ours": True, "plain": True},
    }
    found: dict[str, Any] = {name: {side: [] for side in SIDES} for name in rows}
    for _ in range(arguments.repeats):
        for name, setting in rows.items():
            for side in SIDES:
                found[name][side].append(one(side, setting[side], arguments))
    return {
        "versions": record.versions("edgeslm", "torch", "transformers"),
        "model": "SmolLM2-135M-Instruct (as dequantised), 24-layer student, every matrix and the embedding on q4_0",
        "objective": "forward_kl, temperature 1",
        "tokens_per_step": ROWS * LENGTH,
        "dtype": "bfloat16",
        "attention": "sdpa",
        "threads": arguments.threads,
        "rows": found,
    }


def figures(entry: dict[str, Any], row: str) -> dict[str, float]:
    tokens = entry["tokens_per_step"]
    speed = {s: tokens / statistics.median(v for one in entry["rows"][row][s] for v in one["seconds"]) for s in SIDES}
    memory = {s: statistics.median(one["peak_memory_bytes"] for one in entry["rows"][row][s]) for s in SIDES}
    bound = statistics.median(one["bound_tokens_per_s"] for one in entry["rows"][row]["ours"])
    return {
        "tokens_per_s": speed["ours"],
        "plain_tokens_per_s": speed["plain"],
        "tokens_per_s_ratio": speed["ours"] / speed["plain"],
        "peak_memory_bytes": memory["ours"],
        "peak_memory_ratio": memory["ours"] / memory["plain"],
        "share_of_bound": speed["ours"] / bound,
    }


def show(records: list[dict[str, Any]]) -> dict[str, Any]:
    print(
        f"{'date':16}  {'row':30}  {'ours tok/s':>10}  {'plain':>6}  {'ratio':>5}  {'peak GB':>7}  {'ratio':>5}  bound"
    )
    for entry in records:
        for row in entry["rows"]:
            f = figures(entry, row)
            print(
                f"{entry['date'][:16]}  {row:30}  {f['tokens_per_s']:10.0f}  {f['plain_tokens_per_s']:6.0f}  "
                f"{f['tokens_per_s_ratio']:5.2f}  {f['peak_memory_bytes'] / 1e9:7.2f}  {f['peak_memory_ratio']:5.2f}  "
                f"{100 * f['share_of_bound']:.0f} %"
            )
    last = records[-1]
    return figures(last, next(iter(last["rows"])))


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=5, help="timed steps per process")
    parser.add_argument("--repeats", type=int, default=2, help="processes per side and row")
    parser.add_argument("--threads", type=int, default=record.machine()["cores"] or 1)
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--allocator", action="store_true", help=argparse.SUPPRESS)


if __name__ == "__main__":
    if "--child" in sys.argv:
        parser = argparse.ArgumentParser()
        options(parser)
        given = parser.parse_args()
        child(given.child, given.allocator, given.steps, given.threads)
    else:
        record.main(NAME, run, show, options)
