"""Stages of an encoder's recipe after training: export, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeslm.pipeline.encoder.making import ROOMS, recipe_of
from edgeslm.pipeline.ship import RUNNING, note_exports
from edgeslm.pipeline.stage import Context, Stage, read_json, write_json

STUDENT = "student-onnx"
TIMEOUT_S = 600


def teacher_name(at: int) -> str:
    return f"teacher-{at}-f32-onnx"


def _export_slice(context: Context) -> Any:
    return recipe_of(context).export.model_dump(mode="json")


def _export(context: Context, folder: Path) -> None:
    """The student's integers and the teachers in float32; every file is opened again and compared bit for bit."""
    from edgeslm.encoders import model as models
    from edgeslm.encoders.tokens import Table
    from edgeslm.encoders.view import inputs
    from edgeslm.export import onnx_encoder
    from edgeslm.export.verify import verify
    from edgeslm.quantize.freeze import freeze_floats
    from edgeslm.quantize.frozen import Frozen

    recipe = recipe_of(context)
    table = Table.load(context.folders["data"])
    some = table.batch(table.of(range(len(recipe.tasks)), ["judge"])[:2])
    artifacts, exact = [], []

    def ship(frozen: Any, name: str) -> None:
        module = models.filled(frozen.config, {n: t.decode() for n, t in frozen.tensors.items()}, "eager")
        example = dict(zip(module.body.reads, inputs(module, some), strict=True))
        about = {"task": recipe.task, "length": recipe.length, "tasks": [t.name for t in recipe.tasks]}
        artifact = onnx_encoder.export(
            frozen, module, example, folder / name, recipe.export.accuracy_level, {**about, "classes": recipe.classes}
        )
        artifacts.append(artifact)
        exact.append(verify(artifact, frozen, onnx_encoder.stored))
        context.progress.say(
            f"  export: {name}, {exact[-1]['exact']} of {exact[-1]['tensors']} tensors exact, {artifact.bytes:,} bytes"
        )

    ship(Frozen.load(context.folders["distill"] / "frozen"), STUDENT)
    for at, part in enumerate(recipe.teachers):
        teacher = models.load(context.folders["tune"] / f"teacher-{at}")
        tokenizer = context.folders["teacher"] / "tokenizer"
        about = {"base_model": part.model}
        weights = dict(teacher.named_parameters())
        ship(
            freeze_floats(weights, "f32", "encoder", teacher.plan, tokenizer, f"teacher-{at}", about), teacher_name(at)
        )
    note_exports(folder, artifacts, exact)


def _evaluate_slice(context: Context) -> Any:
    return recipe_of(context).benchmark.model_dump(mode="json"), context.threads


def _evaluate(context: Context, folder: Path) -> None:
    """Shipped files through onnxruntime on the judged rows: how good they are, how near torch, how fast."""
    import random

    from edgeslm import compute, measurement
    from edgeslm.devices.local import LocalDevice
    from edgeslm.encoders.tokens import Table
    from edgeslm.pipeline.ship import artifacts_of

    compute.return_freed_memory()
    part, recipe, device = recipe_of(context).benchmark, recipe_of(context), LocalDevice()
    table = Table.load(context.folders["data"])
    chosen = table.of(range(len(recipe.tasks)), ["judge"])
    artifacts = artifacts_of(context)
    outcomes: dict[str, list[Any]] = {a.name: [] for a in artifacts}
    rng = random.Random(recipe.seed)
    for _ in range(part.processes):  # in turns, so that slow drifts of the machine fall on all alike
        for artifact in rng.sample(artifacts, len(artifacts)):
            outcomes[artifact.name].append(_encode(context, device, artifact, table, chosen, folder))
    made = {name: _array(found[0]) for name, found in outcomes.items()}
    found = _judge(context, table, chosen, made)
    measured = [_latency(device, a, outcomes[a.name], recipe.length) for a in artifacts]
    measurement.dump(measured, folder / "results.json")
    ratio = measurement.ratio(measured[1], measured[0])
    write_json(folder / "judged.json", {**found, "rows": len(chosen), "speed_over_teacher": ratio})
    for name, figures in found["figures"].items():
        told = ", ".join(f"{key} {value:.4f}" for key, value in figures.items())
        context.progress.say(f"  evaluate: {name}: {told}")
    near = ", ".join(f"{name} {value:.1e}" for name, value in found["torch_difference"].items())
    context.progress.say(f"  evaluate: {ratio:.2f} times as fast as the teacher; largest difference to torch: {near}")


