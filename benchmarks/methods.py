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
import statistics
from pathlib import Path
from typing import Any

from benchmarks import methods_rows as rows
from benchmarks import record

NAME = "methods"
WINDOWS = 128  # of held-out text, second half of each judged
TASKS = ("lambada_openai", "arc_easy")
Row = dict[str, Any]

BASE = """
teacher: {}
data:
  sequence: 128
  sources:
    - {kind: text, paths: ["package:text/learn/*.txt", "package:text/more/*.txt"]}
student: {kind: width, hidden: 144, heads: 3, kv_heads: 3, ffn: 384}
quantize: {plan: [{pattern: "*", format: f32}]}
distill:
  objective: [{loss: forward_kl}]
  train: {steps: 200, batch_tokens: 1024, lr: 0.001, checkpoint_every: 100}
export: {kinds: [gguf], teacher: [gguf-f32]}
evaluate: {paths: ["package:text/judge/*.txt"], context: 128, windows: 24}
benchmark: null
"""


def recipe_of(name: str, seed: int, arguments: argparse.Namespace, extra: rows.Changes | None = None) -> Any:
    import yaml

    from edgeslm.recipe import Recipe

    data = yaml.safe_load(BASE)
    data["teacher"] = {"model": str(arguments.model), "tokenizer": str(arguments.tokenizer)}
    data["threads"] = arguments.threads
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
    """The recipe of a row; an added loss weighs so much that it has `SHARE` of forward_kl's gradient at the start."""
    recipe = recipe_of(name, seed, arguments)
    if name not in rows.ADDED:
        return recipe
    terms = [t.model_dump(exclude_none=True) for t in recipe.distill.objective]
    main, extra = (gradient_norm(context(recipe), [term]) for term in terms)
    weight = float(f"{rows.SHARE * main / extra:.1g}")
    return recipe_of(name, seed, arguments, {"distill.objective": [terms[0], {**terms[1], "weight": weight}]})


def gradient_norm(context: Any, terms: list[Row]) -> float:
    """Of the student's weights, on the first batch."""
    import torch

    from edgeslm.data.rows import Rows
    from edgeslm.pipeline import guides
    from edgeslm.pipeline.distill import _settings, plan_of, shapes_of
    from edgeslm.pipeline.prepare import student_model
    from edgeslm.quantize.masters import attach
    from edgeslm.recipe_distill import LossTerm
    from edgeslm.schemes.step import Step

    distill = context.recipe.distill.model_copy(update={"objective": tuple(LossTerm(**t) for t in terms)})
    context.recipe = context.recipe.model_copy(update={"distill": distill})
    torch.manual_seed(context.recipe.seed)
    student = student_model(context)
    assigned = plan_of(context).assign(shapes_of(student))
    masters = attach(student, assigned, context.compute.dtype)
    teacher = guides.teachers(context)
    objective, _ = guides.objectives(context, student, teacher)
    step = Step(student, masters, objective, _settings(context, student, assigned))
    training = Rows.load(context.folders["data"] / "rows.safetensors")
    from edgeslm.data.batch import Batch

    chosen = torch.as_tensor(guides.read_order(context, training)[: context.recipe.batch_rows])
    batch = Batch(training.ids[chosen].long(), training.mask[chosen].float(), chosen)
    step._backward(batch, teacher, objective)
    grads = [m.value.grad for m in masters.items if m.value.grad is not None]
    return float(torch.stack([g.norm() for g in grads]).norm())


def one(name: str, seed: int, arguments: argparse.Namespace) -> Row:
    from edgeslm.pipeline.run import run as run_recipe
    from edgeslm.pipeline.stage import Context, read_json
    from edgeslm.progress import Progress

    base, runs, progress = Path.cwd(), arguments.runs, Progress()

    def context(recipe: Any) -> Any:
        """A context of the row whose stages before training are done."""
        share_stages(runs, recipe.name)
        root = run_recipe(recipe, base, runs, progress, until="student")
        made = Context(recipe, base, root, progress)
        for stage, folder in read_json(root / "run.json")["stages"].items():
            made.folders[stage] = root / folder
        return made

    recipe = weighted(name, seed, arguments, context)
    share_stages(runs, recipe.name)
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
        **({"written_tokens_per_s": statistics.median(written)} if written else {}),
        **recorded(root, stages),
        "base_model": Path(arguments.model).name,
        "versions": record.versions("edgeslm", "torch", "transformers"),
    }


