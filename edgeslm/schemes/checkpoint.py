"""Checkpoints: all that the future of a training depends on, one safetensors file, written beside and moved into
place."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgeslm.schemes.step import Step

NAME = "checkpoint.safetensors"
SHARDS = ".at-"  # NAME, this and the number of updates done: a folder of edgeslm.schemes.checkpoint_shards


def save(steps: Sequence[Step], kept: dict[str, Tensor], done: int, folder: Path) -> None:
    """`done` updates are made; the data position follows from it, the order of rows being decided by the seed. `kept`:
    what a scheme holds beside its students. When the disk is full or the process is stopped the previous checkpoint
    still stands."""
    flat, part = state(steps, kept), folder / f"{NAME}.part"
    try:
        save_file(_separate(flat), part, metadata={"done": json.dumps(done)})
        with part.open("rb") as file:
            os.fsync(file.fileno())
    except BaseException:  # a full disk, or a stop: half a file must not stay
        part.unlink(missing_ok=True)
        raise
    os.replace(part, folder / NAME)


def there(folder: Path) -> bool:
    """Whether a training would go on here, from one file or from shards."""
    return (folder / NAME).exists() or any(folder.glob(f"{NAME}{SHARDS}*"))


def load(steps: Sequence[Step], kept: dict[str, Tensor], folder: Path) -> int:
    """Puts a checkpoint back; returns the number of updates done, 0 when there is none."""
    path = folder / NAME
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as file:
        done = json.loads(file.metadata()["done"])
        flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    restore(steps, kept, flat)
    return done


def state(steps: Sequence[Step], kept: dict[str, Tensor]) -> dict[str, Tensor]:
    """All that the future depends on, by name."""
    flat = {f"kept|{name}": value for name, value in kept.items()}
    for index, step in enumerate(steps):
        flat.update({f"{index}|{key}": value for key, value in _state(step).items()})
    flat["rng"] = torch.get_rng_state()
    if torch.cuda.is_initialized():  # what dropout of adapters draws there
        flat["rng-cuda"] = torch.cuda.get_rng_state()
    return flat


def restore(steps: Sequence[Step], kept: dict[str, Tensor], flat: dict[str, Tensor]) -> None:
    """The other way."""
    torch.set_rng_state(flat.pop("rng"))
    if "rng-cuda" in flat:
        torch.cuda.set_rng_state(flat.pop("rng-cuda"))
    for name, value in kept.items():
        value.copy_(flat[f"kept|{name}"])
    for index, step in enumerate(steps):
        _restore(step, under(flat, f"{index}|"))


def _state(step: Step) -> dict[str, Tensor]:
    flat = step.masters.state() | step.own.state()
    for index, parameter in enumerate(step.parameters):
        for key, value in step.optimiser.state[parameter].items():
            flat[f"optimiser|{index}|{key}"] = value
    return flat


def _restore(step: Step, flat: dict[str, Tensor]) -> None:
    step.masters.load_state(flat)
    step.own.load_state(flat)
    for index, parameter in enumerate(step.parameters):
        own = under(flat, f"optimiser|{index}|")
        if own:
            step.optimiser.state[parameter] = {k: v.to(parameter.device) for k, v in own.items()}


def under(flat: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in flat.items() if key.startswith(prefix)}


def _separate(flat: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors wants contiguous tensors that share no storage."""
    return {key: value.detach().contiguous() for key, value in flat.items()}
