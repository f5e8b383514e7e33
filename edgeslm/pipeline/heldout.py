"""The text to judge by: windows of the recipe's evaluation files, which share no author with training text."""

from __future__ import annotations

from typing import Any

from edgeslm.models.stop import begin_id
from edgeslm.pipeline.stage import Context, digest
from edgeslm.recipe import expand


def heldout_windows(context: Context) -> list[list[int]]:
    """Windows of `context` ids, taken evenly over the files. Raises DataError."""
    from edgeslm.data.text import documents
    from edgeslm.evaluate.closeness import even_windows

    part = context.recipe.evaluate
    texts = documents(expand(part.paths, context.base), context.tokenizer)
    return even_windows(texts, part.context, part.windows)


def heldout_ids(context: Context) -> Any:
    """The same as a tensor [R, T] on the run's device, begun as shipped files are fed them."""
    import torch

    return torch.tensor(_fed(context), device=context.compute.device)


def judged(context: Context) -> dict[str, Any]:
    """What a figure was judged on: names of the files, size and digest of the windows."""
    part, windows = context.recipe.evaluate, _fed(context)
    names = [path.name for path in expand(part.paths, context.base)]
    return {"files": names, "windows": len(windows), "context": part.context, "digest": digest(windows)}


def _fed(context: Context) -> list[list[int]]:
    from edgeslm.evaluate.closeness import with_begin

    return with_begin(heldout_windows(context), begin_id(context.tokenizer))
