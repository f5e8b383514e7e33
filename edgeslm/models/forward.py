"""A transformers causal model's own forward, in the parts that training needs: last hidden states, and the head.

Shape letters: B rows, T positions, N = B (T - 1) predictions, D hidden width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def predictions(hidden: Tensor) -> Tensor:
    """[B, T, D] -> [N, D]: the states that predict a next token."""
    return hidden[:, :-1].reshape(-1, hidden.shape[-1])


def hidden_states(model: nn.Module, ids: Tensor, **more: Any) -> Tensor:
    """Final hidden states [B, T, D] of a transformers causal model, its own forward, no cache unless told so. One
    that ranks share (edgeslm.parallel.shards) gathers its weights around it, those of the head included."""
    if (gathering := getattr(model, "final_states", None)) is not None:
        return gathering(ids, **more)  # type: ignore[no-any-return, operator]
    return model.base_model(input_ids=ids, **{"use_cache": False, **more}).last_hidden_state  # type: ignore[operator]


def head_weight(model: nn.Module) -> nn.Parameter:
    """The output projection [V, D]; the embedding itself when they are tied."""
    return model.get_output_embeddings().weight  # type: ignore[operator]
