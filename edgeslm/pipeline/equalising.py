"""The stage that moves scales of channels before anything is planned or rounded (`quantize.equalise`).

Every later stage makes the student anew and moves the same scales again: a few numbers a layer are kept, no model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeslm.errors import ModelError
from edgeslm.pipeline.prepare import made_how, made_student
from edgeslm.pipeline.stage import Context, Stage, computing, write_json

SEED = 0  # scales are a property of student and text, as a plan is: runs of other seeds share them
TOKENS = 4096  # of training text: the mean of one channel needs few
FILE = "scales.safetensors"
MOST_KL = 1e-3  # between the student and itself, in float32: more is no rounding of sums, but a site that is none


def _slice(context: Context) -> Any:
    return TOKENS, computing(context), made_how(context)


def _equalise(context: Context, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from edgeslm.data.rows import Rows
    from edgeslm.quantize import equalise
    from edgeslm.quantize.loss_moments import felt_channels

    student = made_student(context)
    rows = Rows.load(context.folders["data"] / "rows.safetensors")
    whole = rows.ids[rows.whole()] if rows.whole().any() else rows.ids
    drawn = torch.randperm(len(whole), generator=torch.Generator().manual_seed(SEED))
    ids = whole[drawn[: max(1, TOKENS // whole.shape[1])]].long().to(context.compute.device)
    sites = equalise.sites(student)
    names = {f"{name}.weight" for site in sites for name in site.readers}
    with context.progress.task("what the loss feels of channels", ids.numel(), "tokens") as bar:
        felt = felt_channels(student, ids, names, seed=SEED, on_progress=bar.reach)
    scales = equalise.scales(student, sites, felt)
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
    least, most = min(float(s.min()) for s in scales.values()), max(float(s.max()) for s in scales.values())
    write_json(
        folder / "equalise.json", {"sites": len(sites), "tokens": ids.numel(), "scales": [least, most], "kl": kl}
    )
    context.progress.say(
        f"  equalise: channels at {len(sites)} places scaled by {least:.2f} to {most:.2f}; in float the student is "
        f"{kl:.1e} nats a token from what it was"
    )


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
