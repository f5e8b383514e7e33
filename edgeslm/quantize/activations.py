"""What a runtime does to a layer's inputs before its integer product, so that training may feel it.

    llama.cpp     blocks of 32 or 256: int8 and one scale, float16 (Q8_0) or float32 (Q8_K), by the weight's type
    onnxruntime   accuracy level 4: blocks of the product's own size, int8 and a float32 scale

The arithmetic is that of the kernels for x86 (ggml-cpu/arch/x86/quants.c `quantize_row_q8_0`, ggml-quants.c
`quantize_row_q8_K_ref`, MLAS `QuantizeARow_CompInt8`): absmax / 127, round half to even. Other processors differ by one
code where a value lies on a tie. Q4_1 and Q5_1 take Q8_1 in ggml: the same codes and scale; the sum it keeps for the
minimum is off by at most a float16 rounding and is left out here. Gradients pass straight through (arXiv:1308.3432).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgeslm.formats import FORMATS
from edgeslm.quantize.ladder import ladder
from edgeslm.quantize.plan import FLOATS

Runtime = Literal["llama.cpp", "onnxruntime"]
Rounding = Callable[[Tensor], Tensor]
LARGE = 256  # weights in a block of ggml's K types; they are multiplied with Q8_K, all others with Q8_0


def q8_0(x: Tensor) -> Tensor:
    """[..., K] in blocks of 32: int8, scale absmax / 127 in float16 once the codes are made."""
    return _StraightThrough.apply(x, 32, torch.float16)


def q8_k(x: Tensor) -> Tensor:
    """[..., K] in blocks of 256: int8 and a float32 scale."""
    return _StraightThrough.apply(x, LARGE, None)


def int8_blocks(x: Tensor, block: int) -> Tensor:
    """[..., K] in blocks of `block`: int8 and a float32 scale absmax / 127."""
    return _StraightThrough.apply(x, block, torch.float32)


def rounding(format_name: str, runtime: Runtime) -> Rounding | None:
    """What `runtime` does to the inputs [..., K] of a weight in this format; None where it leaves them alone.

    A final hidden state goes through it before the head's product, which schemes/head_loss.py makes without nn.Linear.
    """
    if runtime == "onnxruntime":
        return _onnxruntime(format_name)
    if format_name in FLOATS:
        return {"f32": None, "f16": _to_float16, "bf16": _to_bfloat16}[format_name]
    return q8_k if FORMATS[format_name].block == LARGE else q8_0


def install(model: Any, assigned: Mapping[str, str], runtime: Runtime) -> Handles:
    """Hooks on every nn.Linear of a transformers model; `assigned` is {parameter name: format name}.

    Weights that read one input (q, k, v) share its rounding. `remove` of the result takes the hooks away.
    """
    names = {id(weight): name for name, weight in model.named_parameters()}
    shared = _Shared()
    handles = []
    for module in model.modules():
        if not isinstance(module, nn.Linear):
            continue
        change = rounding(assigned[names[id(module.weight)]], runtime)
        if change is not None:
            handles.append(module.register_forward_pre_hook(_rounder(shared, change)))
    return Handles(handles, shared)


class Handles:
    """The hooks of one `install`."""

    def __init__(self, hooks: list[Any], shared: _Shared):
        self.hooks, self.shared = hooks, shared

    def __len__(self) -> int:
        return len(self.hooks)

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.shared.last = None


class _Shared:
    """The last input and what became of it: q, k and v are given the same tensor, and so are gate and up."""

    def __init__(self) -> None:
        self.last: tuple[Tensor, int, Rounding, bool, Tensor] | None = None

    def __call__(self, x: Tensor, change: Rounding) -> Tensor:
        if x.is_inference():  # such a tensor does not count its changes
            return change(x)
        grad = torch.is_grad_enabled()
        if self.last is not None and self.last[0] is x and self.last[1:4] == (x._version, change, grad):
            return self.last[4]
        out = change(x)
        self.last = (x, x._version, change, grad, out)
        return out


def _rounder(shared: _Shared, change: Rounding):
    def hook(module: nn.Module, inputs: tuple) -> tuple:
        return (shared(inputs[0], change), *inputs[1:])

    return hook


@functools.cache
def _onnxruntime(format_name: str) -> Rounding | None:
    if format_name in FLOATS:
        return None
    form = FORMATS[format_name]
    assert form.spread is not None
    zeros = torch.zeros(1, form.bytes, dtype=torch.uint8)
    block = form.block // form.spread(form.unpack(zeros)[1])[0].shape[1]  # one scale, one block of the product
    if not 32 <= block <= 128 and form.per_code == 1:
        levels = ladder(form).levels
        if levels[-1] - levels[0] < 4:
            return None  # two-bit products of other blocks stay in float32
    return functools.partial(int8_blocks, block=block)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, block: int, scale: torch.dtype | None) -> Tensor:  # type: ignore[override]
        """`scale` is what scales are stored in; None: Q8_K's 1 / (127 / absmax)."""
        blocks = x.float().unflatten(-1, (-1, block))
        top = blocks.abs().amax(-1, keepdim=True)
        most = torch.full_like(top, 127)  # a Python number would be divided by its reciprocal, a bit off
        inverse = torch.where(top == 0, 0.0, most / top)
        codes = (blocks * inverse).round_()
        step = 1.0 / inverse if scale is None else (top / most).to(scale).float()
        return codes.mul_(torch.where(top == 0, 0.0, step)).flatten(-2).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return grad, None, None


class _Through16(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:  # type: ignore[override]
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad, None


def _to_float16(x: Tensor) -> Tensor:
    return _Through16.apply(x, torch.float16)


def _to_bfloat16(x: Tensor) -> Tensor:
    return _Through16.apply(x, torch.bfloat16)
