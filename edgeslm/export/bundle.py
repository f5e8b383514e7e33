"""A bundle: everything an app needs to run a student, in one folder that checks itself. Layout: bundle_files.py.

The manifest's fields are read by programs in other languages and change only with SCHEMA:

    model       format, file, architecture, parameters, shape of the cache, context, number grids, bits per weight
    tokenizer   its files, the id that begins every text (or null), whether an answer's first blank is dropped
    template    the chat template as flat segments (bundle_template.py), null for a model that only continues text
    stop_ids    ids that end an answer
    generation  what `edgeslm chat` uses unless told otherwise
    licence, origin   terms of the teacher; what was distilled from what, with which result
    files       path, bytes, sha256 of every file, and of its parts
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from edgeslm import __version__
from edgeslm.artifact import Artifact, file_sha256, path_bytes
from edgeslm.errors import ExportError
from edgeslm.export.bundle_card import card
from edgeslm.export.bundle_files import CARD, KIND, LICENCE, MANIFEST, SCHEMA, SEAL, is_safe, split
from edgeslm.export.bundle_read import seal
from edgeslm.export.bundle_template import Flat, Message, flatten
from edgeslm.export.describe import tokenizer_folder
from edgeslm.export.place import put_in_place
from edgeslm.export.terms import Terms, terms_of
from edgeslm.export.terms import text as licence_text
from edgeslm.models.stop import begin_id, stop_ids
from edgeslm.quantize.frozen import Frozen

SMALLEST_PART_BYTES = 1 << 10
MOST_PARTS = 999
CONTEXT = 2048
GENERATION: dict[str, Any] = {"temperature": 0.7, "top_k": 0, "top_p": 0.95, "seed": 0, "max_new": 256}


@dataclass(frozen=True)
class Origin:
    """Where a student comes from, as its run folder tells. Lists are empty where nothing is known."""

    base_model: str
    run: str = ""
    recipe: str = ""  # YAML
    learned_from: tuple[str, ...] = ()
    results: tuple[dict[str, Any], ...] = ()  # {"metric", "value", "unit", "text"}
    devices: tuple[dict[str, Any], ...] = ()  # {"name", "runtime", "threads", "metric", "value", "unit"}
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        return {
            "base_model": self.base_model, "run": self.run, "learned_from": list(self.learned_from),
            "results": list(self.results), "devices": list(self.devices), "notes": list(self.notes),
        }  # fmt: skip


def write(
    artifact: Artifact,
    frozen: Frozen,
    origin: Origin,
    out: Path,
    *,
    part_bytes: int | None = None,
    licence: str = "",
    name: str = "",
) -> dict[str, Any]:
    """Writes the folder `out`; returns its manifest. Raises ExportError for a template that cannot be flattened, a
    part size that is too small, a full disk; a folder that is there is replaced only by a whole one."""
    if part_bytes is not None and part_bytes < max(SMALLEST_PART_BYTES, artifact.bytes // MOST_PARTS):
        raise ExportError(f"--part-size {part_bytes} would make more than {MOST_PARTS} parts; give a larger one")
    refuse_other_folder(out, MANIFEST)
    terms = terms_of(origin.base_model, licence or frozen.metadata.get("license", ""))
    manifest = describe_model(artifact, frozen, origin, terms, name)
    with put_in_place(out, 2 * path_bytes(artifact.path) + path_bytes(frozen.tokenizer)) as part:
        part.mkdir()
        place_files(part, artifact, frozen, manifest, terms, origin)
        manifest["files"] = entries(part, part_bytes)
        manifest["bytes"] = sum(entry["bytes"] for entry in manifest["files"])
        seal(part, manifest)
    return manifest


def refuse_other_folder(out: Path, mark: str) -> None:
    """Raises ExportError before a folder that holds something else would be replaced."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / mark).is_file())):
        raise ExportError(f"{out}: is there and holds something else (no {mark}); give another folder")


