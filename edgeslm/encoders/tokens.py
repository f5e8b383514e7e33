"""Items become tensors of fixed length, and batches for the step.

Shape letters: R rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from edgeslm.data.batch import Batch
from edgeslm.data.rows import Rows
from edgeslm.encoders.rows import UNKNOWN, Item
from edgeslm.errors import DataError

PARTS = ("train", "transfer", "judge")


@dataclass(frozen=True)
class Table:
    """`rows.mask` is 1 where a token is text and not padding; `rows.source` counts through the tasks' train, transfer
    and judge rows. `fields`: types [R, T], label, task, start, end [R], and pixels [R, H, W] where students see."""

    rows: Rows
    fields: dict[str, Tensor]

    def of(self, tasks: Sequence[int], parts: Sequence[str]) -> Tensor:
        """Places of the rows of some tasks and parts."""
        wanted = torch.tensor([task * len(PARTS) + PARTS.index(part) for task in tasks for part in parts])
        return torch.isin(self.rows.source, wanted).nonzero().squeeze(1)

    def batch(self, chosen: Tensor) -> Batch:
        fields = {name: value[chosen] for name, value in self.fields.items()}
        return Batch(self.rows.ids[chosen].long(), self.rows.mask[chosen].float(), chosen, fields)

    def save(self, folder: Path) -> None:
        save_file(self.fields, folder / "fields.safetensors")
        self.rows.save(folder / "rows.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Table:
        return cls(Rows.load(folder / "rows.safetensors"), load_file(folder / "fields.safetensors"))


def tabulate(items: Sequence[Item], source: Tensor, names: tuple[str, ...], tokenizer: Any, length: int) -> Table:
    """`source` [R] indexes `names`, three for each task. Raises DataError for a tokenizer that cannot place answers."""
    if not tokenizer.is_fast:
        raise DataError("the teacher's tokenizer has no tokenizer.json, which says where in a text a token lies")
    texts, pairs = [i.text for i in items], [i.pair for i in items]
    options: dict[str, Any] = {"max_length": length, "padding": "max_length", "return_offsets_mapping": True}
    if any(p is not None for p in pairs):
        # of a question and its context only the context is cut
        made = tokenizer(texts, [p or "" for p in pairs], truncation=_truncation(items), **options)
    else:
        made = tokenizer(texts, truncation=True, **options)
    mask = torch.tensor(made["attention_mask"], dtype=torch.uint8)
    types = torch.tensor(made.get("token_type_ids") or [[0] * length] * len(items), dtype=torch.uint8)
    spans = [_token_span(item, made, row) for row, item in enumerate(items)]
    fields = {
        "types": types,
        "label": torch.tensor([i.label for i in items], dtype=torch.int16),
        "task": (source // len(PARTS)).to(torch.uint8),
        "start": torch.tensor([s for s, _ in spans], dtype=torch.int16),
        "end": torch.tensor([e for _, e in spans], dtype=torch.int16),
    }
    return Table(Rows(torch.tensor(made["input_ids"], dtype=torch.int32), mask, source, names), fields)


def _truncation(items: Sequence[Item]) -> str:
    return "only_second" if any(i.span for i in items) else "longest_first"


def _token_span(item: Item, made: Any, row: int) -> tuple[int, int]:
    """First and last token of the answer; UNKNOWN where the context was cut before it."""
    if item.span is None:
        return UNKNOWN, UNKNOWN
    inside = [
        at
        for at, (a, b) in enumerate(made["offset_mapping"][row])
        if made.sequence_ids(row)[at] == 1 and a < item.span[1] and b > item.span[0] and b > a
    ]
    return (inside[0], inside[-1]) if inside else (UNKNOWN, UNKNOWN)


def read_order(table: Table, phases: Sequence[tuple[int, Tensor]], batch_rows: int, seed: int) -> Tensor:
    """[steps * batch_rows] places of rows: `phases` are (steps, the rows they may read). Every row once before any
    comes again; a function of the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for steps, allowed in phases:
        need, got = steps * batch_rows, []
        while need > 0:
            shuffled = allowed[torch.randperm(len(allowed), generator=generator)]
            got.append(shuffled[:need])
            need -= len(shuffled)
        parts += got
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
