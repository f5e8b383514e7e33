"""The training stage: student onto its plan, scheme's loop, frozen integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeslm.pipeline.equalising import scales_digest
from edgeslm.pipeline.follow import Points, forward_kls, summary, worse_than_start
from edgeslm.pipeline.grid import codes_digest, grid_slice, start_on_grid
from edgeslm.pipeline.groups import exchange, here, own_start
from edgeslm.pipeline.guides import another, more_sources, objectives, on_policy, read_order, teachers
from edgeslm.pipeline.origin import metadata
from edgeslm.pipeline.prepare import made_how, student_model
from edgeslm.pipeline.processes import changing, engine_of, in_one_piece, joined, note, spread_teachers, weight_type
from edgeslm.pipeline.ranks import cut, together
from edgeslm.pipeline.sft_figures import note_answers
from edgeslm.pipeline.stage import Context, Stage, computing, read_json
from edgeslm.pipeline.vocabulary import note_bits, origin_source


def _slice(context: Context) -> Any:
    recipe = context.recipe
    parts = [part.model_dump(mode="json") for part in (recipe.quantize, recipe.distill)]
    planned = plan_of(context).rules if recipe.quantize.target else None
    recorded = context.folders.get("record")
    return (
        parts,
        recipe.teacher.model_dump(mode="json", exclude={"model", "sha256", "tokenizer"}),
        [source.sha256 for source in (*more_sources(context), *named_by_scheme(context))],
        recorded.name if recorded else None,
        recipe.seed,
        [*computing(context), *together()],
        chosen_student(context),
        planned,
        codes_digest(context),
        grid_slice(context),
    )


def _distill(context: Context, folder: Path) -> None:
    import torch

    from edgeslm import compute, parallel
    from edgeslm.data.rows import Rows
    from edgeslm.models.arch.base import plain
    from edgeslm.quantize.freeze import freeze
    from edgeslm.schemes import SCHEMES
    from edgeslm.schemes.loop import Loop

    recipe, train, chosen = context.recipe, context.recipe.distill.train, context.compute
    torch.manual_seed(recipe.seed)
    ranks = parallel.join()
    compute.reset_peak_memory(chosen)
    rows = Rows.load(context.folders["data"] / "rows.safetensors")
    judge = context.load_teacher(chosen.dtype).model
    base = _base(context)
    guides = teachers(context, judge) if taught_live(context) else None
    spread_teachers(context, [judge, *(guides.models if guides else ())])
    copies = here(context) or range(getattr(recipe.distill.scheme, "peers", 1))
    steps = [step_of(context, folder, rows, guides, base, group) for group in copies]
    student = steps[0].model
    if train.compile:
        for model in (*(step.model for step in steps), *(guides.models if guides else ())):
            compute.compile_layers(model)
    if train.recompute:
        for step in steps:
            compute.recompute_layers(step.model)
    points = Points(context, student, judge, folder, base, writes=ranks.first)
    order = read_order(context, rows)
    loop = Loop(
        rows=rows,
        order=order,
        batch_rows=recipe.batch_rows,
        train=train,
        grid_start=round(recipe.quantize.start * train.steps),
        folder=folder,
        progress=context.progress,
        device=chosen.device,
        measure=points,
        keep=_kept_points(context, student, folder),
        load=changing(context, another(context)),
        on_policy=on_policy(context, guides),
        fields={} if rows.answers is None else {"answers": rows.answers},
        exchange=exchange(context, rows, folder),
        ranks=ranks,
        cut=cut(recipe),
    )
    teacher: Any = guides if recipe.distill.targets.kind == "live" else _recorded(context, rows, order)
    compute.return_freed_memory()  # float32 copies that models came in are gone; their places do not fit what comes
    SCHEMES[recipe.distill.scheme.kind](steps, teacher, loop, recipe.distill.scheme)
    peaks = ranks.gathered(compute.peak_memory_bytes(chosen))
    held = ranks.gathered(sum(step.held_bytes for step in steps))
    if not (ranks.first or cut(recipe)):
        return
    about = student_arch(context), plain(student.config), context.folders["teacher"] / "tokenizer"
    frozen = freeze(steps[0].masters, *about, f"{recipe.name}-student", metadata(context), joined(context))
    student = in_one_piece(context, student)
    if not ranks.first:
        return
    for step in steps:
        step.release()
    compute.return_freed_memory()
    frozen.save(folder / "frozen")
    if worse := worse_than_start(points.points):
        context.progress.say(f"  distil: WARNING: {worse}")
    if cut(recipe):  # what follows is this process's alone
        judge = context.load_teacher(chosen.dtype).model
        _as_the_runtime(context, student)
    forwards = forward_kls(context, student, judge, frozen, points.windows, base)
    summary(context, folder, about[1], guides is not None, points, forwards)
    if ranks.size > 1:
        note(context, folder, held, peaks)
    note_bits(context, folder, frozen, student)
    note_answers(context, folder, frozen, student)


def taught_live(context: Context) -> bool:
    """Whether the recipe's own teachers must run beside the student."""
    from edgeslm.knowledge import LOSSES

    distill = context.recipe.distill
    scheme = distill.scheme
    if distill.targets.kind != "live":
        return False
    part = distill.on_policy
    writes = part is not None and (part.teacher_share > 0 or part.contrast > 0)
    if scheme.kind == "online":
        return scheme.outer_share > 0 or writes
    if scheme.kind == "self" and scheme.teacher != "deep":
        return False
    needs = any(getattr(LOSSES.get(term.loss), "needs_teacher", True) for term in distill.objective)
    return needs or writes or scheme.kind == "blockwise"


