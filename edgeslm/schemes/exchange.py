"""What the groups of a codistillation share: files in a folder, and nothing else (arXiv:1804.03235, section 2.1).

    FOLDER/group-1/step-00000200.safetensors    of group 1 after 200 updates: its weights, or what it predicts

The header says what a file is (see Mark). It is written beside its place and moved there. Where moving is not atomic
(a bucket that is mounted as a folder), or bytes were lost on the way, the digest in the header shows it, and a reader
passes the file over as it does one of another recipe.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from edgeslm.errors import DataError

Wrong = Callable[[Mapping[str, Tensor]], str | None]  # why tensors must not be learned from; None where they may


class Unusable(DataError):
    """A file that must not be learned from: half of one, damaged, or of another training."""


@dataclass(frozen=True)
class Mark:
    """What a file says of itself. `position`: rows its group had read; `recipe`: hash of what all groups must have in
    common; `sha256` of its tensors."""

    group: int
    step: int
    position: int
    recipe: str
    sha256: str


@dataclass(frozen=True)
class Exchange:
    """`here`: the groups that this process trains; `orders`: the rows that each of them reads, in the order of `here`.
    `recipe`: see Mark. `shared`: rows that all groups read, where they exchange predictions; `servers`: (host, port) of
    what answers for each group, where those are asked for."""

    folder: Path
    recipe: str
    here: tuple[int, ...]
    orders: Sequence[Any] = field(default_factory=tuple)
    shared: Sequence[int] = ()
    servers: Sequence[tuple[str, int]] = ()


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
    """Writes a group's file and removes its older ones but `keep`. Raises OSError, and then nothing is there."""
    flat, mark = _marked(mark, tensors)
    path = path_of(folder, mark.group, mark.step)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        part.touch()
        mode = part.stat().st_mode
        save_file(flat, part, metadata=_header(mark))
        part.chmod(mode)  # the library lets nobody else read it, and peers may be other users
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


def packed(mark: Mark, tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of such a file, for a message."""
    flat, mark = _marked(mark, tensors)
    return save(flat, metadata=_header(mark))


def _marked(mark: Mark, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Mark]:
    flat = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return flat, Mark(mark.group, mark.step, mark.position, mark.recipe, digest(flat))


def _header(mark: Mark) -> dict[str, str]:
    return {name: str(value) for name, value in vars(mark).items()}


def start_anew(folder: Path, group: int) -> None:
    """Removes what an earlier training of this group left: a peer would take it for news."""
    _sweep(folder / f"group-{group}")
    for step in steps_of(folder, group):
        path_of(folder, group, step).unlink(missing_ok=True)


def _sweep(place: Path) -> None:
    """Removes what a writer that was killed had begun: a group is the only writer of its folder."""
    for left in place.glob("*.part-*"):
        left.unlink(missing_ok=True)


def other_weights(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> str | None:
    """Why these are no weights of a model `like` this one. A peer that diverged must not take others along."""
    if {name: value.shape for name, value in tensors.items()} != {name: value.shape for name, value in like.items()}:
        return "holds weights of another model"
    if not all(torch.isfinite(value).all() for value in tensors.values()):
        return "holds values that are not finite"
    return None


def nothing_wrong(tensors: Mapping[str, Tensor]) -> str | None:
    return None


def fetch(folder: Path, group: int, step: int, recipe: str, into: Path, wrong: Wrong = nothing_wrong) -> Mark:
    """Copies a peer's file to `into`, so that it stays when its writer removes it, and says what it is. Raises
    Unusable, and OSError where it cannot be read; `into` is then as it was."""
    return accept(lambda part: shutil.copyfile(path_of(folder, group, step), part), group, step, recipe, into, wrong)


def accept(bring: Callable[[Path], Any], group: int, step: int | None, recipe: str, into: Path, wrong: Wrong) -> Mark:
    """Puts what `bring(path)` writes at `into` when all of it is as it was sent, of this group and recipe, and of this
    step (None: of any). Raises as `fetch` does."""
    part = into.with_name(f"{into.name}.part-{os.getpid()}")
    what = f"group {group}, {'answer' if step is None else f'step {step}'}"
    try:
        bring(part)
        mark, _ = read_ours(part, group, step, recipe, wrong, what)
        os.replace(part, into)
    finally:
        part.unlink(missing_ok=True)
    return mark


def read_ours(
    path: Path, group: int, step: int | None, recipe: str, wrong: Wrong, what: str
) -> tuple[Mark, dict[str, Tensor]]:
    """A file that may be learned from: of this group and recipe, and of this step (None: of any). Raises as `read`."""
    mark, tensors = read(path, what)
    if mark.group != group or step not in (None, mark.step):
        raise Unusable(f"{what}: holds step {mark.step} of group {mark.group}")
    if mark.recipe != recipe:
        raise Unusable(f"{what}: is of another recipe or other text ({mark.recipe})")
    if problem := wrong(tensors):
        raise Unusable(f"{what}: {problem}")
    return mark, tensors


def read(path: Path, what: str | None = None) -> tuple[Mark, dict[str, Tensor]]:
    """A file, every byte of it checked; `what` it is called in an error. Raises Unusable, and OSError where it cannot
    be read."""
    what = what or path.name
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            flat = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        numbers = [int(told[name]) for name in ("group", "step", "position")]
        mark = Mark(numbers[0], numbers[1], numbers[2], told["recipe"], told["sha256"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise Unusable(f"{what}: is half a file or none of ours ({error})") from error
    if digest(flat) != mark.sha256:
        raise Unusable(f"{what}: is damaged, its bytes are not those that were written")
    return mark, flat


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(memoryview(value.reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return found.hexdigest()
