"""Puts a student on its plan before training: importance of input channels, first scales, first codes."""

from __future__ import annotations

from typing import Any

from edgeslm.artifact import file_sha256
from edgeslm.errors import ModelError, RecipeError
from edgeslm.pipeline.stage import Context

MOMENT_BYTES = 2 << 30, 4 << 30  # of second moments held at a time by rounding with feedback: at least and at most
MOMENT_SHARE = 0.15  # of all memory in between; each group of them is one more pass over the text


def start_on_grid(context: Context, student: Any, masters: Any, rows: Any, resumed: bool) -> None:
    """`rows`: the training rows. A training that goes on takes values and scales from its checkpoint, and feedback
    finds its own scales; importance is then only needed where scales will be fitted again."""
    part = context.recipe.quantize
    fitted = not resumed and not part.feeds_back
    if part.importance is not None and (fitted or part.fits_again):
        _weigh(context, student, masters, rows)
    if part.feeds_back and not resumed:
        _round_with_feedback(context, student, masters, rows)


def _rows(context: Context, rows: Any) -> Any:
    """[R, T] of rows that are text throughout, chosen by the seed."""
    import torch

    part = context.recipe.quantize.importance
    tokens = part.tokens if part is not None else 16384
    count = max(1, tokens // rows.ids.shape[1])
    generator = torch.Generator().manual_seed(context.recipe.seed)
    whole = rows.ids[rows.whole()] if rows.whole().any() else rows.ids  # padding is no input that counts
    return whole[torch.randperm(len(whole), generator=generator)[:count]].long().to(context.compute.device)


def _weigh(context: Context, student: Any, masters: Any, rows: Any) -> None:
    weights = channel_weights(context, student, rows)
    for master in masters.items:
        if master.on_grid and master.name in weights:
            master.importance = weights[master.name].to(master.value.device)


def channel_weights(context: Context, student: Any, rows: Any) -> dict[str, Any]:
    """{weight: mean square of its inputs [K]} by the recipe's `quantize.importance`, empty when it asks for none.
    Raises ModelError when a file's matrix belongs to another model."""
    part = context.recipe.quantize.importance
    if part is None:
        return {}
    if part.file is not None:
        weights = _from_file(context, student)
    else:
        from edgeslm.quantize.importance import input_statistics

        ids = _rows(context, rows)
        with context.progress.task("importance", ids.numel(), "tokens") as bar:
            weights = dict(input_statistics(student, ids, on_progress=bar.reach).mean_squares)
    for name, parameter in student.named_parameters():
        if name in weights and weights[name].numel() != parameter.shape[-1]:
            raise ModelError(
                f"{part.file}: has {weights[name].numel()} channels for {name}, which has {parameter.shape[-1]}; "
                "the importance matrix belongs to another model"
            )
    return weights


def _from_file(context: Context, student: Any) -> dict[str, Any]:
    """An importance matrix of llama.cpp, under transformers' names."""
    import torch

    from edgeslm.models.arch import ARCHS
    from edgeslm.models.imatrix import read
    from edgeslm.pipeline.distill import student_arch

    part = context.recipe.quantize.importance
    assert part is not None and part.file is not None
    path = context.base / part.file
    means = read(path).means(ARCHS[student_arch(context)].names(student.config.to_dict()))
    if not means:
        raise ModelError(f"{path}: names no tensor of the student; the importance matrix belongs to another model")
    return {name: torch.from_numpy(mean) for name, mean in means.items()}


def _round_with_feedback(context: Context, student: Any, masters: Any, rows: Any) -> None:
    """Scales and codes of GPTQ, or of its counterpart in the measure of the loss."""
    from edgeslm.quantize.feedback import round_model
    from edgeslm.quantize.importance import moment_groups

    by_loss = context.recipe.quantize.by_loss
    on_grid = {m.name: m for m in masters.items if m.on_grid and m.value.dim() == 2}
    ids = _rows(context, rows)
    sizes = _moment_sizes(student, on_grid, by_loss)
    for group in moment_groups(sizes, moment_bytes(context)):
        moments = _moments(context, student, ids, group, by_loss, context.recipe.seed)
        weights = {name: on_grid[name].value.data for name in group}
        formats = {name: on_grid[name].format.name for name in group}
        with context.progress.task("rounding with feedback", len(group), "tensors") as bar:
            for name, rounded in round_model(weights, **moments, assigned=formats):
                on_grid[name].adopt(rounded.weight, rounded.codes, rounded.scales)
                bar.advance(1)
        del moments  # before the next are gathered


def _moment_sizes(student: Any, on_grid: Any, by_loss: bool) -> dict[str, int]:
    from edgeslm.quantize.loss_moments import moment_sizes

    return moment_sizes(student, on_grid) if by_loss else {n: 4 * m.value.shape[1] ** 2 for n, m in on_grid.items()}


def moment_bytes(context: Context) -> int:
    from edgeslm import compute

    low, high = MOMENT_BYTES
    return min(high, max(low, int(MOMENT_SHARE * (compute.memory_bytes(context.compute.device) or 0))))


def _moments(context: Context, student: Any, ids: Any, names: list[str], by_loss: bool, seed: int) -> dict[str, Any]:
    """What `round_model` rounds by."""
    from edgeslm.quantize.curvature import LOSS_DAMPENING
    from edgeslm.quantize.importance import input_statistics
    from edgeslm.quantize.loss_moments import loss_moments

    with context.progress.task("what layers see of the text", ids.numel(), "tokens") as bar:
        if not by_loss:
            return {"moments": input_statistics(student, ids, moments=names, on_progress=bar.reach).moments}
        rows = min(2, context.recipe.distill.train.micro_rows)
        found = loss_moments(student, ids, names, seed=seed, rows=rows, on_progress=bar.reach)
    return {"moments": found.inputs, "outputs": found.outputs, "dampening": LOSS_DAMPENING}


def left_by_feedback(context: Context, student: Any, ids: Any, names: Any, seed: int) -> dict[str, float]:
    """{matrix: share of its rounding's loss that feedback leaves, as far as inputs and outputs tell}, for a plan."""
    from edgeslm.quantize.curvature import DAMPENING_ACROSS, LOSS_DAMPENING, curvature, left_over
    from edgeslm.quantize.feedback import rows_together
    from edgeslm.quantize.importance import moment_groups
    from edgeslm.quantize.loss_moments import moment_sizes

    left = dict.fromkeys(names, 1.0)
    for group in moment_groups(moment_sizes(student, names), moment_bytes(context)):
        moments = _moments(context, student, ids, group, True, seed)
        for name, moment in moments["moments"].items():
            left[name] *= left_over(curvature(moment, LOSS_DAMPENING))
        for name, moment in moments["outputs"].items():
            left[name] *= left_over(curvature(moment, DAMPENING_ACROSS), rows_together(len(moment), moment.device))
        del moments  # before the next are gathered
    return left


def on_teachers_grid(context: Context, dtype: Any) -> Any:
    """The teacher with its matrices on `teacher.format`, by the nearest levels: what a rounded teacher teaches."""
    from edgeslm.formats import FORMATS
    from edgeslm.quantize.feedback import round_plainly
    from edgeslm.quantize.plan import Plan

    model = context.load_teacher(dtype).model
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assigned = Plan.uniform(context.recipe.teacher.format or "f32").assign(shapes)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.copy_(round_plainly(parameter.data.float(), FORMATS[assigned[name]]).weight)
    return model


def check_grid(context: Context, config: dict[str, Any]) -> None:
    """Before any compute: a format that the teacher (of this `config`) cannot have, an importance matrix that is not
    there. Raises RecipeError, FormatError or ModelError."""
    from edgeslm.formats import FORMATS
    from edgeslm.models.shapes import parameter_shapes
    from edgeslm.quantize.plan import Plan

    chosen, part = context.recipe.teacher.format, context.recipe.quantize.importance
    if chosen is not None:
        if chosen not in FORMATS:
            raise RecipeError([f"teacher.format: unknown format '{chosen}'; known: {', '.join(FORMATS)}"])
        Plan.uniform(chosen).assign(parameter_shapes(dict(config)))
    if part is not None and part.file is not None:
        from edgeslm.models.imatrix import read

        read(context.base / part.file)


def grid_slice(context: Context) -> Any:
    """What the grid depends on beside the recipe: the content of an importance matrix file."""
    part = context.recipe.quantize.importance
    return file_sha256(context.base / part.file) if part is not None and part.file is not None else None
