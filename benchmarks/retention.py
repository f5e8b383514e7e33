"""How much of its teacher's skill each finished run keeps: `edgeslm eval RUN --tasks ...`, recorded.

    python -m benchmarks.retention --data DIR runs/smollm2-4.5bit runs/quickstart       one row for each run

Both files of a run (student.gguf and teacher-f32.gguf) answer the same items through llama.cpp. What a teacher has
answered is kept, so runs of one teacher ask it once.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import record

NAME = "retention"
TASKS = ("arc_easy", "piqa", "winogrande", "openbookqa", "lambada_openai")
KEPT = ("task", "items", "student", "teacher", "chance", "value", "standard_error", "why", "p", "difference")
Row = dict[str, Any]


def run(arguments: argparse.Namespace) -> Row:
    """One row a run, recorded as it comes; returns the record that sums up."""
    import yaml

    from edgeslm.cli import eval as cli_eval
    from edgeslm.progress import Progress

    for folder in arguments.run:
        options = cli_eval.Options(
            tasks=tuple(arguments.tasks), data=arguments.data, limit=arguments.limit, threads=arguments.threads,
            prompts=(arguments.prompts,), text=(arguments.text,), new=96,
        )  # fmt: skip
        document = cli_eval.evaluate([str(folder)], None, options, Progress())
        if document["problems"]:
            raise SystemExit("; ".join(f"{p['artifact']}: {p['what']}" for p in document["problems"]))
        (student,) = document["students"]
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        train = recipe["distill"]["train"]
        kept = document["retention"][student["name"]]
        row: Row = {
            "kind": "row",
            "run": folder.name,
            "seed": recipe.get("seed"),
            "training_tokens": train["steps"] * train.get("batch_tokens", 2048),
            "bits": student["bits_per_weight"],
            "bytes": student["bytes"],
            "sha256": student["sha256"],
            "teacher": {k: document["teacher"][k] for k in ("bytes", "parameters", "sha256")},
            "base_model": Path(str(recipe["teacher"]["model"])).name,
            "limit": arguments.limit,
            "retention": kept["mean"],
            "standard_error": kept["standard_error"],
            "tasks": [{k: r[k] for k in KEPT} for r in kept["tasks"]],
            "text": {m["metric"]: m["values"][0] for m in document["measurements"]
                     if m["where"]["artifact"] == student["name"]},
            "judged": document["judged"]["files"],
            "prompts": Path(arguments.prompts).stem,
            "text_tokens": document["measurements"][0]["extra"]["tokens"],
            "generation": document["generation"],
            "calibration": {t: c["error"] for t, c in document["calibration"][student["name"]].items()},
        }  # fmt: skip
        record.append(NAME, row)
    return {
        "kind": "end",
        "threads": arguments.threads,
        "versions": record.versions("edgeslm", "lm_eval", "llama-cpp-python"),
    }


def latest(records: list[Row]) -> dict[str, Row]:
    """{run: its last row}"""
    return {r["run"]: r for r in records if r["kind"] == "row"}


def headline(records: list[Row]) -> Row:
    return {"retention": {name: r["retention"] for name, r in latest(records).items()}}


def show(records: list[Row]) -> Row:
    for name, r in latest(records).items():
        mean = "-" if r["retention"] is None else f"{r['retention']:.3f} ± {r['standard_error']:.3f}"
        print(f"{name:28} {r['bits']:5.2f} bits  retention {mean}  KL {r['text']['kl']:.4f}")
        for t in r["tasks"]:
            value = t["why"] or f"{t['value']:.3f} ± {t['standard_error']:.3f}"
            print(f"    {t['task']:16} {t['student']:.3f} of {t['teacher']:.3f} (chance {t['chance']:.3f})  {value}")
    return headline(records)


def table(records: list[Row], shown: Mapping[str, set[str]] | None = None) -> str:
    """Markdown, one row a run. `shown` {run: sha256 of its files that another table shows}: a row of a file that is
    none of them is marked."""
    found = latest(records)
    tasks = list(dict.fromkeys(t["task"] for r in found.values() for t in r["tasks"]))
    lines = [
        f"| run | bits | {' | '.join(tasks)} | mean retention | KL, nats/token | instructions followed |",
        "|---|---|" + "---|" * (len(tasks) + 3),
    ]
    for name, r in found.items():
        by = {t["task"]: t for t in r["tasks"]}
        student = next(k for k in r["generation"] if k.startswith("student"))
        teacher = next(k for k in r["generation"] if k.startswith("teacher"))
        followed = [r["generation"][side]["instructions_followed"] for side in (student, teacher)]
        counted = sum(t["value"] is not None for t in r["tasks"])
        mean = "–"
        if r["retention"] is not None:
            mean = f"**{r['retention']:.2f}** ± {r['standard_error']:.2f} ({counted} task{'s' if counted != 1 else ''})"
        earlier = name in (shown or {}) and r["sha256"] not in (shown or {})[name]
        cells = [
            name + " ‡" * earlier,
            f"{r['bits']:.2f}",
            *(_cell(by.get(task)) for task in tasks),
            mean,
            f"{r['text']['kl']:.3f}",
            f"{followed[0]:.0%} of {followed[1]:.0%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    last = next(reversed(found.values()))
    items = last["tasks"][0]["items"]
    return (
        "\n".join(lines) + f"\n\nScore of the student / of its float32 teacher, {items:,} items a task, 0 shots, "
        "through llama.cpp; ▼ where McNemar's exact test finds the student worse (p below 0.05). Retention is score "
        "above chance ÷ the teacher's, ± its standard error over paired items, over the tasks where the teacher itself "
        "is clearly above chance. KL on "
        f"{last['text_tokens']:,} held-out tokens of the files in the record."
    )


def _cell(t: Row | None) -> str:
    if t is None:
        return "–"
    mark = {"worse": " ▼", "better": " ▲", "none": ""}[t["difference"]]
    return f"{t['student']:.3f} / {t['teacher']:.3f}{mark}"


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, nargs="*", help="run folders that have exported student.gguf")
    parser.add_argument("--data", type=Path, help="folder of <task>.jsonl files")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--limit", type=int, default=500, help="items of each task")
    parser.add_argument("--text", default="package:text/judge/*.txt")
    parser.add_argument("--prompts", default="package:chat/instructions.jsonl")
    parser.add_argument("--threads", type=int, default=2)


if __name__ == "__main__":
    record.main(NAME, run, show, options)
