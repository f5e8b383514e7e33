"""A training of a shape alone: weights anew, random tokens, cross-entropy, by the project's own step. For figures over
sizes, where no recipe is meant."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

from edgeslm.training_cost.of_recipe import TRANSFORMERS

LR = 1e-4


def measure(job: dict[str, Any]) -> dict[str, Any] | None:
    """`job`: config (of transformers, with model_type), rows and length of a batch, device, precision, threads. Seconds
    of each step and the peak of each rank, on the first rank; None on the others."""
    import gc

    import torch

    from edgeslm import compute, parallel
    from edgeslm.data.batch import Batch
    from edgeslm.training_cost.kernel import attention_kernel

    point, limit = job["point"], job["warmups"] + job["steps"]
    torch.manual_seed(0)
    compute.keep_freed_memory()
    ranks, chosen = parallel.join(), compute.resolve(job["device"], job["precision"], job["threads"])
    step = step_of(job, chosen)
    if point["compile"]:
        compute.compile_layers(step.model)
    shape = (limit, job["rows"], job["length"])
    ids = torch.randint(job["config"]["vocab_size"], shape, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(job["rows"], job["length"], device=chosen.device)
    gc.collect()
    compute.reset_peak_memory(chosen)
    seconds, loss = [], 0.0
    for index in range(limit):
        start = time.perf_counter()
        loss = step(Batch(ids[index].to(chosen.device), mask), None, lr=LR, grid=False, index=index).loss
        if chosen.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peaks = ranks.gathered(compute.peak_memory_bytes(chosen))
    if not ranks.first:
        return None
    return {
        "warmup_seconds": seconds[: job["warmups"]],
        "seconds": seconds[job["warmups"] :],
        "tokens_per_step": job["rows"] * job["length"],
        "mixed": False,
        "loss": loss,
        "peak_memory_bytes": peaks,
        "dtype": str(chosen.dtype).removeprefix("torch."),
        "threads": chosen.threads,
        "parameters": sum(p.numel() for p in step.model.parameters()),
        "kernel": attention_kernel(job["config"], point["attention"], job["length"], chosen),
    }


def step_of(job: dict[str, Any], chosen: Any) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from edgeslm.models.turned import straighten
    from edgeslm.pipeline.processes import engine_of, weight_type
    from edgeslm.quantize.masters import attach
    from edgeslm.quantize.plan import Plan
    from edgeslm.schemes.objective import Objective
    from edgeslm.schemes.step import Step, StepSettings

    config, attention = dict(job["config"]), job["point"]["attention"]
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    model = straighten(made.to(torch.float32)).eval().to(chosen.device)
    model.set_attn_implementation(TRANSFORMERS.get(attention, attention))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    ways = as_recipe(job["point"], chosen)
    masters = attach(model, Plan.uniform("f32").assign(shapes), weight_type(ways))
    settings = StepSettings(job["point"]["micro_rows"], 1.0, 0.0, (0.9, 0.98), None)
    objective = Objective.build([{"loss": "cross_entropy"}])
    return Step(model, masters, objective, settings, engine=engine_of(ways, model, masters, [objective]))


def as_recipe(point: dict[str, Any], chosen: Any) -> Any:
    """What of a recipe's context decides how processes share the work."""
    train = SimpleNamespace(parallel=SimpleNamespace(kind=point["parallel"]))
    return SimpleNamespace(recipe=SimpleNamespace(distill=SimpleNamespace(train=train)), compute=chosen)
