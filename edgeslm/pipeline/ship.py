"""Stages after training: export, evaluate, benchmark."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeslm import measurement
from edgeslm.artifact import Artifact
from edgeslm.errors import EdgeSLMError
from edgeslm.models.stop import begin_id, stop_ids
from edgeslm.pipeline.heldout import heldout_windows, judged
from edgeslm.pipeline.stage import Context, Stage, files, read_json, write_json

STUDENT_FILES = {"gguf": "student.gguf", "onnx": "student-onnx"}
TEACHER_FILES = {
    "gguf-f32": ("gguf", "f32", "teacher-f32.gguf"),
    "gguf-f16": ("gguf", "f16", "teacher-f16.gguf"),
    "onnx-f32": ("onnx", "f32", "teacher-f32-onnx"),
}


def _export_slice(context: Context) -> Any:
    return context.recipe.export.model_dump(mode="json")


def _export(context: Context, folder: Path) -> None:
    """Student and teacher files; every file is opened again and compared with what was trained, bit for bit."""
    from edgeslm.export import EXPORTERS
    from edgeslm.export.verify import verify
    from edgeslm.quantize.frozen import Frozen

    part, artifacts, exact = context.recipe.export, [], []

    def ship(frozen: Any, kind: str, name: str) -> None:
        context.progress.say(f"  export: {name}")
        options: dict[str, Any] = {"accuracy_level": part.accuracy_level} if kind == "onnx" else {}
        artifact = EXPORTERS[kind](frozen, folder / name, **options)
        if note := frozen.metadata.get("note"):
            artifact = replace(artifact, note="; ".join(filter(None, (artifact.note, note))))
        artifacts.append(artifact)
        exact.append(verify(artifact, frozen))

    student = Frozen.load(context.folders["distill"] / "frozen")
    for kind in part.kinds:
        ship(student, kind, STUDENT_FILES[kind])
    for choice in part.teacher:
        container, grid, name = TEACHER_FILES[choice]
        ship(_teacher_frozen(context, grid), container, name)
    note_exports(folder, artifacts, exact)


def note_exports(folder: Path, artifacts: list[Artifact], exact: list[dict[str, Any]]) -> None:
    """Writes what was shipped and how exactly. Raises EdgeSLMError for a file that differs from what was trained."""
    write_json(folder / "artifacts.json", [{**a.to_json(), "path": a.name} for a in artifacts])
    write_json(folder / "exact.json", exact)
    wrong = [e for e in exact if e["exact"] != e["tensors"]]
    if wrong:
        raise EdgeSLMError(
            f"{wrong[0]['artifact']}: {wrong[0]['first_mismatch']} differs from what was trained; do not ship this file"
        )


def _teacher_frozen(context: Context, grid: str) -> Any:
    import torch

    from edgeslm.models.arch.base import plain
    from edgeslm.pipeline.distill import teacher_arch
    from edgeslm.pipeline.origin import base_model
    from edgeslm.quantize.freeze import freeze_floats

    loaded = context.load_teacher(torch.float32)
    weights = dict(loaded.model.named_parameters())
    note = "weights as dequantised from the source file" if loaded.summary.dequantised else ""
    metadata = {"base_model": base_model(context), **({"note": note} if note else {})}
    tokenizer = context.folders["teacher"] / "tokenizer"
    config = plain(loaded.model.config)
    return freeze_floats(weights, grid, teacher_arch(context), config, tokenizer, f"teacher-{grid}", metadata)


def artifacts_of(context: Context) -> list[Artifact]:
    folder = context.folders["export"]
    return [Artifact.from_json({**a, "path": folder / a["name"]}) for a in read_json(folder / "artifacts.json")]


def _find(artifacts: list[Artifact], *names: str) -> list[Artifact]:
    return [a for a in artifacts if a.name in names]


def _evaluate_slice(context: Context) -> Any:
    part = context.recipe.evaluate
    items = files((f"{part.data}/*.jsonl",), context.base) if part.tasks and part.data else ()
    return part.model_dump(mode="json"), files(part.paths, context.base), items, context.threads


def tasks_of(context: Context) -> Any:
    """The recipe's tasks, definitions and items read and checked; None when it names none. Raises DataError."""
    from edgeslm.evaluate.harness.run import Tasks

    part = context.recipe.evaluate
    if not part.tasks:
        return None
    return Tasks(part.tasks, context.base / part.data if part.data else None, limit=part.limit)


def _retention(context: Context, folder: Path, reference: Artifact, students: list[Artifact]) -> list[dict[str, str]]:
    """tasks.json: what student and teacher answer to the recipe's tasks. Returns problems."""
    from edgeslm.devices.local import LocalDevice
    from edgeslm.evaluate.store import default_folder
    from edgeslm.evaluate.study import Asked, Bench, study

    names = [reference.name, *(s.name for s in students)]
    limit = int(read_json(context.folders["teacher"] / "teacher.json")["config"]["max_position_embeddings"])
    bench = Bench(LocalDevice(), folder, context.threads, default_folder(), context.progress)
    found = study(
        reference,
        students,
        Asked(tasks=tasks_of(context)),
        dict.fromkeys(names, context.tokenizer),
        dict.fromkeys(names, limit),
        bench,
    )
    write_json(folder / "tasks.json", found)
    return [{"artifact": p["artifact"], "what": p["what"]} for p in found["problems"]]


