"""The recipe's own training, begun in earnest and ended after a few steps: nothing of it is built anew here, so that
what is timed is what will run. Judging, checkpoints and scales that are fitted now and then lie outside the figures."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeslm.errors import RecipeError
from edgeslm.progress import Progress, Task
from edgeslm.training_cost.grid import PARALLEL

MIXED = ("blockwise",)  # schemes whose steps are of several kinds: only a whole, shortened, training shows them all
TRANSFORMERS = {"flash": "flash_attention_2"}
BAR = "distil"  # the name under which edgeslm.schemes.loop tells of each step


class _Enough(Exception):
    """The steps that were wanted are done."""


class Short(Progress):
    """Says nothing, and ends a training after `limit` steps, on every rank alike; `first` is called after the first."""

    def __init__(self, limit: int, first: Callable[[], None]):
        super().__init__(quiet=True)
        self.limit, self.first = limit, first

    @contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[Task]:
        with super().task(name, total, unit) as bar:
            yield _Counted(self) if name == BAR else bar


class _Counted(Task):
    def __init__(self, short: Short):
        self.short, self.done, self.steps = short, 0.0, 0

    def advance(self, amount: float, note: str = "") -> None:
        self.steps += 1
        if self.steps == 1:
            self.short.first()
        if self.steps >= self.short.limit:
            raise _Enough


def refuse(recipe: Any, least: int) -> None:
    """Raises RecipeError for what a few steps cannot show; `least`: how many there must be."""
    if getattr(recipe, "family", "causal") == "encoder":
        raise RecipeError(["family: encoder: its training is not planned here; plan-training is for language models"])
    if recipe.distill.scheme.kind == "codistill":
        raise RecipeError(
            ["distill.scheme: what a codistillation costs depends on exchanges that a few steps do not show; "
             "give distill.scheme={kind: offline} to measure a copy that learns alone"]
        )  # fmt: skip
    if recipe.distill.train.steps < least:
        told = f"distill.train.steps: {recipe.distill.train.steps} are too few to plan for"
        raise RecipeError([f"{told}, since {least} are run to measure each way to train; run the recipe as it is"])


def steps_are_mixed(recipe: Any) -> bool:
    return recipe.distill.scheme.kind in MIXED or recipe.distill.on_policy is not None


def begun(recipe: dict[str, Any], point: dict[str, Any], limit: int) -> Any:
    """The recipe (as data) as `point` runs it, on its grid from the first step on where it ever is."""
    from edgeslm.recipe import Recipe

    train, quantize = recipe["distill"]["train"], recipe["quantize"]
    train |= {key: point[key] for key in ("micro_rows", "compile")} | {"checkpoint_every": limit + 1, "keep": 0}
    flash = TRANSFORMERS.get(point["attention"])
    if flash is None:
        train["attention"] = point["attention"]
    kind = point["parallel"] if point["ranks"] > 1 else PARALLEL[0]
    if train["parallel"]["kind"] != kind:
        train["parallel"] = {"kind": kind}
    if recipe["distill"]["scheme"]["kind"] in MIXED:
        train["steps"] = limit
    if quantize["start"] < 1:
        quantize["start"] = 0.0
    made = Recipe.model_validate(recipe)
    if flash is None:
        return made
    changed = made.distill.train.model_copy(update={"attention": flash})  # which recipes have no word for
    return made.model_copy(update={"distill": made.distill.model_copy(update={"train": changed})})


def measure(job: dict[str, Any]) -> dict[str, Any] | None:
    """Seconds of each step and the peak of each rank since the first, on the first rank; None on the others."""
    import gc

    from edgeslm import compute, parallel
    from edgeslm.pipeline.distill import DISTILL
    from edgeslm.pipeline.stage import Context
    from edgeslm.training_cost.kernel import attention_kernel

    limit, scratch, point = job["warmups"] + job["steps"], Path(job["scratch"]), job["point"]
    recipe = begun(job["recipe"], point, limit)

    def from_here() -> None:
        gc.collect()
        compute.reset_peak_memory(chosen)  # reading the models and judging the start are no part of a step

    folders = {name: Path(folder) for name, folder in job["folders"].items()}
    context = Context(recipe, Path(job["base"]), Path(job["root"]), Short(limit, from_here), folders)
    chosen = context.compute
    with contextlib.suppress(_Enough):
        DISTILL.run(context, scratch)
    ranks = parallel.join()
    peaks = ranks.gathered(compute.peak_memory_bytes(chosen))
    if not ranks.first:
        return None
    lines = [json.loads(line) for line in (scratch / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        "warmup_seconds": [line["seconds"] for line in lines[: job["warmups"]]],
        "seconds": [line["seconds"] for line in lines[job["warmups"] :]],
        "tokens_per_step": recipe.batch_rows * recipe.data.sequence,
        "mixed": steps_are_mixed(recipe),
        "loss": lines[-1]["loss"],
        "peak_memory_bytes": peaks,
        "dtype": str(chosen.dtype).removeprefix("torch."),
        "threads": chosen.threads,
        "kernel": attention_kernel(job["student"], point["attention"], recipe.data.sequence, chosen),
    }
