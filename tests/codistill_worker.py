"""One group of a codistillation in a process of its own, for the proof that is killed at random:
FOLDER (its run), SHARED (where groups meet), GROUP, STEPS, SECONDS (to wait in each step)."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import tiny
import torch
from test_codistill import part, rows
from test_scheme_kinds import ROWS, TEXT, T, student

from edgeslm.data.order import order, shard
from edgeslm.progress import Progress
from edgeslm.recipe_distill import TrainPart
from edgeslm.schemes import codistill
from edgeslm.schemes.exchange import Exchange
from edgeslm.schemes.loop import Loop


def main(folder: Path, shared: Path, group: int, steps: int, pause_s: float) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    read = shard(rows(), group, 2)
    met = Exchange(shared, "proof", (group,), [order(read, [1.0], steps * ROWS, 0)])
    train = TrainPart(steps=steps, batch_tokens=ROWS * T, lr=2e-3, warmup=0.05, decay=0.4, checkpoint_every=7)
    loop = Loop(
        rows(), met.orders[0], ROWS, train, steps, folder, Progress(quiet=True), torch.device("cpu"), lambda done: None,
        keep={i: lambda: time.sleep(pause_s) for i in range(1, steps + 1)}, exchange=met,
    )  # fmt: skip
    codistill.run([tiny.step_of(student(seed=2 + group), [TEXT])], None, loop, part(exchange_every=5))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
