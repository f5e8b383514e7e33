"""One evaluation: a teacher and what was made of it, on text, tasks and prompts -> one document of plain data.

Everything asked of a file is kept in its store, so a stopped evaluation goes on where it was. What one file cannot do
becomes a problem and the rest goes on; what is wrong with the request is refused before anything is computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeslm.artifact import Artifact
from edgeslm.devices.base import Device
from edgeslm.errors import EdgeSLMError
from edgeslm.evaluate import prompted, tokens
from edgeslm.evaluate.closeness import Scores, evaluate, measured, with_begin
from edgeslm.evaluate.execute import scratch
from edgeslm.evaluate.harness.run import Tasks, TaskScore
from edgeslm.evaluate.likelihood import conditions
from edgeslm.evaluate.retention import calibration, changed, mean_retention, retention
from edgeslm.evaluate.store import Store, key_of
from edgeslm.measurement import Measurement, Where
from edgeslm.progress import Progress

SCHEMA = 1
Document = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What is asked of every file. `windows` are ids; `judged` says what they were cut from; `limits` {artifact name:
    longest context}. Empty parts are left out of the document."""

    windows: list[list[int]] = field(default_factory=list)
    judged: dict[str, Any] = field(default_factory=dict)
    bos_id: int | None = None
    tasks: Tasks | None = None
    prompts: Sequence[prompted.Prompt] = ()
    new: int = 128
    churn: bool = False
    chat: bool = False


@dataclass(frozen=True)
class Bench:
    """Where it is computed."""

    device: Device
    workdir: Path
    threads: int
    kept: Path | None  # folder of stores, None keeps nothing
    progress: Progress


def study(
    teacher: Artifact,
    students: Sequence[Artifact],
    asked: Asked,
    tokenizers: dict[str, Any],
    limits: dict[str, int],
    bench: Bench,
) -> Document:
    """`tokenizers` {artifact name: tokenizer}. The document's parts are named as in this module's functions."""
    problems: list[dict[str, str]] = []
    document: Document = {
        "schema": SCHEMA,
        "teacher": _named(teacher),
        "students": [_named(s) for s in students],
        "problems": problems,
    }
    stores = {a.sha256: Store(bench.kept, a.sha256) for a in (teacher, *students)}
    try:
        if asked.windows:
            document |= _text(teacher, students, asked, tokenizers[teacher.name], bench, stores, problems)
        if asked.tasks is not None:
            document |= _tasks(teacher, students, asked, tokenizers, limits, bench, stores, problems)
        if asked.prompts:
            document |= _prompts(teacher, students, asked, tokenizers[teacher.name], bench, stores, problems)
        if asked.churn:
            document["churn"] = _churn((teacher, *students), asked, document, bench, stores, problems)
    finally:
        for store in stores.values():
            store.close()
    return document


def _named(artifact: Artifact) -> dict[str, Any]:
    return {**artifact.to_json(), "path": artifact.path.name, "bits_per_weight": artifact.bits_per_weight}


def _text(teacher, students, asked, tokenizer, bench, stores, problems) -> Document:
    """`judged`, `measurements` and per student `tokens`: closeness on text."""
    found = _scores(teacher, students, asked, bench, stores, problems)
    measurements: list[Measurement] = []
    described = {}
    first = max(map(len, asked.windows)) // 2
    fed = with_begin(asked.windows, asked.bos_id)
    for artifact in (teacher, *students):
        if artifact.name in found:
            measurements += measured(found[artifact.name], teacher.name)
            described[artifact.name] = tokens.summary(found[artifact.name], fed, first, tokenizer)
    return {
        "judged": asked.judged,
        "measurements": [m.to_json() for m in measurements],
        "tokens": described,
    }


def _scores(reference, candidates, asked, bench, stores, problems) -> dict[str, Scores]:
    """{artifact name: its scores beside the reference}, from the stores or computed now."""
    every = (reference, *candidates)
    keys = {
        a.sha256: key_of(
            "score", conditions(a), asked.windows, asked.bos_id, None if a is reference else reference.sha256
        )
        for a in every
    }
    found: dict[str, Scores] = {}
    for artifact in every:
        kept = stores[artifact.sha256].get([keys[artifact.sha256]])
        if scores := _revived(kept.get(keys[artifact.sha256]), artifact):
            found[artifact.name] = scores
    missing = [a for a in candidates if a.name not in found]
    if not missing and reference.name in found:
        return found

    def keep(artifact: Artifact, scores: Scores) -> None:
        arrays = {name: values.tolist() for name, values in scores.arrays.items()}
        value = {"where": asdict(scores.where), "arrays": arrays, "note": scores.note}
        stores[artifact.sha256].put({keys[artifact.sha256]: value})
        found[artifact.name] = scores

    with bench.progress.task("text", 100.0, "%") as task, scratch(bench.workdir) as folder:
        order = [reference.name, *(a.name for a in missing)]
        _, wrong = evaluate(
            reference,
            missing,
            asked.windows,
            bos_id=asked.bos_id,
            threads=bench.threads,
            device=bench.device,
            workdir=folder,
            on_arrays=keep,
            on_progress=lambda name, d, t: task.reach(100 * (order.index(name) + d / t) / len(order), 100),
        )
    problems += [{"part": "text", **p} for p in wrong]
    return found


