"""A teacher that was heard beforehand: targets on disk, sharded, memory-mapped, found by the id of a row.

    index.json                 what was recorded, of which teacher, and every shard with its rows and sha256
    targets-00000.safetensors  ids [R, T - 1, K + S], logs [R, T - 1, K] float16, rest [R, T - 1] float16 (see Kept)

Shape letters: R rows of a shard, T tokens of a row, K outcomes kept, S sampled, N predictions of a batch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgeslm.artifact import file_sha256, write_whole
from edgeslm.data.batch import Batch
from edgeslm.data.rows import Rows
from edgeslm.errors import DataError
from edgeslm.teachers.base import Need, Output, Signals, Sparse, dense
from edgeslm.teachers.targets import Kept, bytes_per_token, id_type, keep, restore

SHARD_ROWS = 64
FIELDS = ("ids", "logs", "rest")  # of Kept, and of a shard
CHUNK = 64  # predictions whose whole distribution is looked at together


@dataclass(frozen=True)
class Recording:
    """What to keep of each prediction: `count` likeliest outcomes and `samples` draws, at `temperature`."""

    count: int
    samples: int
    temperature: float
    seed: int


def record(
    output_of: Callable[[Batch], Output],
    rows: Rows,
    chosen: Sequence[int],
    how: Recording,
    vocabulary: int,
    about: dict[str, Any],
    folder: Path,
    device: torch.device,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes what the teacher says of the `chosen` rows. Shards that are there already are kept: a recording that was
    stopped goes on."""
    names, shards = rows.row_ids(), []
    for at in range(0, len(chosen), SHARD_ROWS):
        some = list(chosen[at : at + SHARD_ROWS])
        path = folder / f"targets-{at // SHARD_ROWS:05}.safetensors"
        ids = [names[i] for i in some]
        if not _whole(path, ids):
            _write_shard(path, output_of, rows, some, ids, how, vocabulary, device)
        shards.append({"file": path.name, "rows": ids, "sha256": file_sha256(path)})
        if on_progress:
            on_progress(at + len(some), len(chosen))
    index = {
        "schema": 1,
        "count": how.count,
        "samples": how.samples,
        "temperature": how.temperature,
        "seed": how.seed,
        "vocabulary": vocabulary,
        "bytes_per_token": bytes_per_token(how.count, how.samples, vocabulary),
        **about,
        "shards": shards,
    }
    write_whole(folder / "index.json", json.dumps(index, indent=1).encode())


def _whole(path: Path, ids: list[str]) -> bool:
    """Whether the shard is there and holds just these rows."""
    if not path.exists():
        return False
    with safe_open(path, framework="pt") as file:
        return file.metadata().get("rows") == " ".join(ids)


def _write_shard(
    path: Path,
    output_of: Callable[[Batch], Output],
    rows: Rows,
    chosen: list[int],
    ids: list[str],
    how: Recording,
    vocabulary: int,
    device: torch.device,
) -> None:
    parts = []
    for row, name in zip(chosen, ids, strict=True):
        batch = Batch(rows.ids[row : row + 1].long().to(device), rows.mask[row : row + 1].float().to(device))
        parts.append(_row(output_of(batch), batch.ids[0, 1:], how, name))
    tensors = {
        "ids": torch.stack([p.ids for p in parts]).to(id_type(vocabulary)),
        "logs": torch.stack([p.logs for p in parts]),
        "rest": torch.stack([p.rest for p in parts]),
    }
    part = path.with_name(path.name + ".part")
    save_file(tensors, part, metadata={"rows": " ".join(ids)})
    os.replace(part, path)


@torch.no_grad()
def _row(output: Output, targets: Tensor, how: Recording, name: str) -> Kept:
    """A row's draws depend on its id and the seed alone, not on what is recorded beside it."""
    generator = torch.Generator().manual_seed((int(name, 16) ^ how.seed) & (2**63 - 1))
    uniform = torch.rand(len(targets), how.samples, generator=generator)
    found = []
    for at in range(0, len(targets), CHUNK):
        part = slice(at, at + CHUNK)
        logits = dense(output.rows(part, targets[part]))
        found.append(keep(logits.cpu(), how.count, how.samples, how.temperature, uniform[part]))
    return Kept(*(torch.cat([getattr(f, name) for f in found]) for name in FIELDS))


@dataclass(frozen=True)
class Whole:
    """Targets of N predictions that are in memory."""

    kept: Kept
    samples: int
    temperature: float

    def rows(self, part: slice, targets: Tensor) -> Sparse:
        some = Kept(*(getattr(self.kept, name)[part] for name in FIELDS))
        return restore(some, self.samples, self.temperature)


class RecordedTeacher:
    """Gives what was recorded for the rows of a batch."""

    def __init__(self, folder: Path, rows: Rows, chosen: Sequence[int], digests: bool = True):
        """Raises DataError where a row was not recorded or a shard is not what the index says. `digests`: whether whole
        shards are read to see that; of processes that share a folder one does, and all read their own rows later."""
        self.index = read_index(folder)
        self.names = rows.row_ids()
        self.place: dict[str, tuple[int, int]] = {}
        self.files = []
        for number, shard in enumerate(self.index["shards"]):
            path = folder / shard["file"]
            if not path.exists() or (digests and file_sha256(path) != shard["sha256"]):
                raise DataError(f"{path}: missing or not as recorded; delete {folder} and record again")
            self.files.append(safe_open(path, framework="pt"))
            self.place.update({name: (number, at) for at, name in enumerate(shard["rows"])})
        missing = [i for i in set(chosen) if self.names[i] not in self.place]
        if missing:
            raise DataError(
                f"{folder}: {len(missing)} of the {len(set(chosen))} training rows were not recorded; "
                "record with the same data and tokenizer"
            )

    def __call__(self, batch: Batch, need: Need) -> Signals:
        assert batch.rows is not None and not need.layers, "check refuses what recorded targets cannot give"
        parts = [self._row(int(i)) for i in batch.rows]
        device = batch.ids.device
        whole = Kept(*(torch.cat(pieces).to(device) for pieces in zip(*parts, strict=True)))
        return Signals(Whole(whole, self.index["samples"], self.index["temperature"]))

    def _row(self, row: int) -> tuple[Tensor, Tensor, Tensor]:
        number, at = self.place[self.names[row]]
        file = self.files[number]
        return tuple(file.get_slice(name)[at] for name in FIELDS)  # type: ignore[return-value]


def read_index(folder: Path) -> dict[str, Any]:
    """Raises DataError when there is none."""
    try:
        index: dict[str, Any] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{folder}: holds no recorded targets (index.json: {error})") from error
    return index
