"""The training stage: student onto its plan, scheme's loop, frozen integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeslm import cost
from edgeslm.pipeline.grid import grid_slice, on_teachers_grid, start_on_grid
from edgeslm.pipeline.prepare import student_model
from edgeslm.pipeline.stage import Context, Stage, computing, read_json, write_json


def _slice(context: Context) -> Any:
    recipe = context.recipe
    parts = [part.model_dump(mode="json") for part in (recipe.quantize, recipe.distill)]
    planned = plan_of(context).rules if recipe.quantize.target else None
    return (
        parts,
        recipe.teacher.format,
        recipe.seed,
        computing(context),
        chosen_student(context),
        planned,
        grid_slice(context),
    )


def _distill(context: Context, folder: Path) -> None:
    import torch

    from edgeslm import compute
    from edgeslm.data.order import order
    from edgeslm.data.rows import Rows
    from edgeslm.quantize.freeze import freeze
    from edgeslm.quantize.masters import attach
    from edgeslm.schemes import SCHEMES, checkpoint
    from edgeslm.schemes.objective import Objective
    from edgeslm.schemes.offline import Loop
    from edgeslm.schemes.step import Step
    from edgeslm.teachers.live import LiveTeacher

    recipe, train, chosen = context.recipe, context.recipe.distill.train, context.compute
    torch.manual_seed(recipe.seed)
    compute.reset_peak_memory(chosen)
    student = student_model(context)
    rows = Rows.load(context.folders["data"] / "rows.safetensors")
    assigned = plan_of(context).assign(shapes_of(student))
    masters = attach(student, assigned, chosen.dtype)
    start_on_grid(context, student, masters, rows, resumed=(folder / checkpoint.NAME).exists())
    objective = Objective.build([t.model_dump() for t in recipe.distill.objective])
    judge = context.load_teacher(chosen.dtype).model
    guide = judge if recipe.teacher.format is None else on_teachers_grid(context, chosen.dtype)
    teacher = LiveTeacher(guide) if objective.needs_teacher else None
    if train.compile:
        compute.compile_layers(student)
        compute.compile_layers(guide)
    step = Step(student, masters, objective, _settings(context, student, assigned))
    shares = [s.share for s in recipe.data.sources]
    points = _Points(context, student, judge, folder)
    loop = Loop(
        rows=rows,
        order=order(rows, shares, train.steps * recipe.batch_rows, recipe.seed),
        batch_rows=recipe.batch_rows,
        train=train,
        grid_start=round(recipe.quantize.start * train.steps),
        folder=folder,
        progress=context.progress,
        device=chosen.device,
        measure=points,
    )
    SCHEMES[recipe.distill.scheme.kind](step, teacher, loop)
    metadata = _metadata(context)
    tokenizer = context.folders["teacher"] / "tokenizer"
    config = student.config.to_dict()
    frozen = freeze(masters, teacher_arch(context), config, tokenizer, f"{recipe.name}-student", metadata)
    frozen.save(folder / "frozen")
    if worse := worse_than_start(points.points):
        context.progress.say(f"  distil: WARNING: {worse}")
    forwards = _forward_kls(context, student, judge, frozen, points.windows)
    _summary(context, folder, config, teacher is not None, points, forwards)


def _settings(context: Context, student: Any, assigned: dict[str, str]) -> Any:
    from edgeslm.models.forward import head_weight
    from edgeslm.quantize import activations
    from edgeslm.schemes.step import StepSettings

    train, part = context.recipe.distill.train, context.recipe.quantize
    every = part.scales.every if part.scales.kind == "refit" else getattr(part.scales, "refit_every", None)
    share = part.scales.lr / train.lr if part.scales.kind == "learned" else None
    head = None
    if part.activations is not None:  # for the whole life of the student: curves see what the runtime will do
        activations.install(student, assigned, part.activations)
        names = {id(weight): name for name, weight in student.named_parameters()}
        head = activations.rounding(assigned[names[id(head_weight(student))]], part.activations)
    return StepSettings(train.micro_rows, train.clip, train.weight_decay, train.betas, every, share, head)


def _forward_kls(context: Context, student: Any, judge: Any, frozen: Any, windows: Any) -> dict[str, float]:
    """{type: KL to the teacher of what was frozen, both computed in it}, for the type of training and float32: what
    rounding in compute hides."""
    import torch

    from edgeslm.compute import uncompiled
    from edgeslm.schemes.measure import closeness

    found = {}
    for dtype in dict.fromkeys((context.compute.dtype, torch.float32)):
        for name, parameter in student.named_parameters():
            parameter.data = frozen.tensors[name].decode().to(context.compute.device, dtype)
        teacher = judge if dtype == context.compute.dtype else context.load_teacher(dtype).model
        with uncompiled():
            found[str(dtype).removeprefix("torch.")] = closeness(student, teacher, windows).kl
    return found


def worse_than_start(points: list[dict[str, float]]) -> str:
    """A sentence where training took the student further from its teacher than it was; empty where it did not."""
    if len(points) < 2 or points[-1]["kl"] <= points[0]["kl"]:
        return ""
    return (
        f"training made the student worse: held-out KL to the teacher was {points[0]['kl']:.4f} before it and is "
        f"{points[-1]['kl']:.4f} now; lower distill.train.lr (ten times is a fair first try) or train on other text"
    )


class _Points:
    """Closeness on the text to judge by, a few times a run; kept across a restart, but not across another text."""

    def __init__(self, context: Context, student: Any, judge: Any, folder: Path):
        from edgeslm.pipeline.heldout import heldout_ids, judged

        self.context, self.student, self.judge = context, student, judge
        self.path = folder / "heldout.json"
        self.judged = judged(context)
        kept: dict[str, Any] = read_json(self.path) if self.path.exists() else {"judged": {}}
        same = kept["judged"].get("digest") == self.judged["digest"]
        self.points: list[dict[str, float]] = kept["points"] if same else []
        self.windows = heldout_ids(context)

    def __call__(self, done: int) -> None:
        from edgeslm.compute import uncompiled
        from edgeslm.schemes.measure import closeness

        tokens = done * self.context.recipe.distill.train.batch_tokens
        with uncompiled():
            found = closeness(self.student, self.judge, self.windows)
        point = {"tokens": tokens, "kl": found.kl, "top1": found.top1, "loss": found.loss, "judged": found.tokens}
        self.points = [p for p in self.points if p["tokens"] < tokens] + [point]
        write_json(self.path, {"judged": self.judged, "points": self.points})
        self.context.progress.say(
            f"  distil: after {tokens:,} tokens KL to the teacher {found.kl:.4f} nats a token, "
            f"top-1 agreement {100 * found.top1:.1f} % ({found.tokens:,} held-out tokens)"
        )


def _summary(
    context: Context,
    folder: Path,
    config: Any,
    teacher: bool,
    points: _Points,
    forwards: dict[str, float],
) -> None:
    """Speed comes from the log, so that it is right after a restart; the bound from one matrix product now."""
    import json
    import statistics

    from edgeslm import compute

    recipe = context.recipe
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = [line["tokens_per_s"] for line in lines]
    rate = statistics.median(rates) if rates else None
    teacher_config = read_json(context.folders["teacher"] / "teacher.json")["config"] if teacher else None
    flops = compute.matmul_flops(context.compute)
    bound = cost.training_bound(config, recipe.data.sequence, flops, teacher_config)
    write_json(
        folder / "summary.json",
        {
            "steps": recipe.distill.train.steps,
            "tokens": recipe.tokens,
            "seconds": sum(line["seconds"] for line in lines),  # of all steps, whatever process made them
            "tokens_per_s": rate,
            "bound_tokens_per_s": bound,
            "share_of_bound": None if rate is None else rate / bound,
            "matmul_flops_per_s": flops,
            "peak_memory_bytes": compute.peak_memory_bytes(context.compute),  # of the process that ended the training
            "dtype": str(context.compute.dtype).removeprefix("torch."),
            "device": str(context.compute.device),
            "threads": context.compute.threads,
            "heldout": points.points,
            "judged": points.judged,
            "kl_by_forward": forwards,  # the same frozen integers, computed in either type
        },
    )


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


def _metadata(context: Context) -> dict[str, str]:
    """What goes into the file: the parts of the recipe that made the weights, which later stages cannot change."""
    recipe = context.recipe
    return {"recipe": shared_recipe(context), "recipe_hash": recipe.training_hash, "base_model": base_model(context)}


def shared_recipe(context: Context) -> str:
    """The parts of the recipe that made the weights, for a file that travels: what lies on this machine by its name."""
    import yaml

    told = yaml.safe_load(context.recipe.training_yaml())
    told["teacher"]["model"] = base_model(context)
    return str(yaml.safe_dump(_without_folders(told), sort_keys=False, allow_unicode=True))


def _without_folders(value: Any) -> Any:
    """Absolute paths become names."""
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    local = isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute())
    return Path(value).name if local else value


def base_model(context: Context) -> str:
    """The teacher's spec; of a file or folder on this machine its name only."""
    spec = context.recipe.teacher.model
    here = not spec.startswith("pypi:") and (context.base / Path(spec).expanduser()).exists()
    return Path(spec).name if here else spec


def chosen_student(context: Context) -> Any:
    """What the student stage decided; its measurements (and the text they were taken on) do not matter to training."""
    facts = read_json(context.folders["student"] / "importance.json")
    return facts["method"], facts.get("weights", facts.get("kept"))


# the student stage is read too, but through `chosen_student`: other text to judge by must not train anew
DISTILL = Stage("distill", ("teacher", "data"), _slice, _distill)
