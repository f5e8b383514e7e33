"""The rows of one optimiser step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """`mask[b, t]` says whether token t counts as a target (position 0 never does). `rows` [B]: the rows' places in the
    training rows, for teachers whose answers were recorded; None for text written on the spot. `fields`: whatever else
    a row holds, [B, ...] each; teacher and student may read different ones."""

    ids: Tensor  # [B, T] int64
    mask: Tensor  # [B, T] float32
    rows: Tensor | None = None
    fields: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.ids.shape[0]

    def part(self, rows: slice) -> Batch:
        return Batch(
            self.ids[rows],
            self.mask[rows],
            None if self.rows is None else self.rows[rows],
            {name: value[rows] for name, value in self.fields.items()},
        )

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.ids.to(device), self.mask.to(device), self.rows, {n: v.to(device) for n, v in self.fields.items()}
        )

    @property
    def answers(self) -> Tensor | None:
        """[B (T - 1)]: 1.0 where the token that is predicted counts and is an assistant's own; None where the rows do
        not say."""
        given = self.fields.get("answers")
        return None if given is None else (given.float() * self.mask)[:, 1:].reshape(-1)
