"""What `edgeslm check` says that training needs of memory, beside what real trainings took.

Each row is a recipe (and what is changed of it) trained for a few steps in a process of its own, on a student that an
earlier process built. Measured is the largest resident memory of any step less what the process held when the training
stage began: interpreter, libraries and text are in every process and in no estimate. Estimated is what `check` prints
for the same recipe. Rows *before training* are of one process that equalises, plans and rounds: the largest of all that
less what it held once the student was there, beside the largest estimate of these stages. On a GPU both are of the
card: what torch had allocated there at most.

    python -m benchmarks.memory_plan --rows pair --card 24GB --tokenizer-folder DIR      a 7B teacher, a 1.5B student

is for a GPU alone. `--card` makes a larger card one of that size: torch may not take more of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import memory_pair, record

NAME = "memory_plan"
ROOT = Path(__file__).parent.parent
BOUND = 0.15  # of the measured peak
STEPS = 3
Row = dict[str, Any]

SHORT = (f"distill.train.steps={STEPS}", "distill.train.compile=false", "evaluate.windows=2")
MIDDLE = (
    "student={kind: scratch, hidden: 512, layers: 8, heads: 8, kv_heads: 4, ffn: 1536}",
    "student.vocabulary=null",
    "distill.objective=[{loss: cross_entropy}]",
)
# row: (recipe, what is changed of it)
ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "stories15m-6m": ("stories15m-6m", ()),
    "stories15m-6m, longer rows": ("stories15m-6m", ("data.sequence=256", "distill.train.batch_tokens=4096")),
    "stories15m-6m, four batches": ("stories15m-6m", ("distill.train.micro_rows=2",)),
    "smollm2-0.1b-depth": ("smollm2-0.1b-depth", ()),
    "smollm2-0.1b-depth, recompute": ("smollm2-0.1b-depth", ("distill.train.recompute=true",)),
    "smollm2-0.1b-depth, float32": ("smollm2-0.1b-depth", ("distill.train.precision=f32",)),
    "scratch, 512 wide": ("smollm2-0.06b", MIDDLE),
}
BEFORE = "before training"
PREPARED = (
    "quantize.rounding=fisher",
    "quantize.equalise=true",
    "quantize.importance.tokens=1024",  # what is held is the same
    "quantize.target.sensitivity_tokens=1024",
)
ROWS |= {f"{name}, {BEFORE}": (name, PREPARED) for name in ("stories15m-4.5bit", "smollm2-4.5bit")}
PAIR = "pair"
PAIR_SAID = "1.5B student of a 7B teacher"
FEW = ("data.sources=[{kind: text, paths: ['package:text/learn/*.txt']}]", "distill.train.batch_tokens=4096")


def said(name: str, arguments: argparse.Namespace) -> tuple[Path, list[str]]:
    """A row's recipe, and all that is changed of it."""
    if name == PAIR:
        pair = [f"teacher.model={arguments.pair['7b']}", f"student.model={arguments.pair['1.5b']}"]
        return ROOT / "recipes" / "qwen2.5-7b-1.5b.yaml", [*SHORT, *FEW, *pair, f"threads={arguments.threads}"]
    recipe, changes = ROWS[name]
    found = [*SHORT, *changes, f"name={recipe}", f"threads={arguments.threads}"]
    if recipe == "smollm2-0.1b-depth":  # which layers go is no matter here, and finding out takes minutes
        found += ["student.choose=even", "student.compare=[]"]
    if recipe.startswith("stories15m"):
        found += [f"teacher.model={arguments.stories}", f"teacher.tokenizer={arguments.tokenizer}"]
    return ROOT / "recipes" / f"{recipe}.yaml", found


