"""Reading fields of a protocol-buffer message, bounds checked: all a trace of power rails needs.

A message is a row of fields, each a key `number << 3 | type` and a value: type 0 a varint (7 bits a byte, low first),
1 eight bytes, 2 a length and that many bytes, 5 four bytes. (Protocol Buffers documentation, "Encoding".)
"""

from __future__ import annotations

from collections.abc import Iterator

from edgeslm.errors import DataError

FIXED = {1: 8, 5: 4}


def fields(data: bytes, what: str) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) in order; a varint is an int, everything else bytes. Raises DataError naming `what`."""
    at = 0
    while at < len(data):
        key, at = varint(data, at, what)
        kind = key & 7
        if kind == 0:
            value, at = varint(data, at, what)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = varint(data, at, what)
        elif kind in FIXED:
            size = FIXED[kind]
        else:
            raise DataError(f"{what} is damaged (a field of the unknown type {kind}); record it again")
        if size > len(data) - at:
            raise DataError(f"{what} ends in the middle of a field; record it again")
        yield key >> 3, data[at : at + size]
        at += size


def varint(data: bytes, at: int, what: str) -> tuple[int, int]:
    """-> (value, place after it)."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise DataError(f"{what} is damaged (a number without an end); record it again")


def message(value: int | bytes, what: str) -> bytes:
    if isinstance(value, int):
        raise DataError(f"{what} is damaged (a number where a message belongs); record it again")
    return value


def whole(value: int | bytes, what: str) -> int:
    if isinstance(value, bytes):
        raise DataError(f"{what} is damaged (a message where a number belongs); record it again")
    return value
