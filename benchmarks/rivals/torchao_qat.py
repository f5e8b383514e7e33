"""torchao's quantisation-aware training, then llama.cpp's quantiser: what a user of both gets as Q4_0.

Trained with our loss on our tokens (`Options.tokens`, `Student.training_rows`) at each of RATES; the best counts. The
embedding, tied or not, is trained in float as torchao does by default.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from benchmarks.rivals import llama_cpp, venv
from benchmarks.rivals.base import EMBEDDING, Candidate, Made, Options, Rival, Student
from benchmarks.rivals.graft import graft, names_and_orders
from edgeslm.models.gguf_file import GGML_TYPES

NAME = "torchao"
WORKER = Path(__file__).parent / "workers" / "torchao_qat.py"
RATES = (3e-5, 1e-4, 3e-4, 1e-3)
EMBEDDINGS = ("q4_0", "iq4_nl", "q5_0", "q6_k")
BATCH_TOKENS = 2048


def candidates(student: Student, options: Options) -> list[Candidate]:
    columns = student.shapes[EMBEDDING][1]
    blocks = {name: block for name, block, _ in GGML_TYPES.values()}
    fitting = [e for e in EMBEDDINGS if columns % blocks[e] == 0]
    return [
        Candidate(
            NAME,
            f"int4 g32 QAT lr={rate:g} as Q4_0 embedding={e}{' imatrix' if weighted else ''}",
            {"lr": rate, "embedding": e, "weighted": weighted},
        )
        for rate in RATES
        for e in fitting
        for weighted in (False, True)
    ]


def make(candidate: Candidate, student: Student, out: Path, options: Options) -> Made:
    """One GGUF file; each rate is trained once, its float weights stay beside `out` for the next embedding."""
    rate = candidate.settings["lr"]
    kept, seconds = out.parent / f"torchao-{rate:g}.gguf", 0.0
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=out.parent) as name:
            job = {
                "model": str(student.folder),
                "rows": student.training_rows or student.rows,
                "tokens": options.tokens,
                "batch_tokens": BATCH_TOKENS,
                "lr": rate,
                "threads": options.threads,
                "out": f"{name}/trained.safetensors",
            }
            seconds = venv.work(WORKER, job, Path(name), options.timeout_s)["seconds"]
            trained = load_file(job["out"])
            places = names_and_orders(student)
            floats = {}
            for ours, (theirs, order) in places.items():
                weight = trained[ours] if order is None else trained[ours][order]
                floats[theirs] = ("f32", weight.contiguous().numpy().view(np.uint8).reshape(-1))
            graft(student, floats, kept)
    own = {key: candidate.settings[key] for key in ("embedding", "weighted")}
    plain = Candidate(NAME, candidate.name, {"type": "Q4_0", "head": None, "pure": True, "types": {}, **own})
    made = llama_cpp.make(plain, replace(student, gguf=kept), out, options)
    return replace(made, seconds=seconds + made.seconds, note=f"{options.tokens} tokens")


RIVAL = Rival(NAME, "torchao QAT, then llama.cpp's quantiser", candidates, make, needs_venv=True)
