"""Checkpoints of students that ranks share: torch.distributed.checkpoint, in which every rank writes what it holds.

    checkpoint.safetensors.at-<updates done>/shard-<rank, from 1>-....safetensors

What is cut by rows (masters, moments) is saved as such; scales of a rank's rows, weights of losses and the random state
stand under the rank that had them, so a checkpoint is read by as many ranks as wrote it. (Another number of processes
is another training, with a folder of its own: sums of other parts have other last bits.) The files are safetensors,
where torch's default writer would pickle. A folder has its name only when it is whole, and the one before stands until
then.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from edgeslm.parallel.ranks import Ranks
from edgeslm.schemes.checkpoint import NAME, SHARDS, restore, state, under
from edgeslm.schemes.step import Step

ROWS = "rows|"  # begins the name of a tensor that is cut; others begin with their rank
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, cut as the weights are


def save(steps: Sequence[Step], kept: dict[str, Tensor], done: int, folder: Path, ranks: Ranks) -> None:
    """`done` updates are made. All ranks call it, and see one file system."""
    part = folder / f"{NAME}.part"
    if ranks.first:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
    ranks.wait()
    named = {_name(k, v, ranks.rank): v if v.dim() else v.reshape(1) for k, v in state(steps, kept).items()}
    dcp.save(named, storage_writer=HuggingFaceStorageWriter(str(part), save_distributed=True))
    for path in part.glob(f"shard-{ranks.rank + 1:05}-*"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    ranks.wait()
    if ranks.first:
        before = _all(folder)
        os.replace(part, folder / f"{NAME}{SHARDS}{done}")
        for number in before:
            if number != done:
                shutil.rmtree(folder / f"{NAME}{SHARDS}{number}")


def load(steps: Sequence[Step], kept: dict[str, Tensor], folder: Path, ranks: Ranks) -> int:
    """Puts a checkpoint back; returns the number of updates done, 0 when there is none."""
    done: int = ranks.told(max(_all(folder), default=0))
    if not done:
        return 0
    reader = HuggingFaceStorageReader(str(folder / f"{NAME}{SHARDS}{done}"))
    like, own, number = _cut(steps, kept), f"{ranks.rank}|", f"{ranks.rank} number|"
    flat: dict[str, Tensor] = {}
    for name, there in reader.read_metadata().state_dict_metadata.items():
        if name.startswith(ROWS):
            flat[name] = torch.zeros_like(like[name.removeprefix(ROWS)])
        elif name.startswith((own, number)):
            assert isinstance(there, TensorStorageMetadata)
            flat[name] = torch.zeros(there.size, dtype=there.properties.dtype)
    dcp.load(flat, storage_reader=reader)
    flat = under(flat, ROWS) | under(flat, own) | {key: v.reshape(()) for key, v in under(flat, number).items()}
    restore(steps, kept, flat)
    return done


def _all(folder: Path) -> list[int]:
    """After how many updates there are checkpoints."""
    return [int(path.name.rpartition("-")[2]) for path in folder.glob(f"{NAME}{SHARDS}*")]


def _name(key: str, value: Tensor, rank: int) -> str:
    if isinstance(value, DTensor):
        return f"{ROWS}{key}"
    return f"{rank}|{key}" if value.dim() else f"{rank} number|{key}"


def _cut(steps: Sequence[Step], kept: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is cut by rows, or is cut like it, by the names that it has in a checkpoint."""
    found = {f"kept|{name}": value for name, value in kept.items()}
    for index, step in enumerate(steps):
        found |= {f"{index}|master|{m.name}": m.value.data for m in step.masters.items}
        found |= {f"{index}|optimiser|{i}|{k}": p.data for i, p in enumerate(step.parameters) for k in MOMENTS}
    return found
