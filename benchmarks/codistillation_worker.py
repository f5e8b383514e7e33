"""One training of `benchmarks.codistillation`: a small Llama from scratch, by the product's own schemes and step, in a
process that does one training after another.

Letters: R windows, T tokens of a window, V vocabulary.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks import bare

NEVER = 1 << 30  # a step that is not reached


@dataclass(frozen=True)
class Setup:
    """What all trainings share."""

    work: Path
    model: dict[str, Any]
    length: int
    batch_tokens: int
    device: str
    evaluations: int  # of a training
    warmup: float
    betas: tuple[float, float]
    clip: float
    threads: int


@dataclass(frozen=True)
class Job:
    """One copy of one training. `scheme`: {} for one that learns from the text alone, else options of codistill.
    `teachers`: names of finished jobs whose mean teaches. `batches`: of the setup's batch, in a step."""

    name: str
    arm: str
    seed: int
    group: int
    lr: float
    scheme: dict[str, Any]
    steps: int
    teachers: tuple[str, ...] = ()
    batches: int = 1
    rows: str = "all"  # or "same": the first of two shards; or "shard"
    timed: bool = False  # it is not looked at on the way

    @property
    def training(self) -> str:
        """What the copies of one training have in common."""
        return self.name.rsplit("/", 1)[0]


def work(device: str, setups: Any, jobs: Any, results: Any) -> None:
    """A worker: while the text is made ready it loads what it needs; then a setup, and jobs until None."""

    def make() -> Bench:
        bare.stand_in()
        import torch
        from transformers import LlamaForCausalLM  # noqa: F401 (takes seconds)

        torch.zeros(1, device=device)
        setup = setups.get()
        torch.set_num_threads(setup.threads)
        return Bench(setup)

    bare.serve(make, jobs, results)


