"""Our workers beside llama-bench of the same llama.cpp and beside onnxruntime-genai's own benchmark, on the same files.

    python -m benchmarks.parity --model FILE.gguf [--onnx FOLDER --genai-benchmark benchmark_e2e.py] [--cgroup DIR]

In each round every side runs once, in a process of its own, forwards and backwards in turn: the same prompt length, new
tokens, threads, cache type, batch and mapping, one warm-up, then timed repeats. A round gives one ratio a side; what is
shown is their median and range. Memory is taken in processes apart, which are watched: VmHWM of llama-bench with the
worker's context, against what the worker says of itself. `--cgroup` names a control group that we may make groups in;
the file's cached pages are dropped before each run there, so that whoever maps them pays for them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks import record
from benchmarks.llama_tools import tool
from benchmarks.parity_sides import GENAI, OURS, PHASES, Row, Setting, side_of
from edgeslm.artifact import path_sha256
from edgeslm.devices.facts import busy_cores
from edgeslm.runtimes import build

NAME = "parity"


def run(arguments: argparse.Namespace) -> Row:
    if (arguments.onnx is None) != (arguments.genai_benchmark is None):
        raise SystemExit("--onnx and --genai-benchmark belong together: a folder, and benchmark_e2e.py of its sources")
    model = arguments.model or default_model()
    tool(build.WORKER)  # what cannot be had is said before anything is measured
    with tempfile.TemporaryDirectory() as scratch:
        setting = Setting(
            model, arguments.threads, arguments.prompt, arguments.new, arguments.repeats, Path(scratch),
            arguments.onnx, arguments.genai_benchmark, arguments.cgroup,
        )  # fmt: skip
        rounds: list[Row] = []
        for number in range(arguments.rounds):
            busy = busy_cores()
            order = setting.sides if number % 2 == 0 else setting.sides[::-1]
            rounds.append({"busy_cores": busy} | {side: side_of(side)(side, setting, False) for side in order})
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
        memory = [
            {side: side_of(side)(side, setting, True) for side in setting.sides}
            for _ in range(min(arguments.rounds, 3))
        ]
    return {
        "versions": record.versions("edgeslm", "llama-cpp-python", "onnxruntime-genai", "onnxruntime"),
        "model": model.name,
        "sha256": path_sha256(model),
        "onnx": arguments.onnx.name if arguments.onnx else None,
        "threads": arguments.threads,
        "prompt_tokens": arguments.prompt,
        "new_tokens": arguments.new,
        "rounds": rounds,
        "memory": memory,
    }


def default_model() -> Path:
    from edgeslm.models.source import DEFAULT_TEACHER, resolve

    return resolve(DEFAULT_TEACHER, Path.cwd()).path


def ratios(entry: Row, side: str, kind: str) -> list[float]:
    """Ours over theirs in each round: of tokens per second."""
    theirs = OURS[side][0]
    return [statistics.median(r[side][kind]) / statistics.median(r[theirs][kind]) for r in entry["rounds"]]


def memory_ratio(entry: Row, side: str, peak: str = "vm_hwm") -> float | None:
    """What the worker says of itself over llama-bench's VmHWM, or its own control group's peak. None where a kernel
    does not tell, and beside onnxruntime-genai's script, most of whose memory is packages for tables."""
    theirs = OURS[side][0] if peak == "vm_hwm" else side
    if theirs == GENAI:
        return None
    seen = [r[theirs].get(peak) for r in entry["memory"]]
    if not all(seen):
        return None
    return statistics.median(r[side]["reported"] for r in entry["memory"]) / statistics.median(seen)


def figures(entry: Row) -> Row:
    """The native worker's ratios under their plain names, the others' with a prefix; ranges beside them."""
    found: Row = {}
    for side in (side for side in OURS if side in entry["rounds"][0]):
        prefix = "" if side == "native" else f"{side}_"
        for kind in PHASES:
            values = ratios(entry, side, kind)
            found[f"{prefix}{kind}_ratio"] = statistics.median(values)
            found[f"{prefix}{kind}_ratio_range"] = [min(values), max(values)]
        found[f"{prefix}memory_ratio"] = memory_ratio(entry, side)
        if group := memory_ratio(entry, side, "group_peak"):
            found[f"{prefix}memory_over_group_peak"] = group
    return found


def show(records: list[Row]) -> Row:
    print(f"{'date':16}  {'file':36}  {'side':7}  {'prefill':>21}  {'decode':>21}  memory")
    for entry in records:
        f = figures(entry)
        for side in (side for side in OURS if side in entry["rounds"][0]):
            prefix = "" if side == "native" else f"{side}_"
            cells = [spread(f, f"{prefix}{kind}_ratio") for kind in PHASES]
            memory = f[f"{prefix}memory_ratio"]
            print(
                f"{entry['date'][:16]}  {entry['model'][:36]:36}  {side:7}  {cells[0]:>21}  {cells[1]:>21}  "
                f"{memory and f'{memory:.3f}'}"
            )
    return figures(records[-1])


def spread(f: Row, key: str) -> str:
    low, high = f[f"{key}_range"]
    return f"{f[key]:.3f} ({low:.3f}–{high:.3f})"


def table(entry: Row) -> str:
    """Markdown, one row for each of our workers."""
    f = figures(entry)
    names = {"native": "native worker", "python": "Python worker", "onnx": "onnxruntime-genai worker"}
    lines = ["| ours | beside | prefill | decode | peak memory |", "|---|---|---|---|---|"]
    for side in (side for side in OURS if side in entry["rounds"][0]):
        prefix = "" if side == "native" else f"{side}_"
        memory = f[f"{prefix}memory_ratio"]
        cells = [names[side], OURS[side][0], *(spread(f, f"{prefix}{kind}_ratio") for kind in PHASES)]
        lines.append("| " + " | ".join([*cells, f"{memory:.3f}" if memory else "–"]) + " |")
    files = " and ".join(filter(None, (entry["model"], entry.get("onnx"))))
    return (
        "\n".join(lines) + f"\n\nOurs over theirs (1 is equal), median and range of {len(entry['rounds'])} alternating "
        f"runs on {files}: {entry['prompt_tokens']} prompt tokens, {entry['new_tokens']} new ones, "
        f"{entry['threads']} threads. A Python worker's memory includes its interpreter."
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="a GGUF file (default: the recipes' teacher)")
    parser.add_argument("--onnx", type=Path, help="a folder that onnxruntime-genai can run")
    parser.add_argument("--genai-benchmark", type=Path, help="benchmark/python/benchmark_e2e.py of its sources")
    parser.add_argument("--cgroup", type=Path, help="a control group's folder that we may make groups in")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3, help="timed repeats of a process")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--threads", type=int, default=record.machine()["cores"] or 1)


if __name__ == "__main__":
    record.main(NAME, run, show, options)
