"""The planning stage: which format every tensor gets, for a recipe that gives a size (`quantize.target`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeslm import units
from edgeslm.errors import FormatError, RecipeError
from edgeslm.pipeline.distill import chosen_student, shapes_of
from edgeslm.pipeline.grid import channel_weights, grid_slice, importance_rows
from edgeslm.pipeline.moments import left_by_feedback
from edgeslm.pipeline.prepare import cast, student_model
from edgeslm.pipeline.stage import Context, Stage, computing, read_json, write_json

SEED = 0  # a plan is a property of student and text: runs of other seeds share it
MEASURED_SHARE = 4  # a quarter of the text is run through for every kind of tensor, as much other text for the result


def _slice(context: Context) -> Any:
    recipe = context.recipe
    asked = [part and part.model_dump(mode="json") for part in (recipe.quantize.target, recipe.quantize.importance)]
    return (
        asked,
        recipe.quantize.by_loss,
        _names(context),
        _refused(context),
        grid_slice(context),
        computing(context),
        chosen_student(context),
    )


def _names(context: Context) -> list[str]:
    """The formats that may be chosen. Raises RecipeError for one that is not known."""
    from edgeslm.formats import FORMATS
    from edgeslm.formats.names import unknown_format
    from edgeslm.quantize.plan import FLOATS

    given = context.recipe.quantize.target.formats  # type: ignore[union-attr]
    unknown = [n for n in given or () if n not in FORMATS]
    if unknown:
        raise RecipeError([f"quantize.target.formats: {unknown_format(unknown[0])}"])
    return list(given) if given else [n for n in FORMATS if n not in FLOATS and FORMATS[n].encode is not None]


def _refused(context: Context) -> list[str]:
    """Formats that a container of the recipe cannot hold. Raises RecipeError when the recipe names one of them."""
    from edgeslm.export import REFUSES

    asked, refused = context.recipe.quantize.target.formats, []  # type: ignore[union-attr]
    for name in _names(context):
        reasons = [(kind, reason) for kind in context.recipe.export.kinds if (reason := REFUSES[kind](name))]
        if reasons and asked:
            kind, reason = reasons[0]
            raise RecipeError([f"quantize.target.formats: {kind} cannot hold {name} exactly: {reason}"])
        if reasons:
            refused.append(name)
    return refused


def _own_types(context: Context, kept: list[int] | None) -> dict[str, str]:
    """{student's tensor: its type in the teacher's file}, where its weights are still those of the file."""
    part: Any = context.recipe.student
    if context.source.kind != "gguf" or part.kind not in ("depth", "copy") or getattr(part, "origin", None):
        return {}
    from edgeslm.models.arch import ARCHS
    from edgeslm.models.gguf_file import read
    from edgeslm.models.load import describe

    summary, file = describe(context.source), read(context.source.path)
    types = {n: file.tensors[theirs].format for n, theirs in ARCHS[summary.arch].names(summary.config).items()}
    if kept is None:
        return types
    places = {f".layers.{old}.": f".layers.{new}." for new, old in enumerate(kept)}
    moved = {}
    for name, kind in types.items():
        old = next((p for p in places if p in name), None)
        if old is not None or ".layers." not in name:
            moved[name.replace(old, places[old]) if old else name] = kind
    return moved


def task(
    context: Context, shapes: Mapping[str, Any], kept: list[int] | None = None
) -> tuple[dict[str, list[str]], int]:
    """({matrix: formats it may take}, bytes allowed). Raises RecipeError and FormatError for what cannot be met."""
    from edgeslm.quantize.planner import budget, options

    target = context.recipe.quantize.target
    assert target is not None
    choices = options(shapes, _names(context), _refused(context), _own_types(context, kept))
    return choices, budget(target.bits, target.size, choices, shapes)


def describe_target(context: Context, shapes: Mapping[str, Any]) -> tuple[int, list[tuple[str, str]]]:
    """(bytes allowed, lines for `edgeslm check`): known before any compute."""
    from edgeslm.quantize.planner import limits, parameters_of

    choices, allowed = task(context, shapes)
    parameters = parameters_of(shapes)

    def told(size: int) -> str:
        return f"{units.byte_count(size)} ({8 * size / parameters:.2f} bits)"

    low, high = limits(choices, shapes)
    lines = [("plan: target", f"at most {told(allowed)}; possible from {told(low)} to {told(high)}")]
    for formats, count in Counter(map(tuple, choices.values())).items():
        lines.append((f"plan: chosen for {count} matrices from", ", ".join(formats)))
    own = Counter(t for n, t in _own_types(context, None).items() if n in choices and t in _names(context))
    if own:
        said = ", ".join(f"{name} for {count}" for name, count in own.items())
        lines.append(("plan: left out, the teacher's own types", said))
    return allowed, lines


def _plan(context: Context, folder: Path) -> None:
    """Measures, chooses, and measures what was chosen on text that had no part in choosing."""
    import torch

    from edgeslm.compute import return_freed_memory
    from edgeslm.quantize import planner
    from edgeslm.quantize.sensitivity import Reference

    facts = read_json(context.folders["student"] / "importance.json")
    student = student_model(context)
    shapes = shapes_of(student)
    choices, allowed = task(context, shapes, facts.get("kept"))
    ids, other, every = _rows(context)
    importance = channel_weights(context, student, every, SEED)
    computed = cast(student_model(context), context.compute.dtype)  # gradients are those of training
    return_freed_memory()  # the float32 copy that it came in
    costs = _costs(context, computed, dict(student.named_parameters()), choices, ids, importance)
    left = None
    if context.recipe.quantize.by_loss:
        left = left_by_feedback(context, computed, importance_rows(context, every, SEED), choices, SEED)
    del computed
    return_freed_memory()
    measured = max(1, len(ids) // MEASURED_SHARE)
    reference = Reference(student, torch.cat([ids[:measured], other[:measured]]), importance)
    calls = len(set(map(planner.kind_of, choices))) + 1
    with context.progress.task("plan: measuring kinds", calls, "KLs") as bar:

        def measure(formats: Mapping[str, str]) -> float:
            bar.advance(1)
            return reference.kl(formats, slice(0, measured))

        planned = planner.plan(costs, shapes, allowed, measure, left)
    found = reference.kl(planned.formats, slice(measured, None))
    tokens = {"sensitivity": ids.numel(), "kinds": ids[:measured].numel(), "measured_kl": other[:measured].numel()}
    document = planner.to_json(planned, shapes, allowed)
    own = Counter(f for name, formats in choices.items() for f in formats if f not in costs[name])
    write_json(folder / "plan.json", {**document, "measured_kl": found, "tokens": tokens, "own_grids": own})
    told = ", both with nearest rounding" if left else ""
    context.progress.say(
        f"  plan: {units.byte_count(document['bytes'])}, {document['bits']:.2f} bits a weight; before training its KL "
        f"to the float student is {found:.3f} nats a token, {planned.predicted:.3f} were predicted{told}"
    )


def _rows(context: Context) -> tuple[Any, Any, Any]:
    """Training rows in the mix of the recipe: to measure sensitivity on, other ones to judge by, and all of them."""
    import torch

    from edgeslm.data.order import order
    from edgeslm.data.rows import Rows

    rows = Rows.load(context.folders["data"] / "rows.safetensors")
    target = context.recipe.quantize.target
    assert target is not None
    count = max(1, target.sensitivity_tokens // rows.ids.shape[1])
    wanted = count + max(1, count // MEASURED_SHARE)
    drawn = torch.from_numpy(order(rows, [s.share for s in context.recipe.data.sources], 4 * wanted, SEED))
    whole = drawn[rows.whole()[drawn]]  # gradients at padding would drown those of text
    picked = (whole if len(whole) >= wanted else drawn)[:wanted]
    ids = rows.ids[picked].long().to(context.compute.device)
    return ids[:count], ids[count:], rows


def _costs(
    context: Context,
    model: Any,
    floats: Mapping[str, Any],
    choices: Mapping[str, list[str]],
    ids: Any,
    importance: Mapping[str, Any],
) -> dict[str, dict[str, float]]:
    """{matrix: {format: KL in nats a token}}, by gradients of `model`, for the weights `floats`."""
    from edgeslm.quantize.sensitivity import fisher, rounding_costs

    with context.progress.task("plan: gradients", ids.numel(), "tokens") as bar:
        diagonal = fisher(model, ids, SEED, bar.advance)
    total = sum(len(formats) for formats in choices.values())
    dequantised = read_json(context.folders["teacher"] / "teacher.json")["dequantised"]
    costs = {}
    with context.progress.task("plan: rounding", total, "fits") as bar:
        for name, formats in choices.items():
            weight, weights = floats[name].detach(), importance.get(name)
            costs[name] = rounding_costs(weight, diagonal.pop(name), formats, weights, own_grids=not dequantised)
            if not costs[name]:
                raise FormatError(
                    f"{name}: lies on the grid of each of {', '.join(formats)} already, because the teacher's file is "
                    "quantised; add other formats to quantize.target.formats or take a teacher in full precision"
                )
            bar.advance(len(formats))
    return costs


PLAN = Stage("plan", ("teacher", "data"), _slice, _plan)
