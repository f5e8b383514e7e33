"""The stage that moves scales of channels before anything is planned or rounded (`quantize.equalise`).

Every later stage makes the student anew and moves the same scales again: a few numbers a layer are kept, no model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeslm.errors import ModelError
from edgeslm.pipeline.grid import importance_rows
from edgeslm.pipeline.moments import groups, halves
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

    from edgeslm.data.rows import Rows
    from edgeslm.quantize import equalise

    student = made_student(context)
    ids = importance_rows(context, Rows.load(context.folders["data"] / "rows.safetensors"), SEED)
    sites = equalise.sites(student)
    found = _choose(context, student, sites, ids)
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


def _choose(context: Context, student: Any, sites: list[Any], ids: Any) -> dict[str, Any]:
    """{source: what was chosen}; moments of one half of the rows round, those of the other half judge."""
    from edgeslm.quantize.equalise import choose
    from edgeslm.quantize.loss_moments import loss_moments

    known, unseen = halves(ids)
    computed = cast(made_student(context), context.compute.dtype)  # gradients are those of training
    at, found = {site.source: site for site in sites}, {}
    sizes = {site.source: 2 * 4 * len(site.readers) * (site.channels * site.copies) ** 2 for site in sites}
    for group in groups(context, sizes):
        names = [f"{reader}.weight" for source in group for reader in at[source].readers]
        sides = []
        for seed, part in enumerate((known, unseen), SEED):
            with context.progress.task("what layers see of the text", part.numel(), "tokens") as bar:
                sides.append(loss_moments(computed, part, names, outputs=False, seed=seed, on_progress=bar.reach))
        with context.progress.task("scales of channels", len(group), "places") as bar:
            for source in group:
                found[source] = choose(student, at[source], *sides)
                bar.advance(1)
        del sides  # before the next are gathered
    return found


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
