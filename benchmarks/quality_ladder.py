"""Quality against size of shipped files: ours beside every post-training quantiser, from one float student.

    python -m benchmarks.quality_ladder --model SPEC          every rival of that model
    ... --ours 4.5=recipes/smollm2-4.5bit.yaml                and ours, three seeds
    ... --brought 3.4 recipes/smollm2-256-3.4bit-gpu.yaml DIR a student of ours that another machine trained
    python -m benchmarks.quality_ladder --show                tables, chart and figures of the records

Every file is scored by the runtime that runs it (KL to the float student, top-1 agreement, perplexity) on the same
windows. Each row is a record of its own, so a stopped run goes on where it was. A row of ours has "kind": "ours" and
`model`, `rung`, `seed`, `bits`, `kl`, `exact_tensors` beside what a rival's row holds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import ladder_picture, record
from benchmarks.ladder_ours import brought_row, our_rows
from benchmarks.rivals import venv
from benchmarks.rivals.base import Options, Student
from benchmarks.rivals.rows import best_rival, rival_rows

NAME = "quality_ladder"
JUDGE = "package:text/judge/*.txt"
LEARN = "package:text/learn/*.txt"
NEXT = {"8": 9.0, "4.5": 5.5, "3.4": 4.5, "2.6": 3.4, "2.0": 2.6}  # rung -> bits of the rung above it
TOLERANCE = 0.1  # bits, of every rung
Row = dict[str, Any]


def windows_of(paths: str, tokenizer: Any, context: int, count: int) -> list[list[int]]:
    """`count` windows taken evenly over the files, as an evaluation takes them."""
    from edgeslm.data.text import documents
    from edgeslm.evaluate.closeness import even_windows
    from edgeslm.recipe import expand

    return even_windows(documents(expand([paths], Path.cwd()), tokenizer), context, count)


def prepared(arguments: argparse.Namespace) -> tuple[Student, list[list[int]], list[str]]:
    """(the float student as files, windows to judge by, a recipe's overrides that make it the teacher)."""
    import torch

    from benchmarks.rivals.student import float_student
    from edgeslm.models.load import load
    from edgeslm.models.source import DEFAULT_TEACHER, resolve
    from edgeslm.pipeline.stage import RUN, student_of
    from edgeslm.recipe import expand

    if arguments.model.startswith(RUN):
        arguments.model = str(student_of(arguments.runs, arguments.model.removeprefix(RUN)))
    source = resolve(arguments.model, Path.cwd(), tokenizer=arguments.tokenizer)
    loaded = load(source, torch.float32)
    name = arguments.name or source.path.stem
    context = min(arguments.context, loaded.model.config.max_position_embeddings)
    judged = windows_of(arguments.judge, loaded.tokenizer, context, arguments.windows)
    calibration = windows_of(arguments.learn, loaded.tokenizer, context, arguments.calibration)
    training = windows_of(arguments.learn, loaded.tokenizer, context, -(-arguments.tokens // context))
    files = tuple(path.stem for path in expand([arguments.learn], Path.cwd()))
    student = float_student(loaded, name, arguments.work / name, calibration, files, training)
    overrides = [f"teacher.model={arguments.model}"] if arguments.model != DEFAULT_TEACHER else []
    if arguments.tokenizer:
        overrides.append(f"teacher.tokenizer={arguments.tokenizer.resolve()}")
    return student, judged, [*overrides, f"threads={arguments.threads}", *arguments.set]


def run(arguments: argparse.Namespace) -> Row:
    """Every rival of one model. Returns the record that sums up; rows are recorded as they come."""
    from benchmarks.rivals import RIVALS
    from benchmarks.rivals.student import identity

    for rung, recipe, folder in arguments.brought:
        missing = [p for p in (Path(recipe), Path(folder, "frozen"), Path(folder, "summary.json")) if not p.exists()]
        if rung not in NEXT or missing:
            what = f"there is no {missing[0]}" if missing else f"rungs are {', '.join(NEXT)}"
            raise SystemExit(f"--brought {rung} {recipe} {folder}: {what}")
    student, judged, overrides = prepared(arguments)
    name = student.name
    key = identity(student, judged)
    options = Options(arguments.threads, arguments.tokens, arguments.iterations, arguments.timeout)
    known = recorded(name, key)

    def save(row: Row) -> None:
        record.append(NAME, {"kind": "rival", "model": name, "key": key} | row)

    fresh = rival_rows(
        student,
        judged,
        arguments.work / name / "files",
        options,
        save,
        rivals={n: r for n, r in RIVALS.items() if n in arguments.rivals},
        budgets=[NEXT[rung] + TOLERANCE for rung in (dict(arguments.ours) or NEXT)],
        by_default=not arguments.near_only,
        match=arguments.match,
        reach=arguments.reach,
        done=[f"{r['rival']}: {r['name']}" for r in known],
    )

    def save_ours(row: Row) -> None:
        record.append(NAME, {"kind": "ours", "model": name, "key": key} | row)

    our_rows(
        dict(arguments.ours),
        arguments.seeds,
        overrides,
        student,
        judged,
        arguments.runs,
        arguments.threads,
        save_ours,
        done={
            (r["rung"], r["seed"], r["training"]) for r in record.read(NAME) if r["kind"] == "ours" and r["key"] == key
        },
    )
    for rung, recipe, folder in arguments.brought:
        work = arguments.work / name
        save_ours(brought_row(rung, Path(recipe), Path(folder), student, judged, work, arguments.threads))
    return summary(student, key, known + fresh, judged, arguments)


def summary(student: Student, key: str, rows: list[Row], judged: list[list[int]], arguments: argparse.Namespace) -> Row:
    from edgeslm.recipe import expand

    return {
        "kind": "ladder",
        "model": student.name,
        "key": key,
        "rows": len(rows),
        "failed": sum("error" in r for r in rows),
        "windows": len(judged),
        "context": len(judged[0]),
        "calibration_tokens": sum(map(len, student.rows)),
        "training_tokens": arguments.tokens,
        "judge": [path.stem for path in expand([arguments.judge], Path.cwd())],
        "learn": [path.stem for path in expand([arguments.learn], Path.cwd())],
        "threads": arguments.threads,
        "versions": record.versions("edgeslm", "torch", "transformers", "llama-cpp-python", "onnxruntime"),
        "rival_versions": venv.pins(),
    }


def recorded(model: str, key: str) -> list[Row]:
    """Rival rows of this very student and text."""
    return [r for r in record.read(NAME) if r["kind"] == "rival" and r["model"] == model and r["key"] == key]


def latest(records: list[Row]) -> dict[str, list[Row]]:
    """{model: rows of its last key, rivals' and ours}"""
    keys = {r["model"]: r["key"] for r in records if r["kind"] == "rival"}
    found: dict[str, list[Row]] = {}
    for model, key in keys.items():
        rows = [r for r in records if r["model"] == model and r["key"] == key]
        rivals = {(r["rival"], r["name"]): r for r in rows if r["kind"] == "rival"}
        found[model] = [*rivals.values(), *newest(r for r in rows if r["kind"] == "ours")]
    return found


def newest(rows: Iterable[Row]) -> list[Row]:
    """Of every rung and recipe the seeds that belong together: from its last row back to where a seed comes again or
    the recipe was another. (A plan may differ by seed: what a teacher writes does.)"""
    kept: dict[tuple[str, str], list[Row]] = {}
    ended = set[tuple[str, str]]()
    for row in reversed(list(rows)):
        place = row["rung"], row["recipe"]
        series = kept.setdefault(place, [])
        again = row["seed"] in {r["seed"] for r in series}
        if again or (series and series[-1].get("recipe_hash") != row.get("recipe_hash")):
            ended.add(place)
        if place not in ended:
            series.append(row)
    return [row for series in kept.values() for row in reversed(series)]


def by_recipe(rows: list[Row], rung: str) -> dict[str, list[Row]]:
    """{recipe: its rows of a rung, by seed}"""
    ours = sorted((r for r in rows if r["kind"] == "ours" and r["rung"] == rung), key=lambda r: r["seed"])
    return {name: [r for r in ours if r["recipe"] == name] for name in dict.fromkeys(r["recipe"] for r in ours)}


def figures(records: list[Row]) -> Row:
    """`exact_tensors`: least share of ours; `one_bit_down` {model: {rung: our KL, mean over seeds / best rival's}}, of
    the recipe whose KL is least; `by_recipe` {"model: recipe": the same} of all."""
    ratios: dict[str, dict[str, float]] = {}
    each: dict[str, float] = {}
    exact: list[float] = []
    for model, rows in latest(records).items():
        rivals, ours = [r for r in rows if r["kind"] == "rival"], [r for r in rows if r["kind"] == "ours"]
        exact += [r["exact_tensors"] for r in ours]
        for rung, above in NEXT.items():
            rival = best_rival(rivals, above + TOLERANCE)
            means = {name: statistics.fmean(r["kl"] for r in seeds) for name, seeds in by_recipe(ours, rung).items()}
            if means and rival is not None:
                each |= {f"{model}: {name}": kl / rival["kl"] for name, kl in means.items()}
                ratios.setdefault(model, {})[rung] = min(means.values()) / rival["kl"]
    return {"exact_tensors": min(exact, default=None), "one_bit_down": ratios, "by_recipe": each}


def show(records: list[Row]) -> Row:
    for model, rows in latest(records).items():
        print(f"{model}\n{'bits':>6}  {'KL':>7}  {'top-1':>6}  {'perplexity':>10}  file")
        for r in sorted((r for r in rows if "kl" in r), key=lambda r: r["bits"]):
            note = "own grid" if r.get("uses_source_grid") else ", ".join(r.get("inherits_source_grid", []))
            print(
                f"{r['bits']:6.3f}  {r['kl']:7.4f}  {100 * r['top1_agreement']:5.1f}%  {r['perplexity']:10.2f}  "
                f"{r.get('rival', 'ours')}: {r['name']}{f'  ({note})' if note else ''}"
            )
        for r in (r for r in rows if "error" in r):
            print(f"{'failed':>6}  {r['rival']}: {r['name']}: {r['error']}")
        rivals = [r for r in rows if r["kind"] == "rival"]
        for above in (bits + TOLERANCE for bits in NEXT.values()):
            for inheriting, words in ((True, ""), (False, ", grids that hold the source's left out")):
                best = best_rival(rivals, above, inheriting)
                if best is not None:
                    print(f"best at {above:.1f} bits{words}: {best['rival']}: {best['name']}, {best['kl']:.4f}")
        ladder_picture.OUT.with_name(f"quality_ladder_{model}.svg").write_text(
            ladder_picture.draw(model, rows), encoding="utf-8"
        )
    return figures(records)


def _rung(text: str) -> tuple[str, Path]:
    rung, _, path = text.partition("=")
    if rung not in NEXT or not path:
        raise argparse.ArgumentTypeError(f"'{text}' is no RUNG=RECIPE; rungs are {', '.join(NEXT)}")
    return rung, Path(path)


def student_options(parser: argparse.ArgumentParser) -> None:
    """Of `prepared`."""
    from edgeslm.models.source import DEFAULT_TEACHER

    parser.add_argument(
        "--model", default=DEFAULT_TEACHER, help="the float student: a spec as a recipe's teacher.model"
    )
    parser.add_argument("--name", help="what the records call it (default: the file's name)")
    parser.add_argument("--tokenizer", type=Path, help="of a llama2.c file")
    parser.add_argument("--judge", default=JUDGE)
    parser.add_argument("--learn", default=LEARN, help="text for importance, calibration and training rivals")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--calibration", type=int, default=24, help="windows for importance, GPTQ and auto-round")
    parser.add_argument("--tokens", type=int, default=131_072, help="that training rivals see: our own budget")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where recipes run")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to our recipes, for a GPU")
    parser.add_argument("--work", type=Path, default=Path("runs/ladder"))
    parser.add_argument("--threads", type=int, default=2)


def options(parser: argparse.ArgumentParser) -> None:
    from benchmarks.rivals import RIVALS

    student_options(parser)
    parser.add_argument("--iterations", type=int, default=200, help="of auto-round")
    parser.add_argument("--reach", type=float, default=0.25, help="make mixes down to this many bits below a budget")
    parser.add_argument("--match", default="", help="regular expression: only files whose name it finds")
    parser.add_argument(
        "--near-only", action="store_true", help="leave out mixes that are near no budget of the rungs asked for"
    )
    parser.add_argument("--rivals", nargs="*", choices=list(RIVALS), default=list(RIVALS))
    parser.add_argument("--ours", nargs="*", type=_rung, default=[], metavar="RUNG=RECIPE", help="such as 4.5=FILE")
    parser.add_argument(
        "--brought",
        nargs=3,
        action="append",
        default=[],
        metavar=("RUNG", "RECIPE", "FOLDER"),
        help="a training stage's frozen/ and summary.json from elsewhere",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--timeout", type=float, default=7200.0, help="seconds, of one rival file")


if __name__ == "__main__":
    record.main(NAME, run, show, options)
