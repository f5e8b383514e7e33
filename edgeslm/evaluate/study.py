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
from edgeslm.evaluate.closeness import ALONE, BESIDE, Scores, evaluate, measured, with_begin
from edgeslm.evaluate.execute import scratch
from edgeslm.evaluate.harness.run import Tasks, TaskScore
from edgeslm.evaluate.likelihood import conditions
from edgeslm.evaluate.retention import calibration, changed, mean_retention, retention
from edgeslm.evaluate.store import Store, key_of
from edgeslm.measurement import Measurement, Where
from edgeslm.progress import Progress

SCHEMA = 1
DAY_S = 24 * 3600.0
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


@dataclass(frozen=True)
class _Work:
    """What the parts of a study share. `tokenizers`, `limits` {file's name: ...}, `stores` {sha256: store}; `problems`
    collects what went wrong."""

    teacher: Artifact
    students: tuple[Artifact, ...]
    asked: Asked
    tokenizers: dict[str, Any]
    limits: dict[str, int]
    bench: Bench
    stores: dict[str, Store]
    problems: list[dict[str, str]]

    @property
    def files(self) -> tuple[Artifact, ...]:
        return (self.teacher, *self.students)

    def where(self, artifact: Artifact) -> dict[str, Any]:
        """Keyword arguments of likelihoods and generate."""
        bench = self.bench
        return {
            "threads": bench.threads,
            "device": bench.device,
            "workdir": bench.workdir,
            "store": self.stores[artifact.sha256],
        }

    def fail(self, part: str, artifact: str, what: str) -> None:
        self.problems.append({"part": part, "artifact": artifact, "what": what})


def study(
    teacher: Artifact,
    students: Sequence[Artifact],
    asked: Asked,
    tokenizers: dict[str, Any],
    limits: dict[str, int],
    bench: Bench,
) -> Document:
    """`tokenizers` {artifact name: tokenizer}, `limits` {artifact name: longest context}. The document's parts are
    those that the functions below name."""
    stores = {a.sha256: Store(bench.kept, a.sha256) for a in (teacher, *students)}
    work = _Work(teacher, tuple(students), asked, tokenizers, limits, bench, stores, [])
    document: Document = {
        "schema": SCHEMA,
        "teacher": _named(teacher),
        "students": [_named(s) for s in students],
        "problems": work.problems,
    }
    try:
        if asked.windows:
            document |= _text(work)
        if asked.tasks is not None:
            document |= _tasks(work, asked.tasks)
        if asked.prompts:
            document |= _prompts(work)
        if asked.churn:
            document["churn"] = _churn(work, document)
    finally:
        for store in stores.values():
            store.close()
    return document


def _named(artifact: Artifact) -> dict[str, Any]:
    return {**artifact.to_json(), "path": artifact.path.name, "bits_per_weight": artifact.bits_per_weight}


def _text(work: _Work) -> Document:
    """`judged`, `measurements` and per file `tokens`: closeness on text."""
    found = _scores(work, work.teacher, work.students)
    measurements: list[Measurement] = []
    described = {}
    fed = with_begin(work.asked.windows, work.asked.bos_id)
    first = max(map(len, fed)) // 2
    for artifact in work.files:
        if artifact.name in found:
            scores = found[artifact.name]
            measurements += measured(scores, work.teacher.name)
            described[artifact.name] = tokens.summary(scores, fed, first, work.tokenizers[work.teacher.name])
    return {
        "judged": work.asked.judged,
        "measurements": [m.to_json() for m in measurements],
        "tokens": described,
    }


def _scores(work: _Work, reference: Artifact, candidates: Sequence[Artifact]) -> dict[str, Scores]:
    """{artifact name: its scores beside the reference}, from the stores or computed now."""
    asked, bench = work.asked, work.bench
    keys = {
        a.name: key_of("score", conditions(a), asked.windows, asked.bos_id, a is reference or reference.sha256)
        for a in (reference, *candidates)
    }
    found: dict[str, Scores] = {}
    for artifact in (reference, *candidates):
        key = keys[artifact.name]
        if scores := _revived(work.stores[artifact.sha256].get([key]).get(key), artifact, artifact is not reference):
            found[artifact.name] = scores
    missing = [a for a in candidates if a.name not in found]
    if not missing and reference.name in found:
        return found

    def keep(artifact: Artifact, scores: Scores) -> None:
        found[artifact.name] = scores
        if artifact is not reference and "kl" not in scores.arrays:
            return  # the reference failed: this is no answer to what was asked
        arrays = {name: values.tolist() for name, values in scores.arrays.items()}
        value = {"where": asdict(scores.where), "arrays": arrays, "note": scores.note}
        work.stores[artifact.sha256].put({keys[artifact.name]: value})

    order = [reference.name, *(a.name for a in missing)]
    with bench.progress.task("text", 100.0, "%") as task, scratch(bench.workdir) as folder:
        _, wrong = evaluate(
            reference,
            missing,
            asked.windows,
            bos_id=asked.bos_id,
            threads=bench.threads,
            device=bench.device,
            workdir=folder,
            on_arrays=keep,
            timeout_s=DAY_S,
            on_progress=lambda name, d, t: task.reach(100 * (order.index(name) + d / t) / len(order), 100),
        )
    for p in wrong:
        work.fail("text", p["artifact"], p["what"])
    return found


