"""The float32 student all rivals of a run share: one GGUF file, one transformers folder, one importance file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.rivals.base import Student, source_types
from edgeslm.artifact import file_sha256
from edgeslm.export.gguf import export
from edgeslm.models import imatrix
from edgeslm.models.load import Loaded, write_tokenizer
from edgeslm.quantize.freeze import freeze_floats
from edgeslm.quantize.importance import input_statistics


def float_student(
    loaded: Loaded,
    name: str,
    workdir: Path,
    rows: list[list[int]],
    text: tuple[str, ...],
    training_rows: list[list[int]] | None = None,
) -> Student:
    """Writes what is not in `workdir` yet. `rows` are calibration windows of the files named `text`; they are the only
    text that rivals learn from, but for training rivals, which see `training_rows`."""
    workdir.mkdir(parents=True, exist_ok=True)
    source = loaded.source.path if loaded.source.kind == "gguf" else None
    student = Student(
        name,
        workdir / "float.gguf",
        workdir / "transformers",
        rows,
        workdir / "imatrix.gguf",
        training_rows or [],
        source_types(source) if source else {},
    )
    weights: dict[str, Any] = dict(loaded.model.named_parameters())
    config = loaded.model.config.to_dict()
    if not student.folder.exists():
        part = workdir / "transformers.part"
        write_tokenizer(loaded.tokenizer, part)
        loaded.model.save_pretrained(part)
        part.rename(student.folder)
    if not student.gguf.exists():
        frozen = freeze_floats(weights, "f32", loaded.arch.name, config, student.folder, name, {})
        export(frozen, student.gguf)
    if not student.importance.exists():
        found = input_statistics(loaded.model, torch.tensor(rows))
        means = {key: np.asarray(mean) for key, mean in found.mean_squares.items()}
        matrix = imatrix.from_means(means, found.tokens, loaded.arch.names(config), text, len(rows[0]))
        imatrix.write(matrix, student.importance)
    return student


def identity(student: Student, windows: list[list[int]]) -> str:
    """What a row of a record belongs to: the float file, the importance, the calibration and the judging windows."""
    import hashlib

    parts = [file_sha256(student.gguf), file_sha256(student.importance), student.rows, student.training_rows, windows]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
