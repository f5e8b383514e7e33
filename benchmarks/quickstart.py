"""The quickstart's own figures: runs the recipe through the command line (or reads a finished run) and records them.

`python -m benchmarks.quickstart --run runs/quickstart` records a run folder; without `--run` the recipe is run first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import record

NAME = "quickstart"
ROOT = Path(__file__).parent.parent
PLAIN = ("perplexity", "kl", "top1_agreement", "load", "time_to_first_token", "prefill", "decode")
MEMORY = ("rss_anon_peak", "rss_file_peak", "pss_peak", "vm_hwm")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    folder, seconds = arguments.run, None
    if folder is None:
        start = time.perf_counter()
        command = [sys.executable, "-m", "edgeslm", "run", str(ROOT / "recipes" / "quickstart.yaml"), "--runs"]
        subprocess.run([*command, str(arguments.runs)], check=True)
        folder, seconds = arguments.runs / "quickstart", time.perf_counter() - start
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    state = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    export = folder / state["stages"]["export"]
    summary = json.loads((folder / state["stages"]["distill"] / "summary.json").read_text(encoding="utf-8"))
    student = json.loads((folder / state["stages"]["student"] / "importance.json").read_text(encoding="utf-8"))
    artifacts = json.loads((export / "artifacts.json").read_text(encoding="utf-8"))
    return {
        "versions": record.versions("edgeslm", "torch", "transformers", "llama-cpp-python", "onnxruntime-genai"),
        "recipe_hash": state["recipe_hash"],
        "stage_seconds": state["seconds"],
        "wall_seconds": seconds,
        "problems": state["problems"],
        "artifacts": [{k: v for k, v in a.items() if k != "path"} for a in artifacts],
        "exact": json.loads((export / "exact.json").read_text(encoding="utf-8")),
        "training": {k: v for k, v in summary.items() if k != "heldout"},
        "heldout": summary["heldout"],
        "student": {k: student[k] for k in ("kept", "dropped", "parameters_after", "kl_after", "judged_tokens")},
        "measurements": [
            {
                "metric": m["metric"],
                "artifact": m["where"]["artifact"],
                "runtime": m["where"]["runtime"],
                "unit": m["unit"],
                "values": m["values"],
                "kind": m["kind"],
                "note": m["note"],
                "tokens": m["extra"].get("tokens"),
            }
            for m in results["measurements"]
            if m["metric"] in (*PLAIN, *MEMORY, "energy_per_token")
        ],
    }


def median(entry: dict[str, Any], artifact: str, metric: str) -> float | None:
    from edgeslm.measurement import percentile

    values = [m["values"] for m in entry["measurements"] if m["artifact"] == artifact and m["metric"] == metric]
    return percentile(values[0], 50) if values else None


def table(entry: dict[str, Any]) -> str:
    """Markdown, one row per shipped file."""
    lines = [
        "| file | size | bits/weight | tensors exact | perplexity | KL, nats/token | top-1 | first token | prefill | "
        "decode | memory (anonymous + file) |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    exact = {e["artifact"]: f"{e['exact']}/{e['tensors']}" for e in entry["exact"]}
    for a in entry["artifacts"]:
        find = {m: median(entry, a["name"], m) for m in (*PLAIN, *MEMORY)}
        anon, file = find["rss_anon_peak"], find["rss_file_peak"]
        cells = [
            f"`{a['name']}`",
            f"{a['bytes'] / 1e6:.1f} MB",
            f"{8 * a['weight_bytes'] / a['parameters']:.2f}",
            exact[a["name"]],
            shown(find["perplexity"], "{:.2f}"),
            shown(find["kl"], "{:.3f}"),
            shown(find["top1_agreement"], "{:.1%}"),
            shown(find["time_to_first_token"], "{:.2f} s"),
            shown(find["prefill"], "{:.0f} tok/s"),
            shown(find["decode"], "{:.1f} tok/s"),
            "–" if anon is None or file is None else f"{anon / 1e6:.0f} + {file / 1e6:.0f} MB",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def shown(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def headline(entry: dict[str, Any]) -> dict[str, Any]:
    def ratio(metric: str, over: str, under: str) -> float | None:
        a, b = median(entry, over, metric), median(entry, under, metric)
        return None if a is None or b is None else a / b

    size = {a["name"]: a["bytes"] for a in entry["artifacts"]}
    student, teacher = "student.gguf", "teacher-f32.gguf"
    return {
        "gguf_bytes": size[student],
        "size_ratio": size[teacher] / size[student],
        "kl": median(entry, student, "kl"),
        "top1_agreement": median(entry, student, "top1_agreement"),
        "perplexity": median(entry, student, "perplexity"),
        "teacher_perplexity": median(entry, teacher, "perplexity"),
        "decode_ratio": ratio("decode", student, teacher),
        "prefill_ratio": ratio("prefill", student, teacher),
        "memory_ratio": ratio("pss_peak", teacher, student),
        "onnx_decode_ratio": ratio("decode", "student-onnx", "teacher-f32-onnx"),
        "exact_tensors": min(e["exact"] / e["tensors"] for e in entry["exact"]),
        "train_tokens_per_s": entry["training"]["tokens_per_s"],
        "run_seconds": sum(entry["stage_seconds"].values()),
    }


def show(records: list[dict[str, Any]]) -> dict[str, Any]:
    print(table(records[-1]))
    print(", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in records[-1]["stage_seconds"].items()))
    return headline(records[-1])


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, help="a finished run folder; without it the recipe is run")
    parser.add_argument("--runs", type=Path, default=Path("runs"))


if __name__ == "__main__":
    record.main(NAME, run, show, options)
