"""Refuse first: everything that is wrong with a recipe, and what it will do, before any compute."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from edgeslm import cost
from edgeslm.errors import EdgeSLMError, RecipeError
from edgeslm.pipeline.check import files, groups, losses, memory, sft, teachers, text
from edgeslm.pipeline.grid import check_grid
from edgeslm.pipeline.stage import Context
from edgeslm.recipe import expand
from edgeslm.recipe.encoder import EncoderRecipe


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


def check(context: Context, until: str | None = None) -> Findings:
    """No training, no model in memory: files are read, the teacher is fetched and its header and vocabulary looked at,
    formats and losses are looked up, one matrix product is timed for the estimate. `until`: the last stage that will be
    run, all by default."""
    from edgeslm import compute
    from edgeslm.pipeline.distill import DISTILL
    from edgeslm.pipeline.run import up_to

    if isinstance(context.recipe, EncoderRecipe):
        from edgeslm.pipeline.encoder import check as encoder_check

        return encoder_check.check(context)
    recipe, found = context.recipe, Findings()
    if found.attempt(lambda: context.compute) is None:
        return found
    for patterns in [*map(text.patterns, recipe.data.sources), *sft.patterns(recipe)]:
        found.attempt(partial(_files, context, patterns))
    judged = found.attempt(lambda: _files(context, recipe.evaluate.paths))
    found.attempt(lambda: files.tasks(context))
    if judged is not None and not found.problems:
        found.attempt(lambda: text.held_out(context))
    losses.losses(recipe, found)
    summary = found.attempt(lambda: _describe(context))
    if summary is not None:
        student = _student(context, summary, found)
        text.positions(context, found, student)
        found.attempt(lambda: text.texts(context, found, summary))
        if not found.problems:  # a plan for a recipe that is wrong would only repeat what is wrong
            found.attempt(lambda: text.exported(context, summary, student))
        found.attempt(lambda: _plan(context, summary, student, found))
        found.attempt(lambda: check_grid(context, summary.config))
        teachers.teachers(context, found, summary, student)
        sft.answers(context, found)
        sft.sft(context, found, student)
    found.problems += memory.problems(context)
    if recipe.distill.train.compile and compute.compiler_missing(context.compute.device.type):
        found.problems.append(
            "distill.train.compile: there is no C++ compiler here (g++ or clang++) to make CPU code with; "
            "install one or set it to false"
        )
    files.runnable(recipe, found)
    ahead = up_to(recipe, until)  # recording for a larger machine, or a plan, has to fit and no training
    if DISTILL.name in ahead:
        groups.place(context, found)
    if summary is not None and not found.problems:
        for stage, size in memory.preparing(context, student, summary.config).items():
            if stage in ahead:
                found.problems += memory.impossible(f"quantize: stage {stage}", size, context, memory.WITHOUT[stage])
        if DISTILL.name in ahead:
            needs = memory.needed(context, student, summary.config)
            found.problems += memory.impossible("distill.train: a step", needs, context)
    return found


def _files(context: Context, patterns: Any) -> list[Path]:
    """Every text file is read once as UTF-8, which takes milliseconds and saves a run that would fail later."""
    from edgeslm.data.text import read

    paths = expand(patterns, context.base)
    for path in paths:
        read(path)
    return paths


def _describe(context: Context) -> Any:
    from edgeslm.models.load import describe
    from edgeslm.pipeline.vocabulary import cut_summary

    return cut_summary(context, describe(context.source))


def _student(context: Context, summary: Any, found: Findings) -> dict[str, Any]:
    """The student's config."""
    from edgeslm.models.shapes import SIZES, pruned

    part = context.recipe.student
    config = (found.attempt(lambda: teachers.origin(context)) or summary).config
    sizes = {key: getattr(part, key, None) for key in SIZES}
    if part.kind == "scratch":
        return found.attempt(lambda: _from_scratch(part, config)) or dict(config)
    shape: dict[str, Any] | None = found.attempt(lambda: pruned(config, sizes))
    text.vocabulary(context, found)
    named, layers = getattr(part, "choose", ""), int(config["num_hidden_layers"])
    if not isinstance(named, str) and named[-1] >= layers:
        found.problems.append(f"student.choose: layer {named[-1]} is not there, {layers} layers are counted from 0")
    return shape or dict(config)


