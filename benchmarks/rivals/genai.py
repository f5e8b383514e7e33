"""onnxruntime-genai's builder at int4: round to nearest or its k_quant search, scored by onnxruntime.

The bits are those of the folder it writes: with embeddings it cannot share, the embedding stays in float.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.rivals import venv
from benchmarks.rivals.base import Candidate, Made, Options, Rival, Student

NAME = "onnxruntime-genai"
WORKER = Path(__file__).parent / "workers" / "genai_builder.py"
VARIANTS: dict[str, dict[str, str]] = {
    "int4 default": {},
    "int4 k_quant": {"algo_config": "k_quant"},
    "int4 k_quant block=16": {"algo_config": "k_quant", "block_size": "16"},
    "int4 k_quant asymmetric": {"algo_config": "k_quant", "is_symmetric": "false"},
    "int4 k_quant_last": {"algo_config": "k_quant_last"},
    "int4 k_quant_mixed": {"algo_config": "k_quant_mixed"},
}


def candidates(student: Student, options: Options) -> list[Candidate]:
    return [Candidate(NAME, name, dict(settings)) for name, settings in VARIANTS.items()]


def make(candidate: Candidate, student: Student, out: Path, options: Options) -> Made:
    """A folder with model.onnx and genai_config.json."""
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        job = {
            "model": str(student.folder),
            "out": str(out),
            "cache": name,
            "options": candidate.settings,
            "threads": options.threads,
        }
        said = venv.work(WORKER, job, Path(name), options.timeout_s)
    return Made(out, said["seconds"])


RIVAL = Rival(NAME, "onnxruntime-genai's builder, int4", candidates, make, needs_venv=True)
