"""A transformers causal model's own forward, in the parts that training needs: last hidden states, and the head.

Shape letters: B rows, T positions, N = B (T - 1) predictions, D hidden width, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor, nn


def predictions(hidden: Tensor) -> Tensor:
    """[B, T, D] -> [N, D]: the states that predict a next token."""
    return hidden[:, :-1].reshape(-1, hidden.shape[-1])


def hidden_states(model: nn.Module, ids: Tensor) -> Tensor:
    """Final hidden states [B, T, D] of a transformers causal model, its own forward, no cache."""
    return model.base_model(input_ids=ids, use_cache=False).last_hidden_state  # type: ignore[operator]


def head_weight(model: nn.Module) -> nn.Parameter:
    """The output projection [V, D]; the embedding itself when they are tied."""
    return model.get_output_embeddings().weight  # type: ignore[operator]
