"""The bytes that each token stands for, and where tokens of two vocabularies end at the same place of a text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from edgeslm.errors import ModelError

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
CONTINUES = bytes(range(0x80, 0xC0))  # bytes of UTF-8 that begin no character


def byte_alphabet() -> dict[str, int]:
    """{character: byte} of byte-level BPE (GPT-2): printable bytes stand for themselves, the others follow from 256."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(b): b for b in kept}
    for number, byte in enumerate(b for b in range(256) if b not in kept):
        table[chr(256 + number)] = byte
    return table


def pieces(tokenizer: Any) -> list[bytes]:
    """Bytes by id; special tokens and unused ids stand for none. Raises ModelError for a vocabulary that is neither
    byte-level BPE nor SentencePiece."""
    vocabulary = tokenizer.get_vocab()
    special = set(tokenizer.all_special_ids)
    alphabet = byte_alphabet()
    spelled = any("▁" in token for token in vocabulary)
    if not spelled and not any("Ġ" in token for token in vocabulary):
        raise ModelError("the tokenizer is neither byte-level BPE nor SentencePiece: its tokens have no known bytes")
    found = [b""] * (max(vocabulary.values()) + 1)
    for token, index in vocabulary.items():
        if index in special:
            continue
        if not spelled:
            found[index] = bytes(alphabet[c] for c in token if c in alphabet)
        elif match := BYTE_TOKEN.fullmatch(token):
            found[index] = bytes([int(match[1], 16)])
        else:
            found[index] = token.replace("▁", " ").encode()
    return found


def ends(ids: Sequence[int], table: Sequence[bytes]) -> list[int]:
    """After how many bytes of the text each token ends."""
    total, places = 0, []
    for index in ids:
        total += len(table[index])
        places.append(total)
    return places


def shared_ends(left: Sequence[int], right: Sequence[int], shift: int = 0) -> list[int]:
    """For each place of `left` the last index in `right` that ends there too, -1 where none does. `shift` is added to
    the places of `left`: bytes that only the right text begins with."""
    at = {place: index for index, place in enumerate(right)}
    return [at.get(place + shift, -1) for place in left]


def whole_characters(raw: bytes) -> tuple[int, bytes]:
    """(bytes of a torn UTF-8 character at the beginning, what follows without a torn one at the end)."""
    first, last = len(raw) - len(raw.lstrip(CONTINUES)), len(raw.rstrip(CONTINUES)) - 1  # where characters begin
    if last < first:
        return first, b""
    needed = next(count for count, least in ((4, 0xF0), (3, 0xE0), (2, 0xC0), (1, 0)) if raw[last] >= least)
    return first, raw[first : last if len(raw) - last < needed else len(raw)]
