"""Opens a bundle: nothing of it is used before every byte has been checked. Standard library only.

Every way a bundle can be wrong is one sentence: no bundle at all, a newer schema, a manifest that was changed, a file
that is missing, truncated or altered, a missing part, a path that leads out of the folder.
`unpack` makes a whole folder of one (parts joined, a zip taken apart) beside its place and moves it there, so a folder
that exists is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edgeslm.errors import ModelError
from edgeslm.export.bundle_files import (
    KIND,
    LARGEST_MANIFEST_BYTES,
    MANIFEST,
    SCHEMA,
    SEAL,
    chunks,
    is_safe,
)

Piece = dict[str, Any]  # {"path", "bytes", "sha256"}
AGAIN = "copy the bundle again"


@dataclass(frozen=True)
class Bundle:
    """A checked bundle. `manifest` is plain data; `folder` holds its files."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def in_parts(self) -> bool:
        return any("parts" in entry for entry in self.manifest["files"])

    @property
    def model(self) -> Path:
        """The GGUF file or ONNX folder. Raises ModelError for one that lies in parts."""
        name = self.manifest["model"]["file"]
        if self.in_parts:
            raise ModelError(f"{self.folder}: {name} lies in parts; `unpack` the bundle into a folder of its own first")
        return self.folder / name


class _Folder:
    """Files of a bundle by name, from a folder. Links are not followed."""

    def __init__(self, root: Path):
        self.root = root

    def size(self, name: str) -> int | None:
        path = self.root / name
        linked = any((self.root.joinpath(*path.relative_to(self.root).parts[: i + 1])).is_symlink()
                     for i in range(len(path.relative_to(self.root).parts)))  # fmt: skip
        if linked:
            raise ModelError(f"{self.root}: {name} is a link, which may lead anywhere; put the file itself there")
        return path.stat().st_size if path.is_file() else None

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        return (self.root / name).open("rb")


class _Zip:
    """The same from a zip archive whose entries are files at its top or below one folder."""

    def __init__(self, archive: zipfile.ZipFile, root: Path):
        self.archive, self.root = archive, root
        tops = [n.removesuffix(MANIFEST) for n in archive.namelist() if n.rpartition("/")[2] == MANIFEST]
        self.top = min(tops, key=len, default="")

    def size(self, name: str) -> int | None:
        with suppress(KeyError):
            return self.archive.getinfo(self.top + name).file_size
        return None

    def open(self, name: str) -> Any:
        return self.archive.open(self.top + name)


def opened(folder: Path) -> Bundle:
    """Checks every file's size, then every hash. Raises ModelError."""
    source = _Folder(folder)
    manifest = _manifest(source)
    _check(source, manifest, None)
    return Bundle(folder, manifest)


def unpack(path: Path, into: Path, on_progress: Callable[[int, int], None] | None = None) -> Bundle:
    """A bundle (folder or zip) -> the whole folder `into`, which must not be there yet, parts joined. Raises ModelError
    and leaves nothing half-made behind."""
    if into.exists():
        raise ModelError(f"{into}: is there already; remove it or unpack into another folder")
    into.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=into.parent, prefix=f".{into.name}."))
    try:
        if path.is_dir():
            source: Any = _Folder(path)
            manifest = _unpacked(source, part, on_progress)
        else:
            try:
                with zipfile.ZipFile(path) as archive:
                    source = _Zip(archive, path)
                    manifest = _unpacked(source, part, on_progress)
            except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError) as error:
                raise ModelError(f"{path}: is no sound zip archive ({error}); {AGAIN}") from error
        os.replace(part, into)
    except OSError as error:
        raise ModelError(f"{into}: could not be written ({error.strerror or error}); make room there") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Bundle(into, manifest)