def _revived(value: Any, artifact: Artifact, beside: bool) -> Scores | None:
    """What a store kept; None when it is not there or not whole. `beside`: beside a reference."""
    import numpy as np

    try:
        where = Where(**{**value["where"], "artifact": artifact.name})
        arrays = {name: np.asarray(values, np.float64) for name, values in value["arrays"].items()}
        whole = set(arrays) == ALONE | (BESIDE if beside else set()) and len({a.shape for a in arrays.values()}) == 1
        return Scores(where, arrays, value["note"]) if whole else None
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


def _tasks(work: _Work, tasks: Tasks) -> Document:
    """`tasks` {file: [TaskScore]}, `retention` {student: tasks and mean}, `calibration` {file: {task: error}}."""
    found: dict[str, list[TaskScore]] = {}
    for artifact in work.files:
        with work.bench.progress.task(f"tasks: {artifact.name}", 100.0, "%") as task:

            def tell(done: int, total: int, task: Any = task) -> None:
                task.reach(100 * done / total, 100)

            try:
                found[artifact.name] = tasks.judge(
                    artifact,
                    work.tokenizers[artifact.name],
                    work.limits[artifact.name],
                    **work.where(artifact),
                    on_progress=tell,
                    chat=work.asked.chat,
                )
            except EdgeSLMError as error:
                work.fail("tasks", artifact.name, str(error))
    kept: dict[str, Any] = {}
    for student in (s.name for s in work.students if s.name in found and work.teacher.name in found):
        both = zip(found[student], found[work.teacher.name], strict=True)
        each = [kept_skill for s, t in both if (kept_skill := retention(s, t)) is not None]
        mean, spread = mean_retention(each) or (None, None)
        kept[student] = {"tasks": [r.to_json() for r in each], "mean": mean, "standard_error": spread}
    sure = {
        name: {s.task: c for s in scores if (c := calibration(s.items)) is not None} for name, scores in found.items()
    }
    return {
        "tasks": {name: [s.to_json() for s in scores] for name, scores in found.items()},
        "retention": kept,
        "calibration": sure,
    }


def _prompts(work: _Work) -> Document:
    """`answers` side by side and `generation`, their figures."""
    teacher, asked = work.teacher, work.asked
    order = [a.name for a in work.files]
    with work.bench.progress.task("answers", 100.0, "%") as task:
        try:
            rows, wrong = prompted.compare(
                teacher,
                work.students,
                asked.prompts,
                work.tokenizers[teacher.name],
                new=asked.new,
                where=work.where,
                on_progress=lambda name, d, t: task.reach(100 * (order.index(name) + d / t) / len(order), 100),
            )
        except EdgeSLMError as error:
            work.fail("answers", teacher.name, str(error))
            return {}
    for p in wrong:
        work.fail("answers", p["artifact"], p["what"])
    return {"answers": rows, "generation": prompted.totals(rows)}


def _churn(work: _Work, document: Document) -> list[dict[str, Any]]:
    """Of every pair of files: how often they disagree (codistillation, arXiv:1804.03235, section 3.4, calls it
    prediction churn), on the text token by token and on the tasks item by item."""
    found = []
    beside: dict[str, dict[str, Scores]] = {}
    if work.asked.windows:
        beside = {one.name: _scores(work, one, work.files[i + 1 :]) for i, one in enumerate(work.files[:-1])}
    for one, other in itertools.combinations(work.files, 2):
        row: dict[str, Any] = {"one": one.name, "other": other.name}
        scores = beside.get(one.name, {}).get(other.name)
        if scores is not None and "kl" in scores.arrays:
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
            rows = (changed(a, b) for a, b in zip(*both, strict=True))
            row["tasks"] = [r for r in rows if r is not None]
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
