"""The training step beside TRL's GKDTrainer: same models, objective, rows, optimiser, dtype, threads, attention.

TRL: `GKDTrainer` as it comes, on text that is there (lmbda 0), bfloat16 autocast over float32 weights, in an
environment of its own. Ours: `edgeslm.schemes.step` with every weight kept in float, no grid. Each side runs in a
process of its own, in turn, reads the same folders and sees the same rows. A pair whose losses differ is not recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.rivals import venv
from benchmarks.train_step import LAYERS, LENGTH, LR, ROWS, WARMUPS, count_memory_from_here

NAME = "gkd_trainer"
SIDES = ("ours", "trl")
PACKAGE = "trl==1.16.0"  # everything it brings along: rivals/constraints.txt
WORKER = Path(__file__).parent / "rivals" / "gkd.py"
ROOT = Path(__file__).parent.parent
BETAS, CLIP = (0.9, 0.98), 1.0
FORWARD_KL: dict[str, Any] = {"loss": "forward_kl"}
JSD: dict[str, Any] = {"loss": "jsd", "beta": 0.5}
TOLERANCE = {"f32": 1e-3, "bf16": 0.03}  # relative difference of the two losses of one step


@dataclass(frozen=True)
class Case:
    """`beta` is GKD's: 0 is the forward KL, 0.5 the Jensen-Shannon divergence. `allocator`: sides with our setting.
    `micro_rows`: rows of a micro-batch, gradients of the others being added up, on both sides; `our_rows`: on ours.
    `compiled`: sides with torch.compile, ours layer by layer as a recipe's `compile: true` does it, TRL's by the
    trainer's own setting."""

    term: dict[str, Any]
    beta: float
    dtype: str
    allocator: tuple[str, ...] = ("ours",)
    micro_rows: int = 8
    our_rows: int | None = None
    compiled: tuple[str, ...] = ()


CASES = {
    "forward KL, bf16, as each side comes": Case(FORWARD_KL, 0.0, "bf16"),
    "forward KL, bf16, our allocator setting on both": Case(FORWARD_KL, 0.0, "bf16", SIDES),
    "forward KL, bf16, our layers compiled": Case(FORWARD_KL, 0.0, "bf16", compiled=("ours",)),
    "forward KL, bf16, our layers compiled, our micro-batches of 2 rows": Case(
        FORWARD_KL, 0.0, "bf16", our_rows=2, compiled=("ours",)
    ),
    "forward KL, bf16, both compiled": Case(FORWARD_KL, 0.0, "bf16", compiled=SIDES),
    "JSD 0.5, bf16, as each side comes": Case(JSD, 0.5, "bf16"),
    "forward KL, bf16, micro-batches of 2 rows": Case(FORWARD_KL, 0.0, "bf16", micro_rows=2),
    "forward KL, float32, as each side comes": Case(FORWARD_KL, 0.0, "f32"),
}
HEADLINE = "forward KL, bf16, our layers compiled"  # as the quickstart trains (distill.train.compile)


