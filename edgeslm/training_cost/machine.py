"""The machine that trains: its name, what it has, and which points it can run."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

from edgeslm.training_cost.grid import Point

FLASH_PACKAGE = "flash_attn"
PACKAGES = ("torch", "transformers")


@dataclass(frozen=True)
class Here:
    """`name`: of the device that computes, with how many of it there are; `id`: the same for the same machine.
    `memory_bytes`: of one card, or of the machine; None where nobody tells. `number_bytes`: of the type of training."""

    name: str
    id: str
    device: str  # "cpu", "cuda" or "mps"
    dtype: str
    number_bytes: int
    memory_bytes: float | None
    cores: int
    gpus: int
    compiler: bool
    flash: bool
    versions: dict[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """What a file of prices may call it: with and without how many there are."""
        return self.name, self.name.rpartition(", ")[0] or self.name

    @property
    def backend(self) -> str:
        """What joins processes here unless another is asked for."""
        return "nccl" if self.device == "cuda" else "gloo"

    def identity(self) -> list[Any]:
        return [self.id, self.name, self.device, self.dtype, self.versions]

    def refusal(self, point: Point) -> str | None:
        """Why the point cannot be run here, None where it can."""
        if point.attention == "flash" and not self.flash:
            return "flash attention needs a CUDA device and the package flash-attn (sdpa has a fused kernel of its own)"
        if point.compile and not self.compiler:
            return "there is no C++ compiler to make CPU code with (g++ or clang++)"
        if point.ranks > 1:
            has = self.gpus if self.device == "cuda" else self.cores
            what = "GPU" if self.device == "cuda" else "core"
            if self.device == "mps":
                return "an Apple GPU is not shared out among processes"
            if point.ranks > has:
                return f"there {'is' if has == 1 else 'are'} {has} {what}{'' if has == 1 else 's'} here"
            if point.backend == "nccl" and self.device != "cuda":
                return "nccl joins CUDA devices only; use gloo"
        return None


def here(chosen: Any) -> Here:
    """`chosen`: edgeslm.compute.Compute."""
    import torch

    from edgeslm import compute
    from edgeslm.devices.facts import facts
    from edgeslm.pipeline.stage import version_of

    told, kind = facts(), chosen.device.type
    cores, gpus = int(told.get("cores") or 1), torch.cuda.device_count() if kind == "cuda" else 0
    memory: float | None = told.get("memory_bytes")
    name = f"{told['name']}, {cores} core{'s' if cores > 1 else ''}"
    if kind == "cuda":
        memory = float(torch.cuda.get_device_properties(chosen.device).total_memory)
        name = f"{torch.cuda.get_device_name(chosen.device)}, {gpus} GPU{'s' if gpus > 1 else ''}"
    return Here(
        name=name,
        id=told["id"],
        device=kind,
        dtype=str(chosen.dtype).removeprefix("torch."),
        number_bytes=chosen.dtype.itemsize,
        memory_bytes=memory,
        cores=cores,
        gpus=gpus,
        compiler=not compute.compiler_missing(kind),
        flash=kind == "cuda" and importlib.util.find_spec(FLASH_PACKAGE) is not None,
        versions={package: version_of(package) or "" for package in PACKAGES},
    )
