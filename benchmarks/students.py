"""Students cut from a teacher: what each way to cut loses at one size, before and after training, and how many tokens
it saves beside a student from scratch.

    python -m benchmarks.students --base smollm2 --model M.gguf --data DIR --steps 0 128     rows, through the pipeline
    python -m benchmarks.students --pack DIR --model stories15M.bin --tokenizer T.model --keep 8192     to carry away
    python -m benchmarks.students --curve --teacher DIR --device cuda --budget-s 450         token curves (see there)

Rows are recipes (benchmarks.students_rows). Held-out figures are of the frozen student in float32 beside the teacher in
the student's own tokens; bits per byte are of all of a text, so that they compare across vocabularies; LAMBADA and
ARC-easy are answered by the shipped file through llama.cpp.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from benchmarks import record, students_curve, students_rows, students_table
from benchmarks.recipe_rows import answered, share_stages

NAME = "students"
Row = dict[str, Any]


def run(arguments: argparse.Namespace) -> Row:
    if arguments.curve:
        return students_curve.run(arguments)
    for seed in arguments.seeds:
        for steps in arguments.steps:
            for name in arguments.rows:
                row = one(name, steps, seed, arguments)
                record.append(NAME, row)
                print(f"{name:24} {row['tokens']:9,} tokens, seed {seed}: KL {row['kl']:.4f}, loss {row['loss']:.4f}")
    return {"kind": "end", "base": arguments.base, "rows": list(arguments.rows)}


def one(name: str, steps: int, seed: int, arguments: argparse.Namespace) -> Row:
    from edgeslm.pipeline.run import run as run_recipe
    from edgeslm.pipeline.stage import read_json
    from edgeslm.progress import Progress
    from edgeslm.recipe import Recipe

    data = students_rows.recipe(
        arguments.base, name, steps, seed, str(arguments.model), arguments.tokenizer, arguments.lr
    )
    data["threads"] = arguments.threads
    data["distill"]["train"]["batch_tokens"] = arguments.step_tokens
    data["distill"]["train"]["micro_rows"] = arguments.micro_rows
    if arguments.text:
        data["data"]["sources"][0]["share"] = 1 - arguments.text_share
        data["data"]["sources"].append({"kind": "text", "paths": arguments.text, "share": arguments.text_share})
    if "vocabulary" in data["student"]:
        data["student"]["vocabulary"]["text"] = arguments.count
    if name == "scratch":
        data["student"]["model"] = str(random_student(seed, arguments).resolve())
    recipe = Recipe.model_validate(data)
    share_stages(arguments.runs, NAME, recipe.name)
    until = "export" if steps and arguments.data else "distill" if steps else "student"
    root = run_recipe(recipe, Path.cwd(), arguments.runs, Progress(), until=until)
    stages = read_json(root / "run.json")["stages"]
    facts = read_json(root / stages["student"] / "importance.json")
    trained = read_json(root / stages["distill"] / "summary.json") if steps else {}
    held = trained["heldout"] if steps else []
    loss = held[-1]["loss"] if held else facts["loss_after"]
    kl = trained["kl_by_forward"]["float32"] if steps else facts["kl_after"]
    return {
        "kind": "row", "base": arguments.base, "row": name, "seed": seed, "tokens": recipe.tokens,
        "text": [Path(file).name for file in arguments.text],
        "text_share": arguments.text_share if arguments.text else 0.0, "batch_tokens": arguments.step_tokens,
        "lr": recipe.distill.train.lr, "student": told(data["student"]), "method": facts["method"],
        "kept": facts.get("kept"), "parameters": facts["parameters_after"], "teacher_loss": facts["loss_before"],
        "kl": kl, "loss": loss, "perplexity": math.exp(loss), "before": {"kl": facts["kl_after"],
        "loss": facts["loss_after"]}, "held_out": held, "judged_tokens": facts["judged_tokens"],
        "vocabulary": facts.get("vocabulary"), "objective": data["distill"]["objective"],
        "bits": trained.get("bits") or whole_bits(recipe, root, stages, name),
        "tasks": answered(root, arguments) if steps and arguments.data else {}, "threads": arguments.threads,
        "base_model": Path(arguments.model).name, "versions": record.versions("edgeslm", "torch", "transformers"),
    }  # fmt: skip


def whole_bits(recipe: Any, root: Path, stages: dict[str, str], name: str) -> Row | None:
    """Bits per byte of the control, whose vocabulary is whole, once it is trained."""
    if name != "whole" or "distill" not in stages:
        return None
    from benchmarks.methods import from_frozen
    from edgeslm.pipeline.stage import Context
    from edgeslm.pipeline.vocabulary import measured
    from edgeslm.progress import Progress
    from edgeslm.quantize.frozen import Frozen

    context = Context(recipe, Path.cwd(), root, Progress(quiet=True))
    return measured(context, from_frozen(Frozen.load(root / stages["distill"] / "frozen")).to(context.compute.device))


def told(student: Row) -> Row:
    """Without the folders of this machine."""
    plain = json.loads(json.dumps(student))
    if "vocabulary" in plain:
        plain["vocabulary"]["text"] = [Path(pattern).name for pattern in plain["vocabulary"]["text"]]
    return {key: students_rows.RANDOM if key == "model" else value for key, value in plain.items()}


def random_student(seed: int, arguments: argparse.Namespace) -> Path:
    """A folder of new weights, of the shape of the student of fewer layers; its tokens are the teacher's."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from edgeslm.models.load import describe, write_tokenizer
    from edgeslm.models.source import resolve
    from edgeslm.models.tokenizer import load_tokenizer

    folder = arguments.runs / f"{NAME}-{arguments.base}-random-s{seed}"
    if not (folder / "config.json").exists():
        beside = Path(arguments.tokenizer) if arguments.tokenizer else None
        source = resolve(str(arguments.model), Path.cwd(), None, beside)
        config = {**describe(source).config, "num_hidden_layers": students_rows.BASES[arguments.base]["layers"]}
        torch.manual_seed(seed)
        kind = config.pop("model_type")
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**config, "dtype": "float32"}))
        write_tokenizer(load_tokenizer(source), folder)
        model.save_pretrained(folder)
    return folder


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", default="smollm2", choices=list(students_rows.BASES))
    parser.add_argument("--model", help="the teacher's file")
    parser.add_argument("--tokenizer")
    parser.add_argument("--rows", nargs="+", default=students_rows.NAMES, choices=students_rows.NAMES)
    parser.add_argument("--steps", nargs="+", type=int, default=[0], help="of --step-tokens; 0: before training")
    parser.add_argument("--step-tokens", type=int, default=2048)
    parser.add_argument("--micro-rows", type=int, default=8, help="rows that go through the student together")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--lr", type=float)
    parser.add_argument("--count", nargs="*", default=[], help="more text files that decide the tokens to keep")
    parser.add_argument("--text", nargs="*", default=[], help="more text files to train on")
    parser.add_argument("--text-share", type=float, default=0.5, help="of the tokens, from those files")
    parser.add_argument("--data", type=Path, help="folder of <task>.jsonl files; without it no tasks are asked")
    parser.add_argument("--limit", type=int, default=100, help="items of each task")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pack", type=Path, help="write the teacher there as a folder for --curve, and stop")
    parser.add_argument("--keep", type=int, help="with --pack: so many tokens only")
    curve = parser.add_argument_group("--curve")
    curve.add_argument("--curve", action="store_true")
    curve.add_argument("--teacher", type=Path, help="a folder that --pack wrote")
    curve.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    curve.add_argument("--workers", type=int, default=8, help="processes that train at the same time")
    curve.add_argument("--budget-s", type=float, default=450.0, help="trainings that do not fit are left out")
    curve.add_argument("--lrs", type=float, nargs="+", default=[0.0005, 0.001, 0.002, 0.004])
    curve.add_argument("--shape", type=json.loads, default=students_curve.SHAPE, help="of the pruned student")
    curve.add_argument("--shares", type=int, nargs="+", default=students_curve.SHARES, help="of those tokens")
    curve.add_argument(
        "--choices", action=argparse.BooleanOptionalAction, default=True, help="also students by what was cut"
    )
    curve.add_argument("--tokens", type=int, help="of the student from scratch; 20 a parameter otherwise")
    curve.add_argument("--length", type=int, default=256)
    curve.add_argument("--windows", type=int, default=512, help="held-out rows")
    curve.add_argument("--batch", type=int, default=16384, help="tokens of a step from scratch")
    curve.add_argument("--small-batch", type=int, default=4096, help="tokens of a step of pruned students")
    curve.add_argument("--write-batch", type=int, default=8192, help="rows that the teacher writes together")
    curve.add_argument("--tiny", action="store_true", help="no choices of what to cut, to see it run")


if __name__ == "__main__":
    if "--pack" in sys.argv:  # makes no figure
        parser = argparse.ArgumentParser()
        options(parser)
        students_curve.pack(parser.parse_args())
        raise SystemExit
    record.main(NAME, run, students_table.show, options)
