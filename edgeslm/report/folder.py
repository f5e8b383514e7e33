"""Reads a run folder into plain data. What is absent or damaged becomes a line in `problems` or an empty value.

A report is most needed when a run went wrong, so nothing here raises for the sake of a file's content.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeslm.artifact import Artifact
from edgeslm.errors import DataError
from edgeslm.measurement import Measurement

STAGES = (
    "teacher",
    "data",
    "student",
    "sft",
    "equalise",
    "plan",
    "round",
    "distill",
    "export",
    "evaluate",
    "benchmark",
)
MAX_FILE_BYTES = 1 << 28  # a larger result file is damage, not data


@dataclass(frozen=True)
class Problem:
    stage: str
    artifact: str  # "" when it is about the whole stage
    what: str


@dataclass(frozen=True)
class Run:
    """A run folder's content. Lists are empty and dicts are {} where a stage left nothing."""

    name: str
    facts: dict[str, Any]  # run.json
    recipe: str  # YAML text
    folders: dict[str, str]  # stage -> folder name, only those that exist
    unfinished: tuple[str, ...]  # stages whose folder has no done.json
    artifacts: tuple[Artifact, ...]
    exact: tuple[dict[str, Any], ...]
    quality: tuple[Measurement, ...]
    speed: tuple[Measurement, ...]
    answers: tuple[dict[str, Any], ...]
    judged: dict[str, Any]  # the text of `quality`
    tasks: dict[str, Any]  # what files answered to tasks, {} where none were asked
    importance: dict[str, Any]
    sft: dict[str, Any]  # what fine-tuning did, {} where a recipe asks for none
    plan: dict[str, Any]  # formats chosen for a size, {} for a recipe that names its formats
    equalised: dict[str, Any]  # where scales of channels were moved, {} for a recipe that moves none
    training: dict[str, Any]  # distill summary
    steps: tuple[dict[str, Any], ...]  # distill log
    problems: tuple[Problem, ...]

    def why_not(self, stage: str) -> str:
        """The reason a figure of `stage` is absent, as the end of a sentence."""
        said = [p.what for p in self.problems if p.stage == stage]
        if stage not in self.folders:
            reason = f"the stage '{stage}' has not run"
        elif stage in self.unfinished:
            reason = f"the stage '{stage}' has not finished"
        else:
            reason = f"the stage '{stage}' left no such figure"
        return f"{reason} ({said[0]})" if said else reason

    def artifact(self, name: str) -> Artifact | None:
        return next((a for a in self.artifacts if a.name == name), None)


class _Reader:
    """Collects what could not be read while the rest goes on."""

    def __init__(self, root: Path):
        self.root = root
        self.problems: list[Problem] = []

    def say(self, stage: str, what: str, artifact: str = "") -> None:
        problem = Problem(stage, artifact, what)
        if problem not in self.problems:
            self.problems.append(problem)

    def text(self, stage: str, *parts: str) -> str | None:
        path = self.root.joinpath(*parts)
        name = "/".join(parts)
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                self.say(stage, f"{name} is larger than {MAX_FILE_BYTES} bytes and was not read")
                return None
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            self.say(stage, f"{name} cannot be read ({type(error).__name__}); run the stage '{stage}' again")
            return None

    def json(self, stage: str, kind: type, *parts: str) -> Any:
        """The document, or an empty `kind` (list or dict) when it is absent, damaged or of another kind."""
        text = self.text(stage, *parts)
        if text is None:
            return kind()
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, kind):
            self.say(stage, f"{'/'.join(parts)} is damaged; run the stage '{stage}' again")
            return kind()
        return value

    def each(self, stage: str, source: str, rows: list[Any], build: Callable[[Any], Any]) -> tuple[Any, ...]:
        """`build` over rows; a row it cannot take is a problem and is left out."""
        good = []
        for index, row in enumerate(rows):
            try:
                good.append(build(row))
            except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
                self.say(stage, f"{source}, entry {index} is damaged ({error!s:.80}) and is left out")
        return tuple(good)