def run(arguments: argparse.Namespace) -> Row:
    refuse(arguments)
    rows = {}
    with tempfile.TemporaryDirectory(prefix="memory-plan-") as folder:
        if PAIR in arguments.rows:
            arguments.pair = memory_pair.made(Path(folder), arguments.tokenizer_folder)
        for name in arguments.rows:
            stages = ("round",) if name.endswith(BEFORE) else ("student", "distill")
            rows[name] = one(*said(name, arguments), Path(folder), stages, arguments.card)
            print(line(name, rows[name]), flush=True)
    return {
        "versions": record.versions("edgeslm", "torch", "transformers"), "threads": arguments.threads,
        "card_bytes": arguments.card, "rows": rows,
    }  # fmt: skip


def refuse(arguments: argparse.Namespace) -> None:
    """What cannot be had, before anything is made. Raises SystemExit."""
    import torch

    there = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0
    folder = arguments.tokenizer_folder
    if (arguments.card or PAIR in arguments.rows) and not there:
        raise SystemExit(f"--card and the row {PAIR} are for a CUDA card, and torch sees none")
    if arguments.card and arguments.card > there:
        raise SystemExit(f"--card asks for {arguments.card / 1e9:g} GB of a card that has {there / 1e9:.1f} GB")
    if (PAIR in arguments.rows) != (folder is not None):
        raise SystemExit(f"--tokenizer-folder is for the row {PAIR}, which needs it; give both or neither")
    if folder is not None and not (folder / "tokenizer.json").exists():
        raise SystemExit(f"--tokenizer-folder: {folder} holds no tokenizer.json; name a folder in hub layout")


def one(recipe: Path, changes: list[str], runs: Path, stages: Sequence[str], card: int | None = None) -> Row:
    """A process runs the recipe up to each of `stages`, the last is measured. Raises SystemExit where one fails."""
    found: Row = {}
    for until in stages:
        command = [sys.executable, "-m", f"benchmarks.{NAME}", "--child", until, "--recipe", str(recipe)]
        command += ["--runs", str(runs), *(["--card", str(card)] if card else []), "--said", *changes]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode:
            raise SystemExit(f"{recipe.stem} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        found = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def child(arguments: argparse.Namespace) -> Row:
    """Runs the recipe up to a stage; what its steps took, where it has any."""
    from edgeslm import compute, training_memory
    from edgeslm import recipe as recipes
    from edgeslm.pipeline.check import memory
    from edgeslm.pipeline.check import whole as checks
    from edgeslm.pipeline.run import run as run_recipe
    from edgeslm.pipeline.stage import Context
    from edgeslm.progress import Progress

    path = Path(arguments.recipe)
    loaded = recipes.load(path, arguments.said)
    if arguments.card:
        shrink(compute, arguments.card)
    watched = Watched(compute)
    context = Context(loaded, path.parent, arguments.runs / loaded.name, Progress(quiet=True))
    if arguments.child == "round":
        run_recipe(loaded, path.parent, arguments.runs, Progress(quiet=True), until="student")
        compute.reset_peak_memory(context.compute)
    run_recipe(loaded, path.parent, arguments.runs, Progress(quiet=True), until=arguments.child)
    if arguments.child == "student":
        return {}
    summary = checks._describe(context)
    student = checks._student(context, summary, checks.Findings())
    if arguments.child == "round":
        watched.peak = compute.peak_memory_bytes(context.compute) or 0
        parts = memory.preparing(context, student, summary.config)
    else:
        parts = training_memory.parts(student, summary.config, memory.distil_step(context, student))
    return {
        "estimate": parts, "estimated_bytes": (max if arguments.child == "round" else sum)(parts.values()),
        "held_before_bytes": watched.before,
        "peak_bytes": watched.peak, "measured_bytes": watched.peak - watched.before,
        "dtype": str(context.compute.dtype).removeprefix("torch."), "device": context.compute.device.type,
    }  # fmt: skip


def shrink(compute: Any, size: int) -> None:
    """From now on the card has so many bytes, for torch's allocator and for who asks."""
    import torch

    torch.cuda.set_per_process_memory_fraction(size / torch.cuda.get_device_properties(0).total_memory)
    real = compute.memory_bytes
    compute.memory_bytes = lambda device: float(size) if device.type == "cuda" else real(device)


class Watched:
    """The training stage of this process, looked at where it resets its peak and after each of its steps."""

    def __init__(self, compute: Any):
        from edgeslm.schemes.step import Step

        self.before = self.peak = 0
        reset, call = compute.reset_peak_memory, Step.__call__

        def begin(chosen: Any) -> None:
            import gc

            gc.collect()
            reset(chosen)
            self.chosen, self.before = chosen, held(chosen)

        def step(*given: Any, **named: Any) -> Any:
            log = call(*given, **named)
            self.peak = compute.peak_memory_bytes(self.chosen) or 0
            return log

        compute.reset_peak_memory = begin
        Step.__call__ = step  # type: ignore[method-assign]


def held(chosen: Any) -> int:
    """Now: allocated on the card, or resident in this process."""
    import torch

    if chosen.device.type == "cuda":
        return int(torch.cuda.memory_allocated())
    rows = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(row.split()[1]) * 1024 for row in rows if row.startswith("VmRSS"))