def share_stages(runs: Path, name: str) -> None:
    """Stages before training are the same for most rows: what another row has done is linked, and taken where its hash
    is the one looked for."""
    (runs / name).mkdir(parents=True, exist_ok=True)
    for stage in ("teacher", "data", "student"):
        for done in runs.glob(f"{NAME}-*/{stage}-*/done.json"):
            here = runs / name / done.parent.name
            if not here.exists():
                here.symlink_to(done.parent.resolve())


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


def answered(root: Path, arguments: argparse.Namespace) -> dict[str, Row]:
    """{task: score of the student's file, of the teacher's, items}, through llama.cpp."""
    from edgeslm import cli_eval
    from edgeslm.progress import Progress

    options = cli_eval.Options(tasks=TASKS, data=arguments.data, limit=arguments.limit, threads=arguments.threads)
    document = cli_eval.evaluate([str(root)], None, options, Progress())
    (student,) = document["students"]
    kept = document["retention"][student["name"]]["tasks"]
    return {t["task"]: {k: t[k] for k in ("student", "teacher", "chance", "items")} for t in kept}


def run(arguments: argparse.Namespace) -> Row:
    """Rows are recorded as they come; one that is recorded with this code's files is made again all the same."""
    for seed in arguments.seeds:
        for name in arguments.rows:
            row = one(name, seed, arguments)
            record.append(NAME, row)
            print(f"{name:24} seed {seed}: KL {row['kl']:.4f}, loss {row['loss']:.4f}, {row['seconds_per_step']:.2f} s")
    return {"kind": "end", "rows": list(arguments.rows), "seeds": list(arguments.seeds)}


def latest(records: list[Row]) -> dict[str, dict[int, Row]]:
    """{method: {seed: its last row}} of rows at the base learning rate of their method."""
    found: dict[str, dict[int, Row]] = {}
    for r in records:
        if r["kind"] == "row":
            found.setdefault(r["method"], {})[r["seed"]] = r
    return {name: found[name] for name in rows.NAMES if name in found}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="the teacher, float32")
    parser.add_argument("--tokenizer")
    parser.add_argument("--data", type=Path, help="folder of <task>.jsonl files; without it no tasks are asked")
    parser.add_argument("--rows", nargs="+", default=rows.NAMES, choices=rows.NAMES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--limit", type=int, default=200, help="items of each task")
    parser.add_argument("--lr", type=float, help="another learning rate than the base recipe's")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--threads", type=int, default=1)


def spread(by_seed: dict[int, Row], key: str) -> float:
    """Largest minus smallest over seeds."""
    values = [r[key] for r in by_seed.values()]
    return max(values) - min(values)


def mean(by_seed: dict[int, Row], key: str) -> float:
    return statistics.fmean(r[key] for r in by_seed.values())


def headline(records: list[Row]) -> Row:
    """Ratios of means over seeds; `best` is the method of three seeds or more with the least held-out KL."""
    found = latest(records)
    repeated = {n: r for n, r in found.items() if len(r) >= 3 and n not in ("text", "forward_kl", *rows.BEFORE)}
    plain, text = found.get("forward_kl", {}), found.get("text", {})
    head: Row = {"rows": len([n for n in found if n not in rows.BEFORE]), **rival()}
    if plain and text:
        head["forward_kl_over_text"] = {
            key: {"ratio": mean(plain, key) / mean(text, key), "spread": [spread(plain, key), spread(text, key)]}
            for key in ("kl", "loss")
        }
    if plain and repeated:
        best = min(repeated, key=lambda n: mean(repeated[n], "kl"))
        head["best"] = best
        head["best_over_forward_kl"] = {
            key: {
                "ratio": mean(repeated[best], key) / mean(plain, key),
                "spread": [spread(repeated[best], key), spread(plain, key)],
            }
            for key in ("kl", "loss")
        }
    return head


def rival() -> Row:
    """Speed and memory beside TRL's GKD trainer, from the record of its own benchmark."""
    from benchmarks import gkd_trainer

    records = record.read(gkd_trainer.NAME)
    return gkd_trainer.headline(records) if records else {}


def show(records: list[Row]) -> Row:
    for name, by_seed in latest(records).items():
        r = next(iter(by_seed.values()))
        tasks = ", ".join(f"{t} {v['student']:.3f}" for t, v in r["tasks"].items())
        print(
            f"{name:24} {len(by_seed)} seeds  KL {mean(by_seed, 'kl'):.4f} ± {spread(by_seed, 'kl') / 2:.4f}  "
            f"perplexity {mean(by_seed, 'perplexity'):8.2f}  {r['seconds_per_step']:.2f} s/step  "
            f"{r['peak_memory_bytes'] / 1e9:.2f} GB  {tasks}"
        )
    return headline(records)


if __name__ == "__main__":
    record.main(NAME, run, show, options)
