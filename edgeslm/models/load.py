"""A source becomes a transformers model in evaluation mode, or a summary of it without reading weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edgeslm.models import folder, packed
from edgeslm.models.arch import ARCHS, Arch
from edgeslm.models.gguf_vocab import tokenizer_from_metadata
from edgeslm.models.source import Source
from edgeslm.models.summary import ModelSummary


@dataclass(frozen=True)
class Loaded:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    arch: Arch
    source: Source
    summary: ModelSummary


def describe(source: Source) -> ModelSummary:
    """Headers only. Raises ModelError for whatever `load` would refuse without looking at weights."""
    if source.kind == "folder":
        return folder.describe(source.path)
    return packed.summary(packed.open_file(source))


def load(source: Source, dtype: torch.dtype, device: str | torch.device = "cpu") -> Loaded:
    """The whole model on `device` in `dtype`, evaluation mode, tied weights one tensor. Raises ModelError."""
    if source.kind == "folder":
        summary = folder.describe(source.path)
        model, tokenizer = folder.load(source.path, summary, dtype)
        model.to(torch.device(device))  # type: ignore[arg-type]  # its wrapper hides nn.Module's signature
        return Loaded(model.eval(), tokenizer, ARCHS[summary.arch], source, summary)
    file = packed.open_file(source)
    tokenizer = tokenizer_from_metadata(file.metadata, str(source.path))
    model = packed.build(file, dtype, torch.device(device))
    return Loaded(model.eval(), tokenizer, file.arch, source, packed.summary(file))


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json and the chat template, as transformers' save_pretrained lays them out."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":  # the name other readers and transformers 4 know
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