def error(row: Row) -> float:
    """How far off: +0.10 is an estimate a tenth too high."""
    return float(row["estimated_bytes"] / row["measured_bytes"] - 1)


def line(name: str, row: Row) -> str:
    estimated, measured = (f"{row[key] / 1e6:8.0f} MB" for key in ("estimated_bytes", "measured_bytes"))
    return f"{name:32} {row['dtype']:9} {estimated} estimated {measured} measured {100 * error(row):+6.1f} %"


def latest(records: list[Row]) -> dict[str, Row]:
    """{row, and where: what was measured of it last}"""
    return {said_of(name, row, entry): row for entry in records for name, row in entry["rows"].items()}


def said_of(name: str, row: Row, entry: Row) -> str:
    card = entry.get("card_bytes")
    where = f" held to {card / 1e9:g} GB" if card else ""
    told = PAIR_SAID if name == PAIR else name
    return f"{told}, on a GPU{where}" if row.get("device") == "cuda" else told


def table(rows: dict[str, Row]) -> str:
    """Markdown."""
    made = ["| training | type | estimate of `check` | measured peak | |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        estimated, measured = (f"{row[key] / 1e6:.0f} MB" for key in ("estimated_bytes", "measured_bytes"))
        made.append(f"| {name} | {row['dtype']} | {estimated} | {measured} | {error(row):+.1%} |")
    return "\n".join(made)


def show(records: list[Row]) -> Row:
    rows = latest(records)
    for name, row in rows.items():
        print(line(name, row))
    errors = {name: error(row) for name, row in rows.items()}
    return {
        "estimate_over_measured": {name: 1 + value for name, value in errors.items()},
        "largest_error": max(map(abs, errors.values())),
        "within_bound": max(map(abs, errors.values())) <= BOUND,
    }


def options(parser: argparse.ArgumentParser) -> None:
    from edgeslm.units import parse_bytes

    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=[*ROWS, PAIR])
    parser.add_argument("--card", type=parse_bytes, help="bytes that the card is to have, such as 24GB")
    parser.add_argument("--tokenizer-folder", type=Path, help=f"of the row {PAIR}: a folder in hub layout")
    parser.add_argument("--stories", default="stories15M.bin", help="llama2.c's file of TinyStories 15M")
    parser.add_argument("--tokenizer", default="tokenizer.model", help="and its tokenizer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", choices=["student", "distill", "round"], help=argparse.SUPPRESS)
    parser.add_argument("--recipe", help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--said", nargs="*", default=[], help=argparse.SUPPRESS)


if __name__ == "__main__":
    if "--child" in sys.argv:
        parser = argparse.ArgumentParser()
        options(parser)
        print(json.dumps(child(parser.parse_args())))
    else:
        record.main(NAME, run, show, options)
