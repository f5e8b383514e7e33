"""auto-round (SignRound, arXiv:2309.05516) and its own GGUF export, with the embedding put on a grid by llama.cpp.

auto-round writes the embedding as Q8_0 (or Q6_K) whatever the target; the mixed file is made as it writes it and, for
the budget, with the embedding on the grids EMBEDDINGS. Its matrices go unchanged into the student's own GGUF file, so
that vocabularies are alike.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.rivals import venv
from benchmarks.rivals.base import EMBEDDING, Candidate, Made, Options, Rival, Student
from benchmarks.rivals.graft import graft, matrices
from benchmarks.rivals.llama_cpp import grid_the_rest
from edgeslm.models.gguf_file import GGML_TYPES

NAME = "auto-round"
WORKER = Path(__file__).parent / "workers" / "auto_round_gguf.py"
SCHEMES = ("gguf:q4_0", "gguf:q5_0", "gguf:q4_k_s", "gguf:q4_k_m", "gguf:q3_k_s", "gguf:q3_k_m", "gguf:q2_k_s")
EMBEDDINGS = ("iq4_nl", "q5_0", "q4_k", "q6_k")
BATCH = 4


def candidates(student: Student, options: Options) -> list[Candidate]:
    columns = student.shapes[EMBEDDING][1]
    blocks = {name: block for name, block, _ in GGML_TYPES.values()}
    embeddings: list[str | None] = [None, *(e for e in EMBEDDINGS if columns % blocks[e] == 0)]
    return [
        Candidate(NAME, s.removeprefix("gguf:") + (f" embedding={e}" if e else ""), {"scheme": s, "embedding": e})
        for s in SCHEMES
        for e in embeddings
    ]


def make(candidate: Candidate, student: Student, out: Path, options: Options) -> Made:
    """One GGUF file. What a scheme costs is paid once: its matrices stay beside `out` for the next embedding."""
    scheme, embedding = candidate.settings["scheme"], candidate.settings["embedding"]
    kept = out.parent / f"auto-round-{scheme.removeprefix('gguf:')}.gguf"
    seconds = 0.0
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=out.parent) as name:
            job = {
                "model": str(student.folder),
                "rows": student.rows,
                "scheme": scheme,
                "iterations": options.iterations,
                "batch": BATCH,
                "threads": options.threads,
                "out": name,
            }
            said = venv.work(WORKER, job, Path(name), options.timeout_s)
            Path(said["file"]).replace(kept)
            seconds = said["seconds"]
    packed = matrices(kept)
    wanted = scheme.removeprefix("gguf:").rpartition("_")[0] if "_k_" in scheme else scheme.removeprefix("gguf:")
    blocks = {name: block for name, block, _ in GGML_TYPES.values()}
    fallbacks = sum(student.shapes[n][-1] % blocks[wanted] != 0 for n in packed if n != EMBEDDING)
    note = f"{options.iterations} iterations"
    if embedding is None:
        return Made(graft(student, packed, out), seconds, fallbacks, note)
    del packed[EMBEDDING]
    bare = graft(student, packed, out.with_suffix(".bare"))
    made = grid_the_rest(bare, out, embedding, {name: kind for name, (kind, _) in packed.items()}, options)
    bare.unlink()
    return Made(out, seconds + made.seconds, fallbacks, note)


RIVAL = Rival(NAME, "auto-round, its GGUF export", candidates, make, needs_venv=True)
