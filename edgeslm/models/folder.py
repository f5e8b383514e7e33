"""Model folders as the hub lays them out: config.json, *.safetensors, tokenizer files. No pickle, no code."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from edgeslm.errors import ModelError
from edgeslm.models.arch import Arch
from edgeslm.models.arch.base import plain
from edgeslm.models.summary import ModelSummary, known_arch
from edgeslm.models.turned import straighten

SAFETENSORS_FORMATS = {"F32": "f32", "F16": "f16", "BF16": "bf16", "F64": "f64"}
SAFETENSORS_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def _folder_config(path: Path) -> tuple[Arch, PretrainedConfig, list[Path]]:
    """Architecture, config and weight files of a hub folder. Raises ModelError."""
    files = sorted(path.glob("*.safetensors"))
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: holds no config.json; give a model folder as the hub lays it out")
    if not files:
        if any(next(path.glob(pattern), None) for pattern in PICKLES):
            raise ModelError(f"{path}: its weights are pickled, which can run code; convert them to .safetensors first")
        raise ModelError(f"{path}: holds no .safetensors weights; give a complete model folder")
    try:
        data = json.loads((path / "config.json").read_text(encoding="utf-8"))
        arch = known_arch(str(data.get("model_type")), str(path))
        if data.get("quantization_config"):
            raise ModelError(f"{path}: its weights are quantised by another tool; give the original float weights")
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{path}: config.json cannot be used ({error}); fetch the folder again") from error
    return arch, config, files


def describe(path: Path) -> ModelSummary:
    """From config.json and the headers of the weight files. Raises ModelError."""
    from safetensors import SafetensorError, safe_open

    arch, config, files = _folder_config(path)
    formats: Counter[str] = Counter()
    parameters = nbytes = 0
    seen: set[str] = set()
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    if name in seen or (name == "lm_head.weight" and config.tie_word_embeddings):
                        continue
                    if name.endswith(arch.unused):
                        continue
                    seen.add(name)
                    part = tensors.get_slice(name)
                    kind, count = part.get_dtype(), math.prod(part.get_shape())
                    if kind not in SAFETENSORS_FORMATS:
                        raise ModelError(f"{file}: '{name}' is stored as {kind}; give the original float weights")
                    formats[SAFETENSORS_FORMATS[kind]] += 1
                    parameters += count
                    nbytes += count * SAFETENSORS_BYTES[kind]
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: is no complete safetensors file ({error}); fetch it again") from error
    # some releases leave out the name of the base model, as transformers does when it reads them
    missing = {n for n in arch.names(plain(config)) if n not in seen and n.partition(".")[2] not in seen}
    if missing:
        raise ModelError(f"{path}: lacks {', '.join(sorted(missing)[:4])}; give a complete model folder")
    return ModelSummary(
        arch.name,
        plain(config),
        config.vocab_size,
        parameters,
        nbytes,
        dict(formats.most_common()),
        bool(config.tie_word_embeddings),
    )


def load(path: Path, summary: ModelSummary, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer on the CPU. Raises ModelError unless every parameter is given and none is left over."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: cannot be loaded ({error}); give a complete model folder") from error
    model, report = loaded
    faults = {kind: sorted(report.get(kind) or ()) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(faults.values()):
        raise ModelError(f"{path}: weights do not fit the model: {faults}; give a complete model folder")
    if len(tokenizer) > summary.vocab_size:
        raise ModelError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens but the embedding {summary.vocab_size} rows; "
            "they do not belong together"
        )
    return straighten(model), tokenizer
