"""Where and how torch computes: device, precision, threads, and an allocator that keeps what it has."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn

from edgeslm.errors import EdgeSLMError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc malloc.h


@dataclass(frozen=True)
class Compute:
    """Resolved choices of one process."""

    device: torch.device
    dtype: torch.dtype
    threads: int


def resolve(device: str, precision: str, threads: int | None) -> Compute:
    """`auto` takes CUDA, then MPS, then the CPU; and bfloat16 where the device multiplies it in hardware."""
    if device == "cuda" and not torch.cuda.is_available():
        raise EdgeSLMError("device: cuda was asked for but torch sees no CUDA device; use device: auto")
    if device == "mps" and not torch.backends.mps.is_available():
        raise EdgeSLMError("device: mps was asked for but torch sees no Apple GPU; use device: auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # torchrun's, on this machine
    torch.set_num_threads(count)
    dtype = {"bf16": torch.bfloat16, "f32": torch.float32}.get(precision) or (
        torch.bfloat16 if _has_bfloat16(device) else torch.float32
    )
    return Compute(torch.device(device), dtype, count)


def _has_bfloat16(device: str) -> bool:
    if device == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16"))
    return device == "cuda" and torch.cuda.is_bf16_supported()


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory instead of returning it: large tensors come and go in every training step, and
    page faults on fresh memory cost more than the arithmetic. True when it took effect (Linux with glibc)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except OSError:  # another C library
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(M_TOP_PAD, 64 << 20))


def return_freed_memory() -> None:
    """Gives back what `keep_freed_memory` kept: before workers are measured, and before a peak is counted anew."""
    if sys.platform.startswith("linux"):
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except OSError:
            return


def compiler_missing(device: str) -> bool:
    """Whether torch.compile has no C++ compiler to make CPU code with (a GPU needs none)."""
    return device != "cuda" and not any(shutil.which(c) for c in (os.environ.get("CXX", ""), "g++", "clang++", "c++"))


def compile_layers(model: nn.Module) -> None:
    """Fuses the element-wise work of every decoder layer, in place; all layers share one compilation. Code is made at
    the first forward of each shape of input, which takes some ten seconds on a CPU."""
    torch._dynamo.config.cache_size_limit = 64  # layers differ in a few constants at most
    from edgeslm.models.blocks import layers_of

    for layer in layers_of(model):
        layer.compile(dynamic=False)


def recompute_layers(model: nn.Module) -> None:
    """Every decoder layer, in place, keeps its input only and computes the rest again in the backward pass (activation
    checkpointing, Chen et al., arXiv:1604.06174). Gradients are the same bit for bit."""
    from edgeslm.models.blocks import layers_of

    for layer in layers_of(model):
        layer.forward = MethodType(_again, layer)  # bound, so that a copy of the layer runs itself


def _again(layer: nn.Module, *inputs: Any, **named: Any) -> Any:
    from torch.utils.checkpoint import checkpoint

    forward = type(layer).forward
    if not torch.is_grad_enabled():
        return forward(layer, *inputs, **named)
    return checkpoint(forward, layer, *inputs, use_reentrant=False, preserve_rng_state=False, **named)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's rows of a tensor that ranks share (a DTensor); any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def own_rows(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The rows of `whole` that this rank holds of `like`, cut along the first dimension as `Shard(0)` says; all of them
    where `like` is whole too."""
    if not hasattr(like, "to_local"):
        return whole
    mesh = like.device_mesh  # type: ignore[attr-defined]
    return whole[share(whole.shape[0], mesh.get_local_rank(), mesh.size())]


def share(rows: int, rank: int, ranks: int) -> slice:
    """Which of so many rows a rank holds, as torch's `Shard(0)` cuts them."""
    each = -(-rows // ranks)
    return slice(min(rows, each * rank), min(rows, each * (rank + 1)))


def release(model: Any) -> None:
    """Before a module's weights are written: what it gathered of other ranks' rows is let go."""
    for part in model.modules():
        if hasattr(part, "reshard"):
            part.reshard()


def uncompiled() -> AbstractContextManager[None]:
    """Inside, compiled modules run as they were written: for other shapes than training's, seen once or twice."""
    return torch.compiler.set_stance("force_eager")


def matmul_flops(
    compute: Compute, rows: int = 2048, width: int = 576, inner: int = 1536, seconds: float = 0.5
) -> float:
    """Operations per second of one plain matrix product, the ceiling of a training step on this device."""
    a = torch.randn(rows, width, dtype=compute.dtype, device=compute.device)
    b = torch.randn(inner, width, dtype=compute.dtype, device=compute.device)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.nn.functional.linear(a, b)
        if compute.device.type == "cuda":
            torch.cuda.synchronize()
        elif compute.device.type == "mps":
            torch.mps.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2.0 * rows * width * inner / best


def memory_bytes(device: torch.device) -> float | None:
    """Of the card, or of the machine; None where nobody tells."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "cpu" and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return None


def reset_peak_memory(compute: Compute) -> None:
    return_freed_memory()
    if compute.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:  # not permitted in some containers: the peak then covers the process's whole life
            return


def peak_memory_bytes(compute: Compute) -> int | None:
    """Since the last reset: of the device on CUDA, of the process (VmHWM) elsewhere; None where nobody tells."""
    if compute.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next((row for row in status.read_text().splitlines() if row.startswith("VmHWM")), None)
    return None if line is None else int(line.split()[1]) * 1024
