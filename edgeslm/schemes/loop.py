"""What every scheme's loop shares: the schedule, the log, checkpoints and the points where the student is judged."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeslm.artifact import write_whole
from edgeslm.data.batch import Batch
from edgeslm.data.on_policy import Distance, OnPolicy
from edgeslm.data.rows import Rows
from edgeslm.parallel import ALONE, Ranks
from edgeslm.progress import Progress
from edgeslm.schemes import checkpoint
from edgeslm.schemes.exchange import Exchange
from edgeslm.schemes.objective import Objective
from edgeslm.schemes.schedule import SCHEDULES
from edgeslm.schemes.step import Step, StepLog
from edgeslm.teachers.base import Teacher


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
    keep: Mapping[int, Callable[[], None]] = field(default_factory=dict)  # after which updates to keep the student
    load: Callable[[str], Teacher] | None = None  # another teacher by its spec, for schemes that change teachers
    on_policy: OnPolicy | None = None  # the student writes some of the batches itself
    fields: Mapping[str, Tensor] = field(default_factory=dict)  # what else a row holds, [rows, ...] each
    exchange: Exchange | None = None  # where the groups of a codistillation meet
    ranks: Ranks = ALONE  # the processes that train together: the first one writes, judges and says
    cut: bool = False  # each of them holds a part of the student only: all must call what reads the whole of it
    name: str = "distil"  # what the progress of this training is called

    def batch(self, index: int) -> Batch:
        """The rows of step `index`: a function of the order alone, so a resumed run reads what a whole one reads."""
        chosen = torch.as_tensor(self.order[index * self.batch_rows : (index + 1) * self.batch_rows])
        ids = self.rows.ids[chosen].long().to(self.device)
        fields = {name: value[chosen].to(self.device) for name, value in self.fields.items()}
        return Batch(ids, self.rows.mask[chosen].float().to(self.device), chosen, fields)

    def read_or_written(
        self, index: int, step: Step, distance: Distance | None = None
    ) -> tuple[Batch, Objective, dict[str, Any]]:
        """The batch of step `index`, or what the student writes in its place; the objective that it serves, a student's
        own text being no truth; and what the log says of it."""
        batch = self.batch(index)
        notes: dict[str, Any] = {}
        if self.on_policy is not None:
            write = self.ranks.first or self.cut  # where all hold a part, all write, the same
            made = self.on_policy(index, batch, step.model, distance) if write else None
            batch, notes = self._of_first(made)
        return batch, step.objective.taught if batch.rows is None else step.objective, notes

    def _of_first(self, made: tuple[Batch, dict[str, Any]] | None) -> tuple[Batch, dict[str, Any]]:
        """What the first rank wrote, on all of them: text that others would write is equal up to their last bits."""
        if self.ranks.size > 1:
            made = self.ranks.told(None if made is None else (made[0].to(torch.device("cpu")), made[1]))
        assert made is not None
        return made[0].to(self.device), made[1]


@dataclass
class Turn:
    """One update: how the step is to be called. The scheme puts the step's log into `log`, and what else belongs into
    the line of the log into `notes`."""

    index: int
    lr: float
    grid: bool
    log: StepLog | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def how(self) -> dict[str, Any]:
        return {"lr": self.lr, "grid": self.grid, "index": self.index}


def turns(loop: Loop, steps: Sequence[Step], kept: dict[str, Tensor] | None = None) -> Iterator[Turn]:
    """Updates from the last checkpoint, if there is one, to the end. `kept`: what else the future depends on, put back
    in place. Appends to log.jsonl; the stage that calls removes the last checkpoint."""
    train, kept, first, ranks = loop.train, kept or {}, loop.ranks.first, loop.ranks
    load, save = _store(loop)
    done = load(steps, kept, loop.folder)
    log = loop.folder / "log.jsonl" if first else Path(os.devnull)
    if first:
        cut_log(log, done)
    for step in steps:
        step.masters.set_weights(grid=on_grid(loop, done - 1), refit=False)
    warmup, decay = round(train.warmup * train.steps), round(train.decay * train.steps)
    marks = {round(train.steps * i / 4) for i in range(5)}
    if done == 0 and (first or loop.cut):
        loop.measure(0)
    tokens = loop.batch_rows * loop.rows.ids.shape[1]
    left = (train.steps - done) * tokens
    with loop.progress.task(loop.name, left, "tokens") as bar, log.open("a", encoding="utf-8") as out:
        for index in range(done, train.steps):
            lr = train.lr * SCHEDULES[train.schedule](index, train.steps, warmup, decay)
            turn = Turn(index, lr, on_grid(loop, index))
            start = time.perf_counter()
            yield turn
            line = _line(turn, tokens, time.perf_counter() - start)
            out.write(json.dumps(line | ({"ranks": ranks.size} if ranks.size > 1 else {})) + "\n")
            out.flush()
            bar.advance(tokens, f"loss {turn.log.loss:.4f}" if turn.log else "")
            if not (first or loop.cut):
                continue
            if index + 1 in marks:  # before the checkpoint: a restart from it must not miss the point
                loop.measure(index + 1)
            if index + 1 in loop.keep:
                loop.keep[index + 1]()
            if (index + 1) % train.checkpoint_every == 0 or index + 1 == train.steps:
                save(steps, kept, index + 1, loop.folder)


def _store(loop: Loop) -> tuple[Callable[..., int], Callable[..., None]]:
    """What reads and writes checkpoints: by one process for all, or by each of those that hold a part."""
    if not loop.cut:
        return checkpoint.load, checkpoint.save
    from edgeslm.schemes import checkpoint_shards

    return partial(checkpoint_shards.load, ranks=loop.ranks), partial(checkpoint_shards.save, ranks=loop.ranks)


def _line(turn: Turn, tokens: int, seconds: float) -> dict[str, Any]:
    assert turn.log is not None
    return {
        "step": turn.index + 1,
        "loss": turn.log.loss,
        "lr": turn.lr,
        "grad_norm": turn.log.grad_norm,
        "tokens": (turn.index + 1) * tokens,
        "seconds": seconds,
        "tokens_per_s": tokens / seconds,
        "grid": turn.grid,
        "terms": turn.log.terms,
        **turn.notes,
    }


def on_grid(loop: Loop, index: int) -> bool:
    """Whether the weights after update `index` lie on the grid (-1: before the first)."""
    return index + 1 >= loop.grid_start and loop.grid_start < max(1, loop.train.steps)


def cut_log(log: Path, done: int) -> None:
    """Lines past the checkpoint belong to work that was lost and is done again."""
    if not log.exists():
        return
    kept = [line for line in log.read_text(encoding="utf-8").splitlines() if _step_of(line) <= done]
    write_whole(log, "".join(line + "\n" for line in kept).encode())


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):  # half a line, written while being killed
        return float("inf")
