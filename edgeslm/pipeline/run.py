"""Runs the stages of a recipe, skips what is done, and keeps run.json true at every moment."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from edgeslm import __version__, units
from edgeslm.errors import EdgeSLMError
from edgeslm.pipeline.distill import DISTILL
from edgeslm.pipeline.encoder import ENCODER_STAGES
from edgeslm.pipeline.equalising import EQUALISE
from edgeslm.pipeline.groups import own_group
from edgeslm.pipeline.planning import PLAN
from edgeslm.pipeline.prepare import DATA, STUDENT, TEACHER
from edgeslm.pipeline.ranks import first, follow, leading
from edgeslm.pipeline.record import RECORD
from edgeslm.pipeline.rounding import ROUND
from edgeslm.pipeline.sft import SFT
from edgeslm.pipeline.ship import BENCHMARK, EVALUATE, EXPORT, run_problems
from edgeslm.pipeline.stage import Context, Stage, place, read_json, write_json
from edgeslm.progress import Progress
from edgeslm.recipe import Recipe
from edgeslm.recipe.encoder import EncoderRecipe

STAGES = (TEACHER, DATA, STUDENT, SFT, EQUALISE, PLAN, ROUND, RECORD, DISTILL, EXPORT, EVALUATE, BENCHMARK)


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """Those that a recipe needs: only an `sft` part fine-tunes, only `equalise` moves scales, only a size to meet needs
    planning, only feedback a rounding, only recorded targets a recording."""
    if isinstance(recipe, EncoderRecipe):
        return ENCODER_STAGES
    left_out = {
        SFT.name: recipe.sft is None,
        EQUALISE.name: not recipe.quantize.equalise,
        PLAN.name: recipe.quantize.target is None,
        ROUND.name: not recipe.quantize.feeds_back,
        RECORD.name: recipe.distill.targets.kind == "live",
    }
    return tuple(s for s in STAGES if not left_out.get(s.name, False))


def up_to(recipe: Any, until: str | None) -> list[str]:
    """Names of the stages that will be run."""
    names = [stage.name for stage in stages(recipe)]
    return names[: names.index(until) + 1] if until in names else names


def run(
    recipe: Recipe,
    base: Path,
    runs: Path,
    progress: Progress,
    until: str | None = None,
) -> Path:
    """Runs everything up to stage `until` (all, and the report, by default); returns the run folder.

    Raises EdgeSLMError for what cannot go on; finished stages stay, and the same command goes on from there.
    """
    from edgeslm.pipeline.check import check

    recipe = own_group(recipe)
    context = Context(recipe, base, runs / recipe.name, progress)
    if not first(recipe):
        context.progress = Progress(quiet=True)
        return follow(context, stages(recipe), until)
    check(context, until).raise_if_any()
    try:
        with _alone(context.root):
            return _run(context, until)
    except (OSError, SafetensorError) as error:
        what = getattr(error, "strerror", None) or error
        raise EdgeSLMError(
            f"{getattr(error, 'filename', None) or context.root}: {what}; "
            "what was finished is kept, mend this and run again"
        ) from error


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One run per run folder at a time: two would take each other's stage folders apart."""
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / ".lock", timeout=0)
    try:
        with lock:
            yield
    except Timeout:
        raise EdgeSLMError(f"{root}: another run is working here; wait for it, or give --runs another folder") from None


def _run(context: Context, until: str | None) -> Path:
    from edgeslm.report import render

    recipe, progress = context.recipe, context.progress
    (context.root / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    record = _record(context)
    for stage in stages(recipe):
        with leading(context, stage):
            seconds, resumed = _run_stage(context, stage)
        record["stages"][stage.name] = context.folders[stage.name].name
        record["seconds"][stage.name] = seconds
        record["resumed"][stage.name] = resumed
        record["problems"] = run_problems(context.folders)
        write_json(context.root / "run.json", record)
        if stage.name == until:
            return context.root
    files = render(context.root)
    progress.say(f"report: {files.html}")
    return context.root


def _record(context: Context) -> dict[str, Any]:
    return {
        "schema": 1,
        "name": context.recipe.name,
        "family": getattr(context.recipe, "family", "causal"),
        "recipe_hash": context.recipe.hash,
        "training_hash": context.recipe.training_hash,
        "edgeslm": __version__,
        "torch": version("torch"),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "stages": {},
        "seconds": {},
        "resumed": {},
        "problems": [],
    }


def _run_stage(context: Context, stage: Stage) -> tuple[float, bool]:
    """(seconds the stage took when it was really run, whether an earlier run had started it)."""
    folder = place(stage, context)
    context.folders[stage.name] = folder
    done = folder / "done.json"
    if done.exists():
        before = read_json(done)
        if not (folder / "problems.json").exists():
            context.progress.say(f"{stage.name}: done before, in {folder.name}")
            return float(before["seconds"]), bool(before["resumed"])
        context.progress.say(f"{stage.name}: had problems before, tried again")
        done.unlink()  # first: stopped while it is cleared away, the folder must not look finished
        shutil.rmtree(folder)
    resumed = folder.exists() and stage.resumes
    if folder.exists() and not resumed:
        shutil.rmtree(folder)
    context.progress.say(f"{stage.name}: {'goes on in' if resumed else 'starts in'} {folder.name}")
    start = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    stage.run(context, folder)
    seconds = time.perf_counter() - start
    write_json(done, {"stage": stage.name, "seconds": seconds, "resumed": resumed})
    for spent in folder.glob("checkpoint.safetensors*"):
        shutil.rmtree(spent) if spent.is_dir() else spent.unlink()
    context.progress.say(f"{stage.name}: took {units.seconds(seconds)}")
    return seconds, resumed
