"""A recurrent student: an embedding table and one LSTM in each direction (BERT to BiLSTM, arXiv:1903.12136).

Shape letters: B rows, T positions, E width of the table, H units, D = 2 H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgeslm.knowledge.base import Sizes


class Both(nn.Module):
    """Two LSTMs; the second reads each row's own tokens from its end, so that padding never reaches the text."""

    def __init__(self, width: int, units: int):
        super().__init__()
        self.forward_lstm = nn.LSTM(width, units, batch_first=True)
        self.backward_lstm = nn.LSTM(width, units, batch_first=True)

    def forward(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """[B, T, E] -> [B, T, 2 H]."""
        count = mask.long().sum(dim=1, keepdim=True)
        place = torch.arange(mask.shape[1], device=mask.device)[None]
        turned = torch.where(place < count, count - 1 - place, place)  # its own inverse
        ahead, _ = self.forward_lstm(embedded)
        back, _ = self.backward_lstm(_take(embedded, turned))
        return torch.cat([ahead, _take(back, turned)], dim=-1)


def _take(x: Tensor, place: Tensor) -> Tensor:
    return x.gather(1, place[..., None].expand(-1, -1, x.shape[-1]))


class BiLstmBody(nn.Module):
    """`config`: {vocabulary, width, units}."""

    reads = ("ids", "mask")

    def __init__(self, config: dict[str, Any], attention: str = ""):
        super().__init__()
        self.embedding = nn.Embedding(config["vocabulary"], config["width"])
        self.lstm = Both(config["width"], config["units"])

    @property
    def blocks(self) -> list[nn.Module]:
        return [self.lstm]

    @property
    def sizes(self) -> Sizes:
        width = 2 * self.lstm.forward_lstm.hidden_size
        return Sizes(width, 1, width)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.lstm(self.embedding(ids), mask), mask
