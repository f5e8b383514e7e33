"""Every method, one student, one token budget, one text: what each brings, and what it costs.

    python -m benchmarks.methods --model stories15M.bin --tokenizer tokenizer.model --data DIR            all rows
    python -m benchmarks.methods ... --rows forward_kl text hidden --seeds 0 1 2                          some

Each row is a recipe (the base below, changed as `methods_rows` says) run through the pipeline to its exported file.
The student is judged in torch against the first teacher on held-out text, whoever taught it, and its shipped file
answers LAMBADA and ARC-easy through llama.cpp.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import methods_rows as rows
from benchmarks import methods_table, record
from benchmarks.recipe_rows import answered, share_stages

NAME = "methods"
COST_STEPS = 10
WINDOWS = 128  # of held-out text, second half of each judged
Row = dict[str, Any]

BASE = """
teacher: {}
data:
  sequence: 128
  sources:
    - kind: text
      paths:
        - package:text/learn/*.txt
        - package:text/more/carroll-alice.txt
        - package:text/more/edgeworth-parents.txt
student: {kind: width, hidden: 144, heads: 3, kv_heads: 3, ffn: 384}
quantize: {plan: [{pattern: "*", format: f32}]}
distill:
  objective: [{loss: forward_kl}]
  train: {steps: 200, batch_tokens: 1024, lr: BASE_LR, checkpoint_every: 100}
export: {kinds: [gguf], teacher: [gguf-f32]}
evaluate: {paths: ["package:text/more/bryant-stories.txt"], context: 128, windows: 24}
benchmark: null
""".replace("BASE_LR", str(methods_table.BASE_LR))


def recipe_of(name: str, seed: int, arguments: argparse.Namespace, extra: rows.Changes | None = None) -> Any:
    import yaml

    from edgeslm.recipe import Recipe

    data = yaml.safe_load(BASE)
    data["teacher"] = {"model": str(arguments.model), "tokenizer": str(arguments.tokenizer)}
    data["threads"], data["device"] = arguments.threads, arguments.device
    asked = {"name": f"{NAME}-{name}-s{seed}", "seed": seed, **rows.changes(name), **(extra or {})}
    if arguments.lr:
        asked["distill.train.lr"] = arguments.lr
        asked["name"] += f"-lr{arguments.lr}"
    for key, value in asked.items():
        *path, last = key.split(".")
        node = data
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return Recipe.model_validate(data)


def weighted(name: str, seed: int, arguments: argparse.Namespace, context: Any) -> Any:
    """The recipe of a row; an added loss has `SHARE` of forward_kl's gradient at the start."""
    recipe = recipe_of(name, seed, arguments)
    if name not in rows.ADDED:
        return recipe
    terms = [t.model_dump(exclude_none=True) for t in recipe.distill.objective]
    main, extra = (gradient_norm(context(recipe), [term]) for term in terms)
    # an adversary's last layer starts at zero and gives the student nothing before its first own step
    weight = float(f"{rows.SHARE * main / extra:.1g}") if extra else rows.ADVERSARY_WEIGHT
    return recipe_of(name, seed, arguments, {"distill.objective": [terms[0], {**terms[1], "weight": weight}]})


def gradient_norm(context: Any, terms: list[Row]) -> float:
    """Of the student's weights, on the first batch."""
    import torch

    from edgeslm.data.batch import Batch
    from edgeslm.data.rows import Rows
    from edgeslm.pipeline import guides
    from edgeslm.pipeline.distill import step_of
    from edgeslm.recipe.distill import LossTerm

    distill = context.recipe.distill.model_copy(update={"objective": tuple(LossTerm(**t) for t in terms)})
    context.recipe = context.recipe.model_copy(update={"distill": distill})
    torch.manual_seed(context.recipe.seed)
    teacher = guides.teachers(context)
    training = Rows.load(context.folders["data"] / "rows.safetensors")
    step = step_of(context, context.root, training, teacher)
    chosen = torch.as_tensor(guides.read_order(context, training)[: context.recipe.batch_rows])
    device = context.compute.device
    batch = Batch(training.ids[chosen].long().to(device), training.mask[chosen].float().to(device), chosen)
    step._backward(batch, teacher, step.objective)
    grads = [m.value.grad for m in step.masters.items if m.value.grad is not None]
    return float(torch.stack([g.norm() for g in grads]).norm())


def one(name: str, seed: int, arguments: argparse.Namespace) -> Row:
    from edgeslm.pipeline.run import run as run_recipe
    from edgeslm.pipeline.stage import Context, read_json
    from edgeslm.progress import Progress

    base, runs, progress = Path.cwd(), arguments.runs, Progress()

    def context(recipe: Any) -> Any:
        """A context of the row whose stages before training are done."""
        share_stages(runs, NAME, recipe.name)
        root = run_recipe(recipe, base, runs, progress, until="student")
        made = Context(recipe, base, root, progress)
        for stage, folder in read_json(root / "run.json")["stages"].items():
            made.folders[stage] = root / folder
        return made

    recipe = weighted(name, seed, arguments, context)
    share_stages(runs, NAME, recipe.name)
    root = run_recipe(recipe, base, runs, progress, until="export")
    stages = read_json(root / "run.json")["stages"]
    distill = root / stages["distill"]
    log = [json.loads(line) for line in (distill / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    summary = read_json(distill / "summary.json")
    written = [line["written_tokens_per_s"] for line in log if line.get("written")]
    return {
        "kind": "row",
        "method": name,
        "family": rows.FAMILIES[name],
        "seed": seed,
        "objective": [t.model_dump(exclude_none=True, mode="json") for t in recipe.distill.objective],
        "changes": {k: v for k, v in rows.changes(name).items() if k != "distill.objective"},
        "lr": recipe.distill.train.lr,
        "tokens": recipe.tokens,
        "parameters": read_json(root / stages["student"] / "importance.json")["parameters_after"],
        **judged(recipe, distill, arguments),
        "tasks": answered(root, arguments) if arguments.data and recipe.distill.scheme.kind != "residual" else {},
        "seconds_per_step": statistics.median(line["seconds"] for line in log),
        "peak_memory_bytes": summary["peak_memory_bytes"],
        "threads": arguments.threads,
        "device": arguments.device,
        **({"written_tokens_per_s": statistics.median(written)} if written else {}),
        **recorded(root, stages),
        "base_model": Path(arguments.model).name,
        "versions": record.versions("edgeslm", "torch", "transformers"),
    }


def recorded(root: Path, stages: dict[str, str]) -> Row:
    if "record" not in stages:
        return {}
    index = json.loads((root / stages["record"] / "index.json").read_text(encoding="utf-8"))
    return {"bytes_per_token": index["bytes_per_token"]}


def judged(recipe: Any, distill: Path, arguments: argparse.Namespace) -> Row:
    """The frozen student beside the first teacher, both in float32, on the base recipe's held-out text."""
    import torch

    from edgeslm.data.text import documents
    from edgeslm.evaluate.closeness import even_windows, with_begin
    from edgeslm.models.load import load
    from edgeslm.models.source import resolve
    from edgeslm.models.stop import begin_id
    from edgeslm.quantize.frozen import Frozen
    from edgeslm.recipe import expand
    from edgeslm.schemes.measure import closeness

    source = resolve(str(arguments.model), Path.cwd(), None, Path(arguments.tokenizer))
    loaded = load(source, torch.float32)
    part = recipe.evaluate
    texts = documents(expand(part.paths, Path.cwd()), loaded.tokenizer)
    windows = with_begin(even_windows(texts, part.context, WINDOWS), begin_id(loaded.tokenizer))
    student = from_frozen(Frozen.load(distill / "frozen"))
    base = None
    if recipe.distill.scheme.kind == "residual":
        base = load(resolve(str(shipped(recipe.distill.scheme.base, arguments)), Path.cwd()), torch.float32).model
    found = closeness(student, loaded.model, torch.tensor(windows), base)
    return {
        "kl": found.kl,
        "loss": found.loss,
        "perplexity": math.exp(found.loss),
        "top1": found.top1,
        "judged_tokens": found.tokens,
        "judged_files": [p.name for p in expand(part.paths, Path.cwd())],
    }


def shipped(spec: str, arguments: argparse.Namespace) -> Path:
    from edgeslm.pipeline.stage import student_of

    return student_of(arguments.runs, spec.removeprefix("run:"))


def from_frozen(frozen: Any) -> Any:
    """A transformers model that holds what was frozen, float32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = {k: v for k, v in frozen.config.items() if k != "dtype"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    model.to(torch.float32)
    for name, parameter in model.named_parameters():
        parameter.data = frozen.tensors[name].decode().float()
    return model.eval()


def cost(name: str, arguments: argparse.Namespace) -> Row:
    """Seconds and memory of a few steps of a row, beside forward_kl's in the same minute: machines are shared."""
    both = {}
    for each in dict.fromkeys(("forward_kl", name)):
        command = [sys.executable, "-m", f"benchmarks.{NAME}", "--child", each, "--model", str(arguments.model)]
        command += ["--tokenizer", str(arguments.tokenizer), "--runs", str(arguments.runs)]
        command += ["--threads", str(arguments.threads), "--device", arguments.device]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{each}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        both[each] = json.loads(done.stdout.strip().splitlines()[-1])
    versions = record.versions("edgeslm", "torch", "transformers")
    return {
        "kind": "cost", "method": name, **both[name], "beside": both["forward_kl"], "threads": arguments.threads,
        "versions": versions,
    }  # fmt: skip


def child(name: str, arguments: argparse.Namespace) -> Row:
    """A few steps of a row in this process; the first two are left out."""
    from edgeslm.pipeline.run import run as run_recipe
    from edgeslm.pipeline.stage import read_json
    from edgeslm.progress import Progress

    short = {"distill.train.steps": COST_STEPS, "name": f"{NAME}-cost-{name}"}
    recipe = recipe_of(name, 0, arguments, short)
    share_stages(arguments.runs, NAME, recipe.name)
    root = run_recipe(recipe, Path.cwd(), arguments.runs, Progress(quiet=True), until="distill")
    distill = root / read_json(root / "run.json")["stages"]["distill"]
    log = [json.loads(line) for line in (distill / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    peak = read_json(distill / "summary.json")["peak_memory_bytes"]
    shutil.rmtree(distill)
    return {"seconds": [line["seconds"] for line in log[2:]], "peak_memory_bytes": peak}


def run(arguments: argparse.Namespace) -> Row:
    """Rows are recorded as they come."""
    if arguments.cost:
        for name in arguments.rows:
            record.append(NAME, cost(name, arguments))
        return {"kind": "end", "rows": list(arguments.rows), "cost": True}
    for seed in arguments.seeds:
        for name in arguments.rows:
            row = one(name, seed, arguments)
            record.append(NAME, row)
            print(f"{name:24} seed {seed}: KL {row['kl']:.4f}, loss {row['loss']:.4f}, {row['seconds_per_step']:.2f} s")
    return {"kind": "end", "rows": list(arguments.rows), "seeds": list(arguments.seeds)}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="the teacher, float32")
    parser.add_argument("--tokenizer")
    parser.add_argument("--data", type=Path, help="folder of <task>.jsonl files; without it no tasks are asked")
    parser.add_argument("--rows", nargs="+", default=rows.NAMES, choices=rows.NAMES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--limit", type=int, default=100, help="items of each task")
    parser.add_argument("--lr", type=float, help="another learning rate than the base recipe's")
    parser.add_argument("--cost", action="store_true", help="time a few steps of each row instead, beside forward_kl")
    parser.add_argument("--child", choices=rows.NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"))


if __name__ == "__main__":
    if "--child" in sys.argv:
        parser = argparse.ArgumentParser()
        options(parser)
        given = parser.parse_args()
        print(json.dumps(child(given.child, given)))
    else:
        record.main(NAME, run, methods_table.show, options)