def _encode(context: Context, device: Any, artifact: Any, table: Any, chosen: Any, folder: Path) -> Any:
    import numpy as np

    from edgeslm.evaluate.execute import execute, scratch

    names = read_json(artifact.path / "encoder.json")["inputs"]
    batch = table.batch(chosen)
    own = {"ids": batch.ids, "mask": batch.mask, **batch.fields}
    rows = {n: own[n].long() if n in ("ids", "types") else own[n] for n in names}
    part = recipe_of(context).benchmark
    task = {"task": "encode", "threads": context.threads, "batch": 32, "warmups": part.warmups, "repeats": part.repeats}
    with scratch(folder) as work:
        np.savez(work / "rows.npz", **{name: value.numpy() for name, value in rows.items()})
        task["rows"] = device.push(work / "rows.npz")
        outcome = execute(device, artifact, task, work, timeout_s=TIMEOUT_S)
        outcome.result["outputs"] = np.load(outcome.arrays["outputs"], allow_pickle=False)
    return outcome


def _array(outcome: Any) -> Any:
    return outcome.result["outputs"]


def _latency(device: Any, artifact: Any, outcomes: list[Any], length: int) -> Any:
    """Seconds of one row."""
    from edgeslm.measurement import Measurement

    values = [s for o in outcomes for s in o.result["latency_s"]]
    warm = [s for o in outcomes for s in o.result["warmup_s"]]
    where = outcomes[0].where(artifact, device)
    return Measurement("row_latency", "s", tuple(values), where, tuple(warm), extra={"tokens": length})


def _judge(context: Context, table: Any, chosen: Any, made: dict[str, Any]) -> dict[str, Any]:
    """Figures of every file for every task, and how far its outputs lie from torch's on the decoded weights."""
    import numpy as np

    from edgeslm.encoders import judge
    from edgeslm.encoders import model as models
    from edgeslm.quantize.frozen import Frozen

    recipe = recipe_of(context)
    frozen = Frozen.load(context.folders["distill"] / "frozen")
    student = models.filled(frozen.config, {n: t.decode() for n, t in frozen.tensors.items()})
    difference = {STUDENT: float(np.abs(judge.outputs(student, table, chosen) - made[STUDENT]).max())}
    every = list(range(len(recipe.tasks)))
    figures: dict[str, dict[str, float]] = {}
    for task, part in enumerate(recipe.tasks):
        here = np.isin(chosen.numpy(), table.of([task], ["judge"]).numpy())
        rows = judge.known(table, chosen[here])
        at = next(i for i in range(len(recipe.teachers)) if task in recipe.served(i))

        def own(name: str, tasks: list[int], task: int = task, here: Any = here) -> Any:
            outputs = made[name][here]
            return judge.own_classes(recipe, tasks, task, outputs) if recipe.task == "classify" else outputs

        teacher = own(teacher_name(at), list(recipe.served(at)))
        figures[f"{part.name}: student"] = judge.figures(recipe.task, own(STUDENT, every), rows, teacher)
        if recipe.task != "similarity":
            figures[f"{part.name}: teacher"] = judge.figures(recipe.task, teacher, rows)
    return {"figures": figures, "torch_difference": difference}


PACKAGES = ("onnx", "onnxruntime")
EXPORT = Stage(
    "export",
    ("teacher", "data", "tune", "distill"),
    _export_slice,
    _export,
    (*ROOMS, "export", "artifact.py", "pipeline/encoder/ship.py"),
    PACKAGES,
)
EVALUATE = Stage(
    "evaluate",
    ("data", "tune", "distill", "export"),
    _evaluate_slice,
    _evaluate,
    (*RUNNING, "encoders", "pipeline/encoder/ship.py"),
    PACKAGES,
)