def _revived(value: Any, artifact: Artifact) -> Scores | None:
    import numpy as np

    try:
        where = Where(**{**value["where"], "artifact": artifact.name})
        arrays = {name: np.asarray(values, np.float64) for name, values in value["arrays"].items()}
        return Scores(where, arrays, value["note"]) if arrays else None
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


def _tasks(teacher, students, asked, tokenizers, limits, bench, stores, problems) -> Document:
    """`tasks` {file: [TaskScore]}, `retention` {student: tasks and mean}, `calibration` {file: {task: error}}."""
    found: dict[str, list[TaskScore]] = {}
    for artifact in (teacher, *students):
        with bench.progress.task(f"tasks: {artifact.name}", 100.0, "%") as task:
            try:
                found[artifact.name] = asked.tasks.judge(
                    artifact,
                    tokenizers[artifact.name],
                    limits[artifact.name],
                    **_where(artifact, bench, stores),
                    on_progress=lambda d, t, task=task: task.reach(100 * d / t, 100),
                    chat=asked.chat,
                )
            except EdgeSLMError as error:
                problems.append({"part": "tasks", "artifact": artifact.name, "what": str(error)})
    kept: dict[str, Any] = {}
    for student in students:
        if student.name in found and teacher.name in found:
            each = [retention(s, t) for s, t in zip(found[student.name], found[teacher.name], strict=True)]
            mean = mean_retention(each)
            kept[student.name] = {
                "tasks": [r.to_json() for r in each],
                "mean": mean[0] if mean else None,
                "standard_error": mean[1] if mean else None,
            }
    sure = {
        name: {s.task: c for s in scores if (c := calibration(s.items)) is not None} for name, scores in found.items()
    }
    return {
        "tasks": {name: [s.to_json() for s in scores] for name, scores in found.items()},
        "retention": kept,
        "calibration": sure,
    }


def _where(artifact: Artifact, bench: Bench, stores: dict[str, Store]) -> dict[str, Any]:
    return {
        "threads": bench.threads,
        "device": bench.device,
        "workdir": bench.workdir,
        "store": stores[artifact.sha256],
    }


def _prompts(teacher, students, asked, tokenizer, bench, stores, problems) -> Document:
    """`answers` side by side and `generation`, their figures. A student that fails is left out, with its problem."""

    def write(some: Sequence[Artifact]) -> list[dict[str, Any]]:
        with bench.progress.task("answers", 100.0, "%") as task:
            order = [teacher.name, *(a.name for a in some)]
            return prompted.compare(
                teacher,
                some,
                asked.prompts,
                tokenizer,
                new=asked.new,
                where=lambda artifact: _where(artifact, bench, stores),
                on_progress=lambda name, d, t: task.reach(100 * (order.index(name) + d / t) / len(order), 100),
            )

    sound: list[Artifact] = []
    for student in students:  # alone first: what it wrote is in its store, so nothing is written twice
        try:
            write([student])
            sound.append(student)
        except EdgeSLMError as error:
            problems.append({"part": "answers", "artifact": student.name, "what": str(error)})
    if not sound:
        return {}
    rows = write(sound)
    return {"answers": rows, "generation": prompted.totals(rows)}


def _churn(files, asked, document, bench, stores, problems) -> list[dict[str, Any]]:
    """Of every pair of files: how often they disagree (codistillation, arXiv:1804.03235, section 3.4, calls it
    prediction churn), on the text token by token and on the tasks item by item."""
    found = []
    for one, other in itertools.combinations(files, 2):
        row: dict[str, Any] = {"one": one.name, "other": other.name}
        if asked.windows:
            scores = _scores(one, [other], asked, bench, stores, problems).get(other.name)
            if scores is not None:
                arrays = scores.arrays
                row["text"] = {
                    "tokens": len(arrays["kl"]),
                    "kl": float(arrays["kl"].mean()),
                    "top1_changes": float((arrays["top1"] != arrays["reference_top1"]).mean()),
                    "mean_absolute_delta_p": float(abs(arrays["delta_p"]).mean()),
                }
        scored = document.get("tasks", {})
        if one.name in scored and other.name in scored:
            both = [[TaskScore.from_json(s) for s in scored[name]] for name in (one.name, other.name)]
            row["tasks"] = [changed(a, b) for a, b in zip(*both, strict=True)]
        found.append(row)
    return found


def gate_figures(document: Document, student: str) -> dict[str, float]:
    """Every figure of a student that a gate may name: `kl`, `retention`, `retention.<task>`, `<task>`, ..."""
    found: dict[str, float] = {}
    for m in map(Measurement.from_json, document.get("measurements", [])):
        if m.where.artifact == student:
            found[m.metric] = m.median
    kept = document.get("retention", {}).get(student, {})
    if kept.get("mean") is not None:
        found["retention"] = kept["mean"]
    for row in kept.get("tasks", []):
        found[row["task"]] = row["student"]
        if row["value"] is not None:
            found[f"retention.{row['task']}"] = row["value"]
    for name, value in document.get("generation", {}).get(student, {}).items():
        if isinstance(value, int | float):
            found[f"answers.{name}"] = float(value)
    return found
