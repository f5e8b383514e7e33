"""Measured where it runs: the record of devices, `results/devices.jsonl`, its table and its schema.

`python -m benchmarks.devices TEACHER.gguf STUDENT.gguf ...` measures files on this machine and records them; what other
people measured comes in by `edgeslm report --add FILE`. A line is a bench document (`edgeslm bench --out`) with the day
it was added; `results/devices.schema.json` is its schema, written by `python -m benchmarks.devices --schema`.
The README's picture is made from the newest line that has a teacher and a student.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import record
from edgeslm import device_record, fleet
from edgeslm.privacy import names_here
from edgeslm.report.blocks import role
from edgeslm.report.fleet_deltas import Delta, beside, teachers
from edgeslm.report.fleet_tables import ran, shown
from edgeslm.units import byte_count

NAME = "devices"
SCHEMA = record.RESULTS / "devices.schema.json"
# metric, what the table and the picture call it, and the key of its ratio (above 1: the student is better)
FIGURES = (
    ("size", "size", "size_ratio"),
    ("load", "load", "load_ratio"),
    ("time_to_first_token", "first token", "first_token_ratio"),
    ("prefill", "prefill", "prefill_ratio"),
    ("decode", "decode", "decode_ratio"),
    ("memory", "memory", "memory_ratio"),
    ("energy_per_token", "energy", "energy_ratio"),
)
MEMORY = ("pss_peak", "vm_hwm")
OPTIONS = ("prefill", "depths", "new_tokens", "processes", "repeats", "sustained", "energy", "watts_per_core")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """One bench document of this machine, by the command that everybody uses."""
    if not arguments.files:
        raise SystemExit("name the files to measure, teacher and student: python -m benchmarks.devices TEACHER STUDENT")
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "bench.json"
        command = [sys.executable, "-m", "edgeslm", "bench", *arguments.files, "--out", str(out)]
        for name in OPTIONS:
            value = getattr(arguments, name)
            command += [f"--{name.replace('_', '-')}", str(value)] if value is not None else []
        done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        if not out.is_file():
            raise SystemExit(f"edgeslm bench ended with exit code {done.returncode} and wrote nothing")
        return device_record.checked(json.loads(out.read_text(encoding="utf-8")), "this benchmark", names_here())


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", help="teacher and student, as edgeslm bench takes them")
    parser.add_argument("--prefill", default="128,512")
    parser.add_argument("--depths", default="0,512")
    parser.add_argument("--new-tokens", default="64")
    parser.add_argument("--processes", default="5")
    parser.add_argument("--repeats", default="3")
    for name in ("--sustained", "--energy", "--watts-per-core"):
        parser.add_argument(name)
    parser.add_argument("--schema", action=WriteSchema, nargs=0, help="write the record's schema and leave")


class WriteSchema(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        SCHEMA.write_text(schema(), encoding="utf-8")
        parser.exit(0, f"{SCHEMA.name} written\n")


def schema() -> str:
    return json.dumps(device_record.schema(), indent=1) + "\n"


def sources(records: list[dict[str, Any]]) -> list[fleet.Source]:
    """Newest first."""
    return [fleet.document(entry, f"line {i}") for i, entry in reversed(list(enumerate(records, 1)))]


def deltas(source: fleet.Source) -> dict[str, Delta]:
    """Figure -> student beside teacher, of the first such pair of one document; at the longest length or depth."""
    pairs = teachers(fleet.gather([source]))
    if not pairs:
        return {}
    found = [d for d in beside(*pairs[0], paired=True).deltas if d.at != "prefill"]
    by_metric: dict[str, Delta] = {}
    for d in sorted(found, key=rank):  # the last one stays
        by_metric["memory" if d.metric in MEMORY else d.metric] = d
    return {key: by_metric[key] for key, *_ in FIGURES if key in by_metric}


def rank(d: Delta) -> tuple[bool, int, int]:
    """Of several figures for one thing: measured before estimated, the longest, PSS before VmHWM."""
    first = -MEMORY.index(d.metric) if d.metric in MEMORY else 0
    return d.kind == "measured", d.at if isinstance(d.at, int) else 0, first


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: a line for each file on each device, from the newest document of a device that has it."""
    gathered = fleet.gather(sources(records))
    lines = []
    for device, name in gathered.names().items():
        found: dict[tuple[str, str], fleet.Row] = {}
        for row in gathered.of(device):
            if row.measurements:
                found.setdefault((row.artifact, ran(row)), row)
        lines += [[name, ran(row), *cells(row)] for row in found.values()]
    heads = ["device", "runtime", "file", "size", "load", "first token of", "prefill of", "decode at", "memory",
             "energy a decoded token"]  # fmt: skip
    rows = [heads, ["---"] * len(heads), *lines]
    text = "Medians with 95% intervals over fresh processes; † something disturbed the run."
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n\n{text}{sentence(records)}"


def cells(row: fleet.Row) -> list[str]:
    """From the file's name to its energy."""
    mark = "**" if role(row.artifact) == "student" else ""
    memory = next((m for k in MEMORY if (m := row.get(k)) is not None), None)
    return [
        f"{mark}`{row.artifact}`{mark}" + (" †" if row.doubts else ""),
        byte_count(row.file["bytes"]) if row.file.get("bytes") else "–",
        *(longest(row, metric) for metric in ("load", "time_to_first_token", "prefill", "decode")),
        shown(memory) if memory else "–",
        shown(energy) if (energy := row.get("energy_per_token", "decode")) else "–",
    ]


def longest(row: fleet.Row, metric: str) -> str:
    """`512: 61.2 tokens/s`: at the longest length or depth there is."""
    m = max(row.all(metric), key=lambda m: at if isinstance(at := fleet.at_of(m), int) else 0, default=None)
    if m is None:
        return "–"
    return shown(m) if fleet.at_of(m) is None else f"{fleet.at_of(m)}: {shown(m)}"


def newest_pair(records: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Delta]] | None:
    """The newest line with a teacher and a student, and what they differ in."""
    for entry, source in zip(reversed(records), sources(records), strict=True):
        if found := deltas(source):
            return entry, found
    return None


def sentence(records: list[dict[str, Any]]) -> str:
    """` Here student.gguf is 8.2x smaller than teacher-f32.gguf, ...`; nothing without such a pair."""
    newest = newest_pair(records)
    if newest is None:
        return ""
    found = list(newest[1].values())
    first = found[0]
    said = "; ".join(f"{d.label}: {d.words}{'' if d.kind == 'measured' else f' ({d.kind})'}" for d in found)
    return f" `{first.right}` beside `{first.left}` on {first.device}: {said}."


def show(records: list[dict[str, Any]]) -> dict[str, Any]:
    print(table(records))
    newest = newest_pair(records)
    known = newest[1] if newest else {}
    ratios = {key: d.factor.estimate for metric, _, key in FIGURES if (d := known.get(metric)) and d.factor}
    return {"devices": len(fleet.gather(sources(records)).devices), **ratios}


if __name__ == "__main__":
    record.main(NAME, run, show, options)