def environment() -> Path:
    """The interpreter of TRL's environment, made on first use. Raises SystemExit with pip's reason."""
    import hashlib

    key = f"{PACKAGE} {venv.TORCH} {sys.version_info[:2]} {venv.CONSTRAINTS.read_text(encoding='utf-8')}"
    place = venv.cache_root() / "rivals" / f"trl-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    interpreter = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    if (place / venv.READY).is_file():
        return interpreter
    shutil.rmtree(place, ignore_errors=True)  # a half-made one
    place.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    words = ""
    for torch in venv.TORCH:
        command = [str(interpreter), "-m", "pip", "install", "--quiet", "-c", str(venv.CONSTRAINTS)]
        done = subprocess.run([*command, f"torch=={torch}", PACKAGE], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            (place / venv.READY).write_text(torch, encoding="utf-8")
            return interpreter
        words = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise SystemExit(f"TRL's environment could not be installed: {words}")


def write_inputs(folder: Path, steps: int) -> None:
    """What both sides read: `student` and `teacher`, float32, as folders, and `rows.safetensors` [steps, B, T]."""
    import torch
    from safetensors.torch import save_file

    from benchmarks.train_step import models
    from edgeslm.models.load import load, write_tokenizer
    from edgeslm.models.source import resolve
    from edgeslm.recipe.parts import DEFAULT_TEACHER

    student, _, rows = models()
    loaded = load(resolve(DEFAULT_TEACHER, Path.cwd()), torch.float32)
    loaded.model.save_pretrained(folder / "teacher")
    student.save_pretrained(folder / "student")
    write_tokenizer(loaded.tokenizer, folder / "student")
    save_file({"rows": rows[torch.arange(steps) % len(rows)]}, folder / "rows.safetensors")


def ours(job: dict[str, Any]) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from edgeslm import compute, cost
    from edgeslm.data.batch import Batch
    from edgeslm.quantize.masters import attach
    from edgeslm.quantize.plan import Plan
    from edgeslm.schemes.objective import Objective
    from edgeslm.schemes.step import Step, StepSettings
    from edgeslm.teachers.live import LiveTeacher

    if job["allocator"]:
        compute.keep_freed_memory()
    here = compute.resolve("cpu", job["dtype"], job["threads"])
    read = AutoModelForCausalLM.from_pretrained
    student = read(job["student"], dtype=torch.float32, attn_implementation="sdpa").train()
    teacher = read(job["teacher"], dtype=here.dtype, attn_implementation="sdpa")
    rows = load_file(job["rows"])["rows"]
    count_memory_from_here()
    shapes = {n: tuple(p.shape) for n, p in student.named_parameters()}
    masters = attach(student, Plan.uniform("f32").assign(shapes), here.dtype)
    if job["compiled"]:
        compute.compile_layers(student)
        compute.compile_layers(teacher)
    settings = StepSettings(job["micro_rows"], job["clip"], weight_decay=0.0, betas=job["betas"], refit_every=None)
    step = Step(student, masters, Objective.build([job["term"]]), settings)
    live, seconds, losses = LiveTeacher(teacher), [], []
    for index, ids in enumerate(rows):
        start = time.perf_counter()
        log = step(Batch(ids, torch.ones(ids.shape)), live, lr=job["lr"], grid=False, index=index)
        seconds.append(time.perf_counter() - start)
        losses.append(log.loss)
    peak, flops = compute.peak_memory_bytes(here), compute.matmul_flops(here)
    bound = cost.training_bound(student.config.to_dict(), LENGTH, flops, teacher.config.to_dict())
    return {
        "seconds": seconds,
        "losses": losses,
        "peak_memory_bytes": peak,
        "matmul_flops_per_s": flops,
        "bound_tokens_per_s": bound,
    }


def one(side: str, case: Case, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One side in a process of its own; warm-up steps apart."""
    job = {
        **asdict(case),
        "student": str(folder / "student"),
        "teacher": str(folder / "teacher"),
        "rows": str(folder / "rows.safetensors"),
        "steps": WARMUPS + arguments.steps,
        "lr": LR,
        "betas": BETAS,
        "clip": CLIP,
        "threads": arguments.threads,
        "allocator": side in case.allocator,
        "compiled": side in case.compiled,
        "micro_rows": (case.our_rows if side == "ours" else None) or case.micro_rows,
    }
    path = folder / f"{side}.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    command = {
        "ours": [sys.executable, "-m", f"benchmarks.{NAME}", "--child", str(path)],
        "trl": [str(environment()), "-P", str(WORKER), str(path)],  # -P: its neighbours are no packages
    }[side]
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    settings = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    settings |= {"PYTHONPATH": str(ROOT), **dict.fromkeys(names, str(arguments.threads))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | settings, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{side} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    said: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return said | {"warmup_seconds": said["seconds"][:WARMUPS], "seconds": said["seconds"][WARMUPS:]}


def difference(pair: dict[str, dict[str, Any]]) -> float:
    """Of the losses of the two sides, step by step: the largest, relative to TRL's."""
    losses = zip(pair["ours"]["losses"], pair["trl"]["losses"], strict=True)
    return max(abs(a - b) / abs(b) for a, b in losses)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    cases = {name: CASES[name] for name in arguments.cases or CASES}
    found: dict[str, Any] = {name: {side: [] for side in SIDES} for name in cases}
    packages: dict[str, str] = {}
    environment()  # what cannot be had is said before anything is computed
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_inputs(folder, WARMUPS + arguments.steps)
        for _ in range(arguments.repeats):
            for name, case in cases.items():
                pair = {side: one(side, case, folder, arguments) for side in SIDES}
                packages = pair["trl"].pop("versions")
                if difference(pair) > TOLERANCE[case.dtype]:
                    raise SystemExit(
                        f"{name}: losses differ, not the same objective: {[p['losses'] for p in pair.values()]}"
                    )
                for side in SIDES:
                    found[name][side].append(pair[side])
    return {
        "versions": record.versions("edgeslm", "torch", "transformers"),
        "trl_versions": packages,
        "model": f"SmolLM2-135M-Instruct (as dequantised) teaches its {LAYERS}-layer copy, no grid",
        "cases": {name: asdict(case) for name, case in cases.items()},
        "tokens_per_step": ROWS * LENGTH,
        "attention": "sdpa",
        "threads": arguments.threads,
        "rows": found,
    }


def figures(entry: dict[str, Any], row: str) -> dict[str, float]:
    sides, tokens = entry["rows"][row], entry["tokens_per_step"]
    speed = {s: tokens / statistics.median(v for one in sides[s] for v in one["seconds"]) for s in SIDES}
    memory = {s: statistics.median(one["peak_memory_bytes"] for one in sides[s]) for s in SIDES}
    bound = statistics.median(one["bound_tokens_per_s"] for one in sides["ours"])
    pairs = [dict(zip(SIDES, pair, strict=True)) for pair in zip(*(sides[s] for s in SIDES), strict=True)]
    return {
        "tokens_per_s": speed["ours"],
        "trl_tokens_per_s": speed["trl"],
        "trl_tokens_per_s_ratio": speed["ours"] / speed["trl"],
        "peak_memory_bytes": memory["ours"],
        "trl_peak_memory_bytes": memory["trl"],
        "trl_peak_memory_ratio": memory["ours"] / memory["trl"],
        "largest_loss_difference": max(map(difference, pairs)),
        "share_of_bound": speed["ours"] / bound,
    }


def show(records: list[dict[str, Any]]) -> dict[str, Any]:
    print(
        f"{'date':16}  {'row':66}  {'ours tok/s':>10}  {'TRL':>6}  {'ratio':>5}  {'peak GB':>7}  {'TRL':>6}  "
        f"{'ratio':>5}  losses differ  of bound"
    )
    for entry in records:
        for row in entry["rows"]:
            f = figures(entry, row)
            print(
                f"{entry['date'][:16]}  {row:66}  {f['tokens_per_s']:10.0f}  {f['trl_tokens_per_s']:6.0f}  "
                f"{f['trl_tokens_per_s_ratio']:5.2f}  {f['peak_memory_bytes'] / 1e9:7.2f}  "
                f"{f['trl_peak_memory_bytes'] / 1e9:6.2f}  {f['trl_peak_memory_ratio']:5.2f}  "
                f"{100 * f['largest_loss_difference']:11.2f} %  {100 * f['share_of_bound']:6.0f} %"
            )
    return figures(newest(records)[HEADLINE], HEADLINE)


def newest(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """{case: the last entry that has it}"""
    return {row: entry for row in CASES for entry in records if row in entry["rows"]}


def table(records: list[dict[str, Any]]) -> str:
    """Markdown, one row a case."""
    entries = newest(records)
    lines = [
        "| step | ours, tokens/s | GKDTrainer | ratio | peak memory | GKDTrainer | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row, entry in entries.items():
        f = figures(entry, row)
        lines.append(
            f"| {row} | {f['tokens_per_s']:.0f} | {f['trl_tokens_per_s']:.0f} | "
            f"**{f['trl_tokens_per_s_ratio']:.2f}** | "
            f"{f['peak_memory_bytes'] / 1e9:.2f} GB | {f['trl_peak_memory_bytes'] / 1e9:.2f} GB | "
            f"**{f['trl_peak_memory_ratio']:.2f}** |"
        )
    entry = entries[HEADLINE]
    steps = len(entry["rows"][HEADLINE]["ours"][0]["seconds"])
    repeats = len(entry["rows"][HEADLINE]["ours"])
    largest = max(figures(entry, row)["largest_loss_difference"] for row, entry in entries.items())
    return (
        "\n".join(lines)
        + f"\n\nTRL {entry['trl_versions']['trl']}'s GKDTrainer (lambda 0) and ours on the same models, "
        f"rows, objective, types and {entry['threads']} threads; {entry['tokens_per_step']:,} tokens a step, "
        f"{steps} timed steps, processes a side: {repeats}. Losses of the same step differ by at most {largest:.2%}."
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cases", nargs="+", choices=list(CASES), help="default: all")
    parser.add_argument("--steps", type=int, default=5, help="timed steps per process")
    parser.add_argument("--repeats", type=int, default=2, help="processes per side and row")
    parser.add_argument("--threads", type=int, default=record.machine()["cores"] or 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(ours(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))))
    else:
        record.main(NAME, run, show, options)
