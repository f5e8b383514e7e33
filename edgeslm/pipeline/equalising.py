"""The stage that moves scales of channels before anything is planned or rounded (`quantize.equalise`).

Every later stage makes the student anew and moves the same scales again: a few numbers a layer are kept, no model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeslm.artifact import file_sha256
from edgeslm.errors import ModelError
from edgeslm.pipeline.grid import importance_rows
from edgeslm.pipeline.moments import in_halves
from edgeslm.pipeline.prepare import cast, made_how, made_student
from edgeslm.pipeline.stage import Context, Stage, computing, write_json

SEED = 0  # scales are a property of student and text, as a plan is: runs of other seeds share them
FILE = "scales.safetensors"
MOST_KL = 1e-3  # between the student and itself, in float32: more is no rounding of sums, but a site that is none


def _slice(context: Context) -> Any:
    part = context.recipe.quantize.importance
    return part and part.model_dump(mode="json"), computing(context), made_how(context)


def _equalise(context: Context, folder: Path) -> None:
    from safetensors.torch import save_file

    from edgeslm.compute import return_freed_memory
    from edgeslm.data.rows import Rows
    from edgeslm.quantize import equalise

    computed = cast(made_student(context), context.compute.dtype)  # gradients are those of training
    return_freed_memory()  # the float32 copy that it came in
    student = made_student(context)
    ids = importance_rows(context, Rows.load(context.folders["data"] / "rows.safetensors"), SEED)
    sites = equalise.sites(student)
    found = _choose(context, student, computed, sites, ids)
    del computed
    scales = {source: chosen.scales for source, chosen in found.items()}
    before = _log_probabilities(student, ids[:1])
    equalise.move(student, sites, scales, _offset(student))
    after = _log_probabilities(student, ids[:1])
    kl = float((before.exp() * (before - after)).sum(-1).mean())
    if not abs(kl) < MOST_KL:
        raise ModelError(
            f"quantize.equalise: the student is {kl:.3g} nats a token from itself once scales are moved; set it to "
            "false, and report this model"
        )
    save_file({name: s.cpu().contiguous() for name, s in scales.items()}, folder / FILE)
    there = {source: {"strength": c.strength, "left": c.left} for source, c in found.items()}
    write_json(folder / "equalise.json", {"tokens": ids.numel(), "kl": kl, "sites": there})
    used = [c for c in found.values() if c.strength]
    spread = [float(end) for c in used for end in c.scales.aminmax()] or [1.0]
    context.progress.say(
        f"  equalise: {len(used)} of {len(sites)} places gain by other scales, {min(spread):.2f} to {max(spread):.2f}; "
        f"in float the student is {kl:.1e} nats a token from what it was"
    )


def _choose(context: Context, student: Any, computed: Any, sites: list[Any], ids: Any) -> dict[str, Any]:
    """{source: what was chosen}, by moments of `computed` and the weights of `student`."""
    from edgeslm.quantize.equalise import choose

    at, found = {site.source: site for site in sites}, {}
    readers = {source: [f"{name}.weight" for name in site.readers] for source, site in at.items()}
    sizes = {source: 4 * len(readers[source]) * (site.channels * site.copies) ** 2 for source, site in at.items()}
    for group, known, unseen in in_halves(context, computed, ids, readers, sizes, SEED, outputs=False):
        with context.progress.task("scales of channels", len(group), "places") as bar:
            for source in group:
                found[source] = choose(student, at[source], known, unseen)
                bar.advance(1)
        del known, unseen  # before the next are gathered
    return found


def scales_digest(context: Context) -> list[str]:
    """What later stages know the scales by; nothing where none were moved."""
    folder = context.folders.get("equalise")
    return [file_sha256(folder / FILE)] if folder else []


def moved(context: Context, student: Any) -> Any:
    """The student with its channels scaled, where the stage has been run; else as it is."""
    folder = context.folders.get("equalise")
    if folder is None:
        return student
    from safetensors.torch import load_file

    from edgeslm.quantize import equalise

    equalise.move(student, equalise.sites(student), load_file(folder / FILE), _offset(student))
    return student


def _offset(student: Any) -> Any:
    """What this family's norms add to their weights."""
    from edgeslm.models.arch import ARCHS

    return ARCHS[student.config.model_type].offset


def _log_probabilities(student: Any, ids: Any) -> Any:
    """[1, T, V]"""
    import torch

    with torch.no_grad():
        return torch.log_softmax(student(input_ids=ids, use_cache=False).logits.float(), -1)


EQUALISE = Stage("equalise", ("teacher", "data"), _slice, _equalise)