def read(root: Path) -> Run:
    """Raises DataError when `root` is no folder; everything inside it may be missing."""
    if not root.is_dir():
        raise DataError(f"{root}: no such run folder; give the folder that `edgeslm run` made, runs/<recipe name>")
    r = _Reader(root)
    facts = r.json("run", dict, "run.json")
    if not (root / "run.json").exists():
        r.say("run", "run.json is missing, so the stages were found by their folder names")
    folders = _folders(r, facts)
    for entry in facts.get("problems") or []:
        if isinstance(entry, dict):
            r.say(str(entry.get("stage", "run")), str(entry.get("what", "")), str(entry.get("artifact", "")))
    for stage, folder in folders.items():
        for entry in r.json(stage, list, folder, "problems.json"):
            if isinstance(entry, dict):
                r.say(stage, str(entry.get("what", "")), str(entry.get("artifact", "")))

    def rows(stage: str, file: str, build: Callable[[Any], Any], key: str = "") -> tuple[Any, ...]:
        if stage not in folders:
            return ()
        document = r.json(stage, dict if key else list, folders[stage], file)
        entries = document.get(key, []) if key else document
        return r.each(stage, f"{folders[stage]}/{file}", entries if isinstance(entries, list) else [], build)

    def document(stage: str, file: str) -> dict[str, Any]:
        return r.json(stage, dict, folders[stage], file) if stage in folders else {}

    parts: dict[str, Any] = {
        "artifacts": rows("export", "artifacts.json", _artifact(root)),
        "exact": rows("export", "exact.json", _exact),
        "quality": rows("evaluate", "results.json", _measurement, "measurements"),
        "speed": rows("benchmark", "results.json", _measurement, "measurements"),
        "answers": rows("evaluate", "answers.json", _answers),
        "judged": document("evaluate", "judged.json"),
        "tasks": document("evaluate", "tasks.json"),
        "importance": document("student", "importance.json"),
        "sft": document("sft", "sft.json"),
        "plan": document("plan", "plan.json"),
        "equalised": document("equalise", "equalise.json"),
        "training": document("distill", "summary.json"),
        "steps": _steps(r, folders.get("distill")),
    }
    return Run(
        name=str(facts.get("name") or root.resolve().name),
        facts=facts,
        recipe=r.text("run", "recipe.yaml") or "",
        folders=folders,
        unfinished=tuple(s for s, f in folders.items() if not (root / f / "done.json").exists()),
        problems=tuple(r.problems),
        **parts,
    )


def _folders(r: _Reader, facts: dict[str, Any]) -> dict[str, str]:
    """Stage -> folder name. run.json decides; without it a stage counts when exactly one folder bears its name."""
    named = facts.get("stages")
    found: dict[str, str] = {}
    for stage in STAGES:
        if isinstance(named, dict):
            folder = named.get(stage)
            if isinstance(folder, str) and folder == Path(folder).name and (r.root / folder).is_dir():
                found[stage] = folder
            elif folder:
                r.say(stage, f"the folder {folder!s:.80} that run.json names is missing; run the recipe again")
            continue
        there = sorted(p.name for p in r.root.glob(f"{stage}-*") if p.is_dir())
        if len(there) == 1:
            found[stage] = there[0]
        elif there:
            r.say(stage, f"{len(there)} folders {stage}-* and no run.json that says which; run the recipe again")
    return found


def _steps(r: _Reader, folder: str | None) -> tuple[dict[str, Any], ...]:
    """Training log; a last line cut off by a kill is expected and skipped."""
    text = (r.text("distill", folder, "log.jsonl") or "") if folder else ""
    steps, bad = [], 0
    for line in text.splitlines():
        try:
            row = json.loads(line)
            ok = isinstance(row, dict) and math.isfinite(float(row["step"])) and math.isfinite(float(row["loss"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            ok = False
        if ok:
            steps.append(row)
        else:
            bad += 1
    if bad > 1:
        r.say("distill", f"{bad} lines of {folder}/log.jsonl have no finite loss and are left out of the curve")
    return tuple(sorted(steps, key=lambda s: float(s["step"])))


def _measurement(row: Any) -> Measurement:
    m = Measurement.from_json(row)
    _typed((m.metric, m.unit, m.covers, m.note, m.where.runtime, m.where.runtime_version, m.where.artifact), str)
    _typed((m.where.device, m.where.job, m.extra), dict)
    _typed((m.where.threads,), int)
    if m.kind not in ("measured", "modelled", "estimated") or m.better not in ("higher", "lower"):
        raise ValueError(f"'{m.metric}' of {m.where.artifact} is of no known kind")
    if not all(math.isfinite(v) for v in m.values + m.warmups):
        raise ValueError(f"'{m.metric}' of {m.where.artifact} is not a finite number")
    return m


def _artifact(root: Path) -> Callable[[Any], Artifact]:
    """Paths become relative to the run folder: a report that is passed on says nothing about its maker's disk."""

    def build(row: Any) -> Artifact:
        given = Path(row["path"])
        inside = given.is_relative_to(root) or given.resolve().is_relative_to(root.resolve())
        path = given.resolve().relative_to(root.resolve()) if inside else Path(given.name)
        artifact = Artifact.from_json({**row, "path": path})
        _typed((artifact.name, artifact.format, artifact.sha256, artifact.grid, artifact.note), str)
        _typed((artifact.bytes, artifact.weight_bytes, artifact.unread_bytes, artifact.parameters), int)
        if artifact.bytes <= 0 or artifact.parameters <= 0:
            raise ValueError(f"'{artifact.name}' without a size")
        return artifact

    return build


def _typed(values: tuple[Any, ...], kind: type) -> None:
    for value in values:
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise TypeError(f"{value!r} should be {kind.__name__}")


def _exact(row: Any) -> dict[str, Any]:
    return {**row, "artifact": str(row["artifact"]), "tensors": int(row["tensors"]), "exact": int(row["exact"])}


def _answers(row: Any) -> dict[str, Any]:
    answers = [{**a, "artifact": str(a["artifact"]), "text": str(a["text"])} for a in row["answers"]]
    return {"prompt": str(row["prompt"]), "answers": answers}
