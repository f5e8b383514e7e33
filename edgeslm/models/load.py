"""A source becomes a transformers model in evaluation mode, or a summary of it without reading weights.

Weights of a GGUF or llama2.c file are decoded tensor by tensor, put in transformers' row order and handed to a model
built without storage, so nothing is initialised in vain. Every parameter must be given and none may be left over.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from edgeslm.errors import EdgeSLMError, ModelError
from edgeslm.models import gguf_file, llama2c
from edgeslm.models.arch import ARCHS, Arch
from edgeslm.models.gguf_vocab import tokenizer_from_metadata
from edgeslm.models.source import Source

FLOAT_FORMATS = ("f32", "f16", "bf16", "f64")
SAFETENSORS_FORMATS = {"F32": "f32", "F16": "f16", "BF16": "bf16", "F64": "f64"}
SAFETENSORS_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class ModelSummary:
    """What a model is, known without its weights."""

    arch: str
    config: dict[str, Any]  # transformers' config.to_dict()
    vocab_size: int  # rows of the embedding
    parameters: int  # a tied tensor once
    weight_bytes: int  # of the tensors as stored
    formats: dict[str, int]  # {"q4_1": 210, "q8_0": 1, "f32": 61}: tensors per storage format
    tied: bool  # the head is the embedding
    notes: tuple[str, ...] = ()

    @property
    def dequantised(self) -> bool:
        """Whether some weights lie on a coarse grid already: such a teacher is "as dequantised", never full precision."""
        return any(name not in FLOAT_FORMATS for name in self.formats)


@dataclass(frozen=True)
class Loaded:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    arch: Arch
    source: Source
    summary: ModelSummary


@dataclass(frozen=True)
class _Packed:
    """A GGUF or llama2.c file seen alike: GGUF names, shapes and metadata."""

    file: gguf_file.GGUFFile | llama2c.Llama2cFile
    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    arch: Arch
    config: PretrainedConfig
    formats: dict[str, int]
    weight_bytes: int
    notes: tuple[str, ...] = field(default=())


def known_arch(name: str, where: str) -> Arch:
    """Raises ModelError, naming the families there are."""
    if name not in ARCHS:
        raise ModelError(f"{where}: architecture '{name}' is not supported; supported are {', '.join(sorted(ARCHS))}")
    return ARCHS[name]


def describe(source: Source) -> ModelSummary:
    """Headers only. Raises ModelError for whatever `load` would refuse without looking at weights."""
    if source.kind == "folder":
        return _describe_folder(source.path)
    return _summary(_open(source))


def load(source: Source, dtype: torch.dtype, device: str | torch.device = "cpu") -> Loaded:
    """The whole model on `device` in `dtype`, evaluation mode, tied weights one tensor. Raises ModelError."""
    if source.kind == "folder":
        return _load_folder(source, dtype, device)
    packed = _open(source)
    tokenizer = tokenizer_from_metadata(packed.metadata, str(source.path))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(packed.config, dtype=dtype)
    _assign(model, _decode(packed, dtype, torch.device(device)), str(source.path))
    # the rotary table is no parameter: made anew where the model now lives
    model.model.rotary_emb = type(model.model.rotary_emb)(config=packed.config).to(device)
    return Loaded(model.eval(), tokenizer, packed.arch, source, _summary(packed))


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json and the chat template, as transformers' save_pretrained lays them out."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":  # the name other readers and transformers 4 know
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _open(source: Source) -> _Packed:
    where = str(source.path)
    if source.kind == "llama2c":
        bin_file = llama2c.read(source.path)
        vocabulary = llama2c.tokenizer_metadata(
            source.path, source.tokenizer, bin_file.metadata["llama.vocab_size"]
        )
        formats, nbytes = {"f32": len(bin_file.shapes)}, 4 * sum(math.prod(s) for s in bin_file.shapes.values())
        metadata = bin_file.metadata | vocabulary
        arch, config, notes = _configure(metadata, bin_file.shapes, "llama", where)
        return _Packed(bin_file, metadata, bin_file.shapes, arch, config, formats, nbytes, notes)
    file = gguf_file.read(source.path)
    if int(file.metadata.get("split.count", 1)) > 1:
        raise ModelError(f"{where}: is one part of a model in several files; join them with gguf-split --merge first")
    shapes = {name: info.shape for name, info in file.tensors.items()}
    formats = dict(Counter(info.format for info in file.tensors.values()).most_common())
    nbytes = sum(info.nbytes for info in file.tensors.values())
    arch, config, notes = _configure(file.metadata, shapes, file.arch, where)
    if any(name not in FLOAT_FORMATS for name in formats):
        notes += ("weights as dequantised: they lie on the file's own grids, this is no full-precision model",)
    return _Packed(file, file.metadata, shapes, arch, config, formats, nbytes, notes)


def _configure(
    metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]], name: str, where: str
) -> tuple[Arch, PretrainedConfig, tuple[str, ...]]:
    """Config and notes; names and shapes of all tensors are checked against the config, before any is decoded."""
    arch = known_arch(name, where)
    try:
        config = arch.config(metadata)
    except EdgeSLMError as error:
        raise ModelError(f"{where}: {error}") from error
    config.tie_word_embeddings = "output.weight" not in shapes
    config.architectures = [type_name(config)]
    wanted = arch.names(config.to_dict())
    missing, extra = sorted(set(wanted.values()) - set(shapes)), sorted(set(shapes) - set(wanted.values()))
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
    return str(AutoModelForCausalLM._model_mapping[type(config)].__name__)


def _summary(packed: _Packed) -> ModelSummary:
    return ModelSummary(
        arch=packed.arch.name,
        config=packed.config.to_dict(),
        vocab_size=packed.shapes["token_embd.weight"][0],
        parameters=sum(math.prod(shape) for shape in packed.shapes.values()),
        weight_bytes=packed.weight_bytes,
        formats=packed.formats,
        tied=packed.config.tie_word_embeddings,
        notes=packed.notes,
    )


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Decoding is many short operations: one thread per tensor is faster than all threads on each operation."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _decode(packed: _Packed, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """{transformers name: tensor}, rows in transformers' order."""
    config = packed.config.to_dict()

    def one(item: tuple[str, str]) -> tuple[str, Tensor]:
        name, gguf_name = item
        weight = packed.file.load(gguf_name)
        order = packed.arch.row_order(name, config)
        if order is not None:
            weight = weight[torch.argsort(order)]
        return name, weight.to(device=device, dtype=dtype)

    names = packed.arch.names(config)
    with _one_thread_each(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return dict(pool.map(one, names.items()))


def _assign(model: PreTrainedModel, weights: dict[str, Tensor], where: str) -> None:
    """Make `weights` the parameters of a model without storage. Raises ModelError unless they fit exactly."""
    for name, parameter in model.named_parameters():
        if name in weights and weights[name].shape != parameter.shape:
            raise ModelError(
                f"{where}: '{name}' has shape {list(weights[name].shape)} but the metadata calls for "
                f"{list(parameter.shape)}; the file is damaged"
            )
    missing, extra = model.load_state_dict(weights, strict=False, assign=True)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    if set(missing) - tied or extra:
        raise ModelError(f"{where}: weights do not fit the model: missing {sorted(missing)}, left over {sorted(extra)}")
    if tied:
        model.tie_weights()
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ModelError(f"{where}: nothing was loaded into '{name}'; the file is not a complete model")


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


def _describe_folder(path: Path) -> ModelSummary:
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
    missing = set(arch.names(config.to_dict())) - seen
    if missing:
        raise ModelError(f"{path}: lacks {', '.join(sorted(missing)[:4])}; give a complete model folder")
    return ModelSummary(
        arch.name, config.to_dict(), config.vocab_size, parameters, nbytes, dict(formats.most_common()),
        bool(config.tie_word_embeddings),
    )


def _load_folder(source: Source, dtype: torch.dtype, device: str | torch.device) -> Loaded:
    summary = _describe_folder(source.path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, trust_remote_code=False, local_files_only=True)
        model, report = AutoModelForCausalLM.from_pretrained(
            source.path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{source.path}: cannot be loaded ({error}); give a complete model folder") from error
    faults = {kind: sorted(report.get(kind) or ()) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(faults.values()):
        raise ModelError(f"{source.path}: weights do not fit the model: {faults}; give a complete model folder")
    if len(tokenizer) > summary.vocab_size:
        raise ModelError(
            f"{source.path}: the tokenizer has {len(tokenizer)} tokens but the embedding {summary.vocab_size} rows; "
            "they do not belong together"
        )
    return Loaded(model.to(device).eval(), tokenizer, ARCHS[summary.arch], source, summary)
