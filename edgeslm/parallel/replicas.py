"""Every process holds the whole student: torch.nn.parallel.DistributedDataParallel, told to add up float32.

DistributedDataParallel gathers the modules' gradients in buckets while the backward pass runs and would send each
bucket in the type of computing. Its communication hook (`register_comm_hook`) is where ours comes in: what a bucket
holds is added in float32 to what earlier passes of the step left on the masters, that sum goes over the ranks while the
backward pass goes on, and it arrives as the masters' gradients. Passes before the last run under `no_sync`: nothing is
sent, and gradients move to the masters as on one process. Losses are divided by counts of the whole batch, so sums, not
means.
"""

from collections.abc import Callable
from contextlib import nullcontext
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from edgeslm.parallel.engine import Whole
from edgeslm.parallel.ranks import Ranks
from edgeslm.quantize.masters import Masters

# whether every forward sends buffers, which do not change here: its name since torch 2.13, and before
NAMES = signature(DistributedDataParallel).parameters
BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in NAMES else "broadcast_buffers"


class Replicas(Whole):
    def __init__(self, model: nn.Module, masters: Masters, ranks: Ranks, some: bool = True):
        """`some`: there are objectives that use some of the tensors only, as those on layers do."""
        self.masters, self.ranks = masters, ranks
        self.master_of = {id(master.weight): master for master in masters.items}
        how: dict[str, Any] = {"find_unused_parameters": some, "gradient_as_bucket_view": True, BUFFERS: False}
        self.wrapped = DistributedDataParallel(_Pass(model), **how)
        self.wrapped.register_comm_hook(self, _add_up)

    def forward(self, run: Callable[..., Any], *inputs: Any, last: bool) -> Any:
        for master in self.masters.items:
            master.leave = last
        with nullcontext() if last else self.wrapped.no_sync():
            return self.wrapped(run, *inputs)

    def collect(self) -> None:
        """Buckets hold zeros for tensors without a gradient: such a one has none again, unless another rank's has."""
        used = torch.tensor([float(master.used) for master in self.masters.items])
        self.ranks.add_up([used])
        for master, some in zip(self.masters.items, used.tolist(), strict=True):
            master.weight.grad, master.used = None, False
            if not some:
                master.value.grad = None


class _Pass(nn.Module):
    """The forward of a pass, losses included, as the forward of one module."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, run: Callable[..., Any], *inputs: Any) -> Any:
        return run(*inputs)


def _add_up(replicas: Replicas, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    values = [replicas.master_of[id(weight)].value for weight in bucket.parameters()]
    pieces = zip(values, bucket.gradients(), strict=True)
    flat = torch.cat([(g.float() if v.grad is None else v.grad + g).reshape(-1) for v, g in pieces])

    def hand_over(_: Any) -> Tensor:
        for value, whole in zip(values, flat.split([v.numel() for v in values]), strict=True):
            value.grad = whole.view_as(value)
        return bucket.buffer()

    return dist.all_reduce(flat, async_op=True).get_future().then(hand_over)  # type: ignore[union-attr]
