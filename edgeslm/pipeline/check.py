"""Refuse first: everything that is wrong with a recipe, and what it will do, before any compute."""

from __future__ import annotations

import fnmatch
import inspect
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from edgeslm import cost
from edgeslm.errors import EdgeSLMError, RecipeError
from edgeslm.pipeline import check_text
from edgeslm.pipeline.stage import Context
from edgeslm.recipe import Recipe, expand

CHECKPOINT_BYTES = 12  # per parameter: master, two moments
TYPICAL_SHARE = 0.25  # of the matrix-product bound that a training step reached where it was measured


@dataclass
class Findings:
    """Problems (each a sentence) and the plan (label, value) as `edgeslm check` prints them."""

    problems: list[str] = field(default_factory=list)
    plan: list[tuple[str, Any]] = field(default_factory=list)

    def raise_if_any(self) -> None:
        if self.problems:
            raise RecipeError(self.problems)

    def attempt(self, what: Callable[[], Any]) -> Any:
        """The value, or None with its error noted: one problem does not hide the next."""
        try:
            return what()
        except RecipeError as error:
            self.problems += error.problems
        except EdgeSLMError as error:
            self.problems.append(str(error))
        return None


def check(context: Context) -> Findings:
    """No training, no model in memory: files are read, the teacher is fetched and its header and vocabulary looked at,
    formats and losses are looked up, one matrix product is timed for the estimate."""
    recipe, found = context.recipe, Findings()
    if found.attempt(lambda: context.compute) is None:
        return found
    for source in recipe.data.sources:
        patterns = source.seeds if source.kind == "written" else source.paths
        found.attempt(partial(_files, context, patterns))
    judged = found.attempt(lambda: _files(context, recipe.evaluate.paths))
    if judged is not None and not found.problems:
        found.attempt(lambda: check_text.held_out(context))
    _losses(recipe, found)
    summary = found.attempt(lambda: _describe(context))
    if summary is not None:
        student = _student(recipe, summary, found)
        check_text.positions(context, found, student)
        found.attempt(lambda: check_text.texts(context, found, summary))
        if not found.problems:  # a plan for a recipe that is wrong would only repeat what is wrong
            found.attempt(lambda: check_text.exported(context, summary, student))
        found.attempt(lambda: _plan(context, summary, student, found))
    _benchmark(recipe, found)
    return found


def _files(context: Context, patterns: Any) -> list[Path]:
    """Every text file is read once as UTF-8, which takes milliseconds and saves a run that would fail later."""
    from edgeslm.data.text import read

    paths = expand(patterns, context.base)
    for path in paths:
        read(path)
    return paths