def _from_scratch(part: Any, teacher: dict[str, Any]) -> dict[str, Any]:
    from edgeslm.models.arch.base import plain
    from edgeslm.students import scratch

    config = plain(scratch.config_of(part, teacher))
    if part.init.kind == "teacher":
        scratch.check_layers(part.init.layers, config, teacher)
    return config


def _plan(context: Context, summary: Any, shape: dict[str, Any], found: Findings) -> None:
    from edgeslm.export import REFUSES
    from edgeslm.formats import FORMATS
    from edgeslm.formats.names import unknown_format
    from edgeslm.models.shapes import parameter_shapes
    from edgeslm.pipeline.distill import plan_of
    from edgeslm.pipeline.planning import describe_target
    from edgeslm.quantize.plan import FLOATS, planned_bytes

    recipe, shapes = context.recipe, parameter_shapes(shape)
    parameters = sum(math.prod(s) for s in shapes.values())
    if recipe.quantize.target is not None:
        size, lines = describe_target(context, shapes)
        files.space(context, parameters, summary, found)
        _describe_plan(context, summary, shape, size, parameters, found)
        found.plan += lines
        return
    for rule in recipe.quantize.rules:
        for name in (rule.format, rule.otherwise):
            if name is not None and name not in FORMATS:
                raise RecipeError([f"quantize.plan: {unknown_format(name)}"])
    assigned = plan_of(context).assign(shapes)
    for kind in recipe.export.kinds:
        for name in sorted(set(assigned.values())):
            reason = REFUSES[kind](name)
            if reason:
                found.problems.append(f"export.kinds: {kind} cannot hold {name} exactly: {reason}")
    if recipe.quantize.trains_scales and set(assigned.values()) <= set(FLOATS):
        found.problems.append(
            "quantize.scales: quantize.plan puts nothing on a grid, so that there is no scale to train; say kind: fixed"
        )
    size = planned_bytes(assigned, shapes)
    files.space(context, parameters, summary, found)
    _describe_plan(context, summary, shape, size, parameters, found)
    _rules(context, assigned, shapes, found)


def _rules(context: Context, assigned: dict[str, str], shapes: dict[str, tuple[int, ...]], found: Findings) -> None:
    """What each rule of the plan takes and what it costs in bytes."""
    from edgeslm import units
    from edgeslm.quantize.plan import divides, misfit_cost, planned_bytes

    left, more = dict(assigned), dict[str, str]()
    vectors = [n for n in left if len(shapes[n]) < 2]
    groups = [(f"norms and biases -> f32 ({len(vectors)} tensors)", vectors)]
    for rule in context.recipe.quantize.rules:
        matched = [n for n in left if n not in vectors and fnmatch.fnmatchcase(n, rule.pattern)]
        fitting = [n for n in matched if divides(rule.format, shapes[n])]
        groups.append((f"{rule.pattern} -> {rule.format} ({len(fitting)} tensors)", fitting))
        rest = [n for n in matched if n not in fitting]
        if rest:
            label = f"{rule.pattern} otherwise {rule.otherwise}, rows that blocks do not divide ({len(rest)} tensors)"
            groups.append((label, rest))
            more[label] = misfit_cost(rule.format, rest, assigned, shapes)
        left = {n: f for n, f in left.items() if n not in matched}
    for label, names in groups:
        cost_bytes = planned_bytes({n: assigned[n] for n in names}, shapes)
        found.plan.append((f"plan: {label}", units.byte_count(cost_bytes) + more.get(label, "")))


def _describe_plan(
    context: Context, summary: Any, shape: dict[str, Any], size: int, parameters: int, found: Findings
) -> None:
    from edgeslm import compute, units
    from edgeslm.pipeline.distill import taught_live

    recipe = context.recipe
    flops = compute.matmul_flops(context.compute, seconds=0.2)
    teacher = summary.config if taught_live(context) else None
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
        *memory.lines(context, shape, summary.config),
        *groups.lines(context, shape, parameters),
        ("time to train", f"about {units.seconds(recipe.tokens / (bound * cost.TYPICAL_SHARE))} (an estimate)"),
        ("files", ", ".join([*recipe.export.kinds, *(f"teacher {t}" for t in recipe.export.teacher)])),
    ]
