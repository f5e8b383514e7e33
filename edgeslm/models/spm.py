"""Sentencepiece vocabularies outside GGUF: `tokenizer.model` (protobuf) and llama2.c's `tokenizer.bin`.

    tokenizer.model   ModelProto: field 1 repeated SentencePiece {1 piece string, 2 score float, 3 type enum},
                      field 3 NormalizerSpec {3 add_dummy_prefix bool}
    tokenizer.bin     i32 longest | tokens x (f32 score | i32 length | bytes), "▁" written as a space

Both become the same `tokenizer.ggml.*` keys a GGUF file would hold, so there is one way to a tokenizer.
Sources: sentencepiece_model.proto, llama2.c tokenizer.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeslm.errors import ModelError
from edgeslm.models.gguf_vocab import KEY, SPACE
from edgeslm.models.token_types import BYTE, CONTROL, NORMAL, UNKNOWN

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf wire types
BOS, EOS, UNK, FIRST_BYTE = 1, 2, 0, 3  # Llama's ids, which llama2.c takes for granted


def metadata_from_file(path: Path, vocab_size: int) -> dict[str, Any]:
    """`tokenizer.*` keys from a tokenizer.model or tokenizer.bin. Raises ModelError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: the tokenizer cannot be read ({error.strerror}); check the path") from error
    try:
        pieces, prefix = _from_bin(data, vocab_size) if path.suffix == ".bin" else _from_proto(data)
    except (struct.error, IndexError, UnicodeDecodeError, ValueError) as error:
        raise ModelError(f"{path}: is no sentencepiece tokenizer or damaged ({error}); fetch it again") from error
    if len(pieces) != vocab_size:
        raise ModelError(f"{path}: has {len(pieces)} tokens but the model {vocab_size}; they do not belong together")
    return {
        f"{KEY}model": "llama",
        f"{KEY}pre": "default",
        f"{KEY}tokens": [piece for piece, _, _ in pieces],
        f"{KEY}scores": [score for _, score, _ in pieces],
        f"{KEY}token_type": [kind for _, _, kind in pieces],
        f"{KEY}bos_token_id": BOS,
        f"{KEY}eos_token_id": EOS,
        f"{KEY}unknown_token_id": UNK,
        f"{KEY}add_bos_token": True,
        f"{KEY}add_space_prefix": prefix,
    }


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, int | bytes) of one protobuf message. Raises IndexError or ValueError when it is cut or odd."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if wire == BYTES:
            size, at = _varint(data, at)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"unknown wire type {wire}")
        if at + size > len(data):
            raise ValueError("it ends too early")
        yield tag >> 3, data[at : at + size]
        at += size


def _from_proto(data: bytes) -> tuple[list[tuple[str, float, int]], bool]:
    pieces, prefix = [], True
    for field, value in _fields(data):
        if field == 1:
            parts = dict(_fields(value))
            score = struct.unpack("<f", parts[2])[0] if 2 in parts else 0.0
            pieces.append((parts.get(1, b"").decode("utf-8"), score, int(parts.get(3, NORMAL))))
        elif field == 3:
            prefix = bool(dict(_fields(value)).get(3, 1))
    return pieces, prefix


def _from_bin(data: bytes, vocab_size: int) -> tuple[list[tuple[str, float, int]], bool]:
    pieces, at = [], 4
    for index in range(vocab_size):
        score, length = struct.unpack_from("<fi", data, at)
        at += 8
        if not 0 <= length <= len(data) - at:
            raise ValueError(f"token {index} ends too late")
        text = data[at : at + length].decode("utf-8")
        at += length
        if index in (UNK, BOS, EOS):  # llama2.c decorates these for printing
            pieces.append((("<unk>", "<s>", "</s>")[index], 0.0, UNKNOWN if index == UNK else CONTROL))
        elif FIRST_BYTE <= index < FIRST_BYTE + 256:
            pieces.append((f"<0x{index - FIRST_BYTE:02X}>", 0.0, BYTE))
        else:
            pieces.append((text.replace(" ", SPACE), score, NORMAL))
    if at != len(data):
        raise ValueError(f"it holds more than the {vocab_size} tokens of the model")
    return pieces, True