def _unpacked(source: Any, part: Path, on_progress: Callable[[int, int], None] | None) -> dict[str, Any]:
    manifest = _manifest(source)
    _check(source, manifest, part, on_progress)
    whole = [{key: value for key, value in entry.items() if key != "parts"} for entry in manifest["files"]]
    manifest = {**manifest, "files": whole}
    seal(part, manifest)
    return manifest


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest and its hash."""
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_bytes(text.encode())
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / SEAL).write_text(f"{digest}  {MANIFEST}\n", encoding="ascii")


def _manifest(source: Any) -> dict[str, Any]:
    """Read, its seal checked, its fields of the right kind. Raises ModelError."""
    where, size = source.root, source.size(MANIFEST)
    if size is None:
        raise ModelError(f"{where}: is no bundle (no {MANIFEST}); make one with `edgeslm export RUN --bundle DIR`")
    if size > LARGEST_MANIFEST_BYTES:
        raise ModelError(f"{where}: {MANIFEST} is {size} bytes long, which no manifest is; {AGAIN}")
    with source.open(MANIFEST) as file:
        raw = file.read()
    sealed = ""
    if source.size(SEAL) is not None:
        with source.open(SEAL) as file:
            sealed = file.read(64).decode("ascii", "replace")
    try:
        manifest = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where}: {MANIFEST} is damaged (not JSON); {AGAIN}") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise ModelError(f"{where}: {MANIFEST} is not the manifest of a model bundle; give a bundle of edgeslm")
    if manifest.get("schema") != SCHEMA:
        raise ModelError(
            f"{where}: is a bundle of version {manifest.get('schema')!r} and this program reads version {SCHEMA}; "
            "update the program, or export the bundle again with a matching edgeslm"
        )
    if sealed != hashlib.sha256(raw).hexdigest():
        raise ModelError(f"{where}: {MANIFEST} is not the one that was sealed in {SEAL}; {AGAIN}")
    _shape(where, manifest)
    return manifest


def _shape(where: Path, manifest: dict[str, Any]) -> None:
    """Raises ModelError for fields no writer would write."""
    model, files = manifest.get("model"), manifest.get("files")
    sound = isinstance(model, dict) and isinstance(model.get("file"), str) and isinstance(files, list) and bool(files)
    seen: set[str] = set()
    for entry in files if isinstance(files, list) else []:
        parts = entry.get("parts", []) if isinstance(entry, dict) else None
        for piece in [entry, *parts] if isinstance(parts, list) else [None]:
            if not isinstance(piece, dict) or not isinstance(piece.get("bytes"), int) or piece["bytes"] < 0:
                sound = False
                continue
            name = piece.get("path")
            if not is_safe(name) or ".." in str(name).split("/") or name in (MANIFEST, SEAL):
                raise ModelError(
                    f"{where}: the manifest names {name!r}, which leads out of the bundle; do not trust it"
                )
            if name in seen:
                raise ModelError(f"{where}: the manifest names {name} twice; do not trust it")
            seen.add(str(name))
            sound = sound and isinstance(piece.get("sha256"), str)
        if sound and parts and sum(p["bytes"] for p in parts) != entry["bytes"]:
            raise ModelError(f"{where}: the parts of {entry['path']} do not make up its size; export the bundle again")
    if not sound:
        raise ModelError(f"{where}: {MANIFEST} lacks what a manifest holds; export the bundle again")


def _pieces(entry: Piece) -> list[Piece]:
    """What lies in the bundle for one file: itself or its parts."""
    return entry.get("parts") or [entry]


def _check(
    source: Any, manifest: dict[str, Any], out: Path | None, on_progress: Callable[[int, int], None] | None = None
) -> None:
    """Sizes of all, then hashes of all; with `out` the bytes are also written there, parts joined."""
    for entry in manifest["files"]:
        for number, piece in enumerate(_pieces(entry), start=1):
            name, size = piece["path"], source.size(piece["path"])
            if size is None:
                what = f"part {number} of {len(entry['parts'])} of {entry['path']}" if "parts" in entry else "a file"
                raise ModelError(f"{source.root}: {name}, {what}, is missing; {AGAIN}")
            if size != piece["bytes"]:
                raise ModelError(f"{source.root}: {name} is {size} bytes long instead of {piece['bytes']}; {AGAIN}")
    total, done = sum(entry["bytes"] for entry in manifest["files"]), 0
    for entry in manifest["files"]:
        whole = hashlib.sha256()
        target = _opened_for(out, entry["path"])
        try:
            for piece in _pieces(entry):
                digest = hashlib.sha256()
                with source.open(piece["path"]) as file:
                    for data in chunks(file):
                        digest.update(data)
                        whole.update(data)
                        if target is not None:
                            target.write(data)
                        done += len(data)
                        if on_progress is not None:
                            on_progress(done, total)
                _same(source.root, piece, digest.hexdigest())
        finally:
            if target is not None:
                target.close()
        _same(source.root, entry, whole.hexdigest())


def _same(where: Path, piece: Piece, found: str) -> None:
    if found != piece["sha256"]:
        raise ModelError(f"{where}: {piece['path']} is not what was exported (its sha256 differs); {AGAIN}")


def _opened_for(out: Path | None, name: str) -> BinaryIO | None:
    if out is None:
        return None
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    return (out / name).open("wb")
