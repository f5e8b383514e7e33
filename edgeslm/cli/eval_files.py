"""Which files `edgeslm eval` looks at: what a path, a run or a teacher's spec stands for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeslm.artifact import Artifact
from edgeslm.cli.actions import artifact_of, as_gguf
from edgeslm.errors import ModelError


def files_of(models: Sequence[str], teacher: str | None, churn: bool) -> tuple[Artifact, list[Artifact], list[Path]]:
    """(reference, students, files in that order). A run folder, or `run:NAME` in runs/, stands for its student.gguf,
    and where no teacher is named for its teacher's float file; a folder of transformers (a kept point of a training)
    for its float32 GGUF. With `churn` and no teacher the first model is what the others are set beside. Raises
    ModelError."""
    models = [run_folder(model) for model in models]
    paths, shown = [_model(model) for model in models], [Path(model) for model in models]
    shown = [path if path.name == "student.gguf" else told for path, told in zip(paths, shown, strict=True)]
    if teacher is not None:
        paths.insert(0, _reference(run_folder(teacher)))
    elif (runs := [m for m in models if (Path(m) / "run.json").is_file()]) and len(paths) == len(runs):
        paths.insert(0, _file(runs[0], "teacher-f32.gguf"))
    elif not (churn and len(paths) > 1):
        raise ModelError("name the float teacher with --teacher, or give a run folder that holds one")
    names = _names([*paths[: len(paths) - len(shown)], *shown])
    artifacts = [replace(artifact_of(str(path)), name=name) for path, name in zip(paths, names, strict=True)]
    return artifacts[0], artifacts[1:], paths


def run_folder(model: str) -> str:
    """`run:NAME` as the folder of that run in runs/, `run:NAME@1` as that of a point it kept; others as they are."""
    from edgeslm.pipeline.stage import RUN, student_of

    if not model.startswith(RUN):
        return model
    name = model.removeprefix(RUN)
    return str(student_of(Path("runs"), name) if "@" in name else Path("runs", name))


def _model(model: str) -> Path:
    """A file to evaluate."""
    trained = (Path(model) / "model.safetensors").is_file() and (Path(model) / "config.json").is_file()
    return _reference(model) if trained else _file(model, "student.gguf")


def _file(model: str, name: str) -> Path:
    root = Path(model)
    if not root.exists():
        raise ModelError(f"{model}: there is no such file or folder; name a shipped file, its folder or a run's folder")
    if not (root / "run.json").is_file():
        return root
    stage = read_document(root / "run.json", "run the recipe again").get("stages", {}).get("export")
    path = root / str(stage) / name
    if stage is None or not path.is_file():
        raise ModelError(f"{model}: this run has exported no {name}; add it to export in its recipe and run it again")
    return path


def read_document(path: Path, remedy: str) -> dict[str, Any]:
    """Raises ModelError when the file holds no JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: is damaged ({error}); {remedy}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: is damaged (no JSON object); {remedy}")
    return found


def _reference(spec: str) -> Path:
    """A file as it is; any other teacher spec as a float32 GGUF, made once and kept."""
    path = Path(spec)
    if (path.suffix == ".gguf" and path.is_file()) or (path / "genai_config.json").is_file():
        return path
    if (path / "run.json").is_file():
        return _file(spec, "teacher-f32.gguf")
    from edgeslm.models.source import resolve

    return as_gguf(resolve(spec, Path.cwd()), "f32")


def _names(paths: Sequence[Path]) -> list[str]:
    """File names, with as many folders before them as tells them apart. Raises ModelError for a file given twice."""
    whole = [path.resolve() for path in paths]
    if whole[0] in whole[1:]:  # a file beside itself: how much computing alone changes
        others = _names(paths[1:])
        return [paths[0].name + " (itself)", *others]
    if len(set(whole)) != len(whole):
        raise ModelError(f"{next(p for p in paths if whole.count(p.resolve()) > 1)}: is given twice")
    for depth in range(1, max(len(p.parts) for p in whole) + 1):
        names = ["/".join(p.parts[-depth:]) for p in whole]
        if len(set(names)) == len(names):
            return names
    return [str(p) for p in whole]
