"""Puts a student on its plan before training: importance of input channels, first scales, codes that were found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeslm.artifact import file_sha256
from edgeslm.errors import ModelError, RecipeError
from edgeslm.pipeline.groups import starts_apart
from edgeslm.pipeline.stage import Context


def start_on_grid(context: Context, student: Any, masters: Any, rows: Any, group: int, resumed: bool) -> None:
    """`rows`: the training rows. A training that goes on takes values and scales from its checkpoint, and feedback has
    found its own scales; importance is then only needed where scales will be fitted again, or where it also says which
    code is nearest (codebooks)."""
    part = context.recipe.quantize
    asked = not resumed or any(m.on_grid and m.format.per_code > 1 for m in masters.items)
    if part.importance is not None and ((asked and not part.feeds_back) or part.fits_again):
        _weigh(context, student, masters, rows)
    if part.feeds_back and not resumed:
        _adopt(masters, rounded(context, context.folders["round"], group))


def rounded(context: Context, folder: Path, group: int) -> Path:
    """Where the rounding stage of this `folder` keeps the codes that the group begins with: copies share them unless
    they start apart."""
    return folder / (f"rounded-{group}" if group and starts_apart(context.recipe) else "rounded")


def codes_digest(context: Context) -> list[str]:
    """Of every start that the rounding stage has kept; nothing where it was not run."""
    folder = context.folders.get("round")
    return [file_sha256(path) for path in sorted(folder.glob("rounded*/frozen.safetensors"))] if folder else []


def _adopt(masters: Any, folder: Path) -> None:
    from edgeslm.quantize.frozen import Frozen

    tensors = Frozen.load(folder).tensors
    for master in masters.items:
        if master.on_grid:
            tensor, there = tensors[master.name], master.value.device
            scales = {key: value.to(there) for key, value in tensor.scales.items()}
            master.adopt(tensor.decode().to(there), tensor.codes.to(there), scales)


def importance_rows(context: Context, rows: Any, seed: int) -> Any:
    """[R, T] of rows that are text throughout, chosen by the seed."""
    import torch

    part = context.recipe.quantize.importance
    tokens = part.tokens if part is not None else 16384
    count = max(1, tokens // rows.ids.shape[1])
    generator = torch.Generator().manual_seed(seed)
    whole = rows.ids[rows.whole()] if rows.whole().any() else rows.ids  # padding is no input that counts
    return whole[torch.randperm(len(whole), generator=generator)[:count]].long().to(context.compute.device)


def _weigh(context: Context, student: Any, masters: Any, rows: Any) -> None:
    weights = channel_weights(context, student, rows, context.recipe.seed)
    for master in masters.items:
        if master.on_grid and master.name in weights:
            master.importance = weights[master.name].to(master.value.device)


def channel_weights(context: Context, student: Any, rows: Any, seed: int) -> dict[str, Any]:
    """{weight: mean square of its inputs [K]} by the recipe's `quantize.importance`, empty when it asks for none.
    Raises ModelError when a file's matrix belongs to another model."""
    part = context.recipe.quantize.importance
    if part is None:
        return {}
    if part.file is not None:
        weights = _from_file(context, student)
    else:
        from edgeslm.quantize.importance import input_statistics

        ids = importance_rows(context, rows, seed)
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
    from edgeslm.formats.names import unknown_format
    from edgeslm.models.shapes import parameter_shapes
    from edgeslm.quantize.plan import Plan

    chosen, part = context.recipe.teacher.format, context.recipe.quantize.importance
    if chosen is not None:
        if chosen not in FORMATS:
            raise RecipeError([f"teacher.format: {unknown_format(chosen)}"])
        Plan.uniform(chosen).assign(parameter_shapes(dict(config)))
    if part is not None and part.file is not None:
        from edgeslm.models.imatrix import read

        read(context.base / part.file)


def grid_slice(context: Context) -> Any:
    """What the grid depends on beside the recipe: the content of an importance matrix file."""
    part = context.recipe.quantize.importance
    return file_sha256(context.base / part.file) if part is not None and part.file is not None else None