def step_of(context: Context, folder: Path, rows: Any, guides: Any, base: Any = None, group: int = 0) -> Any:
    """A student on its plan, its objective and its optimiser. `group`: which copy of a codistillation it is."""
    import torch

    from edgeslm.quantize.masters import attach
    from edgeslm.schemes import checkpoint
    from edgeslm.schemes.step import Step
    from edgeslm.teachers.live import LiveTeacher

    student = own_start(context, student_model(context), group)
    assigned = plan_of(context).assign(shapes_of(student))
    where = torch.device("cpu") if context.recipe.distill.train.offload else None
    masters = attach(student, assigned, weight_type(context), where)
    start_on_grid(context, student, masters, rows, group, resumed=checkpoint.there(folder))
    main, stages = objectives(context, student, guides)
    settings = _settings(context, student, assigned)
    used = [main, *stages, *([main.taught] if context.recipe.distill.on_policy else [])]
    engine, beside = engine_of(context, student, masters, used), LiveTeacher(base) if base else None
    return Step(student, masters, main, settings, base=beside, stages=stages, engine=engine)


def _base(context: Context) -> Any:
    """The earlier student of a residual scheme, frozen."""
    scheme = context.recipe.distill.scheme
    if scheme.kind != "residual":
        return None
    model = context.load(context.resolve(scheme.base), context.compute.dtype).model
    return model.requires_grad_(False)  # type: ignore[operator]


def _recorded(context: Context, rows: Any, order: Any) -> Any:
    from edgeslm import parallel
    from edgeslm.pipeline.record import targets_folder
    from edgeslm.teachers.recorded import RecordedTeacher

    first = parallel.join().first
    return RecordedTeacher(targets_folder(context), rows, [int(i) for i in order], digests=first)


def _kept_points(context: Context, student: Any, folder: Path) -> dict[int, Any]:
    """{updates done: what keeps the student as it then is}."""
    from edgeslm.models.load import write_tokenizer
    from edgeslm.models.turned import save

    train = context.recipe.distill.train

    def keeper(point: int) -> Any:
        def keep() -> None:
            whole, place = in_one_piece(context, student), folder / "route" / str(point)
            if whole is not None:
                save(whole, place)
                write_tokenizer(context.tokenizer, place)

        return keep

    return {round(train.steps * p / (train.keep + 1)): keeper(p) for p in range(1, train.keep + 1)}


def _settings(context: Context, student: Any, assigned: dict[str, str]) -> Any:
    from edgeslm.models.forward import head_weight
    from edgeslm.quantize import activations
    from edgeslm.schemes.step import StepSettings
    from edgeslm.students import mup

    train, part = context.recipe.distill.train, context.recipe.quantize
    every = part.scales.every if part.scales.kind == "refit" else getattr(part.scales, "refit_every", None)
    share = part.scales.lr / train.lr if part.trains_scales else None  # type: ignore[union-attr]
    head = None
    if part.activations is not None:
        _as_the_runtime(context, student)
        names = {id(weight): name for name, weight in student.named_parameters()}
        head = activations.rounding(assigned[names[id(head_weight(student))]], part.activations)
    exits = getattr(context.recipe.distill.scheme, "exits", ())
    own = train.loss_lr / train.lr
    shares = mup.shares(student, width) if (width := _base_width(context)) else {}
    plain = (train.micro_rows, train.clip, train.weight_decay, train.betas)
    return StepSettings(*plain, every, share, head, own, exits, shares, hold_codes=part.holds_codes)


def _as_the_runtime(context: Context, student: Any) -> None:
    """Rounds activations where the recipe does, for the whole life of the student: curves see what will be shipped."""
    from edgeslm.quantize import activations

    part = context.recipe.quantize
    if part.activations is not None:
        activations.install(student, plan_of(context).assign(shapes_of(student)), part.activations)


def _base_width(context: Context) -> int | None:
    """Of muP, where the recipe asks for it: in training, or in how its student starts."""
    part = context.recipe.distill.train.mup or getattr(context.recipe.student, "init", None)
    return getattr(part, "base_width", None)


def named_by_scheme(context: Context) -> list[Any]:
    """Models that the scheme names. Raises ModelError."""
    scheme = context.recipe.distill.scheme
    specs = scheme.anchors if scheme.kind == "route" else (scheme.base,) if scheme.kind == "residual" else ()
    return [context.resolve(spec) for spec in specs]


def plan_of(context: Context) -> Any:
    """As the recipe spells it out, or as the planning stage chose it."""
    from edgeslm.quantize.plan import Plan, Rule

    if context.recipe.quantize.target is not None:
        return Plan(tuple(Rule(n, f) for n, f in read_json(context.folders["plan"] / "plan.json")["rules"]))
    return Plan(tuple(Rule(r.pattern, r.format, r.otherwise) for r in context.recipe.quantize.rules))


def shapes_of(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def teacher_arch(context: Context) -> str:
    return str(read_json(context.folders["teacher"] / "teacher.json")["arch"])


def student_arch(context: Context) -> str:
    from edgeslm.design.families import family_of
    from edgeslm.models.load import describe

    part, source = context.recipe.student, origin_source(context)
    if part.kind == "scratch":
        return family_of(part.wanted)
    return describe(source).arch if source else teacher_arch(context)


def chosen_student(context: Context) -> Any:
    """How the student was made, and its channels' scales; figures of those stages do not matter to training."""
    return (*made_how(context), *scales_digest(context))


# the student stage is read too, but through `chosen_student`: other text to judge by must not train anew
DISTILL = Stage("distill", ("teacher", "data"), _slice, _distill, resumes=True)
