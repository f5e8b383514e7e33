"""What the groups of a codistillation share: checkpoints in a folder, and nothing else (arXiv:1804.03235, section 2.1).

    FOLDER/group-1/step-00000200.safetensors    weights of group 1 after 200 updates; the header says what they are

A file is written beside its place and moved there. Where moving is not atomic, or bytes were lost on the way, the
digest in the header shows it, and a reader passes the file over as it does one of another recipe.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgeslm.errors import DataError


class Unusable(DataError):
    """A checkpoint that must not be learned from: half a file, damaged, or of another training."""


@dataclass(frozen=True)
class Mark:
    """What a checkpoint says of itself. `position`: rows its group had read; `recipe`: hash of what all groups must
    have in common; `sha256` of its tensors."""

    group: int
    step: int
    position: int
    recipe: str
    sha256: str


@dataclass(frozen=True)
class Exchange:
    """`here`: the groups that this process trains; `orders`: the rows that each of them reads, in the order of `here`.
    `recipe`: see Mark."""

    folder: Path
    recipe: str
    here: tuple[int, ...]
    orders: Sequence[Any] = field(default_factory=tuple)


def path_of(folder: Path, group: int, step: int) -> Path:
    return folder / f"group-{group}" / f"step-{step:08}.safetensors"


def steps_of(folder: Path, group: int) -> list[int]:
    """Steps of which there are files, newest first; none where nobody has written yet. Raises OSError where the folder
    cannot be read."""
    place = folder / f"group-{group}"
    names = [p.name for p in place.iterdir()] if place.is_dir() else []
    found = [n[5:-12] for n in names if n.startswith("step-") and n.endswith(".safetensors")]
    return sorted((int(step) for step in found if step.isdigit()), reverse=True)


def publish(folder: Path, mark: Mark, tensors: Mapping[str, Tensor], keep: int) -> Mark:
    """Writes a group's checkpoint and removes its older ones but `keep`. Raises OSError, and then nothing is there."""
    flat = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    mark = Mark(mark.group, mark.step, mark.position, mark.recipe, digest(flat))
    path = path_of(folder, mark.group, mark.step)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        save_file(flat, part, metadata={name: str(value) for name, value in vars(mark).items()})
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except SafetensorError as error:  # how the library says that a disk is full
        raise OSError(str(error)) from error
    finally:
        part.unlink(missing_ok=True)
    for old in [s for s in steps_of(folder, mark.group) if s <= mark.step][keep:]:
        path_of(folder, mark.group, old).unlink(missing_ok=True)
    return mark


def start_anew(folder: Path, group: int) -> None:
    """Removes what an earlier training of this group left: a peer would take it for news."""
    for step in steps_of(folder, group):
        path_of(folder, group, step).unlink(missing_ok=True)


def fetch(folder: Path, group: int, step: int, recipe: str, into: Path) -> Mark:
    """Copies a peer's checkpoint to `into`, so that it stays when its writer removes it, and says what it is. Raises
    Unusable, and OSError where it cannot be read; `into` is then as it was."""
    part = into.with_name(f"{into.name}.part-{os.getpid()}")
    try:
        shutil.copyfile(path_of(folder, group, step), part)
        mark, _ = read(part)
        if (mark.group, mark.step) != (group, step):
            raise Unusable(f"group {group}, step {step}: holds step {mark.step} of group {mark.group}")
        if mark.recipe != recipe:
            raise Unusable(f"group {group}, step {step}: is of another recipe or other text ({mark.recipe})")
        os.replace(part, into)
    finally:
        part.unlink(missing_ok=True)
    return mark


def read(path: Path) -> tuple[Mark, dict[str, Tensor]]:
    """A checkpoint, every byte of it checked. Raises Unusable."""
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        numbers = [int(told[name]) for name in ("group", "step", "position")]
        mark = Mark(numbers[0], numbers[1], numbers[2], told["recipe"], told["sha256"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise Unusable(f"{path.name}: is half a file or no checkpoint ({error})") from error
    if digest(flat) != mark.sha256:
        raise Unusable(f"{path.name}: is damaged, its bytes are not those that were written")
    return mark, flat


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(memoryview(value.reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return found.hexdigest()
