"""How many tokens does a pruned student need for the loss that a student from scratch reaches with twenty tokens a
parameter? All trainings of `python -m benchmarks.students --curve`, many at once on one GPU.

The text is what the teacher itself writes, drawn from its whole distribution: the one text of which the teacher knows
as much as there is to know (it has read nothing but TinyStories, which is not to be had here), so that a student from
scratch is not judged on text that its rival's teacher never learned. `--pack` may give the teacher fewer tokens first;
student, rival and text are then in those. Both sides read the same rows, in the order of
their seed, and are judged on the same other rows. Each side's learning rate is the best of one grid for both; the
student from scratch is tuned on an eighth of its tokens, the pruned one on 4 in 100 of them. Every figure is of a
finished training with its learning rate brought down, never of a point on a longer one's way.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import bare, record
from benchmarks.students_worker import Job, Setup, opened, work, written

NAME = "students"
PER_PARAMETER = 20  # tokens of the student from scratch
PASSES = 4  # over the text: as good as new text (Muennighoff et al., arXiv:2305.16264)
SHARES = (20, 40, 80, 160, 320, 640, 10)  # of those tokens, for the pruned student
TUNE_SCRATCH, TUNE_PRUNED = 8, 25
SHAPE = {"hidden": 144, "heads": 3, "kv_heads": 3, "ffn": 384}  # 6.1M of stories15M's 15.2M
IMPORTANCE_ROWS = 128
COUNTED_ROWS = 64  # that the teacher writes when it is packed, to see which tokens it uses
# students of one number of parameters, by what was taken from them; lists are layers that stay
CHOICES: dict[str, dict[str, Any]] = {
    "influence": {"layers": 4, "choose": "influence"},
    "influence_run": {"layers": 4, "choose": "influence", "contiguous": True},
    "loss": {"layers": 4, "choose": "loss"},
    "greedy": {"layers": 4, "choose": "greedy"},
    "even": {"layers": 4, "choose": "even"},
    "first": {"layers": 4, "choose": "first"},
    "mergekit": {"layers": 4, "choose": [0, 1, 2, 5]},  # slices [0, 3] and [5, 6]: the last layer stays
    "width": {"ffn": 384},
    "joint": {"layers": 5, "ffn": 576},
}
SEEDS = (0, 1, 2)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    bare.stand_in()
    start = time.monotonic()
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="students-", dir=memory if memory.is_dir() else None))
    try:
        setup = Setup(folder, arguments.device, 1)
        told = prepared(setup, arguments, start)
        plan = {
            "kind": "plan", "run": time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()), **told, "lrs": arguments.lrs,
            "passes": PASSES, "shape": arguments.shape, "choices": CHOICES, "workers": arguments.workers,
            "batch_tokens": {"scratch": arguments.batch, "pruned": arguments.small_batch},
            "versions": record.versions("torch", "transformers"),
        }  # fmt: skip
        record.append(NAME, plan)
        done = trained(setup, arguments, told, plan["run"], start)
        return {"kind": "end", "run": plan["run"], "trainings": len(done), "seconds": time.monotonic() - start}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def prepared(setup: Setup, arguments: argparse.Namespace, start: float) -> dict[str, Any]:
    """Teacher, text and the students as they start, in the folder."""
    import torch
    from safetensors.torch import save_file

    from edgeslm.data.rows import Rows

    device, length = torch.device(setup.device), arguments.length
    shutil.copytree(arguments.teacher, setup.work / "teacher")
    teacher = opened(setup.work / "teacher", torch.bfloat16 if device.type == "cuda" else None, device)
    exact = opened(setup.work / "teacher", None, device)
    sizes = made(setup, exact, written(teacher, 8 if arguments.tiny else IMPORTANCE_ROWS, length, 2, 128), arguments)
    scratch = arguments.tokens or PER_PARAMETER * sizes["scratch"]
    rows = -(-scratch // PASSES // length)
    say(start, f"students {sizes}; the teacher writes {rows:,} rows of {length}")
    ids = written(teacher, rows, length, 0, arguments.write_batch)
    Rows(ids, torch.ones_like(ids, dtype=torch.uint8), torch.zeros(rows, dtype=torch.int64), ("written",)).save(
        setup.work / "rows.safetensors"
    )
    judged = written(teacher, arguments.windows, length, 1, arguments.write_batch)
    save_file({"ids": judged}, setup.work / "judged.safetensors")
    if device.type == "cuda":
        del teacher, exact
        torch.cuda.empty_cache()
    say(start, "text is written")
    return {
        "scratch_tokens": scratch, "text_tokens": ids.numel(), "judged_tokens": judged.numel() - len(judged),
        "length": length, "parameters": sizes,
    }  # fmt: skip


def made(setup: Setup, teacher: Any, ids: Any, arguments: argparse.Namespace) -> dict[str, int]:
    """{student: its parameters}; importance is measured on `ids`, which nothing is trained on."""
    import copy

    import torch
    from transformers import AutoModelForCausalLM

    from edgeslm.students import depth, width

    ids = ids.long().to(setup.device)
    sizes = {}

    def save(name: str, student: Any) -> None:
        student.save_pretrained(setup.work / "students" / name)
        sizes[name] = sum(p.numel() for p in student.parameters())

    def cut(layers: int | None = None, choose: Any = "influence", contiguous: bool = False, **widths: int) -> Any:
        """As students.build does it."""
        student = teacher
        if layers is not None and layers < teacher.config.num_hidden_layers:
            student = depth.prune(teacher, depth.choose(teacher, ids, layers, choose, contiguous).kept)
        return width.prune(student, dict(widths), "importance", ids)[0] if widths else student

    save("pruned", cut(**arguments.shape))
    chosen = arguments.choices and not arguments.tiny
    if chosen:
        for name, asked in CHOICES.items():
            save(name, cut(**asked))
    for name, like in (("scratch", "pruned"), *([("choice_scratch", "influence")] if chosen else [])):
        config = copy.deepcopy(opened(setup.work / "students" / like, None, "cpu").config)
        torch.manual_seed(0)
        save(name, AutoModelForCausalLM.from_config(config))
    return sizes


def first_jobs(told: dict[str, Any], arguments: argparse.Namespace) -> list[Job]:
    """Learning rates, the longest first."""
    whole = told["scratch_tokens"]
    sides = [("scratch", "cross_entropy", whole // TUNE_SCRATCH, arguments.batch)]
    sides += [("pruned", "forward_kl", whole // TUNE_PRUNED, arguments.small_batch)]
    return [
        Job(arm, arm, loss, lr, at_least(tokens, batch), batch, purpose="tune")
        for arm, loss, tokens, batch in sides
        for lr in arguments.lrs
    ]


def then(told: dict[str, Any], best: dict[str, float], arguments: argparse.Namespace) -> list[Job]:
    """In the order of what matters: the student from scratch, the pruned one by its tokens, what text alone does for
    it, then choices of what to cut."""
    whole, small = told["scratch_tokens"], arguments.small_batch
    jobs = [
        Job("scratch", "scratch", "cross_entropy", best["scratch"], at_least(whole, arguments.batch), arguments.batch)
    ]
    for share in arguments.shares:
        jobs.append(Job("pruned", "pruned", "forward_kl", best["pruned"], at_least(whole // share, small), small))
    jobs.append(Job("pruned_text", "pruned", "cross_entropy", best["pruned"], at_least(whole // 40, small), small))
    if arguments.tiny or not arguments.choices:
        return list(dict.fromkeys(jobs))
    tokens = at_least(whole // 80, small)
    for seed in SEEDS:
        names = [*CHOICES, "choice_scratch"]
        jobs += [Job(f"cut:{n}", n, "forward_kl", best["pruned"], tokens, small, seed) for n in names]
    return list(dict.fromkeys(jobs))  # of a short training, shares may come to the same


def at_least(tokens: int, batch: int) -> int:
    """Tokens of whole steps, 8 of them at least."""
    return max(8, round(tokens / batch)) * batch


def trained(
    setup: Setup, arguments: argparse.Namespace, told: dict[str, Any], name: str, start: float
) -> dict[Job, dict[str, Any]]:
    """Each training is recorded when it is done; when the time is over the rest is left out."""
    end = start + arguments.budget_s
    pool = Pool(setup, arguments.workers)
    try:
        tuned = pool.run(first_jobs(told, arguments), end, name, start)
        best = {}
        for arm in ("scratch", "pruned"):
            of_arm = {job.lr: found["loss"] for job, found in tuned.items() if job.arm == arm}
            if not of_arm:
                raise SystemExit("no learning rate could be tried in the time there is; give --budget-s more")
            best[arm] = min(of_arm, key=of_arm.__getitem__)
        slowest = max(found["seconds"] for job, found in tuned.items() if job.arm == "scratch")
        say(start, f"learning rates {best}; from scratch takes about {TUNE_SCRATCH * slowest:.0f} s")
        return tuned | pool.run(then(told, best, arguments), end, name, start)
    finally:
        pool.stop()


class Pool:
    """Processes that take jobs."""

    def __init__(self, setup: Setup, count: int):
        context = multiprocessing.get_context("spawn")
        self.jobs: Any = context.Queue()
        self.results: Any = context.Queue()
        every = [context.Process(target=work, args=(setup, self.jobs, self.results), daemon=True) for _ in range(count)]
        self.each = every
        for process in self.each:
            process.start()
        for _ in self.each:
            kind, _, said = self.results.get(timeout=300)
            if kind == "broken":
                raise SystemExit(f"a worker could not start: {said}")

    def run(self, jobs: list[Job], end: float, name: str, start: float) -> dict[Job, dict[str, Any]]:
        done: dict[Job, dict[str, Any]] = {}
        for job in jobs:
            self.jobs.put(job)
        for _ in jobs:
            try:
                kind, job, found = self.results.get(timeout=max(0.1, end - time.monotonic()))
            except queue.Empty:
                say(start, "the time is over")
                break
            if kind == "failed":
                print(f"{job.name}: {found}", file=sys.stderr)
                found = {"failed": found.strip().splitlines()[-1]}
            else:
                done[job] = found
                say(start, f"{job.name}: loss {found['loss']:.4f}, KL {found['kl']:.4f}, {found['seconds']:.0f} s")
            told = {k: v for k, v in asdict(job).items() if k != "tokens"}
            record.append(NAME, {"kind": "training", "run": name, "tokens": job.tokens, **told, **found})
        return done

    def stop(self) -> None:
        for process in self.each:
            process.terminate()


def pack(arguments: argparse.Namespace) -> None:
    """The teacher as a folder in hub layout, without its tokenizer, for a machine that holds torch and transformers.
    With `keep` it has so many tokens only: those that it gives most probability to while it writes by itself."""
    import torch

    from edgeslm.models.load import load
    from edgeslm.models.source import resolve
    from edgeslm.models.subset import choose
    from edgeslm.students.vocabulary import cut

    tokenizer = Path(arguments.tokenizer) if arguments.tokenizer else None
    loaded = load(resolve(str(arguments.model), Path.cwd(), None, tokenizer), torch.float32)
    model: Any = loaded.model
    if arguments.keep:
        counts = torch.zeros(model.config.vocab_size, dtype=torch.float64)
        with torch.no_grad():
            for ids in written(model, COUNTED_ROWS, arguments.length // 2, 0, COUNTED_ROWS).long().split(4):
                counts += torch.softmax(model(input_ids=ids, use_cache=False).logits, -1).sum((0, 1)).double()
        kept = choose(loaded.tokenizer, dict(enumerate((1e6 * counts).long().tolist())), arguments.keep, 0)
        print(f"the {len(kept)} tokens have {float(counts[kept].sum() / counts.sum()):.5f} of what it gives")
        cut(model, kept)
    model.save_pretrained(arguments.pack)


def say(start: float, words: str) -> None:
    print(f"{time.monotonic() - start:6.1f} s  {words}", file=sys.stderr, flush=True)
