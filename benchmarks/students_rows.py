"""The rows of `benchmarks.students`: students of one size, by how they were cut, each the change that it makes to one
base recipe. About 0.1B of SmolLM2-135M, about 13M of stories15M."""

from __future__ import annotations

from typing import Any

Changes = dict[str, Any]
RANDOM = "random"  # a student from scratch: a folder of new weights, made beforehand, of the shape of `depth`

TEXT = ["package:text/learn/*.txt", "package:text/more/*.txt"]
STORIES = ["package:text/learn/*.txt", "package:text/more/carroll-alice.txt", "package:text/more/edgeworth-parents.txt"]

BASES: dict[str, Changes] = {
    "smollm2": {
        "layers": 24,
        "mergekit": [*range(23), 29],  # slices [0, 23] and [29, 30]: the deepest run goes, the last layer stays
        "width": {"ffn": 1128},
        "joint": {"layers": 27, "ffn": 1312},
        "keep": 19660,  # of 49,152
        "small": {"layers": 20, "ffn": 1024, "keep": 16384},
        "text": TEXT,
        "judge": ["package:text/judge/*.txt"],
        "context": 512,
        "windows": 8,
    },
    "stories15m": {
        "layers": 4,
        "mergekit": [0, 1, 2, 5],
        "width": {"ffn": 384},
        "joint": {"layers": 5, "ffn": 576},
        "keep": 12800,  # of 32,000
        "small": {"layers": 5, "ffn": 384, "keep": 12800},
        "text": STORIES,
        "judge": ["package:text/more/bryant-stories.txt"],
        "context": 128,
        "windows": 24,
    },
}
# a teacher cut to fewer tokens is its student to begin with: the text says how words are spelled now. The whole teacher
# trained by the same is the control: some of what the text teaches has nothing to do with tokens.
SPELLING: list[Changes] = [{"loss": "forward_kl"}, {"loss": "cross_entropy", "weight": 0.2}]
TRAINED: Changes = {"batch_tokens": 2048, "checkpoint_every": 1000, "lr": 0.0006}


def rows(base: str) -> dict[str, Changes]:
    """{row: its `student`}"""
    of = BASES[base]
    depth = {"kind": "depth", "layers": of["layers"]}
    width = {"kind": "width", **of["width"]}
    small = dict(of["small"])
    return {
        "influence": {**depth, "choose": "influence"},
        "influence_run": {**depth, "choose": "influence", "contiguous": True},
        "loss": {**depth, "choose": "loss", "importance_tokens": 2048},
        "even": {**depth, "choose": "even"},
        "first": {**depth, "choose": "first"},
        "mergekit": {"kind": "depth", "choose": of["mergekit"]},
        "width": width,
        "joint": {"kind": "width", **of["joint"]},
        "vocabulary": {"kind": "copy", "vocabulary": {"keep": of["keep"], "min_count": 0, "removed": "renormalise"}},
        "vocabulary_first_piece": {
            "kind": "copy",
            "vocabulary": {"keep": of["keep"], "min_count": 0, "removed": "first_piece"},
        },
        "vocabulary_own_tokens": {
            "kind": "copy",
            "vocabulary": {"keep": of["keep"], "min_count": 0, "removed": "own_tokens"},
        },
        "whole": {"kind": "copy"},
        "small": {"kind": "width", "vocabulary": {"keep": small.pop("keep"), "min_count": 0}, **small},
        "scratch": {"kind": "existing", "model": RANDOM},
    }


NAMES = list(rows("smollm2"))


def objective(row: str) -> list[Changes]:
    if row == "scratch":
        return [{"loss": "cross_entropy"}]
    return SPELLING if row in ("whole", "small") or row.startswith("vocabulary") else [{"loss": "forward_kl"}]


def recipe(base: str, row: str, steps: int, seed: int, model: str, tokenizer: str | None, lr: float | None) -> Changes:
    """The whole recipe as data."""
    of = BASES[base]
    train = {**TRAINED, "steps": steps, **({"lr": lr} if lr else {})}
    student = rows(base)[row]
    if "vocabulary" in student:
        student["vocabulary"]["text"] = of.get("count", [])
    name = f"students-{base}-{row}-{steps}-lr{train['lr']}-s{seed}"
    return {
        "name": name,
        "seed": seed,
        "teacher": {"model": model, **({"tokenizer": tokenizer} if tokenizer else {})},
        "data": {"sequence": 128 if base == "stories15m" else 256, "sources": [{"kind": "text", "paths": of["text"]}]},
        "student": student,
        "quantize": {"plan": [{"pattern": "*", "format": "f32"}]},
        "distill": {
            "objective": objective(row),
            "train": train,
        },
        "export": {"kinds": ["gguf"], "teacher": ["gguf-f32"]},
        "evaluate": {"paths": of["judge"], "context": of["context"], "windows": of["windows"]},
        "benchmark": None,
    }