class Bench:
    """Rows, windows and device of a process."""

    def __init__(self, setup: Setup):
        import torch
        from safetensors.torch import load_file

        from edgeslm.data.rows import Rows

        self.setup, self.device = setup, torch.device(setup.device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.rows = Rows.load(setup.work / "rows.safetensors")
        self.judged = {k: v.to(self.device) for k, v in load_file(setup.work / "judged.safetensors").items()}

    def model(self, seed: int) -> Any:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        config = LlamaConfig(**self.setup.model, max_position_embeddings=self.setup.length, tie_word_embeddings=True)
        config._attn_implementation = "sdpa"
        model: Any = LlamaForCausalLM(config)
        return model.to(self.device)

    def finished(self, name: str) -> Any:
        """The model that a job left, in the type of computing."""
        from safetensors.torch import load_file

        model = self.model(0).to(self.dtype)
        weights = load_file(self.setup.work / name / "final.safetensors")
        for key, value in model.named_parameters():
            value.data.copy_(weights[key])
        return model.eval().requires_grad_(False)

    def order(self, job: Job, count: int) -> Any:
        """Rows of this copy: all in an order of its seed, or those of its shard; `same` means one shard for all."""
        from edgeslm.data.order import order

        own = 1000 * job.seed + (0 if job.rows == "shard" else job.group)
        if job.rows == "all":
            return order(self.rows, [1.0], count, own)
        return order(self.shard(0 if job.rows == "same" else job.group, job.scheme["groups"]), [1.0], count, own)

    @cache  # noqa: B019 (a bench lives as long as its process)
    def shard(self, reader: int, readers: int) -> Any:
        from edgeslm.data.order import shard

        return shard(self.rows, reader, readers)

    def train(self, job: Job) -> dict[str, Any]:
        """The training's curve and what it left."""
        import torch
        from safetensors.torch import save_file

        from edgeslm.progress import Progress
        from edgeslm.schemes import SCHEMES
        from edgeslm.schemes.exchange import Exchange
        from edgeslm.schemes.exchange_places import Folder
        from edgeslm.schemes.loop import Loop
        from edgeslm.teachers.ensemble import Ensemble
        from edgeslm.teachers.live import LiveTeacher

        setup, steps = self.setup, job.steps
        folder = setup.work / job.name
        folder.mkdir(parents=True, exist_ok=True)
        batch_rows = setup.batch_tokens * job.batches // setup.length
        step = self.step(job)
        guides = [LiveTeacher(self.finished(name)) for name in job.teachers]
        order = self.order(job, steps * batch_rows)
        met = Exchange(Folder(setup.work / job.training / "exchange"), "benchmark", (job.group,), [order])
        curve: list[tuple[int, float, float, float]] = []
        start = time.perf_counter()

        def look(done: int) -> Any:
            return lambda: curve.append((done, round(time.perf_counter() - start, 2), *self.losses([step.model])))

        marks = {round(steps * (i + 1) / setup.evaluations) for i in range(setup.evaluations)} if not job.timed else ()
        train = SimpleNamespace(
            steps=steps, lr=job.lr, schedule="wsd", warmup=setup.warmup, decay=0.0, checkpoint_every=NEVER
        )
        loop = Loop(
            self.rows, order, batch_rows, train, NEVER, folder, Progress(quiet=True), self.device, lambda done: None,
            keep={done: look(done) for done in sorted(marks)}, exchange=met,
        )  # fmt: skip
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        teacher = Ensemble(guides, [1.0] * len(guides)) if guides else None
        part = json.loads(json.dumps(job.scheme), object_hook=lambda options: SimpleNamespace(**options))
        SCHEMES["codistill" if job.scheme else "offline"]([step], teacher, loop, part)
        weights = {m.name: m.weight.detach().cpu().contiguous() for m in step.masters.items}
        save_file(weights, folder / "final.safetensors")
        for spent in folder.glob("checkpoint.safetensors*"):
            spent.unlink()
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # other processes share the device
        return {
            "curve": curve,
            "seconds": time.perf_counter() - start,
            "step_seconds": statistics.median(line["seconds"] for line in lines),
            "peak_memory_bytes": peak,
            "ages": ages(lines),
        }

    def step(self, job: Job) -> Any:
        from edgeslm.quantize.masters import attach
        from edgeslm.quantize.plan import Plan
        from edgeslm.schemes.objective import Objective
        from edgeslm.schemes.step import Step, StepSettings

        model = self.model(1 + 1000 * job.seed + job.group)
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        masters = attach(model, Plan.uniform("f32").assign(shapes), self.dtype)
        terms = [{"loss": "cross_entropy"}, *([{"loss": "forward_kl"}] if job.teachers else [])]
        micro = self.setup.batch_tokens // self.setup.length
        settings = StepSettings(micro, self.setup.clip, 0.0, self.setup.betas, None)
        return Step(model, masters, Objective.build(terms), settings)

    def losses(self, models: list[Any]) -> tuple[float, float]:
        """Nats a token of the models' mean prediction, on the windows to tune by and on those to report."""
        found = []
        for name in ("tune", "report"):
            windows = self.judged[name]
            logs = self.log_probs(models, windows)
            found.append(round(-float(logs.gather(2, windows[:, 1:, None]).double().mean()), 5))
        return found[0], found[1]

    def log_probs(self, models: list[Any], windows: Any) -> Any:
        """[R, T - 1, V] float32: log of the mean of the models' probabilities."""
        import math

        import torch

        with torch.no_grad():
            logs = [torch.log_softmax(m(input_ids=windows, use_cache=False).logits[:, :-1].float(), -1) for m in models]
            return torch.logsumexp(torch.stack(logs), 0) - math.log(len(logs)) if len(logs) > 1 else logs[0]

    def churn(self, one: list[Any], other: list[Any]) -> dict[str, float]:
        """How two predictors disagree on the windows to report: see edgeslm.evaluate.study."""
        windows = self.judged["report"]
        a, b = self.log_probs(one, windows), self.log_probs(other, windows)
        truth = [log.gather(2, windows[:, 1:, None])[..., 0].exp() for log in (a, b)]
        return {
            "top1_changes": float((a.argmax(-1) != b.argmax(-1)).double().mean()),
            "mean_absolute_delta_p": float((truth[0] - truth[1]).abs().double().mean()),
            "kl": float((a.exp() * (a - b)).sum(-1).double().mean()),
        }


def ages(lines: list[dict[str, Any]]) -> dict[str, float] | None:
    """How many steps old were the peers that taught, by a training's log; None where none did."""
    found = [used["age"] for line in lines for used in line.get("used", ())]
    return {"median": statistics.median(found), "most": max(found)} if found else None
