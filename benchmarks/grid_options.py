"""What each option of `quantize` does for the shipped file: one recipe, one seed's data, one option changed at a time.

    python -m benchmarks.grid_options --recipe recipes/stories15m-4.5bit.yaml --model SPEC      every arm, three seeds

Each arm is the recipe with overrides; files are scored through llama.cpp against the unrounded float model, as the
quality ladder's are. Rows are recorded as they come, so a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from benchmarks import quality_ladder, record
from benchmarks.ladder_ours import our_rows

NAME = "grid_options"
ARMS: dict[str, list[str]] = {
    "as the recipe says": [],
    "activations as llama.cpp rounds them": ["quantize.activations=llama.cpp"],
    "activations not simulated": ["quantize.activations=null"],
    "learned scales": ["quantize.scales={kind: learned}"],
    "scales trained alone": ["quantize.scales={kind: alone, lr: 0.0003}"],
    "scales fitted again every 16 steps": ["quantize.scales={kind: refit, every: 16}"],
    "nearest rounding": ["quantize.rounding=nearest"],
    "feedback by inputs alone": ["quantize.rounding=feedback"],
    "feedback by the loss": ["quantize.rounding=fisher"],
    "scales of channels moved": ["quantize.equalise=true"],
    "no importance": ["quantize.importance=null", "quantize.rounding=nearest"],
    "the teacher on the grid too": ["teacher.format=q4_0"],
    "a rate of 0.0001": ["distill.train.lr=0.0001"],
    "not trained": ["distill.train.steps=0"],
    "nearest rounding, not trained": ["quantize.rounding=nearest", "distill.train.steps=0"],
    "feedback by inputs alone, not trained": ["quantize.rounding=feedback", "distill.train.steps=0"],
    "feedback by the loss, not trained": ["quantize.rounding=fisher", "distill.train.steps=0"],
    "scales of channels moved, not trained": ["quantize.equalise=true", "distill.train.steps=0"],
    "moments of 65,536 tokens, not trained": ["quantize.importance.tokens=65536", "distill.train.steps=0"],
}
Row = dict[str, Any]


def run(arguments: argparse.Namespace) -> Row:
    from benchmarks.rivals.student import identity

    if arguments.recipe is None:
        raise SystemExit("--recipe names the recipe whose options are changed; give one")
    student, judged, overrides = quality_ladder.prepared(arguments)
    key = identity(student, judged)
    base = {"recipe": arguments.recipe.name, "model": student.name, "key": key, "set": arguments.set}
    for arm in arguments.arms:

        def save(row: Row, arm: str = arm) -> None:
            record.append(NAME, {"kind": "row", "arm": arm, "changed": ARMS[arm]} | base | row)

        our_rows(
            {arm: arguments.recipe}, arguments.seeds, [*overrides, *ARMS[arm]], student, judged,
            arguments.runs, arguments.threads, save,
            done={(r["arm"], r["seed"], r["training"]) for r in rows() if all(r[k] == v for k, v in base.items())},
        )  # fmt: skip
    return {"kind": "end", **base, "versions": record.versions("edgeslm", "torch", "transformers", "llama-cpp-python")}


def rows() -> list[Row]:
    return [r for r in record.read(NAME) if r["kind"] == "row"]


def by_recipe(records: list[Row]) -> dict[str, dict[str, list[Row]]]:
    """{recipe: {arm: rows of the last float model, one a seed}}"""
    found = [r for r in records if r["kind"] == "row"]
    last = {r["recipe"]: r["key"] for r in found}
    newest = {(r["recipe"], r["arm"], r["seed"]): r for r in found if r["key"] == last[r["recipe"]]}
    made: dict[str, dict[str, list[Row]]] = {}
    for (recipe, arm, _), r in newest.items():
        made.setdefault(recipe, {}).setdefault(arm, []).append(r)
    return made


def show(records: list[Row]) -> Row:
    means: dict[str, dict[str, float]] = {}
    for recipe, arms in by_recipe(records).items():
        print(recipe)
        for arm, found in arms.items():
            kl = [r["kl"] for r in found]
            means.setdefault(recipe, {})[arm] = statistics.fmean(kl)
            trained = ", ".join(f"{r['curve'][-1]['kl']:.4f}" for r in found)
            shipped = ", ".join(f"{v:.4f}" for v in kl)
            print(f"  {arm:40} KL {shipped} (in training {trained}), {found[0]['bits']:.2f} bits")
    return {"kl": means}


def table(records: list[Row]) -> str:
    """Markdown: each arm's shipped KL, seed by seed, and its mean over that of the first arm."""
    lines = ["| recipe | arm | KL, nats/token, by seed | in training | mean ÷ first arm's |", "|---|---|---|---|---|"]
    for recipe, arms in by_recipe(records).items():
        first = statistics.fmean(r["kl"] for r in next(iter(arms.values())))
        for arm, found in arms.items():
            shipped = ", ".join(f"{r['kl']:.4f}" for r in found)
            trained = ", ".join(f"{r['curve'][-1]['kl']:.4f}" for r in found)
            share = statistics.fmean(r["kl"] for r in found) / first
            lines.append(f"| {recipe.removesuffix('.yaml')} | {arm} | {shipped} | {trained} | {share:.2f} |")
    tokens = sorted({r["training_tokens"] for arms in by_recipe(records).values() for f in arms.values() for r in f})
    trained = " or ".join(f"{n:,}" for n in tokens)
    return (
        "\n".join(lines) + f"\n\nShipped files through llama.cpp, {trained} training tokens; *in training*: in torch."
    )


def options(parser: argparse.ArgumentParser) -> None:
    quality_ladder.student_options(parser)
    parser.add_argument("--recipe", type=Path, help="a recipe whose teacher is the float model")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])


if __name__ == "__main__":
    record.main(NAME, run, show, options)
