"""Every process holds rows of every tensor: torch.distributed.fsdp.fully_shard (FSDP2) for each decoder layer and for
what is around them.

Modules' weights, float32 masters, their gradients and Adam's two moments are DTensors cut along the first dimension,
and scales go with their rows: a block of a grid lies inside a row, so fitting, rounding and projecting need no message.
A layer's weights are whole only while it runs. They lie in float32 and are gathered in the type of computing; gradients
are added up over the ranks in float32, in every pass, and move from modules to masters as on one process.

Between steps `before_writing` lets go of what a forward without a backward left gathered (embedding, last norm, head),
or the next forward would read old weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard

from edgeslm.compute import local, release, share
from edgeslm.errors import ModelError
from edgeslm.models.blocks import Wants, layers_of
from edgeslm.parallel.ranks import Ranks
from edgeslm.quantize.masters import Masters

STATES = "final_states"  # what edgeslm.models.forward calls on a model that has it


class Shards:
    """Nothing is left to do after a backward pass: fully_shard has added up what the masters collected."""

    def __init__(self, model: nn.Module, masters: Masters, dtype: torch.dtype, wants: Iterable[Wants], ranks: Ranks):
        """Cuts a student in float32, whose weights are gathered in `dtype`, and its masters. `wants`: what each
        objective without a term on the output reads of the student's layers. Raises ModelError."""
        self.ranks, self.dtype, self.mould = ranks, dtype, _without_weights(model)
        spread(model, dtype, let_go=not any(ends_inside(some) for some in wants))
        _spread_masters(masters, dict(model.named_parameters()), ranks)
        masters.before_writing = lambda: release(model)

    def forward(self, run: Callable[..., Any], *inputs: Any, last: bool) -> Any:
        return run(*inputs)

    def collect(self) -> None:
        return

    def twin(self, model: nn.Module) -> nn.Module:
        """From the module as it was before it was cut: one that is cut cannot be copied."""
        made, weights = copy.deepcopy(self.mould), dict(model.named_parameters())
        buffers = {name: buffer.clone() for name, buffer in made.named_buffers()}
        device = next(model.parameters()).device
        spread_teacher(made, self.dtype, device)
        made.to_empty(device=device)
        for name, buffer in made.named_buffers():
            buffer.copy_(buffers[name])
        with torch.no_grad():
            for name, weight in made.named_parameters():
                weight.copy_(weights[name])
        return made

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        return weights_of(model, self.ranks)


def spread(model: nn.Module, dtype: torch.dtype, let_go: bool = True, device: torch.device | None = None) -> None:
    """Cuts a transformers model in place; its weights are gathered in `dtype`. `let_go`: of a layer's weights between
    its forward and its backward. `device`: where weights will lie that are nowhere yet."""
    first = next(model.parameters())
    mesh = init_device_mesh((device or first.device).type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(None if dtype == first.dtype else dtype, torch.float32, cast_forward_inputs=False)
    how: dict[str, Any] = {"mesh": mesh, "mp_policy": policy}
    for layer in layers_of(model):
        fully_shard(layer, reshard_after_forward=let_go, **how)
    fully_shard(model, reshard_after_forward=False, **how)
    for part in _parts(model):
        part.set_gradient_divide_factor(1.0)  # sums, not means: losses are divided by counts of the whole batch
        part.set_force_sum_reduction_for_comms(True)  # gloo knows no other way to say so
    setattr(model, STATES, MethodType(_final_states, model))
    register_fsdp_forward_method(model, STATES)


def spread_teacher(model: nn.Module, dtype: torch.dtype | None = None, device: torch.device | None = None) -> None:
    """Cuts a model that does not learn. What is around its layers stays gathered after a forward."""
    spread(model, dtype or next(model.parameters()).dtype, device=device)
    gathering, end, ran = getattr(model, STATES), getattr(model, "reset_iter_state", None), False

    def states(ids: Tensor, **more: Any) -> Tensor:
        nonlocal ran
        if ran and end is not None:  # without a backward nothing else ends an iteration, and its notes pile up
            end()
        ran = True
        return gathering(ids, **more)

    setattr(model, STATES, states)


def _spread_masters(masters: Masters, named: Mapping[str, nn.Parameter], ranks: Ranks) -> None:
    for master in masters.items:
        whole, rows = master.value.data, master.value.shape[0]
        mesh = init_device_mesh(whole.device.type, (ranks.size,))
        master.scales = {key: _own(value, rows, ranks) for key, value in master.scales.items()}
        own = DTensor.from_local(
            _own(whole, rows, ranks), mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride()
        )
        master.value = nn.Parameter(own)
        master.watch(named[master.name])


def _without_weights(model: nn.Module) -> nn.Module:
    """A copy with its own buffers, and with parameters that lie nowhere."""
    nowhere = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, nowhere)


def _final_states(model: Any, ids: Tensor, **more: Any) -> Tensor:
    """[B, T, D] of the model's own forward, and with it what is around the layers gathered."""
    states = model.base_model(input_ids=ids, **{"use_cache": False, **more}).last_hidden_state
    return states.clone() if states._is_view() else states  # GPT-2's: fully_shard warns of views, which lose its hooks


def ends_inside(wants: Wants) -> bool:
    """Whether nothing is asked of the output of the last layer that is read, only of what is inside it: its weights are
    then not gathered again for the backward pass, which begins there. Raises ModelError."""
    last = max(wants, default=0)
    if not last or "hidden" in wants[last]:
        return False
    if last == 1:
        raise ModelError(
            "distill.objective: only what is inside the first layer is compared, which distill.train.parallel: "
            "{kind: fsdp2} cannot begin a backward pass with; compare a later layer too, or use {kind: ddp}"
        )
    return True


def _parts(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _own(tensor: Tensor, rows: int, ranks: Ranks) -> Tensor:
    """What belongs to this rank's of `rows` rows, in memory of its own. The first dimension is a multiple of them."""
    own, blocks = share(rows, ranks.rank, ranks.size), tensor.shape[0] // rows
    return tensor[own.start * blocks : own.stop * blocks].clone()


def gathered(tensor: Tensor, like: Tensor, ranks: Ranks) -> Tensor:
    """Blocks [n, ...] of this rank's rows of `like`, and those of all ranks after each other on the first one, where
    rows are cut; else the tensor as it is. As bytes: not every type can be sent."""
    if not isinstance(like, DTensor):
        return tensor
    counts = [int(n) for n in ranks.gathered(len(tensor))]
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    sent = padded.view(torch.uint8)
    found = [torch.empty_like(sent) for _ in counts] if ranks.first else None
    dist.gather(sent, found, dst=0)
    if found is None:
        return tensor
    return torch.cat([part.view(tensor.dtype)[:n] for part, n in zip(found, counts, strict=True)])


def weights_of(model: nn.Module, ranks: Ranks) -> dict[str, Tensor]:
    """The whole weights of a cut model on the CPU of the first rank; nothing elsewhere. All ranks call."""
    release(model)
    found = {}
    for name, weight in model.named_parameters():
        whole = gathered(local(weight.data), weight.data, ranks)
        if ranks.first:
            found[name] = whole.cpu()
    return found
