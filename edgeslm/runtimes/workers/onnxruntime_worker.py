"""Runs an ONNX folder: score and likelihood with plain onnxruntime (all positions' logits), the rest with its genai.

Job fields besides the task's: model (the folder), threads, context. The shipped files are not touched: threads and
length are laid over the folder's own configuration in memory.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from common import Desk, JobError, main
from encoding import EncodingEngine, encode, first_line, open_session
from likelihood import Followed, Group
from tasks import TASKS

PAST, PRESENT = "past_key_values.", "present."  # names of what a graph takes and gives of its key/value cache
ONNX_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's genai_config.json. Raises JobError when it is missing or damaged."""
    path = folder / "genai_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config["model"]["decoder"]["filename"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(f"{path.name} of the model is missing or damaged ({error}); export the model again") from error
    return config


class ScoringEngine:
    """The graph itself: one call for each window, with an empty past."""

    def __init__(self, desk: Desk):

        job = desk.job
        self.folder = Path(job["model"])
        config = read_config(self.folder)
        self.session, self.load_s = open_session(job, self.folder / config["model"]["decoder"]["filename"])
        self.vocabulary = int(config["model"]["vocab_size"])
        shape = cache_shape(config)
        self.context = int(job["context"])
        self.cache_shape = (shape["kv_heads"], 0, shape["head_dim"])
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        unknown = [n for n in self.inputs if n not in ("input_ids", "attention_mask", "position_ids") and not past(n)]
        if unknown or "logits" not in [o.name for o in self.session.get_outputs()]:
            raise JobError(f"{job['name']} is no decoder graph this worker can feed (inputs {sorted(unknown)})")
        self.info = {
            "runtime": "onnxruntime",
            "version": version("onnxruntime"),
            "threads": int(job["threads"]),
            "context": self.context,
            **shape,
            "vocabulary": self.vocabulary,
        }

    def score(self, ids: list[int], first: int) -> Iterator[np.ndarray]:
        logits, _ = self._run(ids, {})
        yield logits[first:]

    def follow(self, groups: list[Group]) -> Iterator[Followed]:
        """The prefix once; each continuation then goes on from the keys and values it left."""
        for number, (prefix, continuations) in enumerate(groups):
            longer = any(len(ids) > 1 for ids in continuations)
            logits, held = self._run(prefix, {}, keep=longer)
            kept, rows, at = [logits[-1:]], [], 1
            for ids in continuations:
                if len(ids) > 1:
                    kept.append(self._run(ids[:-1], held)[0])
                rows.append([0, *range(at, at + len(ids) - 1)])
                at += len(ids) - 1
            yield number, np.concatenate(kept), rows

    def _run(
        self, ids: list[int], held: dict[str, np.ndarray], keep: bool = False
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Logits float32 [T, V] of `ids` after what `held` has seen, and with `keep` what is to be held then."""
        before = next(iter(held.values())).shape[2] if held else 0
        feed: dict[str, np.ndarray] = {}
        for name, spec in self.inputs.items():
            kind = ONNX_TYPES[spec.type]
            if past(name):  # [batch 1, key/value heads, past, head size]
                feed[name] = held[name] if held else np.zeros((1, *self.cache_shape), kind)
            elif name == "input_ids":
                feed[name] = np.asarray([ids], kind)
            elif name == "position_ids":
                feed[name] = np.arange(before, before + len(ids), dtype=kind)[None]
            else:
                feed[name] = np.ones((1, before + len(ids)), kind)
        caches = [name for name in self.inputs if past(name)] if keep else []
        try:
            outputs = self.session.run(["logits", *(name.replace(PAST, PRESENT) for name in caches)], feed)
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            raise JobError(f"onnxruntime failed while scoring: {first_line(error)}") from error
        logits = outputs[0]
        if logits.shape[1] != len(ids):
            raise JobError("the graph gives logits of the last position only; build it with all positions to score it")
        return logits[0].astype(np.float32), dict(zip(caches, outputs[1:], strict=True))


class GenerationEngine:
    """onnxruntime-genai: the key/value cache lives in its generator."""

    def __init__(self, desk: Desk):
        import onnxruntime_genai as og

        job = desk.job
        folder = Path(job["model"])
        config = read_config(folder)
        threads, self.context = int(job["threads"]), int(job["context"])
        limit = int(config["model"].get("context_length", self.context))
        if self.context > limit:
            raise JobError(f"{job['name']} was built for {limit} positions, the job asks for {self.context}")
        overlay = {
            "model": {
                "decoder": {"session_options": {"intra_op_num_threads": threads, "inter_op_num_threads": 1}},
            },
            "search": {"max_length": self.context, "do_sample": False, "num_beams": 1},
        }
        start = time.perf_counter()
        try:
            settings = og.Config(str(folder))
            settings.overlay(json.dumps(overlay))
            self.model = og.Model(settings)
        except Exception as error:  # genai raises its own exception type, whose only base is Exception
            raise JobError(f"onnxruntime-genai cannot load {job['name']}: {first_line(error)}") from error
        self.load_s = time.perf_counter() - start
        self.params = og.GeneratorParams(self.model)
        self.params.set_search_options(max_length=self.context, do_sample=False)
        self.make = og.Generator
        self.generator: Any = None
        self.length = 0
        self.vocabulary = int(config["model"]["vocab_size"])
        self.info = {
            "runtime": "onnxruntime-genai",
            "version": f"{version('onnxruntime-genai')} / onnxruntime {version('onnxruntime')}",
            "threads": threads,
            "context": self.context,
            **cache_shape(config),
            "vocabulary": self.vocabulary,
        }

    def feed(self, ids: list[int]) -> np.ndarray:
        if self.length + len(ids) > self.context:
            raise JobError(f"{self.length + len(ids)} ids do not fit the context of {self.context}")
        if self.generator is None:
            self.generator = self.make(self.model, self.params)
        try:
            self.generator.append_tokens(np.asarray([ids], np.int32))
            logits = self.generator.get_logits()
        except Exception as error:  # genai raises its own exception type, whose only base is Exception
            raise JobError(f"onnxruntime-genai failed while generating: {first_line(error)}") from error
        self.length += len(ids)
        return np.asarray(logits, np.float32).reshape(-1, self.vocabulary)[-1]

    def keep(self, n: int) -> None:
        """The generator is made anew rather than rewound, and at once: its cache is not part of a prompt's time, as
        llama.cpp's, which comes with the model, is not."""
        if n == 0:
            self.generator = None  # its memory first
            self.generator = self.make(self.model, self.params)
        elif n < self.length:
            self.generator.rewind_to(n)
        self.length = min(n, self.length)


def past(name: str) -> bool:
    return name.startswith(PAST)


def cache_shape(config: dict[str, Any]) -> dict[str, int]:
    decoder = config["model"]["decoder"]
    return {
        "layers": int(decoder["num_hidden_layers"]),
        "kv_heads": int(decoder["num_key_value_heads"]),
        "head_dim": int(decoder["head_size"]),
        "kv_element_bytes": 4,
    }


def open_engine(desk: Desk) -> ScoringEngine | GenerationEngine | EncodingEngine:
    if desk.job["task"] == "encode":
        return EncodingEngine(desk)
    return ScoringEngine(desk) if desk.job["task"] in ("score", "likelihood") else GenerationEngine(desk)


if __name__ == "__main__":
    main(open_engine, {**TASKS, "encode": encode})
