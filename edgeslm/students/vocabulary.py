"""A model of fewer tokens: the rows of embedding and head that are kept, all else as it was.

A softmax over the rows that are kept is the model's own distribution given that the next token is a kept one: what it
gave to the others is shared out in proportion.

Legend: V rows before, K kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edgeslm.errors import ModelError

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


@torch.no_grad()
def cut(model: Any, kept: Sequence[int]) -> None:
    """In place; a tied head stays tied. A model of as many rows as are kept has been cut before and stays as it is.
    Raises ModelError for one that lacks a row."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    size = embedding.weight.shape[0]
    if size == len(kept):
        return
    if size <= kept[-1]:
        raise ModelError(
            f"student.vocabulary: a model's embedding has {size} rows, but token {kept[-1]} is to be kept; "
            "models of one recipe need one vocabulary"
        )
    tied = head.weight is embedding.weight
    rows = torch.tensor(list(kept), device=embedding.weight.device)
    embedding.weight = _rows(embedding.weight, rows)
    embedding.num_embeddings, embedding.padding_idx = len(kept), None
    head.weight = embedding.weight if tied else _rows(head.weight, rows)
    head.out_features = len(kept)
    if head.bias is not None:
        head.bias = _rows(head.bias, rows)
    new = {old: number for number, old in enumerate(kept)}
    for config in (model.config, model.generation_config):
        if config is not None:
            _renumber(config, new)
    model.config.vocab_size = len(kept)
    model.base_model.vocab_size = model.vocab_size = len(kept)


def _rows(weight: nn.Parameter, rows: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach()[rows].clone(), requires_grad=weight.requires_grad)


def _renumber(config: Any, new: dict[int, int]) -> None:
    """Special tokens are always kept; an id that is no token of the vocabulary names nothing any more."""
    for name in SPECIAL:
        value = getattr(config, name, None)
        if isinstance(value, int):
            setattr(config, name, new.get(value))
        elif isinstance(value, list):
            setattr(config, name, [new[i] for i in value if i in new])
