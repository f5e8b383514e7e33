"""One training of the token curves of `benchmarks.students`, by the product's own students, losses and step, in a
process that does one training after another. Needs torch and transformers, nothing else.

Letters: R rows, T tokens of a row, V vocabulary.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks import bare

NEVER = 1 << 30  # a step that is not reached
BEGIN = 1  # the id that the teacher's texts begin with
JUDGED_ROWS = 16  # run together


@dataclass(frozen=True)
class Setup:
    """What all trainings share. `work` holds teacher/, students/NAME/, rows.safetensors and judged.safetensors."""

    work: Path
    device: str
    threads: int
    warmup: float = 0.05
    decay: float = 0.4
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0


@dataclass(frozen=True)
class Job:
    """`student`: the folder it starts from; `loss`: what it learns by."""

    arm: str
    student: str
    loss: str
    lr: float
    tokens: int
    batch_tokens: int
    seed: int = 0
    purpose: str = "figure"  # or "tune": only to choose a learning rate by

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.tokens}-lr{self.lr}-s{self.seed}-{self.purpose}"


def work(setup: Setup, jobs: Any, results: Any) -> None:
    """A worker: jobs in, results out, None ends it."""
    bare.serve(lambda: Bench(setup), jobs, results)


class Bench:
    """Rows, windows, teacher and device of a process."""

    def __init__(self, setup: Setup):
        bare.stand_in()
        import torch
        from safetensors.torch import load_file

        from edgeslm.data.rows import Rows
        from edgeslm.teachers.live import LiveTeacher

        torch.set_num_threads(setup.threads)
        self.setup, self.device = setup, torch.device(setup.device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.rows = Rows.load(setup.work / "rows.safetensors")
        self.judged = load_file(setup.work / "judged.safetensors")["ids"].long().to(self.device)
        self.teacher = LiveTeacher(opened(setup.work / "teacher", self.dtype, self.device).requires_grad_(False))

    def train(self, job: Job) -> dict[str, Any]:
        """The student as it started, the training's curve, and the student as it ended."""
        import torch

        from edgeslm.data.order import order
        from edgeslm.progress import Progress
        from edgeslm.schemes import SCHEMES
        from edgeslm.schemes.loop import Loop

        setup, length = self.setup, self.rows.ids.shape[1]
        steps, batch_rows = job.tokens // job.batch_tokens, job.batch_tokens // length
        folder = setup.work / "trained" / job.name
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(job.seed)
        step = self.step(job, batch_rows)
        before = self.judge(step.model)
        train = SimpleNamespace(
            steps=steps, lr=job.lr, schedule="wsd", warmup=setup.warmup, decay=setup.decay, checkpoint_every=NEVER
        )
        start, read = time.perf_counter(), order(self.rows, [1.0], steps * batch_rows, job.seed)
        held: list[tuple[int, float]] = []
        followed = job.purpose == "figure" and not job.arm.startswith("cut:")
        marks = {round(steps * i / 8) for i in range(1, 8)} if followed else set()

        def look(done: int) -> Any:
            return lambda: held.append((done * job.batch_tokens, self.judge(step.model)["loss"]))

        loop = Loop(
            self.rows, read, batch_rows, train, NEVER, folder, Progress(quiet=True), self.device, lambda done: None,
            keep={done: look(done) for done in sorted(marks - {0})},
        )  # fmt: skip
        SCHEMES["offline"]([step], self.teacher if job.loss != "cross_entropy" else None, loop, SimpleNamespace())
        seconds = time.perf_counter() - start
        for spent in folder.glob("checkpoint.safetensors*"):
            spent.unlink()
        after = self.judge(step.model)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # other processes share the device
        return {
            "parameters": sum(p.numel() for p in step.model.parameters()),
            "tokens": steps * job.batch_tokens,
            "before": before,
            **after,
            "curve": thinned(folder / "log.jsonl"),
            "held_out": held,
            "seconds": seconds,
        }

    def step(self, job: Job, rows: int) -> Any:
        from edgeslm.quantize.masters import attach
        from edgeslm.quantize.plan import Plan
        from edgeslm.schemes.objective import Objective
        from edgeslm.schemes.step import Step, StepSettings

        model = opened(self.setup.work / "students" / job.student, None, self.device)
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        masters = attach(model, Plan.uniform("f32").assign(shapes), self.dtype)
        settings = StepSettings(rows, self.setup.clip, 0.0, self.setup.betas, None)
        return Step(model, masters, Objective.build([{"loss": job.loss}]), settings)

    def judge(self, model: Any) -> dict[str, float]:
        """Nats a token of what follows, and KL to the teacher, on all held-out rows, in the type of training."""
        import torch

        loss = kl = 0.0
        with torch.no_grad():
            for ids in self.judged.split(JUDGED_ROWS):
                ours, theirs = (
                    torch.log_softmax(m(input_ids=ids, use_cache=False).logits[:, :-1].float(), -1)
                    for m in (model, self.teacher.model)
                )
                loss -= float(ours.gather(2, ids[:, 1:, None]).double().sum())
                kl += float((theirs.exp() * (theirs - ours)).sum(-1).double().sum())
        count = self.judged.shape[0] * (self.judged.shape[1] - 1)
        return {"loss": loss / count, "kl": kl / count}


def opened(folder: Path, dtype: Any, device: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or torch.float32, local_files_only=True)
    return model.eval().to(device)


def thinned(log: Path, points: int = 60) -> list[tuple[int, float]]:
    """[(tokens seen, mean training loss since the point before)]."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    size = max(1, -(-len(lines) // points))
    parts = [lines[at : at + size] for at in range(0, len(lines), size)]
    return [(part[-1]["tokens"], round(sum(x["loss"] for x in part) / len(part), 4)) for part in parts]


def written(model: Any, rows: int, length: int, seed: int, batch: int) -> Any:
    """[R, T] int32: what the teacher writes by itself, drawn from its whole distribution at temperature 1."""
    import torch
    from transformers import DynamicCache

    device, found = next(model.parameters()).device, []
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for at in range(0, rows, batch):
            count = min(batch, rows - at)
            ids = torch.full((count, 1), BEGIN, device=device)
            cache, row = DynamicCache(), [ids]
            for _ in range(length - 1):
                logits = model(input_ids=row[-1], past_key_values=cache, use_cache=True).logits[:, -1].float()
                # argmax of p / e, e exponential, is a draw from p
                drawn = torch.empty_like(logits).exponential_(generator=generator)
                row.append((torch.softmax(logits, -1) / drawn).argmax(-1, keepdim=True))
            found.append(torch.cat(row, 1).int().cpu())
            del cache
    return torch.cat(found)
