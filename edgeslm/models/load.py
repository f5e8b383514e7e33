"""A source becomes a transformers model in evaluation mode, or a summary of it without reading weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edgeslm.errors import ModelError
from edgeslm.models import adapter, folder, packed
from edgeslm.models.arch import ARCHS, Arch
from edgeslm.models.gguf_vocab import tokenizer_from_metadata
from edgeslm.models.shapes import parameter_shapes
from edgeslm.models.source import Source
from edgeslm.models.summary import ModelSummary
from edgeslm.models.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Loaded:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    arch: Arch
    source: Source
    summary: ModelSummary


def describe(source: Source) -> ModelSummary:
    """Headers only. Raises ModelError for whatever `load` would refuse without looking at weights."""
    if source.base is not None:
        under = describe(source.base)
        found = adapter.check(source.path, parameter_shapes(under.config), source.base.spec)
        note = f"merged with the adapter {source.path.name}: LoRA on {len(found.shapes)} matrices"
        return replace(under, notes=(*under.notes, note))
    if source.kind == "folder":
        return folder.describe(source.path)
    return packed.summary(packed.open_file(source))


def load(source: Source, dtype: torch.dtype, device: str | torch.device = "cpu") -> Loaded:
    """The whole model on `device` in `dtype`, evaluation mode, tied weights one tensor. Raises ModelError."""
    if source.base is not None:
        return _adapted(source, source.base, dtype, device)
    if source.kind == "folder":
        summary = folder.describe(source.path)
        model, tokenizer = folder.load(source.path, summary, dtype)
        model.to(torch.device(device))  # type: ignore[arg-type]  # its wrapper hides nn.Module's signature
        return Loaded(model.eval(), tokenizer, ARCHS[summary.arch], source, summary)
    file = packed.open_file(source)
    tokenizer = tokenizer_from_metadata(file.metadata, str(source.path))
    model = packed.build(file, dtype, torch.device(device))
    return Loaded(model.eval(), tokenizer, file.arch, source, packed.summary(file))


def _adapted(source: Source, base: Source, dtype: torch.dtype, device: str | torch.device) -> Loaded:
    """Merged in float32, then cast; buffers keep their type, as everywhere."""
    summary, loaded, tokenizer = describe(source), load(base, torch.float32), load_tokenizer(source)
    if len(tokenizer) > summary.vocab_size:
        raise ModelError(
            f"{source.path}: its tokenizer has {len(tokenizer)} tokens but the embedding of its base "
            f"{summary.vocab_size} rows; they do not belong together"
        )
    adapter.merge(loaded.model, source.path)
    for parameter in loaded.model.parameters():
        parameter.data = parameter.data.to(dtype)
    loaded.model.config.dtype = dtype
    loaded.model.to(torch.device(device))  # type: ignore[arg-type]  # its wrapper hides nn.Module's signature
    return Loaded(loaded.model, tokenizer, loaded.arch, source, summary)


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json and the chat template, as transformers' save_pretrained lays them out."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":  # the name other readers and transformers 4 know
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
