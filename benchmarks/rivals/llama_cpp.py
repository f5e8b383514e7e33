"""llama.cpp's own quantiser: every type and mix, with and without importance, and with the options its users turn.

Each mix is made as it stands and with `--pure`, with importance and without. With importance, which is nearly always
better, also with other embeddings than the mix takes by default (Q6_K, or Q8_0 where 256 does not divide the rows:
half of a small model's file; a head that is a matrix of its own is named beside it) and as MIXES, which name matrices
one by one as `--tensor-type` does. What a choice will weigh is asked of llama.cpp's dry run, so that only files near a
budget need be made.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rivals.base import EMBEDDING, HEAD, Candidate, Made, Options, Rival, RivalFailure, Student
from edgeslm.models import imatrix
from edgeslm.models.gguf_file import GGML_TYPES

NAME = "llama.cpp"
WORKER = Path(__file__).parent / "workers" / "llama_quantize.py"

# enum llama_ftype: every one that its quantiser offers below 16 bits
FILE_TYPES = {
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K_S": 11,
    "Q3_K_M": 12,
    "Q3_K_L": 13,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_S": 16,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ2_XXS": 19,
    "IQ2_XS": 20,
    "Q2_K_S": 21,
    "IQ3_XS": 22,
    "IQ3_XXS": 23,
    "IQ1_S": 24,
    "IQ4_NL": 25,
    "IQ3_S": 26,
    "IQ3_M": 27,
    "IQ2_S": 28,
    "IQ2_M": 29,
    "IQ4_XS": 30,
    "IQ1_M": 31,
    "TQ1_0": 36,
    "TQ2_0": 37,
    "MXFP4_MOE": 38,
    "Q1_0": 40,
    "Q2_0": 41,
}
# llama.cpp refuses these without importance
NEED_IMPORTANCE = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "Q2_K_S"})
PURE = frozenset({"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_S", "Q4_K_S", "Q5_K_S", "Q6_K", "IQ4_NL"})
PURE |= {"IQ4_XS", "IQ3_S", "TQ1_0", "TQ2_0", "MXFP4_MOE", "Q1_0", "Q2_0"}
# the best first
EMBEDDINGS = ("q8_0", "q6_k", "q5_1", "q5_k", "q5_0", "q4_1", "q4_k", "iq4_nl", "q4_0", "q3_k", "iq3_s", "q2_k")
# more bits where they are known to matter (values, down projections), fewer elsewhere:
# (file type, {part of a name: type})
MIXES: tuple[tuple[str, dict[str, str]], ...] = (
    ("Q4_0", {"ffn_down": "q4_0"}),  # with importance llama.cpp takes Q4_1 in the first layers
    ("Q4_0", {"ffn_down": "q5_k", "attn_v": "q5_1"}),
    ("IQ4_NL", {"ffn_down": "q6_k", "attn_v": "q8_0"}),
    ("IQ4_NL", {"ffn_down": "q5_k", "attn_v": "q8_0", "attn_output": "q5_1"}),
    ("IQ4_NL", {"attn": "q5_1", "ffn_down": "q5_k"}),
    ("Q5_0", {"ffn_down": "q5_0"}),
    ("Q5_0", {"ffn_down": "iq4_nl", "attn_v": "q8_0"}),
    ("Q5_0", {"ffn_gate": "iq4_nl", "attn_v": "q8_0"}),
    ("Q5_0", {"ffn_up": "iq4_nl", "ffn_gate": "iq4_nl", "attn_v": "q8_0"}),
    ("IQ4_NL", {"attn_v": "q8_0", "attn": "q5_0"}),
    ("Q5_0", {"ffn_down": "q4_k"}),
    ("Q5_0", {"ffn_down": "q5_k"}),
    ("Q5_0", {"ffn_down": "q6_k"}),
    ("Q5_0", {"ffn_down": "q6_k", "attn_v": "q8_0"}),
    ("Q5_1", {"ffn_down": "q4_k"}),
    ("Q5_1", {"ffn_down": "q5_k"}),
    ("Q5_1", {"ffn_down": "q5_k", "ffn_gate": "q5_0"}),
    ("Q3_K_S", {"attn_v": "q5_k", "attn_output": "q4_k", "ffn_down": "q4_k"}),
    ("Q2_K", {"attn_v": "q4_k", "attn_output": "q3_k", "ffn_down": "q3_k"}),
    ("IQ2_S", {"attn_v": "q4_k", "ffn_down": "iq3_s"}),
    ("IQ3_S", {"attn_v": "q5_k", "ffn_down": "iq4_xs"}),
)


def numbers() -> dict[str, int]:
    """{type's name: value of enum ggml_type}"""
    return {name: number for number, (name, _, _) in GGML_TYPES.items()}


def candidates(student: Student, options: Options) -> list[Candidate]:
    """Every choice whose weight llama.cpp's dry run can tell; what it refuses keeps `bits` None and fails in `make`.
    `identity` is equal for files that come out equal; `own_grid` says that a tensor has the type of its teacher's file.

    An embedding or head of such a type is not offered.
    """
    plain = list(_choices(student))
    for candidate, types in zip(plain, _dry_run(plain, student, options), strict=True):
        candidate.settings["bits"] = _bits(types, student) if types else None
        candidate.settings["identity"] = tuple(sorted(types.items()))
        candidate.settings["own_grid"] = any(types.get(name) == kind for name, kind in student.source_types.items())
    return plain


def _choices(student: Student) -> Iterator[Candidate]:
    columns = student.shapes[EMBEDDING][1]
    blocks = {name: block for name, block, _ in GGML_TYPES.values()}
    fitting = [e for e in EMBEDDINGS if columns % blocks[e] == 0]
    embeddings, heads = (
        [kind for kind in fitting if kind != student.source_types.get(table)] for table in (EMBEDDING, HEAD)
    )
    tables: list[tuple[str, str | None]] = [(e, None) for e in embeddings]
    if HEAD in student.shapes:  # it matters more than the embedding: a type that is no worse
        tables = [(e, h) for e in embeddings for h in heads if fitting.index(h) <= fitting.index(e)]
    for weighted in (False, True):
        for name in FILE_TYPES:
            if weighted or name not in NEED_IMPORTANCE:
                yield _choice(name, weighted)
            if weighted:
                yield from (_choice(name, weighted, tables=pair) for pair in tables)
        yield from (_choice(name, weighted, pure=True) for name in FILE_TYPES if name in PURE)
        for name, types in MIXES if weighted else ():
            yield from (_choice(name, weighted, tables=pair, types=types) for pair in tables)


def _choice(
    name: str,
    weighted: bool,
    *,
    tables: tuple[str | None, str | None] = (None, None),
    pure: bool = False,
    types: dict[str, str] | None = None,
) -> Candidate:
    """`tables`: types of embedding and of a head of its own, None as llama.cpp chooses."""
    types, (embedding, head) = types or {}, tables
    words = [name, *(["pure"] if pure else []), *(f"{part}={kind}" for part, kind in types.items())]
    words += ([f"embedding={embedding}"] if embedding else []) + ([f"head={head}"] if head else [])
    words += ["imatrix"] if weighted else []
    settings = {
        "type": name, "weighted": weighted, "embedding": embedding, "head": head, "pure": pure, "types": types
    }  # fmt: skip
    return Candidate(NAME, " ".join(words), settings)


def make(candidate: Candidate, student: Student, out: Path, options: Options) -> Made:
    """One GGUF file. Raises RivalFailure with llama.cpp's own reason."""
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        job = _job(candidate.settings, student, out, options, _importance(student, Path(folder)))
        said = run_worker(job, Path(folder), options.timeout_s)
    if not said["ok"]:
        raise RivalFailure(f"llama.cpp's quantiser refused {candidate.name}: {said['error']}")
    return Made(out, said["seconds"], said["fallbacks"])


def grid_the_rest(source: Path, out: Path, embedding: str, types: dict[str, str], options: Options) -> Made:
    """The matrices that `types` {GGUF name: type} names are there already and copied byte for byte; the others, float
    so far (embedding, head), are put on `embedding`."""
    exact = {f"^{re.escape(name)}$": kind for name, kind in types.items()} | {
        ".": embedding
    }  # the first that matches holds
    settings = {
        "type": "Q4_0", "weighted": False, "embedding": embedding, "head": None, "pure": True, "types": exact
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        said = run_worker(_job(settings, source, out, options, None), Path(folder), options.timeout_s)
    if not said["ok"]:
        raise RivalFailure(f"llama.cpp's quantiser refused what is left in float: {said['error']}")
    return Made(out, said["seconds"], said["fallbacks"])


def _job(
    settings: dict[str, Any], source: Student | Path, out: Path, options: Options, importance: Path | None
) -> dict[str, Any]:
    number = numbers()
    embedding, head = settings["embedding"], settings["head"]
    return {
        "source": str(source.gguf if isinstance(source, Student) else source),
        "out": str(out),
        "threads": options.threads,
        "ftype": FILE_TYPES[settings["type"]],
        "pure": settings["pure"],
        "embedding": None if embedding is None else number[embedding],
        "head": None if head is None else number[head],
        "tensor_types": [(part, number[kind]) for part, kind in settings["types"].items()],
        "importance": str(importance) if importance and settings["weighted"] else None,
        "dry": [],
    }


def _importance(student: Student, folder: Path) -> Path:
    """The student's importance as the worker reads it, by GGUF name."""
    path = folder / "importance.npz"
    np.savez(path, **{name: entry.mean() for name, entry in imatrix.read(student.importance).entries.items()})  # type: ignore[arg-type]
    return path


def _dry_run(plain: list[Candidate], student: Student, options: Options) -> list[dict[str, str]]:
    """The type of every matrix under each choice, in one process; empty for a choice that llama.cpp refuses."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = _importance(student, folder)
        jobs = [_job(c.settings, student, folder / "none.gguf", options, weights) for c in plain]
        said = run_worker({"dry": jobs}, folder, options.timeout_s)
    return [dict(types) for types in said["types"]]


def _bits(types: dict[str, str], student: Student) -> float:
    sizes = {name: size / block for name, block, size in GGML_TYPES.values()}
    nbytes = sum(math.prod(shape) * sizes[types.get(name, "f32")] for name, shape in student.shapes.items())
    return 8 * nbytes / student.parameters


def run_worker(job: dict[str, Any], folder: Path, timeout_s: float) -> dict[str, Any]:
    """The last line of the worker's stdout. Raises RivalFailure when the process died without one."""
    path = folder / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    try:
        done = subprocess.run(
            [sys.executable, str(WORKER), str(path)], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RivalFailure(f"llama.cpp's quantiser took longer than {timeout_s:.0f} s; allow it more time") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        words = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RivalFailure(f"llama.cpp's quantiser died with exit code {done.returncode}: {words}")
    return json.loads(lines[-1])


RIVAL = Rival(NAME, "llama.cpp's quantiser", candidates, make)