def place_files(
    folder: Path, artifact: Artifact, frozen: Frozen, manifest: dict[str, Any], terms: Terms, origin: Origin
) -> None:
    """Model, tokenizer, card and licence, unsplit."""
    target = folder / manifest["model"]["file"]
    if artifact.path.is_dir():
        shutil.copytree(artifact.path, target)
    else:
        shutil.copyfile(artifact.path, target)
    shutil.copytree(tokenizer_folder(frozen), folder / "tokenizer")
    (folder / CARD).write_text(card(manifest, terms, origin.recipe), encoding="utf-8")
    (folder / LICENCE).write_text(licence_text(terms, origin.base_model), encoding="utf-8")


def entries(folder: Path, part_bytes: int | None) -> list[dict[str, Any]]:
    """Size and hash of every file; those above `part_bytes` are cut. Raises ExportError for a name no reader takes."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (MANIFEST, SEAL)):
        name = path.relative_to(folder).as_posix()
        if not is_safe(name):
            raise ExportError(f"{name}: has a name that a bundle cannot hold; rename it and export again")
        entry: dict[str, Any] = {"path": name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
        if part_bytes is not None and entry["bytes"] > part_bytes:
            home = f"{name.rpartition('/')[0]}/" if "/" in name else ""
            entry["parts"] = [{**part, "path": home + part["path"]} for part in split(path, part_bytes)]
        found.append(entry)
    return found


def describe_model(artifact: Artifact, frozen: Frozen, origin: Origin, terms: Terms, name: str = "") -> dict[str, Any]:
    """The manifest without its files."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(frozen))
    config = frozen.config
    heads = _size(config, "num_attention_heads", "n_head")
    positions = _size(config, "max_position_embeddings", "n_positions")
    width = _size(config, "hidden_size", "n_embd")
    flat = template_of(tokenizer)
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "name": terms.title(name or frozen.name),
        "made_by": f"edgeslm {__version__}",
        "model": {
            "format": artifact.format,
            "file": "student.gguf" if artifact.format == "gguf" else "student-onnx",
            "sha256": artifact.sha256,
            "bytes": artifact.bytes,
            "weight_bytes": artifact.weight_bytes,
            "parameters": artifact.parameters,
            "bits_per_weight": round(artifact.bits_per_weight, 4),
            "grid": artifact.grid,
            "formats": sorted({t.format for t in frozen.tensors.values()}),
            "architecture": frozen.arch,
            "layers": _size(config, "num_hidden_layers", "n_layer"),
            "kv_heads": int(config.get("num_key_value_heads") or heads),
            "head_dim": int(config.get("head_dim") or width // heads),
            "vocabulary": int(config["vocab_size"]),
            "context": positions,
        },
        "tokenizer": {
            "folder": "tokenizer",
            "begin_id": begin_id(tokenizer),
            "strips_first_blank": strips_first_blank(tokenizer),
        },
        "template": None if flat is None else flat.to_json(),
        "stop_ids": stop_ids(tokenizer),
        "generation": {**GENERATION, "context": min(CONTEXT, positions)},
        "licence": {
            "id": terms.id, "name": terms.name, "url": terms.url, "credit": terms.credit, "name_prefix": terms.prefix
        },
        "origin": origin.to_json(),
    }  # fmt: skip


def _size(config: dict[str, Any], *names: str) -> int:
    """The first of a config's names for one thing. Raises ExportError when it has none of them."""
    value = next((config[name] for name in names if config.get(name)), None)
    if value is None:
        raise ExportError(
            f"the student's config has no {names[0]}, which a bundle tells apps; freeze the student again"
        )
    return int(value)


def template_of(tokenizer: Any) -> Flat | None:
    """None for a tokenizer without a chat template. Raises ExportError for one that cannot be flattened."""
    source = tokenizer.chat_template
    if not source:
        return None

    def render(messages: list[Message], answer: bool) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer))

    return flatten(render, source if isinstance(source, str) else json.dumps(source))


def strips_first_blank(tokenizer: Any) -> bool:
    """Whether decoding drops the blank that begins the first token, as sentencepiece's vocabularies want it."""
    ids = tokenizer("a a", add_special_tokens=False)["input_ids"][-1:]
    return bool(ids) and tokenizer.convert_ids_to_tokens(ids)[0].startswith("▁") and tokenizer.decode(ids) == "a"
