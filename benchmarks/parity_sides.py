"""The sides of `benchmarks.parity`: our workers, llama-bench and onnxruntime-genai's benchmark, one process each.

A side is called as `side(name, setting, watch)`. It gives the tokens per second of each timed repeat, or with `watch`
the process's memory: VmHWM from outside, what our workers say of themselves, and the peak of a control group.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.llama_tools import tool
from edgeslm.devices import facts as machine
from edgeslm.runtimes import RUNTIMES

BENCH, GENAI = "llama-bench", "onnxruntime-genai"
# side: (whose benchmark it is measured against, its runtime)
OURS = {"native": (BENCH, "llama_native"), "python": (BENCH, "llama_cpp"), "onnx": (GENAI, "onnxruntime")}
PHASES = ("prefill", "decode")
LOOK_S = 0.002
GENAI_SAYS = {"prefill": "Prompt Processing Latency", "decode": "Token Generation Latency"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """`model` is a GGUF file, `onnx` a folder, `script` onnxruntime-genai's benchmark_e2e.py; both may be missing."""

    model: Path
    threads: int
    prompt: int
    new: int
    repeats: int
    scratch: Path
    onnx: Path | None = None
    script: Path | None = None
    cgroup: Path | None = None

    def path(self, side: str) -> Path:
        return self.onnx if self.onnx and side in ("onnx", GENAI) else self.model

    @property
    def sides(self) -> tuple[str, ...]:
        return (*((GENAI, "onnx") if self.onnx else ()), BENCH, "native", "python")


def launch(command: list[str], setting: Setting, side: str, watch: bool) -> Row:
    """{"stdout", and when watched "vm_hwm" and, in a control group, "group_peak"}. Raises SystemExit with its words."""
    group = None
    if watch and setting.cgroup:
        group = setting.cgroup / f"parity-{os.getpid()}"
        group.mkdir()
        forget(setting.path(side))
        forget(Path(command[0]))
    try:
        with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as words:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # stays open: a worker leaves when it closes
                stdout=said,
                stderr=words,
                cwd=setting.scratch,
                preexec_fn=(lambda: join(group)) if group else None,
            )
            found: Row = {"vm_hwm": peak_of(process)} if watch else {}
            if process.wait():
                words.seek(0)
                raise SystemExit(f"{side} failed: {(words.read().strip().splitlines() or ['no message'])[-1]}")
            said.seek(0)
            if group:
                found["group_peak"] = group_peak(group)
            return found | {"stdout": said.read()}
    finally:
        if group:
            group.rmdir()


def peak_of(process: subprocess.Popen[Any]) -> int | None:
    """The high-water mark of a running process's resident set, read until it ends."""
    seen = None
    while process.poll() is None:
        try:
            text = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        except OSError:
            break
        if found := re.search(r"VmHWM:\s+(\d+) kB", text):
            seen = int(found[1]) * 1024
        time.sleep(LOOK_S)
    return seen


def join(group: Path) -> None:
    (group / "cgroup.procs").write_text("0", encoding="ascii")


def group_peak(group: Path) -> int:
    """Version 2 of control groups, else version 1."""
    two, one = group / "memory.peak", group / "memory.max_usage_in_bytes"
    return int((two if two.is_file() else one).read_text(encoding="ascii"))


def forget(path: Path) -> None:
    """Drop cached pages, which belong to whoever read them first."""
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def worker(side: str, setting: Setting, watch: bool) -> Row:
    """One of ours. With `watch` one prompt and one answer after it, as llama-bench's -pg does."""
    task = {
        "task": "bench",
        "prompt": [3 + i % 64 for i in range(setting.prompt)],
        "prefill": [setting.prompt],
        "depths": [setting.prompt if watch or side == "onnx" else 0],  # llama-bench decodes from an empty cache
        "new_tokens": setting.new,
        "warmups": {"least": 1, "most": 1, "within": 0.1},
        "repeats": 1 if watch else setting.repeats,
        "threads": setting.threads,
        "context": setting.prompt + setting.new,
    }
    runtime = RUNTIMES[OURS[side][1]]
    path = setting.path(side)
    job = runtime.job(path.name, str(path.resolve()), task, machine.facts())
    (setting.scratch / "job.json").write_text(json.dumps(job.spec), encoding="utf-8")
    interpreter = [sys.executable] if runtime.host == "python" else []
    found = launch([*interpreter, str(job.worker), "job.json"], setting, side, watch)
    result = runtime.parse(json.loads((setting.scratch / "result.json").read_text(encoding="utf-8")), "bench")
    del found["stdout"]
    if watch:
        found["reported"] = max(sample["vm_hwm"] for sample in result["memory"]["samples"])
        found["before_load"] = result["memory"]["before_load"]["vm_hwm"]
        return found
    phases = {phase["kind"]: phase for phase in result["phases"]}
    return {kind: [phases[kind]["tokens"] / run["seconds"] for run in phases[kind]["runs"]] for kind in PHASES}


def llama_bench(side: str, setting: Setting, watch: bool) -> Row:
    lengths = ["-p", str(setting.prompt), "-n", str(setting.new), "-r", str(setting.repeats)]
    if watch:
        lengths = ["-p", "0", "-n", "0", "-pg", f"{setting.prompt},{setting.new}", "-r", "1"]
    command = [str(tool(BENCH)), "-m", str(setting.model.resolve()), *lengths, "-t", str(setting.threads)]
    found = launch([*command, "-lm", "mmap", "-fa", "auto", "-ngl", "0", "-o", "json"], setting, side, watch)
    tests = json.loads(found.pop("stdout"))
    if watch:
        return found
    tokens = {"prefill": "n_prompt", "decode": "n_gen"}
    return {
        kind: [test[key] / (ns / 1e9) for test in tests if test[key] for ns in test["samples_ns"]]
        for kind, key in tokens.items()
    }


def genai(side: str, setting: Setting, watch: bool) -> Row:
    """Its benchmark's averages; random tokens and greedy choice, threads laid over the folder's configuration."""
    assert setting.onnx and setting.script
    folder = setting.scratch / "onnx"
    if not folder.exists():
        folder.mkdir()
        for file in setting.onnx.iterdir():
            (folder / file.name).symlink_to(file.resolve())
        config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
        config["model"]["decoder"].setdefault("session_options", {})["intra_op_num_threads"] = setting.threads
        (folder / "genai_config.json").unlink()
        (folder / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    repeats = "1" if watch else str(setting.repeats)
    command = [sys.executable, str(setting.script.resolve()), "-i", str(folder), "-l", str(setting.prompt)]
    command += ["-g", str(setting.new), "-r", repeats, "-w", "1", "-k", "1", "--use_random_tokens"]
    found = launch([*command, "--chat_template", "{input}", "-o", "genai.csv"], setting, side, watch)
    text = found.pop("stdout")
    if watch:
        return found
    latency = {kind: re.search(rf"Average {words} \(per token\): (\S+) ms", text) for kind, words in GENAI_SAYS.items()}
    return {kind: [1000 / float(ms[1])] for kind, ms in latency.items() if ms}


def side_of(name: str) -> Callable[[str, Setting, bool], Row]:
    return {BENCH: llama_bench, GENAI: genai}.get(name, worker)
