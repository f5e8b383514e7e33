"""What the groups of a codistillation share: files in one place, and nothing else (arXiv:1804.03235, section 2.1).

    PLACE/group-1/step-00000200.safetensors    of group 1 after 200 updates: its weights, or what it predicts

The header says what a file is (see Mark). It appears there at once (see exchange_places). Where it does not (a bucket
that is mounted as a folder), or bytes were lost on the way, the digest in the header shows it, and a reader passes the
file over as it does one of another recipe.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from edgeslm.errors import DataError
from edgeslm.schemes.exchange_places import Place

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

    folder: Place
    recipe: str
    here: tuple[int, ...]
    orders: Sequence[Any] = field(default_factory=tuple)
    shared: Sequence[int] = ()
    servers: Sequence[tuple[str, int]] = ()


def publish(place: Place, mark: Mark, tensors: Mapping[str, Tensor], keep: int) -> Mark:
    """Writes a group's file and removes its older ones but `keep`. Raises OSError, and then nothing is there, or it
    says that older ones stay."""
    flat, mark = _marked(mark, tensors)

    def write(path: Path) -> None:
        try:
            save_file(flat, path, metadata=_header(mark))
        except SafetensorError as error:  # how the library says that a disk is full
            raise OSError(str(error)) from error

    place.put(mark.group, mark.step, write)
    try:
        place.remove(mark.group, [s for s in place.steps(mark.group) if s <= mark.step][keep:])
    except OSError as error:
        raise OSError(f"it is there, but older ones stay: {error.strerror or error}") from error
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


def start_anew(place: Place, group: int) -> None:
    """Removes what an earlier training of this group left: a peer would take it for news. Raises OSError."""
    place.remove(group, place.steps(group))


def other_weights(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> str | None:
    """Why these are no weights of a model `like` this one. A peer that diverged must not take others along."""
    if {name: value.shape for name, value in tensors.items()} != {name: value.shape for name, value in like.items()}:
        return "holds weights of another model"
    if not all(torch.isfinite(value).all() for value in tensors.values()):
        return "holds values that are not finite"
    return None


def nothing_wrong(tensors: Mapping[str, Tensor]) -> str | None:
    return None


def fetch(place: Place, group: int, step: int, recipe: str, into: Path, wrong: Wrong = nothing_wrong) -> Mark:
    """Copies a peer's file to `into`, so that it stays when its writer removes it, and says what it is. Raises
    Unusable, and OSError where it cannot be read; `into` is then as it was."""
    return accept(lambda part: place.copy(group, step, part), group, step, recipe, into, wrong)


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