def _evaluate(context: Context, folder: Path) -> None:
    """Shipped files through their own runtimes, against the float32 teacher of the first runtime that has one."""
    from edgeslm import compute
    from edgeslm.data.chat import template_ids
    from edgeslm.devices.local import LocalDevice
    from edgeslm.evaluate.answers import answers
    from edgeslm.evaluate.closeness import evaluate

    compute.return_freed_memory()  # what training and export kept is the workers' now
    part, device, artifacts = context.recipe.evaluate, LocalDevice(), artifacts_of(context)
    students = _find(artifacts, *STUDENT_FILES.values())
    reference = next((a for a in artifacts if a.name in ("teacher-f32.gguf", "teacher-f32-onnx")), None)
    problems: list[dict[str, str]] = []
    found: list[measurement.Measurement] = []
    windows = heldout_windows(context)
    write_json(folder / "judged.json", judged(context))
    context.progress.say(f"  evaluate: {len(windows)} windows of {part.context} tokens, second half scored")
    if reference is not None:
        found, problems = evaluate(
            reference,
            students,
            windows,
            bos_id=begin_id(context.tokenizer),
            threads=context.threads,
            device=device,
            workdir=folder,
            on_progress=_lines(context),
        )
        measurement.dump(found, folder / "results.json")
    rows: list[dict[str, Any]] = []
    if part.prompts:
        tokenizer = context.tokenizer
        prompts = [(p, template_ids(tokenizer, [{"role": "user", "content": p}], answer=True)) for p in part.prompts]
        speakers = _find(artifacts, "teacher-f32.gguf", *STUDENT_FILES.values())
        rows, more = answers(
            speakers,
            prompts,
            lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
            stop=stop_ids(tokenizer),
            max_new=part.answer_tokens,
            threads=context.threads,
            device=device,
            workdir=folder,
        )
        problems += more
    write_json(folder / "answers.json", rows)
    if part.tasks and reference is not None:
        problems += _retention(context, folder, reference, students)
    _note_problems(context, folder, "evaluate", problems)
    for m in found:
        context.progress.say(f"  evaluate: {m.where.artifact}: {m.metric} {m.median:.4f}")


def _benchmark_slice(context: Context) -> Any:
    part = context.recipe.benchmark
    return part.model_dump(mode="json") if part else None, context.threads


def _benchmark(context: Context, folder: Path) -> None:
    """Latency, memory and energy of every artifact on this machine, nothing else of ours running."""
    from edgeslm import compute
    from edgeslm.benchmark.run import bench
    from edgeslm.benchmark.settings import Settings
    from edgeslm.devices.local import LocalDevice

    compute.return_freed_memory()
    part = context.recipe.benchmark
    if part is None:
        write_json(folder / "results.json", {"schema": 1, "measurements": []})
        return
    prompt = heldout_windows(context)[0][: part.prompt_tokens]
    given = part.model_dump(exclude={"prompt_tokens"})
    lengths = (part.prompt_tokens,)
    settings = Settings(**given, prefill=lengths, depths=lengths, threads=context.threads, seed=context.recipe.seed)
    found, problems = bench(
        artifacts_of(context), prompt, settings, device=LocalDevice(), workdir=folder, on_progress=_lines(context)
    )
    measurement.dump(found, folder / "results.json")
    _note_problems(context, folder, "benchmark", problems)
    for m in found:
        if m.metric in ("prefill", "decode"):
            context.progress.say(
                f"  benchmark: {m.where.artifact} ({m.where.runtime}): {m.metric} {m.median:.1f} {m.unit}"
            )


def _note_problems(context: Context, folder: Path, stage: str, problems: list[dict[str, str]]) -> None:
    if problems:
        write_json(folder / "problems.json", problems)
        for problem in problems:
            context.progress.say(f"  {stage}: {problem['artifact']}: {problem['what']}")


def _lines(context: Context):
    """A line when a new artifact is taken up; workers report far more often than a person wants to read."""
    seen: set[str] = set()

    def say(name: str, done: int, total: int) -> None:
        if name not in seen:
            seen.add(name)
            context.progress.say(f"  {name} ...")

    return say


def run_problems(folders: dict[str, Path]) -> list[dict[str, str]]:
    """Problems of finished stages, for run.json."""
    found = []
    for stage, folder in folders.items():
        path = folder / "problems.json"
        if path.exists():
            found += [{"stage": stage, **p} for p in json.loads(path.read_text(encoding="utf-8"))]
    return found


WRITERS = ("gguf", "onnx", "onnx-ir", "onnxruntime-genai")
RUNNERS = ("llama-cpp-python", "onnxruntime", "onnxruntime-genai")
RUNNING = ("devices", "evaluate", "runtimes", "measurement.py", "pipeline/ship.py")
EXPORT = Stage(
    "export", ("teacher", "distill"), _export_slice, _export, ("export", "artifact.py", "pipeline/ship.py"), WRITERS
)
EVALUATE = Stage("evaluate", ("teacher", "export"), _evaluate_slice, _evaluate, RUNNING, (*RUNNERS, "lm_eval"))
BENCHMARK = Stage(
    "benchmark",
    ("teacher", "export", "evaluate"),
    _benchmark_slice,
    _benchmark,
    (*RUNNING, "meters", "benchmark", "cost.py"),
    RUNNERS,
)
