"""What both containers say about a frozen student: its grid, its names, and the Artifact that stands for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeslm.artifact import Artifact, path_bytes, path_sha256
from edgeslm.errors import ExportError
from edgeslm.formats import FORMATS
from edgeslm.quantize.frozen import Frozen, FrozenTensor

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
SHAPE = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size",
)  # fmt: skip


def is_planned(tensor: FrozenTensor) -> bool:
    """Whether the tensor sits on a block grid; floats are stored as they are."""
    return FORMATS[tensor.format].block > 1


def majority(frozen: Frozen) -> str:
    """The format that holds most of the weights, one-dimensional tensors left out."""
    weights: Counter[str] = Counter()
    for tensor in frozen.tensors.values():
        if len(tensor.shape) > 1:
            weights[tensor.format] += tensor.weights
    if not weights:
        raise ExportError(f"{frozen.name} has no weight matrix; export needs a whole model")
    return weights.most_common(1)[0][0]


def grid(frozen: Frozen) -> str:
    """One format's name, or "mixed" when the matrices use several."""
    formats = {t.format for t in frozen.tensors.values() if len(t.shape) > 1}
    return formats.pop() if len(formats) == 1 else "mixed"


def tokenizer_folder(frozen: Frozen) -> Path:
    """The student's tokenizer. Raises ExportError when its files are not there."""
    if not (frozen.tokenizer / "tokenizer.json").is_file():
        raise ExportError(
            f"{frozen.tokenizer} holds no tokenizer.json, which the exported model needs; freeze it again"
        )
    return frozen.tokenizer


def describe(
    frozen: Frozen, path: Path, container: str, weight_bytes: int, note: str = "", unread_bytes: int = 0
) -> Artifact:
    return Artifact(
        name=path.name,
        path=path,
        format=container,
        sha256=path_sha256(path),
        bytes=path_bytes(path),
        weight_bytes=weight_bytes,
        parameters=frozen.parameters,
        grid=grid(frozen),
        recipe_hash=frozen.metadata.get("recipe_hash", ""),
        note=note,
        unread_bytes=unread_bytes,
        shape=shape(frozen.config),
    )


def shape(config: Mapping[str, Any]) -> dict[str, int]:
    """What `cost` reads of a decoder's config; empty when that does not say all of it."""
    found = {key: config.get(key) for key in SHAPE}
    heads = config.get("num_attention_heads")
    if heads and not found["num_key_value_heads"]:
        found["num_key_value_heads"] = heads
    if heads and not found["head_dim"] and found["hidden_size"]:
        found["head_dim"] = found["hidden_size"] // heads
    return {key: int(value) for key, value in found.items()} if all(found.values()) else {}  # type: ignore[arg-type]
