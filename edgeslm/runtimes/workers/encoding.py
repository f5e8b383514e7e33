"""The task `encode`: an encoder's outputs for rows of a file, and the time that one row takes.

Job fields: model (a folder with model.onnx and encoder.json), rows (.npz: one array [R, ...] for each input), threads,
batch, warmups, repeats. Standard library, numpy and onnxruntime only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from common import Desk, JobError


def open_session(job: dict[str, Any], path: Path) -> tuple[Any, float]:
    """(a session of onnxruntime on the CPU with the job's threads, seconds to load it). Raises JobError."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = int(job["threads"])
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    start = time.perf_counter()
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise JobError(f"onnxruntime cannot load {job['name']}: {first_line(error)}") from error
    return session, time.perf_counter() - start


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class EncodingEngine:
    """One graph from the arrays that its folder's encoder.json names to `out`."""

    def __init__(self, desk: Desk):
        job = desk.job
        folder = Path(job["model"])
        try:
            self.inputs = list(json.loads((folder / "encoder.json").read_text(encoding="utf-8"))["inputs"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise JobError(f"encoder.json of the model is missing or damaged ({error}); export it again") from error
        self.session, self.load_s = open_session(job, folder / "model.onnx")
        self.info = {"runtime": "onnxruntime", "version": version("onnxruntime"), "threads": int(job["threads"])}

    def run(self, rows: dict[str, np.ndarray]) -> np.ndarray:
        return self.session.run(["out"], rows)[0]


def encode(open_engine: Callable[[Desk], Any], desk: Desk) -> dict[str, Any]:
    """Outputs of all rows; seconds of one row at a time, row after row, warm-ups apart."""
    job, engine = desk.job, open_engine(desk)
    with np.load(job["rows"], allow_pickle=False) as file:
        rows = {name: file[name] for name in engine.inputs}
    count = len(rows[engine.inputs[0]])
    made = []
    for at in range(0, count, job["batch"]):
        made.append(engine.run({name: value[at : at + job["batch"]] for name, value in rows.items()}))
        desk.progress(min(count, at + job["batch"]), count)
    desk.save_array("outputs.npy", np.concatenate(made))
    seconds = []
    for turn in range(job["warmups"] + job["repeats"]):
        one = {name: value[turn % count : turn % count + 1] for name, value in rows.items()}
        start = time.perf_counter()
        engine.run(one)
        seconds.append(time.perf_counter() - start)
    return {
        "engine": engine.info,
        "load_s": engine.load_s,
        "warmup_s": seconds[: job["warmups"]],
        "latency_s": seconds[job["warmups"] :],
        "arrays": {"outputs": "outputs.npy"},
    }
