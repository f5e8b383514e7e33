"""The text to judge by: windows of the recipe's evaluation files, which share no author with training text."""

from __future__ import annotations

from typing import Any

from edgeslm.pipeline.stage import Context
from edgeslm.recipe import expand


def heldout_windows(context: Context) -> list[list[int]]:
    """Windows of `context` ids, taken evenly over the files so that every author has a say. Raises DataError."""
    from edgeslm.data.text import documents
    from edgeslm.evaluate.closeness import windows

    part = context.recipe.evaluate
    texts = documents(expand(part.paths, context.base), context.tokenizer)
    share = -(-part.windows // len(texts))
    found = [w for ids in texts for w in windows(ids, part.context, share)]
    return found[: part.windows]


def heldout_ids(context: Context) -> Any:
    """The same as a tensor [R, T] on the run's device."""
    import torch

    return torch.tensor(heldout_windows(context), device=context.compute.device)
