"""The processes that torchrun started, and what they tell each other. NCCL between GPUs, gloo between CPUs.

A step reads the same global batch everywhere and each rank computes its share of the rows. Losses are divided by counts
of the *whole* batch, so what ranks have only has to be summed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from edgeslm.data.batch import Batch

PATIENCE = timedelta(days=2)  # while the first rank writes text or judges alone, the others wait


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one student together."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this one writes what all have computed."""
        return self.rank == 0

    def share(self, batch: Batch) -> Batch:
        """This rank's rows: consecutive ones, their numbers differing by one at most."""
        rows = len(batch)
        return batch.part(slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size))

    def passes(self, batch: Batch, most: int) -> list[Batch]:
        """This rank's rows in passes of `most` rows. Every rank makes as many, for engines send messages in each: where
        that would leave a rank without rows in its last pass, a pass holds one row more."""
        own = self.share(batch)
        if self.size == 1:
            return [own.part(slice(at, at + most)) for at in range(0, len(own), most)]
        fewest, largest = len(batch) // self.size, -(-len(batch) // self.size)
        count = min(-(-largest // most), fewest)
        return [own.part(slice(len(own) * i // count, len(own) * (i + 1) // count)) for i in range(count)]

    def add_up(self, gradients: Iterable[Tensor]) -> None:
        """Sums tensors of one type over all ranks, in place, in one message."""
        found = list(gradients)
        if self.size == 1 or not found:
            return
        flat = torch.cat([g.reshape(-1) for g in found])
        dist.all_reduce(flat)
        for gradient, whole in zip(found, flat.split([g.numel() for g in found]), strict=True):
            gradient.copy_(whole.view_as(gradient))

    def told(self, value: Any) -> Any:
        """What the first rank holds, on all of them."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, value: Any) -> list[Any]:
        """What each rank holds, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


ALONE = Ranks()


def size() -> int:
    """How many processes torchrun said there are, without joining them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@cache
def join() -> Ranks:
    """Meets the other processes, once; alone where torchrun did not start this one."""
    if size() == 1:
        return ALONE
    if (own := int(os.environ.get("LOCAL_RANK", "0"))) < torch.cuda.device_count():
        torch.cuda.set_device(own)
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    return Ranks(dist.get_rank(), dist.get_world_size())


def leave() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        join.cache_clear()
