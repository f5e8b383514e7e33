"""What recipes of encoders gave: figures of shipped files on judged rows, exactness, size and speed, recorded.

    python -m benchmarks.encoders runs/encoder-sst2 runs/encoder-pixels       one row for each finished run

Run them first with `edgeslm run recipes/encoder-*.yaml`. Everything is read from the run folders; nothing is computed
anew.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import record

NAME = "encoders"
MAIN = ("accuracy", "exact", "spearman")
Row = dict[str, Any]


def run(arguments: argparse.Namespace) -> Row:
    """One row a run, recorded as it comes; returns the record that sums up."""
    for folder in arguments.run:
        record.append(NAME, row_of(folder))
    return {"kind": "end", "versions": record.versions("edgeslm", "torch", "transformers", "onnx", "onnxruntime")}


def row_of(folder: Path) -> Row:
    """Raises SystemExit for a run that has not finished."""
    import yaml

    from edgeslm import measurement

    told = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    stages = {name: folder / place for name, place in told["stages"].items()}
    if "evaluate" not in stages:
        raise SystemExit(f"{folder}: has not been evaluated; run its recipe to the end first")
    judged = json.loads((stages["evaluate"] / "judged.json").read_text(encoding="utf-8"))
    artifacts = json.loads((stages["export"] / "artifacts.json").read_text(encoding="utf-8"))
    measured = measurement.load(stages["evaluate"] / "results.json")
    train = recipe["distill"]["train"]
    return {
        "kind": "row",
        "run": folder.name,
        "task": recipe["task"],
        "student": recipe["student"],
        "losses": [[t["loss"] for t in p["objective"]] for p in recipe["distill"]["phases"]],
        "seed": recipe["seed"],
        "steps": train["steps"],
        "batch_rows": train["batch_rows"],
        "rows": json.loads((stages["data"] / "data.json").read_text(encoding="utf-8"))["rows"],
        "judged_rows": judged["rows"],
        "figures": judged["figures"],
        "torch_difference": judged["torch_difference"],
        "exact": json.loads((stages["export"] / "exact.json").read_text(encoding="utf-8")),
        "artifacts": [{k: a[k] for k in ("name", "bytes", "weight_bytes", "parameters", "sha256")} for a in artifacts],
        "latency_s": {m.where.artifact: list(m.values) for m in measured},
        "threads": measured[0].where.threads,
        "speed_over_teacher": judged["speed_over_teacher"],
        "seconds": told["seconds"],
    }


def latest(records: list[Row]) -> dict[str, Row]:
    """{run: its last row}"""
    return {r["run"]: r for r in records if r["kind"] == "row"}


def main_figure(figures: dict[str, float]) -> tuple[str, float]:
    name = next(n for n in MAIN if n in figures)
    return name, figures[name]


def headline(records: list[Row]) -> Row:
    return {
        "encoders": {
            name: {model: round(main_figure(found)[1], 4) for model, found in r["figures"].items()}
            for name, r in latest(records).items()
        }
    }


def show(records: list[Row]) -> Row:
    for name, r in latest(records).items():
        print(f"{name:24} {r['speed_over_teacher']:.2f} times as fast as its teacher, {r['judged_rows']} judged rows")
        for model, found in r["figures"].items():
            print(f"    {model:28} " + ", ".join(f"{key} {value:.3f}" for key, value in found.items()))
    return headline(records)


def table(records: list[Row]) -> str:
    """Markdown, one row a task."""
    lines = [
        "| recipe | task | figure | student | teacher | majority or chance | size, of teacher's | speed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    last: Row = {}
    for name, r in latest(records).items():
        student, teacher = r["artifacts"][:2]
        size = f"{student['bytes'] / 1e6:.1f} MB, 1/{teacher['bytes'] / student['bytes']:.1f}"
        for task in dict.fromkeys(m.partition(":")[0] for m in r["figures"]):
            own = r["figures"][f"{task}: student"]
            figure, value = main_figure(own)
            given = r["figures"].get(f"{task}: teacher", {})
            of_teacher = f"{given[figure]:.3f}" if figure in given else "–"
            base = own.get("majority", own.get("chance"))
            told = f"{figure} {own['retrieval']:.3f} nearest" if "retrieval" in own else figure
            floor = "–" if base is None else f"{base:.3f}"
            lines.append(
                f"| {name} | {task} | {told} | {value:.3f} | {of_teacher} | {floor} | {size} | "
                f"{r['speed_over_teacher']:.1f} |"
            )
        last = r
    exact = all(e["exact"] == e["tensors"] for r in latest(records).values() for e in r["exact"])
    return (
        "\n".join(lines) + "\n\nShipped ONNX files through onnxruntime on rows that nothing was trained on; speed is "
        f"the float32 teacher's time for one row ÷ the student's, threads: {last.get('threads')}; taken in turns in "
        f"the same run. {'Every tensor of every file is bitwise what was trained.' if exact else ''}"
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, nargs="*", help="finished run folders")


if __name__ == "__main__":
    record.main(NAME, run, show, options)
