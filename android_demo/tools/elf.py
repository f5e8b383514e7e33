"""What a 64-bit little-endian ELF library says of itself: how it is aligned, what it needs, offers and lacks.

Source: the System V ABI, chapters 4 and 5. Standard library only.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

PT_LOAD, PT_DYNAMIC = 1, 2
DT_NEEDED, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_SONAME, DT_HASH, DT_GNU_HASH = 1, 5, 6, 10, 14, 4, 0x6FFFFEF5
MACHINES = {62: "x86_64", 183: "arm64-v8a"}
SYMBOL_BYTES = 24
WEAK = 2


@dataclass(frozen=True)
class Library:
    """`alignments` are those of its loaded segments."""

    machine: str
    soname: str
    needed: tuple[str, ...]
    alignments: tuple[int, ...]
    exports: frozenset[str]
    undefined: frozenset[str]  # weak ones, which may stay so, left out


def read(path: Path) -> Library:
    """Raises ValueError for what is no such library."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{path} is no 64-bit little-endian ELF file")
    kind, machine = struct.unpack_from("<HH", data, 16)
    if kind != 3 or machine not in MACHINES:
        raise ValueError(f"{path} is no shared library for a processor that is known here")
    offset, size, count = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
    headers = [struct.unpack_from("<IIQQQQQQ", data, offset + i * size) for i in range(count)]
    loads = [h for h in headers if h[0] == PT_LOAD]
    dynamic = next((h for h in headers if h[0] == PT_DYNAMIC), None)
    if dynamic is None or not loads:
        raise ValueError(f"{path} cannot be loaded dynamically")

    def at(address: int) -> int:
        """Place in the file of an address in memory."""
        for _, _, start, virtual, _, length, _, _ in loads:
            if virtual <= address < virtual + length:
                return int(start + address - virtual)
        raise ValueError(f"{path} points outside its own segments")

    entries = [struct.unpack_from("<QQ", data, dynamic[2] + i) for i in range(0, dynamic[5], 16)]
    tags = dict(reversed(entries))
    strings = at(tags[DT_STRTAB])

    def text(index: int) -> str:
        start = strings + index
        return data[start : data.index(b"\0", start)].decode("ascii")

    exports, undefined = set(), set()
    for i in range(1, _symbols(data, tags, at)):
        name, info, _, section, _, _ = struct.unpack_from("<IBBHQQ", data, at(tags[DT_SYMTAB]) + i * SYMBOL_BYTES)
        if section:
            exports.add(text(name))
        elif info >> 4 != WEAK:
            undefined.add(text(name))
    return Library(
        machine=MACHINES[machine],
        soname=text(tags[DT_SONAME]) if DT_SONAME in tags else "",
        needed=tuple(text(value) for tag, value in entries if tag == DT_NEEDED),
        alignments=tuple(h[7] for h in loads),
        exports=frozenset(exports),
        undefined=frozenset(undefined),
    )


def _symbols(data: bytes, tags: dict[int, int], at: object) -> int:
    """How many there are, which only the hash tables tell."""
    place = at  # a function from address to offset
    assert callable(place)
    if DT_HASH in tags:
        return int(struct.unpack_from("<II", data, place(tags[DT_HASH]))[1])
    start = place(tags[DT_GNU_HASH])
    buckets, first, bloom, _ = struct.unpack_from("<IIII", data, start)
    table = start + 16 + 8 * bloom
    last = max(struct.unpack_from(f"<{buckets}I", data, table), default=0)
    if last < first:
        return int(first)
    chain = table + 4 * buckets
    while not struct.unpack_from("<I", data, chain + 4 * (last - first))[0] & 1:
        last += 1
    return int(last) + 1
