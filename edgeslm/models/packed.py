"""GGUF and llama2.c files seen alike: checked against their config, then decoded into a transformers model.

Weights are decoded tensor by tensor, put in transformers' row order and handed to a model built without storage, so
nothing is initialised in vain. Every parameter must be given and none may be left over.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from edgeslm.errors import EdgeSLMError, ModelError
from edgeslm.models import gguf_file, llama2c, rotary
from edgeslm.models.arch import Arch
from edgeslm.models.arch.base import plain
from edgeslm.models.source import Source
from edgeslm.models.summary import FLOAT_FORMATS, ModelSummary, known_architecture
from edgeslm.models.turned import straighten


@dataclass(frozen=True)
class Packed:
    """A file that has been checked. Names and shapes are GGUF's."""

    path: Path
    file: gguf_file.GGUFFile | llama2c.Llama2cFile
    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    arch: Arch
    config: PretrainedConfig
    formats: dict[str, int]
    weight_bytes: int
    notes: tuple[str, ...] = ()


def open_file(source: Source) -> Packed:
    """Read the header and check it against the architecture. Raises ModelError."""
    where = str(source.path)
    if source.kind == "llama2c":
        bin_file = llama2c.read(source.path)
        vocabulary = llama2c.tokenizer_metadata(source.path, source.tokenizer, bin_file.metadata["llama.vocab_size"])
        formats, nbytes = {"f32": len(bin_file.shapes)}, 4 * sum(math.prod(s) for s in bin_file.shapes.values())
        metadata = bin_file.metadata | vocabulary
        arch, config, notes = _configure(metadata, bin_file.shapes, "llama", where)
        return Packed(source.path, bin_file, metadata, bin_file.shapes, arch, config, formats, nbytes, notes)
    file = gguf_file.read(source.path)
    if int(file.metadata.get("split.count", 1)) > 1:
        raise ModelError(f"{where}: is one part of a model in several files; join them with gguf-split --merge first")
    shapes = {name: info.shape for name, info in file.tensors.items()}
    weights = [info for name, info in file.tensors.items() if name not in rotary.CONSTANTS]
    formats = dict(Counter(info.format for info in weights).most_common())
    nbytes = sum(info.nbytes for info in weights)
    factors = {name: file.load(name).tolist() for name in rotary.CONSTANTS if name in shapes}
    arch, config, notes = _configure(file.metadata | factors, shapes, file.arch, where)
    if any(name not in FLOAT_FORMATS for name in formats):
        notes += ("weights as dequantised: they lie on the file's own grids, this is no full-precision model",)
    return Packed(source.path, file, file.metadata, shapes, arch, config, formats, nbytes, notes)


def _configure(
    metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]], name: str, where: str
) -> tuple[Arch, PretrainedConfig, tuple[str, ...]]:
    """Config and notes; names and shapes of all tensors are checked against the config, before any is decoded.
    `metadata` also holds the values of tensors that the config decides (rotary factors), by their names."""
    arch = known_architecture(name, where)
    try:
        config = arch.config(metadata)
    except EdgeSLMError as error:
        raise ModelError(f"{where}: {error}") from error
    config.tie_word_embeddings = "output.weight" not in shapes
    config.architectures = [type_name(config)]
    wanted = {*arch.names(plain(config)).values(), *arch.constants(plain(config))}
    missing, extra = sorted(wanted - set(shapes)), sorted(set(shapes) - wanted)
    if missing or extra:
        what = [f"lacks {', '.join(missing[:4])}"] if missing else []
        what += [f"holds {', '.join(extra[:4])}, which '{name}' does not use here"] if extra else []
        raise ModelError(f"{where}: {' and '.join(what)}; take a complete file of a supported model")
    rows = shapes["token_embd.weight"][0]
    if rows != config.vocab_size or len(metadata.get("tokenizer.ggml.tokens", ())) > rows:
        raise ModelError(
            f"{where}: the embedding has {rows} rows but the vocabulary {config.vocab_size} entries and "
            f"{len(metadata.get('tokenizer.ggml.tokens', ()))} tokens; the file is damaged"
        )
    notes = () if config.tie_word_embeddings else ("the head is stored apart from the embedding (not tied)",)
    return arch, config, notes


def type_name(config: PretrainedConfig) -> str:
    """The class transformers runs this config with: "LlamaForCausalLM"."""
    return str(getattr(AutoModelForCausalLM._model_mapping[type(config)], "__name__"))  # noqa: B009


def summary(packed: Packed) -> ModelSummary:
    return ModelSummary(
        arch=packed.arch.name,
        config=plain(packed.config),
        vocab_size=packed.shapes["token_embd.weight"][0],
        parameters=sum(math.prod(s) for name, s in packed.shapes.items() if name not in rotary.CONSTANTS),
        weight_bytes=packed.weight_bytes,
        formats=packed.formats,
        tied=packed.config.tie_word_embeddings,
        notes=packed.notes,
    )


def build(packed: Packed, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model with all its weights. Raises ModelError when they do not fit."""
    with torch.device("meta"):
        config = copy.deepcopy(packed.config)  # it writes into its config
        model = straighten(AutoModelForCausalLM.from_config(config, dtype=dtype))
    names = packed.arch.names(plain(packed.config))
    for name, parameter in model.named_parameters():
        stored, wanted = packed.shapes.get(names.get(name, ""), ()), tuple(parameter.shape)
        if stored != wanted:
            raise ModelError(
                f"{packed.path}: '{names.get(name, name)}' has shape {list(stored)} but the metadata calls for "
                f"{list(wanted)}; the file is damaged"
            )
    _assign(model, _decode(packed, dtype, device), str(packed.path))
    _make_buffers(model, device)
    return model


def _make_buffers(model: Any, device: torch.device) -> None:
    """Rotary tables and scales are no parameters: a model without storage has none, and they are made where it lives
    now. transformers' own initialisation gives their values; it passes over weights that are marked as given."""
    owners = [m for m in model.modules() if any(b.is_meta for b in m.buffers(recurse=False))]
    for parameter in model.parameters():
        parameter._is_hf_initialized = True
    for owner in owners:
        for name, buffer in owner.named_buffers(recurse=False):
            owner.register_buffer(name, torch.empty_like(buffer, device=device), persistent=False)
        model._init_weights(owner)
    for parameter in model.parameters():
        del parameter._is_hf_initialized


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """Decoding is many short operations: tensors side by side are faster than all threads on each operation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _decode(packed: Packed, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """{transformers name: tensor}, rows in transformers' order."""
    config = plain(packed.config)

    def one(item: tuple[str, str]) -> tuple[str, Tensor]:
        name, gguf_name = item
        weight = packed.file.load(gguf_name)
        order = packed.arch.row_order(name, config)
        if order is not None:
            weight = weight[torch.argsort(order)]
        if offset := packed.arch.offset(name):
            weight = weight - offset
        return name, weight.to(device=device, dtype=dtype)

    names = packed.arch.names(config)
    with _one_thread_each() as threads, ThreadPoolExecutor(threads) as pool:
        return dict(pool.map(one, names.items()))


def _assign(model: PreTrainedModel, weights: dict[str, Tensor], where: str) -> None:
    """Make `weights` the parameters of a model without storage. Raises ModelError unless they fit exactly."""
    missing, extra = model.load_state_dict(weights, strict=False, assign=True)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    if set(missing) - tied or extra:
        raise ModelError(f"{where}: weights do not fit the model: missing {sorted(missing)}, left over {sorted(extra)}")
    if tied:
        model.tie_weights()
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ModelError(f"{where}: nothing was loaded into '{name}'; the file is not a complete model")
