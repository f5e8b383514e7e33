"""Training on a grid: float32 masters and scales belong to the step, modules hold decoded grid values.

Forward and backward see plain transformers modules whose weight is `decode(encode(master, s), s)` (cast to the compute
dtype). The straight-through gradient (Bengio et al., arXiv:1308.3432) is the module's own gradient: a hook moves it to
the master as float32 while the backward pass is still running, so low-precision gradients of all weights never lie in
memory together and micro-batches add up in float32. Tied tensors are one parameter and stay one master.

Where ranks share a student (edgeslm.parallel.shards) weight, value, gradient and moments are DTensors cut by rows, and
scales are those of this rank's rows. A block lies inside a row, so everything here works on the rows that are local.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edgeslm.compute import local
from edgeslm.errors import FormatError
from edgeslm.formats import FORMATS
from edgeslm.formats.base import BlockFormat, Scales
from edgeslm.quantize import together
from edgeslm.quantize.importance import block_importance
from edgeslm.quantize.learned import LearnedScales
from edgeslm.quantize.plan import FLOATS

SLICE_WEIGHTS = 1 << 19  # 2 MB of float32: master, codes and result of a slice stay in a core's cache
GPU_SLICE_WEIGHTS = 1 << 23  # a GPU waits for every launch; what lies beside a slice stays under a gigabyte


@dataclass
class Master:
    """One trained tensor. `weight` is the module's parameter, `value` the float32 truth behind it. `importance` [K]
    weighs rounding errors by input channel when scales are fitted. `learned` is there when scales are trained too."""

    name: str
    weight: nn.Parameter
    value: nn.Parameter
    format: BlockFormat
    scales: Scales = field(default_factory=dict)
    importance: Tensor | None = None
    learned: LearnedScales | None = None
    held: Tensor | None = None  # codes [n, k] that stay: of this tensor only scales are trained
    leave: bool = False  # the next gradient stays on the weight: DistributedDataParallel takes it from there
    used: bool = False  # whether there was a gradient since this was last set back

    @property
    def on_grid(self) -> bool:
        return self.format.name not in FLOATS

    @property
    def learned_part(self) -> LearnedScales:
        assert self.learned is not None, f"{self.name}: a checkpoint with learned scales, a step without"
        return self.learned

    def fit(self) -> None:
        """Searches the scales anew, slice by slice."""
        assert self.format.fit is not None
        blocks = self.blocks()
        parts = [self.format.fit(blocks[part], self._weights_of_error(part)) for part in self._slices(blocks)]
        found = {key: torch.cat([p[key] for p in parts]) for key in parts[0]} if parts and parts[0] else {}
        self.scales = found if parts else self._none()[1]
        if self.learned is not None:
            self.learned.restart(self.format, self.scales)

    def learn_scales(self, *, hold_codes: bool = False) -> LearnedScales:
        """From now on the scales are trained, starting from those fitted; `hold_codes`: and nothing else."""
        if not self.scales:
            self.fit()
        self.learned = LearnedScales.around(self.format, self.scales, hold_codes)
        self.held = self.codes() if hold_codes else None
        return self.learned

    @torch.no_grad()
    def scale_gradients(self) -> None:
        """From the gradient of the master, which is that of the decoded weight, to the factors of the scales."""
        assert self.learned is not None and self.value.grad is not None
        blocks, grads = self.blocks(), local(self.value.grad).view(-1, self.format.block)
        parts = []
        for part in self._slices(blocks):
            scales = {key: value[part] for key, value in self.scales.items()}
            if self.held is not None:
                parts.append(self.learned.gradients_of_held(self.format, self.held[part], grads[part], scales, part))
                continue
            weights = self.weights_of_code(part)
            parts.append(self.learned.gradients(self.format, blocks[part], grads[part], scales, part, weights))
        for index, parameter in enumerate(self.learned.parameters):
            parameter.grad = torch.cat([pieces[index] for pieces in parts]) if parts else torch.zeros_like(parameter)
        if self.held is not None:  # no optimiser has it
            self.value.grad = None

    @torch.no_grad()
    def project(self) -> None:
        """weight <- decode(encode(value)) on the grid, with the scales as they are."""
        blocks, out = self.blocks(), local(self.weight.data).view(-1, self.format.block)
        for part in self._slices(blocks):
            scales = {key: value[part] for key, value in self.scales.items()}
            out[part] = self.format.decode(self._encode(blocks, part, scales), scales)

    @torch.no_grad()
    def copy(self) -> None:
        """weight <- value, no grid."""
        local(self.weight.data).copy_(local(self.value.data))

    def codes(self) -> Tensor:
        """The integers [n, k] that ship, from the scales as they are."""
        blocks = self.blocks()
        if not len(blocks):
            return self._none()[0]
        cut = [{k: v[p] for k, v in self.scales.items()} for p in self._slices(blocks)]
        return torch.cat([self._encode(blocks, p, s) for p, s in zip(self._slices(blocks), cut, strict=True)])

    @torch.no_grad()
    def adopt(self, weight: Tensor, codes: Tensor, scales: Scales) -> None:
        """Scales and codes found elsewhere, and the weight they decode to. A value whose code is another moves to that
        code's; the others keep their place inside their cell, which says how near the next code is."""
        self.scales = dict(scales)
        other = (self.codes() != codes).repeat_interleave(self.format.per_code, 1)
        self.value.data = torch.where(other.view_as(self.value), weight, self.value.data)

    def watch(self, weight: nn.Parameter) -> None:
        """From now on `weight` is the module's, and its gradients come here."""
        self.weight = weight
        weight.register_post_accumulate_grad_hook(_mover(self))

    def _none(self) -> tuple[Tensor, Scales]:
        """Codes and scales of no block, as a rank without rows has them."""
        assert self.format.fit is not None and self.format.encode is not None
        zeros = self.blocks().new_zeros(1, self.format.block)
        scales = self.format.fit(zeros, None)
        return self.format.encode(zeros, scales)[:0], {key: value[:0] for key, value in scales.items()}

    def blocks(self) -> Tensor:
        """[n, k] of this rank, a view."""
        return local(self.value.data).view(-1, self.format.block)

    def _encode(self, blocks: Tensor, part: slice, scales: Scales) -> Tensor:
        """Codes of the blocks in `part`, of `scales`."""
        if self.held is not None:
            return self.held[part]
        return self.format.nearest(blocks[part], scales, self.weights_of_code(part))

    def weights_of_code(self, part: slice) -> Tensor | None:
        """The importance that which code is nearest depends on, as `_weights_of_error`; None where it does not."""
        return self._weights_of_error(part) if self.weighs_codes else None

    @property
    def weighs_codes(self) -> bool:
        return self.format.per_code > 1 and self.importance is not None

    def _weights_of_error(self, part: slice) -> Tensor | None:
        """[n, k] of the blocks in `part`."""
        if self.importance is None:
            return None
        stop = min(part.stop, self.blocks().shape[0])
        return block_importance(self.importance, self.format.block, part.start, stop - part.start)

    def _slices(self, blocks: Tensor) -> list[slice]:
        size = SLICE_WEIGHTS if blocks.device.type == "cpu" else GPU_SLICE_WEIGHTS
        step = max(1, size // self.format.block)
        return [slice(at, at + step) for at in range(0, blocks.shape[0], step)]


class Masters:
    """All masters of a student, in the order of its parameters."""

    def __init__(self, items: Iterable[Master]):
        self.items = list(items)
        self.before_writing: Callable[[], None] = lambda: None  # what modules that gather their weights must let go of
        for master in self.items:
            master.watch(master.weight)

    def __iter__(self) -> Iterable[Master]:
        return iter(self.items)

    def set_weights(self, *, grid: bool, refit: bool) -> None:
        """Decodes every weight anew after an optimiser step. `refit` also searches the scales anew."""
        self.before_writing()
        rounded = []
        for master in self.items:
            if not (grid and master.on_grid):
                master.copy()
                continue
            if refit or not master.scales:
                master.fit()
            elif master.learned is not None:
                master.scales = master.learned.scales(master.format)
            if master.value.is_cuda:
                rounded.append(master)
            else:
                master.project()
        together.project(rounded, GPU_SLICE_WEIGHTS)

    def learn_scales(self, *, hold_codes: bool = False) -> list[nn.Parameter]:
        """Trains the scales of every tensor on a grid from now on; the new parameters, in a fixed order."""
        return [p for m in self.items if m.on_grid for p in m.learn_scales(hold_codes=hold_codes).parameters]

    def scale_gradients(self) -> None:
        """Call between the backward pass and the optimiser's step."""
        for master in self.items:
            if master.learned is not None and master.value.grad is not None:
                master.scale_gradients()

    def state(self) -> dict[str, Tensor]:
        """Flat tensors for a checkpoint: values, scales, and what learned scales are made of."""
        flat = {f"master|{m.name}": m.value.data for m in self.items}
        for m in self.items:
            flat.update({f"scale|{m.name}|{key}": value for key, value in m.scales.items()})
            if m.learned is not None:
                flat.update({f"base|{m.name}|{key}": value for key, value in m.learned.base.items()})
                flat.update({f"factor|{m.name}|{i}": p.data for i, p in enumerate(m.learned.parameters)})
            if m.held is not None:
                flat[f"code|{m.name}"] = m.held
        return flat

    def load_state(self, flat: Mapping[str, Tensor]) -> None:
        by_name = {m.name: m for m in self.items}
        for key, tensor in flat.items():
            kind, _, rest = key.partition("|")
            if kind == "master":
                by_name[rest].value.data.copy_(tensor)
                continue
            if kind == "code":
                by_name[rest].held = tensor.to(by_name[rest].value.device)
                continue
            name, _, part = rest.rpartition("|")
            if kind == "scale":
                by_name[name].scales[part] = tensor.to(by_name[name].value.device)
            elif kind == "base":
                by_name[name].learned_part.base[part].copy_(tensor)
            elif kind == "factor":
                by_name[name].learned_part.parameters[int(part)].data.copy_(tensor)


def _mover(master: Master) -> Callable[[Tensor], None]:
    def move(weight: Tensor) -> None:
        master.used = master.used or weight.grad is not None
        if master.leave:
            return
        grad, weight.grad = weight.grad, None
        if grad is None:
            return
        grad = grad.to(master.value.device)
        if master.value.grad is None:
            master.value.grad = grad.float()
        else:
            master.value.grad.add_(grad)

    return move


def attach(
    model: nn.Module, assigned: Mapping[str, str], dtype: torch.dtype, where: torch.device | None = None
) -> Masters:
    """Gives every parameter of `model` a float32 master and casts the module's own weights to `dtype`. `where`: the
    device of masters, and so of gradients, moments and scales; the weights' own when absent.

    Buffers keep their type (rotary frequencies lose their meaning in bfloat16). A weight that takes no gradient, such
    as those beside adapters, is computed with and has no master. Raises FormatError for a weight that is not finite.
    """
    items = []
    for name, weight in model.named_parameters():
        value = weight.detach().to(where or weight.device, torch.float32)
        if not torch.isfinite(value).all():
            raise FormatError(f"{name}: holds NaN or infinite weights; the teacher's file is damaged or overflowed")
        if not weight.requires_grad:
            weight.data = weight.data.to(dtype)
            continue
        value = value.clone() if value.data_ptr() == weight.data_ptr() else value
        weight.data = weight.data.to(dtype)
        items.append(Master(name, weight, nn.Parameter(value), FORMATS[assigned[name]]))
    return Masters(items)
