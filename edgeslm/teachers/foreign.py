"""A teacher that speaks another vocabulary: it reads the same text in its own tokens, and teaches where a token of the
student's and one of its own end at the same byte.

Shape letters: B rows, T student's positions, U teacher's positions, N = B (T - 1) predictions, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edgeslm.data.batch import Batch
from edgeslm.models.forward import head_weight, hidden_states
from edgeslm.models.pieces import ends, pieces, shared_ends, whole_characters
from edgeslm.teachers.base import Dense, Need, Signals


class ForeignTeacher:
    """Gives its distribution under `Signals.foreign[index]`, with a mask of the predictions that it can teach."""

    def __init__(self, model: nn.Module, own: Any, student: Any, index: int):
        """`own` and `student` are tokenizers."""
        self.model, self.own, self.index = model.eval(), own, index
        self.read, self.written = pieces(student), pieces(own)
        self.spaced = b"".join(self.written[i] for i in self._own("a")).startswith(b" ")

    @torch.no_grad()
    def __call__(self, batch: Batch, need: Need) -> Signals:
        rows = [self._row(ids.tolist()) for ids in batch.ids]
        longest = max(len(ids) for ids, _ in rows)
        device = batch.ids.device
        ids = torch.tensor([own + [0] * (longest - len(own)) for own, _ in rows], device=device)  # [B, U]
        seen = torch.tensor([[1] * len(own) + [0] * (longest - len(own)) for own, _ in rows], device=device)
        hidden = hidden_states(self.model, ids, attention_mask=seen)
        places = torch.tensor([found for _, found in rows], device=device)[:, :-1]  # [B, T - 1]
        states = torch.gather(hidden, 1, places.clamp(min=0)[:, :, None].expand(-1, -1, hidden.shape[2]))
        mask = (places >= 0).float().reshape(-1)
        output = Dense(states.reshape(-1, hidden.shape[2]), head_weight(self.model).detach())
        return Signals(None, {}, {self.index: (output, mask)})

    def _row(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """(the row in the teacher's tokens, for each student's position the teacher's that ends at the same byte)."""
        # a row may begin or end inside a character: nothing is said there
        torn, raw = whole_characters(b"".join(self.read[i] for i in ids))
        text = raw.decode("utf-8", errors="replace")
        own = self._own(text[1:] if self.spaced and text.startswith(" ") else text) or [0]
        spelled = b"".join(self.written[i] for i in own)
        # SentencePiece writes a space before the text
        shift = {raw: 0, b" " + raw: 1}.get(spelled)
        if raw.startswith(b" ") and spelled == raw[1:]:
            shift = -1
        if shift is None:
            return own, [-1] * len(ids)
        return own, shared_ends(ends(ids, self.read), ends(own, self.written), shift - torn)

    def _own(self, text: str) -> list[int]:
        return list(self.own(text, add_special_tokens=False, verbose=False)["input_ids"])
