"""A zip as Android wants it: what is mapped into memory lies uncompressed at a multiple of the page size.

zipalign of Debian knows pages of 4 KiB only; phones with pages of 16 KiB exist. Every local header is padded by the
extra field that apksigner reads and keeps (0xd935: alignment, then zeros), so alignment outlives signing.
Source: apksig's ApkSigner, ALIGNMENT_ZIP_EXTRA_DATA_FIELD.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

LIBRARY_BYTES = 16384
PLAIN_BYTES = 4
EXTRA_ID = 0xD935
STORED_SUFFIXES = (".arsc", ".png", ".so", ".gguf", ".json")  # mapped, read by offset, or compressed already
HEADER_BYTES = 30


def write(out: Path, entries: Iterator[tuple[str, bytes]]) -> None:
    """Entries in order, at fixed times: the same parts give the same bytes."""
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in entries:
            info = zipfile.ZipInfo(name)
            stored = name.endswith(STORED_SUFFIXES) or ".part" in name
            info.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
            if stored:
                assert archive.fp is not None
                align = LIBRARY_BYTES if name.endswith(".so") else PLAIN_BYTES
                info.extra = _padding(archive.fp.tell() + HEADER_BYTES + len(name.encode()), align)
            archive.writestr(info, data)


def _padding(start: int, align: int) -> bytes:
    """An extra field after which the data, else beginning at `start`, begin at a multiple of `align`."""
    least = 6  # id, length, alignment
    fill = -(start + least) % align
    return struct.pack("<HHH", EXTRA_ID, 2 + fill, align) + bytes(fill)


def offsets(apk: Path) -> dict[str, tuple[int, bool]]:
    """Where each entry's data begin, and whether they are stored as they are."""
    found = {}
    with zipfile.ZipFile(apk) as archive, apk.open("rb") as file:
        for info in archive.infolist():
            file.seek(info.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
            start = info.header_offset + HEADER_BYTES + name + extra
            found[info.filename] = (start, info.compress_type == zipfile.ZIP_STORED)
    return found
