"""GGUF file for llama.cpp and everything that embeds it: the student's codes and scales, packed as ggml packs them.

Tensors are written one at a time, so memory holds one packed tensor beside the student.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFValueType, GGUFWriter, size_label
from numpy.typing import NDArray
from transformers import AutoTokenizer

from edgeslm.artifact import Artifact, path_bytes
from edgeslm.errors import ExportError
from edgeslm.export.describe import HEAD, describe, majority, tokenizer_folder
from edgeslm.export.layout import laid_out
from edgeslm.export.place import put_in_place
from edgeslm.formats import FORMATS
from edgeslm.models.arch import ARCHS
from edgeslm.models.gguf_vocab import metadata_from_tokenizer
from edgeslm.quantize.frozen import Frozen, FrozenTensor

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # enum llama_token_type
# Spellings that llama.cpp treats as control tokens whatever a file says, with a warning when the file says otherwise
# (Qwen's vocabulary has "</s>" as a common token). Written as control they mean the same and load in silence.
# Source: llama-vocab.cpp, "control-looking token".
CONTROL_SPELLINGS = frozenset(
    """
    <|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s>
    <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> [e~[
    <｜end▁of▁sentence｜> <｜fim▁begin｜> <｜fim▁hole｜> <｜fim▁end｜> <|fim_prefix|> <fim-prefix> <fim_prefix> <PRE>
    ▁<PRE> <|code_prefix|> <|prefix|> <|fim_suffix|> <fim-suffix> <fim_suffix> <SUF> ▁<SUF> <|code_suffix|>
    <|suffix|> <|fim_middle|> <fim-middle> <fim_middle> <MID> ▁<MID> <|code_middle|> <|middle|> <|fim_pad|>
    <fim-pad> <fim_pad> <PAD> [PAD] <|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> <|file_sep|>
    """.split()  # noqa: SIM905
)
# enum llama_ftype of llama.h: what a file that is mostly of one format is called. The gguf package may lack new ones.
FILE_TYPES = {
    "f32": 0,
    "f16": 1,
    "bf16": 32,
    "q8_0": 7,
    "q4_0": 2,
    "q4_0_portable": 2,
    "q4_1": 3,
    "q5_0": 8,
    "q5_1": 9,
    "q2_k": 10,
    "q3_k": 12,  # Q3_K_M, as for the next two: llama.cpp has no name for a file of one K format alone
    "q4_k": 15,
    "q5_k": 17,
    "q6_k": 18,
    "iq2_xxs": 19,
    "iq2_xs": 20,
    "iq3_xxs": 23,
    "iq1_s": 24,
    "iq4_nl": 25,
    "iq3_s": 26,
    "iq2_s": 28,
    "iq4_xs": 30,
    "iq1_m": 31,
    "tq1_0": 36,
    "tq2_0": 37,
    "mxfp4": 38,
    "nvfp4": 39,
    "q1_0": 40,
    "q2_0": 41,
}


def refuses(format: str) -> str | None:
    """Why a tensor of this format cannot ship as GGUF, or None: every ggml format can."""
    if format in FILE_TYPES:
        return None
    return f"ggml has no type with the numbers of {format}; use a ggml format such as q4_0 for GGUF, or export to onnx"


def export(frozen: Frozen, out: Path, *, on_progress: Callable[[str], None] | None = None) -> Artifact:
    """Writes the file `out`. Raises ExportError when a tensor has no name in GGUF, a format no file type, or the
    disk is full; nothing half-written stays."""
    say = on_progress or (lambda text: None)
    names, metadata, tensors = _names(frozen), _metadata(frozen), laid_out(frozen, "gguf").tensors
    weight_bytes = sum(_stored_bytes(t) for t in frozen.tensors.values())
    with put_in_place(out, weight_bytes + path_bytes(frozen.tokenizer)) as part:
        writer = GGUFWriter(part, ARCHS[frozen.arch].architecture)
        try:
            _add_values(writer, metadata)
            for name, tensor in tensors.items():
                _announce(writer, names.get(name, name), tensor)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for number, (name, tensor) in enumerate(tensors.items(), 1):
                writer.write_tensor_data(_packed(frozen, name, tensor))
                say(f"wrote {number} of {len(tensors)} tensors")
        finally:
            writer.close()
    unread = _stored_bytes(frozen.tensors[ARCHS[frozen.arch].embedding]) if HEAD in frozen.tensors else 0
    return describe(frozen, out, "gguf", weight_bytes, unread_bytes=unread)


def _names(frozen: Frozen) -> dict[str, str]:
    """transformers' names -> GGUF's; both sides must have the same tensors."""
    for name, tensor in frozen.tensors.items():
        reason = refuses(tensor.format)
        if reason:
            raise ExportError(f"{name}: {reason}")
    names = ARCHS[frozen.arch].names(frozen.config)
    missing = sorted(names.keys() - frozen.tensors.keys())
    unknown = sorted(frozen.tensors.keys() - names.keys())
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which {frozen.arch} does not know"
        raise ExportError(f"{frozen.name} {what}; its config and its tensors do not belong together")
    return names


def _stored_format(tensor: FrozenTensor) -> str:
    """llama.cpp wants one-dimensional tensors (norms, biases) in float32."""
    return "f32" if len(tensor.shape) == 1 else tensor.format


def _stored_bytes(tensor: FrozenTensor) -> int:
    return 4 * tensor.codes.numel() if len(tensor.shape) == 1 else tensor.bytes


def _announce(writer: GGUFWriter, name: str, tensor: FrozenTensor) -> None:
    # the writer only stores the number; its own enum lacks the types that are newer than the package
    dtype = cast(GGMLQuantizationType, FORMATS[_stored_format(tensor)].ggml_type)
    # the writer derives shapes from bytes only for uint8; given the weights' own shape any other dtype passes as it is
    writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), _stored_bytes(tensor), raw_dtype=dtype)


def _packed(frozen: Frozen, name: str, tensor: FrozenTensor) -> NDArray[Any]:
    """The bytes ggml reads, in the exported row order. Integers are moved, nothing is rounded again."""
    if len(tensor.shape) == 1:
        rows = tensor.decode().reshape(tensor.shape[0], 1)
    else:
        form = FORMATS[tensor.format]
        rows = form.pack(tensor.codes, tensor.scales).reshape(tensor.shape[0], -1)
    order = ARCHS[frozen.arch].row_order(name, frozen.config)
    return (rows if order is None else rows[order]).contiguous().numpy()


def _metadata(frozen: Frozen) -> dict[str, Any]:
    """Keys of general.*, the architecture, the tokenizer, and ours under edgeslm.*"""
    parameters = frozen.parameters
    general: dict[str, Any] = {
        "general.type": "model",
        "general.name": frozen.name,
        "general.size_label": size_label(parameters, parameters, 0, 0),
        "general.file_type": FILE_TYPES[majority(frozen)],
        "general.quantization_version": GGML_QUANT_VERSION,
    }
    if licence := frozen.metadata.get("license"):
        general["general.license"] = licence
    if base := frozen.metadata.get("base_model"):
        general |= {"general.base_model.count": 1, "general.base_model.0.name": base}
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(frozen))
    vocabulary = _vocabulary(metadata_from_tokenizer(tokenizer, frozen.tensors[ARCHS[frozen.arch].embedding].shape[0]))
    ours = {f"edgeslm.{key}": value for key, value in frozen.metadata.items()}
    return general | ARCHS[frozen.arch].metadata(frozen.config) | vocabulary | ours


def _vocabulary(keys: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer's keys with the types of CONTROL_SPELLINGS as llama.cpp will set them."""
    typed = zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"], strict=True)
    types = [CONTROL if kind in (NORMAL, USER_DEFINED) and text in CONTROL_SPELLINGS else kind for text, kind in typed]
    return keys | {"tokenizer.ggml.token_type": types}


def _add_values(writer: GGUFWriter, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if value is None or value in ("", []):  # GGUF has no empty arrays, and an absent key says the same
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            (writer.add_uint32 if value >= 0 else writer.add_int32)(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list | tuple):
            writer.add_key_value(key, list(value), GGUFValueType.ARRAY)
        else:
            raise ExportError(f"metadata key {key} has a value of type {type(value).__name__}, which GGUF cannot store")
