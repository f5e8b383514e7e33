"""Checkpoints: all that a step's future depends on, one safetensors file, written beside and moved into place."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgeslm.schemes.step import Step

NAME = "checkpoint.safetensors"


def save(step: Step, done: int, folder: Path) -> None:
    """`done` updates are made; the data position follows from it, the order of rows being decided by the seed.
    When the disk is full or the process is stopped the previous checkpoint still stands."""
    flat = step.masters.state()
    for index, parameter in enumerate(step.parameters):
        for key, value in step.optimiser.state[parameter].items():
            flat[f"optimiser|{index}|{key}"] = value
    flat["rng"] = torch.get_rng_state()
    part = folder / (NAME + ".part")
    try:
        save_file(_separate(flat), part, metadata={"done": json.dumps(done)})
        with part.open("rb") as file:
            os.fsync(file.fileno())
    except BaseException:  # a full disk, or a stop: half a file must not stay
        part.unlink(missing_ok=True)
        raise
    os.replace(part, folder / NAME)


def load(step: Step, folder: Path) -> int:
    """Puts a checkpoint back; returns the number of updates done, 0 when there is none."""
    path = folder / NAME
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as file:
        done = json.loads(file.metadata()["done"])
        flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    torch.set_rng_state(flat.pop("rng"))
    step.masters.load_state(flat)
    for index, parameter in enumerate(step.parameters):
        prefix = f"optimiser|{index}|"
        own = {key.removeprefix(prefix): value for key, value in flat.items() if key.startswith(prefix)}
        if own:
            step.optimiser.state[parameter] = {k: v.to(parameter.device) for k, v in own.items()}
    return done


def _separate(flat: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors wants contiguous tensors that share no storage."""
    return {key: value.detach().contiguous() for key, value in flat.items()}
