"""Offline distillation: a teacher that does not change, a student that follows it (survey arXiv:2006.05525, 4.1)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeslm.data.rows import Rows
from edgeslm.progress import Progress
from edgeslm.schemes import checkpoint
from edgeslm.schemes.schedule import SCHEDULES
from edgeslm.schemes.step import Batch, Step
from edgeslm.teachers.base import Signals


@dataclass(frozen=True)
class Loop:
    """What a scheme's loop needs beside the step. `order` [steps * batch_rows] says which row is read when."""

    rows: Rows
    order: Any
    batch_rows: int
    train: Any  # recipe.TrainPart
    grid_start: int  # first step whose weights lie on the grid; `train.steps` for never
    folder: Path
    progress: Progress
    device: torch.device
    measure: Callable[[int], None]  # called with the number of updates done, at start, quarters and end


def run(step: Step, teacher: Callable[[Tensor], Signals] | None, loop: Loop) -> None:
    """Trains to the end, from the last checkpoint if there is one. Appends to log.jsonl; leaves no checkpoint behind
    only when the stage that calls it removes it."""
    steps, train = loop.train.steps, loop.train
    done = checkpoint.load(step, loop.folder)
    log = loop.folder / "log.jsonl"
    _cut_log(log, done)
    step.masters.set_weights(grid=_on_grid(loop, done - 1), refit=False)
    warmup, decay = round(train.warmup * steps), round(train.decay * steps)
    marks = {round(steps * i / 4) for i in range(5)}
    if done == 0:
        loop.measure(0)
    tokens = loop.batch_rows * loop.rows.ids.shape[1]
    with loop.progress.task("distil", (steps - done) * tokens, "tokens") as bar, log.open("a", encoding="utf-8") as out:
        for index in range(done, steps):
            start = time.perf_counter()
            lr = train.lr * SCHEDULES[train.schedule](index, steps, warmup, decay)
            grid = _on_grid(loop, index)
            result = step(batch_at(loop, index), teacher, lr=lr, grid=grid, index=index)
            seconds = time.perf_counter() - start
            line = {
                "step": index + 1,
                "loss": result.loss,
                "lr": lr,
                "grad_norm": result.grad_norm,
                "tokens": (index + 1) * tokens,
                "seconds": seconds,
                "tokens_per_s": tokens / seconds,
                "grid": grid,
                "terms": result.terms,
            }
            out.write(json.dumps(line) + "\n")
            out.flush()
            bar.advance(tokens, f"loss {result.loss:.4f}")
            if index + 1 in marks:  # before the checkpoint: a restart from it must not miss the point
                loop.measure(index + 1)
            if (index + 1) % train.checkpoint_every == 0 or index + 1 == steps:
                checkpoint.save(step, index + 1, loop.folder)


def batch_at(loop: Loop, index: int) -> Batch:
    """The rows of step `index`: a function of the order alone, so a resumed run reads what a whole one reads."""
    chosen = torch.as_tensor(loop.order[index * loop.batch_rows : (index + 1) * loop.batch_rows])
    ids = loop.rows.ids[chosen].long().to(loop.device)
    return Batch(ids, loop.rows.mask[chosen].float().to(loop.device))


def _on_grid(loop: Loop, index: int) -> bool:
    """Whether the weights after update `index` lie on the grid (-1: before the first)."""
    return index + 1 >= loop.grid_start and loop.grid_start < max(1, loop.train.steps)


def _cut_log(log: Path, done: int) -> None:
    """Lines past the checkpoint belong to work that was lost and is done again."""
    if not log.exists():
        return
    kept = [line for line in log.read_text(encoding="utf-8").splitlines() if _step_of(line) <= done]
    log.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):  # half a line, written while being killed
        return float("inf")