def _losses(recipe: Recipe, found: Findings) -> None:
    import difflib

    from edgeslm.knowledge import LOSSES

    for index, term in enumerate(recipe.distill.objective):
        where = f"distill.objective.{index}"
        if term.loss not in LOSSES:
            near = difflib.get_close_matches(term.loss, LOSSES, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(LOSSES)}"
            found.problems.append(f"{where}: unknown loss '{term.loss}'; {hint}")
            continue
        accepted = inspect.signature(LOSSES[term.loss].fn).parameters
        options = {n: p for n, p in accepted.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
        for key, value in (term.model_extra or {}).items():
            if key not in options:
                found.problems.append(
                    f"{where}: '{term.loss}' has no option '{key}'; it takes {', '.join(options) or 'none'}"
                )
            elif not isinstance(value, (int, float)) or value < 0 or (key == "temperature" and value == 0):
                found.problems.append(f"{where}.{key}: {value!r} is no usable number")


def _describe(context: Context) -> Any:
    from edgeslm.models.load import describe

    return describe(context.source)


def _student(recipe: Recipe, summary: Any, found: Findings) -> dict[str, Any]:
    shape = dict(summary.config)
    if recipe.student.kind == "depth":
        if recipe.student.layers > shape["num_hidden_layers"]:
            found.problems.append(
                f"student.layers is {recipe.student.layers} but the teacher has {shape['num_hidden_layers']} layers"
            )
        shape["num_hidden_layers"] = recipe.student.layers
    return shape


def _plan(context: Context, summary: Any, shape: dict[str, Any], found: Findings) -> None:
    from edgeslm.export import REFUSES
    from edgeslm.formats import FORMATS
    from edgeslm.models.shapes import parameter_shapes
    from edgeslm.pipeline.distill import plan_of
    from edgeslm.quantize.plan import planned_bytes

    recipe = context.recipe
    for rule in recipe.quantize.plan:
        if rule.format not in FORMATS:
            raise RecipeError([f"quantize.plan: unknown format '{rule.format}'; known: {', '.join(FORMATS)}"])
    shapes = parameter_shapes(shape)
    assigned = plan_of(context).assign(shapes)
    for kind in recipe.export.kinds:
        for name in sorted(set(assigned.values())):
            reason = REFUSES[kind](name)
            if reason:
                found.problems.append(f"export.kinds: {kind} cannot hold {name} exactly: {reason}")
    size = planned_bytes(assigned, shapes)
    parameters = sum(math.prod(s) for s in shapes.values())
    _space(context, parameters, summary, found)
    _describe_plan(context, summary, shape, size, parameters, found)
    _rules(context, assigned, shapes, found)


def _space(context: Context, student: int, teacher: Any, found: Findings) -> None:
    """Disk for checkpoint, teacher files and scored logits, so that a full disk is met now and not in an hour."""
    recipe = context.recipe
    if not any(choice.endswith("f32") for choice in recipe.export.teacher):
        found.problems.append("export.teacher: names no float32 teacher, so that nothing could be judged; add gguf-f32")
    scored = recipe.evaluate.windows * recipe.evaluate.context // 2
    files = sum(4 if choice.endswith("f32") else 2 for choice in recipe.export.teacher)
    needed = student * (2 * CHECKPOINT_BYTES + 5) + teacher.parameters * files + scored * 4 * teacher.vocab_size
    folder = next(p for p in (context.root, *context.root.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        found.problems.append(
            f"{folder}: {free / 1e9:.1f} GB free but the run may need {needed / 1e9:.1f} GB; "
            "free some space or use --runs"
        )


def _rules(context: Context, assigned: dict[str, str], shapes: dict[str, tuple[int, ...]], found: Findings) -> None:
    """What each rule of the plan takes and what it costs in bytes."""
    from edgeslm import units
    from edgeslm.quantize.plan import planned_bytes

    left = dict(assigned)
    vectors = [n for n in left if len(shapes[n]) < 2]
    groups = [(f"norms and biases -> f32 ({len(vectors)} tensors)", vectors)]
    for rule in context.recipe.quantize.plan:
        matched = [n for n in left if n not in vectors and fnmatch.fnmatchcase(n, rule.pattern)]
        groups.append((f"{rule.pattern} -> {rule.format} ({len(matched)} tensors)", matched))
        left = {n: f for n, f in left.items() if n not in matched}
    for label, names in groups:
        cost_bytes = planned_bytes({n: assigned[n] for n in names}, shapes)
        found.plan.append((f"plan: {label}", units.byte_count(cost_bytes)))


def _describe_plan(
    context: Context, summary: Any, shape: dict[str, Any], size: int, parameters: int, found: Findings
) -> None:
    from edgeslm import compute, units
    from edgeslm.knowledge import LOSSES

    recipe = context.recipe
    flops = compute.matmul_flops(context.compute, seconds=0.2)
    losses = [LOSSES.get(term.loss) for term in recipe.distill.objective]  # an unknown one is told elsewhere
    teacher = summary.config if any(loss is None or loss.needs_teacher for loss in losses) else None
    bound = cost.training_bound(shape, recipe.data.sequence, flops, teacher)
    kinds = ", ".join(f"{n} {name}" for name, n in summary.formats.items())
    found.plan += [
        ("teacher", f"{recipe.teacher.model}: {summary.arch}, {units.count(summary.parameters)} parameters"),
        ("teacher's tensors", kinds + (" (used as dequantised)" if summary.dequantised else "")),
        (
            "student",
            f"{recipe.student.kind}, {shape['num_hidden_layers']} layers, {units.count(parameters)} parameters",
        ),
        ("student's weights", f"{units.byte_count(size)}, {8 * size / parameters:.2f} bits each"),
        *(("note on the teacher", note) for note in summary.notes),
        ("teacher in float32", units.byte_count(4 * summary.parameters)),
        ("training", f"{recipe.distill.train.steps} steps of {recipe.distill.train.batch_tokens} tokens"),
        ("device", f"{context.compute.device}, {context.compute.dtype}, {context.compute.threads} threads"),
        ("time to train", f"about {units.seconds(recipe.tokens / (bound * TYPICAL_SHARE))} (an estimate)"),
        ("files", ", ".join([*recipe.export.kinds, *(f"teacher {t}" for t in recipe.export.teacher)])),
    ]


def _benchmark(recipe: Recipe, found: Findings) -> None:
    from edgeslm.runtimes import RUNTIMES

    for kind in recipe.export.kinds:
        runtime = next(r for r in RUNTIMES.values() if kind in r.formats)
        missing = [p for p in runtime.packages if p not in runtime.versions()]
        if missing:
            found.problems.append(
                f"export.kinds: {kind} files cannot be evaluated here, {', '.join(missing)} is not installed; "
                "'edgeslm doctor' says how to get it"
            )
