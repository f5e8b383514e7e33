"""Does training on the grid earn its keep? The quickstart's student beside three controls at equal budget.

Arms: `untrained` (pruned, rounded to Q4_0), `float_then_rounded` (the same distillation in float, rounded at the
end), `text_then_rounded` (cross-entropy on the same rows, rounded at the end), `ours` (distilled on the grid). All see
the same rows in the same order and the same number of tokens; the learning rate of each is tuned over the same values
with seed 0 on held-out windows that the result does not use (`--tune`), and written into the record before the runs.
Scored are shipped GGUF files through llama.cpp against the float32 teacher.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import record
from edgeslm.recipe import expand, load

NAME = "quickstart_controls"
RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"
TEXT = "distill.objective=[{loss: cross_entropy}]"
NEVER = "quantize.start=1.0"
ARMS: dict[str, list[str]] = {
    "ours": [],
    "float_then_rounded": [NEVER],
    "text_then_rounded": [NEVER, TEXT],
    "untrained": ["distill.train.steps=0"],
}
TRAINED = ("ours", "float_then_rounded", "text_then_rounded")


def distilled(overrides: list[str], runs: Path) -> tuple[Any, Any]:
    """(context's recipe, frozen student) of one arm; stages that other arms share are done once."""
    from edgeslm import recipe as recipes
    from edgeslm.pipeline.run import run
    from edgeslm.progress import Progress
    from edgeslm.quantize.frozen import Frozen

    loaded = recipes.load(RECIPE, overrides)
    root = run(loaded, RECIPE.parent, runs, Progress(), until="distill")
    stages = json.loads((root / "run.json").read_text(encoding="utf-8"))["stages"]
    return loaded, Frozen.load(root / stages["distill"] / "frozen")


def tuning_windows(loaded: Any, runs: Path) -> Any:
    """Held-out windows after those the result is judged by: from the same files, none in common."""
    from edgeslm.pipeline.heldout import heldout_windows
    from edgeslm.pipeline.stage import Context
    from edgeslm.progress import Progress

    judged = loaded.evaluate.windows
    double = loaded.model_copy(update={"evaluate": loaded.evaluate.model_copy(update={"windows": 2 * judged})})
    all_windows, used = (
        heldout_windows(Context(r, RECIPE.parent, runs, Progress(quiet=True))) for r in (double, loaded)
    )
    return [w for w in all_windows if w not in used]


def kl_in_torch(frozen: Any, loaded: Any, windows: Any) -> float:
    """KL of the frozen (rounded) student to the teacher, both as torch modules in the training dtype."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from edgeslm import compute
    from edgeslm.models.load import load as load_model
    from edgeslm.models.source import resolve
    from edgeslm.schemes.measure import closeness

    chosen = compute.resolve(loaded.device, loaded.distill.train.precision, loaded.threads)
    config = {k: v for k, v in frozen.config.items() if k not in ("model_type", "dtype")}
    student = AutoModelForCausalLM.from_config(AutoConfig.for_model(frozen.arch, **config), dtype=torch.float32)
    weights = {name: t.decode() for name, t in frozen.tensors.items()}
    for name, parameter in student.named_parameters():
        parameter.data = weights[name].to(chosen.dtype)
    teacher = load_model(resolve(loaded.teacher.model, RECIPE.parent), chosen.dtype).model
    return closeness(student.eval(), teacher, torch.tensor(windows)).kl


def tune(arguments: argparse.Namespace) -> dict[str, Any]:
    """Held-out KL of every trained arm at every rate, seed 0."""
    found: dict[str, dict[str, float]] = {arm: {} for arm in TRAINED}
    for arm in TRAINED:
        for rate in arguments.rates:
            overrides = [*ARMS[arm], f"distill.train.lr={rate}", f"distill.train.steps={arguments.tune_steps}"]
            loaded, frozen = distilled(overrides, arguments.runs)
            found[arm][str(rate)] = kl_in_torch(frozen, loaded, tuning_windows(loaded, arguments.runs))
    best = {arm: float(min(values, key=lambda r: values[r])) for arm, values in found.items()}
    tokens = arguments.tune_steps * recipe().distill.train.batch_tokens
    return {"kind": "tuning", "tokens": tokens, "recipe": tuned_for(), "kl": found, "lr": best}


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """The plan is recorded first; then all seeds, all arms, one evaluation per seed."""
    tunings = [r for r in record.read(NAME) if r["kind"] == "tuning" and r["recipe"] == tuned_for()]
    if not tunings:
        raise SystemExit("no learning rates are recorded for this recipe: run with --tune first")
    rates = tunings[-1]["lr"]
    plan = {"lr": rates, "arms": ARMS, "recipe": tuned_for(), "tokens": recipe().tokens}
    done = recorded_seeds(plan)
    if done is None:
        record.append(NAME, {"kind": "plan", "seeds": arguments.seeds, **plan})
        done = {}
    for seed in (s for s in arguments.seeds if s not in done):
        frozen: dict[str, Any] = {}
        for arm, overrides in ARMS.items():
            lr = [f"distill.train.lr={rates[arm]}"] if arm in rates else []
            loaded, frozen[arm] = distilled([*overrides, *lr, f"seed={seed}"], arguments.runs)
        done[seed] = scored(frozen, loaded, arguments.runs)
        record.append(NAME, {"kind": "seed", "seed": seed, "arms": done[seed]})
    seeds = [{"seed": seed, "arms": arms} for seed, arms in sorted(done.items())]
    return {
        "kind": "result",
        "versions": record.versions("edgeslm", "torch", "transformers", "llama-cpp-python"),
        "model": f"{recipe().teacher.model.rpartition('/')[2]} as dequantised, {recipe().student.layers} layers, "
        "GGUF through llama.cpp",
        "text": ", ".join(p.stem for p in expand(recipe().evaluate.paths, RECIPE.parent)),
        "tokens": recipe().tokens,
        "recipe": tuned_for(),
        "lr": rates,
        "seeds": seeds,
    }


def recorded_seeds(plan: dict[str, Any]) -> dict[int, Any] | None:
    """{seed: arms} recorded since the last plan when that is this plan: a stopped comparison goes on. Else None."""
    found: dict[int, Any] | None = None
    for entry in record.read(NAME):
        if entry["kind"] == "plan":
            found = {} if all(entry[key] == value for key, value in plan.items()) else None
        elif entry["kind"] == "seed" and found is not None:
            found[entry["seed"]] = entry["arms"]
    return found


def recipe() -> Any:
    return load(RECIPE)


def tuned_for() -> str:
    """Hash of what a learning rate depends on: the training parts of the recipe, the rate itself and seed left out."""
    train = recipe().distill.train.model_copy(update={"lr": 1.0, "steps": 0})
    plain = recipe().model_copy(update={"distill": recipe().distill.model_copy(update={"train": train}), "seed": 0})
    return str(plain.training_hash)


def scored(frozen: dict[str, Any], loaded: Any, runs: Path) -> dict[str, dict[str, Any]]:
    """Each arm's GGUF through llama.cpp, all against one scoring of the float32 teacher."""
    import torch

    from edgeslm.devices.local import LocalDevice
    from edgeslm.evaluate.closeness import evaluate
    from edgeslm.export.gguf import export
    from edgeslm.export.verify import verify
    from edgeslm.models.load import load as load_model
    from edgeslm.models.source import resolve
    from edgeslm.pipeline.heldout import heldout_windows
    from edgeslm.pipeline.stage import Context, available_cores
    from edgeslm.progress import Progress
    from edgeslm.quantize.freeze import freeze_floats

    with tempfile.TemporaryDirectory(dir=runs) as name:
        work = Path(name)
        teacher = load_model(resolve(loaded.teacher.model, RECIPE.parent), torch.float32)
        any_arm = next(iter(frozen.values()))
        config = teacher.model.config.to_dict()
        whole = freeze_floats(
            dict(teacher.model.named_parameters()), "f32", any_arm.arch, config, any_arm.tokenizer, "teacher-f32", {}
        )
        reference = export(whole, work / "teacher-f32.gguf")
        files = {arm: export(f, work / f"{arm}.gguf") for arm, f in frozen.items()}
        exact = {arm: verify(files[arm], f) for arm, f in frozen.items()}
        found, problems = evaluate(
            reference,
            list(files.values()),
            heldout_windows(Context(loaded, RECIPE.parent, runs, Progress(quiet=True))),
            bos_id=None,
            threads=available_cores(),
            device=LocalDevice(),
            workdir=work,
        )
    if problems:
        raise SystemExit(f"{problems[0]['artifact']}: {problems[0]['what']}")
    result: dict[str, dict[str, Any]] = {
        arm: {"exact_tensors": exact[arm]["exact"] / exact[arm]["tensors"]} for arm in frozen
    }
    for m in found:
        if m.where.artifact.removesuffix(".gguf") in result:
            arm = result[m.where.artifact.removesuffix(".gguf")]
            arm[m.metric] = m.mean
            arm["tokens"] = m.extra.get("tokens", arm.get("tokens"))
    return result


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    arguments.runs.mkdir(parents=True, exist_ok=True)
    return tune(arguments) if arguments.tune else compare(arguments)


def figures(entry: dict[str, Any]) -> dict[str, Any]:
    kl = {arm: [s["arms"][arm]["kl"] for s in entry["seeds"]] for arm in ARMS}
    means = {arm: statistics.fmean(values) for arm, values in kl.items()}
    spread = max(max(values) - min(values) for values in kl.values())
    rival = min((a for a in ARMS if a != "ours"), key=lambda a: means[a])
    return {
        "kl": means["ours"],
        "best_control": rival,
        "best_control_kl": means[rival],
        "ratio": means["ours"] / means[rival],
        "margin": means[rival] - means["ours"],
        "spread": spread,
        "beats_by_more_than_spread": means[rival] - means["ours"] > spread,
    }


def show(records: list[dict[str, Any]]) -> dict[str, Any]:
    results = [r for r in records if r["kind"] == "result"]
    for entry in [r for r in records if r["kind"] == "tuning"]:
        print(f"tuning, {entry['tokens']:,} tokens: " + json.dumps(entry["kl"]))
    if not results:
        return records[-1].get("lr", {})
    print(f"{'arm':20}  {'KL nats/token (seeds)':32}  {'mean':>7}  {'top-1':>6}  perplexity")
    last = results[-1]
    for arm in ARMS:
        rows = [s["arms"][arm] for s in last["seeds"]]
        print(
            f"{arm:20}  {', '.join(format(r['kl'], '.4f') for r in rows):32}  "
            f"{statistics.fmean(r['kl'] for r in rows):7.4f}  "
            f"{100 * statistics.fmean(r['top1_agreement'] for r in rows):5.1f}%  "
            f"{statistics.fmean(r['perplexity'] for r in rows):.2f}"
        )
    judged = int(rows[0]["tokens"])
    print(f"{last['tokens']:,} training tokens; judged on {last['text']}, {judged:,} tokens; {last['model']}")
    return figures(last)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tune", action="store_true", help="choose every arm's learning rate instead of comparing")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 6e-4, 1.2e-3])
    parser.add_argument("--tune-steps", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/controls"))


if __name__ == "__main__":
    record.main(NAME, run, show, options)
