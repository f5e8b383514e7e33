"""A BERT-like body: transformers' own blocks, under one interface with bodies of other kinds.

Shape letters: B rows, T positions, D hidden width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import BertConfig, BertModel

from edgeslm.knowledge.base import Sizes

READS = ("ids", "mask", "types")


class BertBody(nn.Module):
    """`config`: transformers' own as plain data."""

    reads = READS

    def __init__(self, config: dict[str, Any], attention: str = "sdpa"):
        super().__init__()
        self.bert = BertModel(bert_config(config, attention), add_pooling_layer=False)

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.bert.encoder.layer)

    @property
    def sizes(self) -> Sizes:
        return bert_sizes(self.bert.config)

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> tuple[Tensor, Tensor]:
        """ids, mask, types [B, T] -> (hidden [B, T, D], mask [B, T])."""
        out = self.bert(input_ids=ids, attention_mask=mask, token_type_ids=types)
        return out.last_hidden_state, mask


def bert_config(config: dict[str, Any], attention: str) -> BertConfig:
    """Dropout is left out: the signal of a teacher is regularisation enough for the short trainings meant here, and a
    run stays the same run when it is stopped and goes on."""
    drop = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype", "model_type")
    given = {k: v for k, v in config.items() if k not in drop}
    made = BertConfig(**{**given, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    made._attn_implementation = attention
    return made


def bert_sizes(config: BertConfig) -> Sizes:
    heads = config.num_attention_heads
    return Sizes(config.hidden_size, heads, config.hidden_size // heads)
