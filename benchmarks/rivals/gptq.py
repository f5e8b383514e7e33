"""GPTQ (arXiv:2210.17323) by GPTQModel, symmetric 4-bit groups of 32: exactly Q4_0's lattice, so it ships as Q4_0.

Its codes and float16 scales are packed as they are. GPTQ leaves the embedding in float; llama.cpp's quantiser puts it
on a grid. Its 2-, 3- and 8-bit groups have no GGUF type that holds them at their size.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.rivals import venv
from benchmarks.rivals.base import EMBEDDING, Candidate, Made, Options, Rival, Student
from benchmarks.rivals.graft import Packed, graft, names_and_orders
from benchmarks.rivals.llama_cpp import grid_the_rest
from edgeslm.formats import FORMATS
from edgeslm.models.gguf_file import GGML_TYPES

NAME = "gptq"
WORKER = Path(__file__).parent / "workers" / "gptq.py"
EMBEDDINGS = ("q4_0", "iq4_nl", "q5_0", "q6_k", "q8_0")
BATCH = 4


def candidates(student: Student, options: Options) -> list[Candidate]:
    columns = student.shapes[EMBEDDING][1]
    blocks = {name: block for name, block, _ in GGML_TYPES.values()}
    fitting = [e for e in EMBEDDINGS if columns % blocks[e] == 0]
    return [Candidate(NAME, f"sym int4 g32 as Q4_0 embedding={e}", {"embedding": e}) for e in fitting]


def make(candidate: Candidate, student: Student, out: Path, options: Options) -> Made:
    """One GGUF file; GPTQ runs once, its layers stay beside `out` for the next embedding."""
    kept, seconds = out.parent / "gptq.npz", 0.0
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=out.parent) as name:
            job = {
                "model": str(student.folder),
                "rows": student.rows,
                "batch": BATCH,
                "threads": options.threads,
                "folder": f"{name}/saved",
                "out": f"{name}/layers.npz",
            }
            seconds = venv.work(WORKER, job, Path(name), options.timeout_s)["seconds"]
            (Path(name) / "layers.npz").replace(kept)
    packed = layers(kept, student)
    bare = graft(student, packed, out.with_suffix(".bare"))
    types = {name: kind for name, (kind, _) in packed.items()}
    made = grid_the_rest(bare, out, candidate.settings["embedding"], types, options)
    bare.unlink()
    return Made(out, seconds + made.seconds, made.fallbacks, "linear layers by GPTQ, the embedding by llama.cpp")


def layers(path: Path, student: Student) -> dict[str, Packed]:
    """{GGUF name: ("q4_0", bytes)} from the worker's codes [N, K] and scales [N, K / 32]."""
    grid, found = FORMATS["q4_0"], {}
    places = names_and_orders(student)
    with np.load(path, allow_pickle=False) as archive:
        for key in (k for k in archive.files if k.endswith("|codes")):
            name, order = places[key.removesuffix("|codes") + ".weight"]
            codes = torch.from_numpy(archive[key])
            scales = torch.from_numpy(archive[key.replace("|codes", "|scales")])
            rows = grid.pack(codes.reshape(-1, grid.block), {"d": scales.reshape(-1, 1)}).reshape(len(codes), -1)
            found[name] = ("q4_0", (rows if order is None else rows[order]).contiguous().numpy())
    return found


RIVAL = Rival(NAME, "GPTQModel", candidates, make, needs_venv=True)
