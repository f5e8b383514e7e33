"""What the smaller sub-commands do, apart from how they print it."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgeslm.artifact import Artifact, path_bytes, path_sha256
from edgeslm.errors import ExportError, ModelError
from edgeslm.models.stop import stop_ids

NOTE = "edgeslm.json"  # what an exported ONNX folder says of itself


SHAPE = {  # config key -> GGUF's, after the architecture's name
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
}


def artifact_of(spec: str) -> Artifact:
    """A file or exported folder as an artifact. Raises ModelError for what no runtime here runs.

    Sizes of tensors come from the file's own header, those of an ONNX folder from the note its export left in it.
    """
    path = Path(spec)
    if path.suffix == ".gguf" and path.is_file():
        from edgeslm.models.gguf_file import read

        file = read(path)
        table = file.tensors
        tensors = table.values()
        formats = [t.format for t in tensors]
        grid = max(set(formats), key=formats.count)
        parameters = sum(t.parameters for t in tensors)
        weights = sum(t.nbytes for t in tensors)
        sizes = path_bytes(path), weights, parameters, grid
        unread = table["token_embd.weight"].nbytes if {"token_embd.weight", "output.weight"} <= set(table) else 0
        shape = shape_of(file.metadata, table["token_embd.weight"].shape if "token_embd.weight" in table else ())
        return Artifact(path.name, path, "gguf", path_sha256(path), *sizes, unread_bytes=unread, shape=shape)
    if (path / "genai_config.json").is_file():
        known = json.loads((path / NOTE).read_text(encoding="utf-8")) if (path / NOTE).is_file() else None
        if known is None:
            raise ModelError(f"{spec}: was not exported by edgeslm (no {NOTE}); export the student again")
        sizes = path_bytes(path), known["weight_bytes"], known["parameters"], known["grid"]
        more = {"unread_bytes": known.get("unread_bytes", 0), "shape": known.get("shape", {})}
        return Artifact(path.name, path, "onnx", path_sha256(path), *sizes, **more)
    raise ModelError(f"{spec}: is neither a .gguf file nor an exported ONNX folder (with genai_config.json)")


def shape_of(metadata: dict[str, Any], table: tuple[int, ...]) -> dict[str, int]:
    """What a GGUF header says of a decoder's shape, as a config; empty when it does not say all of it."""
    prefix = f"{metadata.get('general.architecture')}."
    told = {key: metadata.get(prefix + name) for key, name in SHAPE.items()}
    found = {key: value for key, value in told.items() if isinstance(value, int)}
    if len(found) < len(SHAPE) or len(table) != 2:
        return {}
    head = metadata.get(prefix + "attention.key_length") or found["hidden_size"] // found["num_attention_heads"]
    return {**found, "head_dim": int(head), "vocab_size": max(table)}


def export_again(run: Path, kind: str, out: Path | None, accuracy_level: int | None) -> dict[str, Any]:
    """A frozen student of a run -> file, verified. Raises ExportError, ModelError."""
    from edgeslm.export import EXPORTERS
    from edgeslm.export.verify import verify
    from edgeslm.quantize.frozen import Frozen

    if kind not in EXPORTERS:
        raise ExportError(f"--kind {kind}: no such container; known are {', '.join(EXPORTERS)}")
    if accuracy_level not in (None, 0, 4) or (accuracy_level is not None and kind != "onnx"):
        raise ExportError("--accuracy-level is 0 or 4 and goes with --kind onnx")
    frozen = Frozen.load(frozen_folder(run))
    if frozen.arch == "encoder":
        raise ExportError(
            f"{run}: holds an encoder; its recipe ships it, run that again with export.accuracy_level=..."
        )
    target = out or run / ("student.gguf" if kind == "gguf" else f"student-{kind}")
    options: dict[str, Any] = {"accuracy_level": 4 if accuracy_level is None else accuracy_level}
    artifact = EXPORTERS[kind](frozen, target, **(options if kind == "onnx" else {}))
    found = verify(artifact, frozen)
    if found["exact"] != found["tensors"]:
        raise ExportError(f"{target}: {found['first_mismatch']} differs from what was trained; do not ship this file")
    return {**artifact.to_json(), **found}


def frozen_folder(run: Path) -> Path:
    """The frozen student that run.json names, or the folder itself when it is one."""
    if (run / "frozen.json").exists():
        return run
    record = run / "run.json"
    if not record.exists():
        raise ModelError(f"{run}: is no run folder (no run.json) and no frozen student (no frozen.json)")
    stages = json.loads(record.read_text(encoding="utf-8"))["stages"]
    if "distill" not in stages:
        raise ModelError(f"{run}: this run has not finished its distill stage; run its recipe again to go on")
    return run / stages["distill"] / "frozen"


def tokenizer_of(path: Path) -> Any:
    """Of a .gguf or of an exported folder."""
    from edgeslm.models.source import resolve
    from edgeslm.models.tokenizer import load_tokenizer

    if (path / "genai_config.json").is_file():
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    return load_tokenizer(resolve(str(path), Path.cwd()))


def converse(
    model: str, system: str | None, max_new: int, sampling: dict[str, Any], context: int, threads: int
) -> None:
    """A conversation on the terminal. Each answer streams; text appears once its bytes make whole characters."""
    from edgeslm.data.chat import template_ids
    from edgeslm.devices.local import LocalDevice
    from edgeslm.evaluate.answers import Conversation
    from edgeslm.pipeline.stage import available_cores

    path = chat_file(model)
    artifact, tokenizer = artifact_of(str(path)), tokenizer_of(path)
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    with (
        tempfile.TemporaryDirectory() as work,
        Conversation(
            artifact,
            device=LocalDevice(),
            workdir=Path(work),
            threads=threads or available_cores(),
            context=context,
        ) as talk,
    ):
        while text := _ask():
            messages.append({"role": "user", "content": text})
            ids = template_ids(tokenizer, messages, answer=True)
            if len(ids) + max_new > context:
                sys.stdout.write(f"[the conversation has grown to {len(ids)} tokens; start anew or give --context]\n")
                return
            said = _stream(talk, ids, tokenizer, max_new, sampling)
            messages.append({"role": "assistant", "content": said})


def _ask() -> str:
    """The next line of the user, empty at the end of input."""
    if sys.stdin.isatty():
        sys.stdout.write("> ")
        sys.stdout.flush()
    return sys.stdin.readline().strip()


def _stream(talk: Any, ids: list[int], tokenizer: Any, max_new: int, sampling: dict[str, Any]) -> str:
    stop = stop_ids(tokenizer)
    given: list[int] = []
    shown = ""
    for token in talk.say(ids, max_new=max_new, sampling=sampling, stop=stop):
        if token in stop:
            continue
        given.append(token)
        text = tokenizer.decode(given, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # a character whose last bytes are still to come
            sys.stdout.write(text[len(shown) :])
            sys.stdout.flush()
            shown = text
    whole = tokenizer.decode(given, skip_special_tokens=True)
    sys.stdout.write(whole[len(shown) :])  # a last character whose bytes never came
    spent, count = talk.timings.get("decode_s"), talk.timings.get("tokens", 0)
    rate = f", {(count - 1) / spent:.1f} tokens/s" if spent and count > 1 else ""
    sys.stdout.write(f"\n[{len(given)} tokens{rate}]\n")
    return whole


def chat_file(model: str) -> Path:
    """A runnable file: as given, what a run folder or `run:NAME` shipped, or for other teacher specs the float16 GGUF
    made from it once and cached."""
    model = shipped_by(model)
    path = Path(model)
    if (path.suffix == ".gguf" and path.is_file()) or (path / "genai_config.json").is_file():
        return path
    from edgeslm.models.source import resolve

    source = resolve(model, Path.cwd())
    if source.kind == "gguf":
        return source.path
    return as_gguf(source, "f16")


def shipped_by(model: str) -> str:
    """The student.gguf of a run folder or of `run:NAME` (in runs/); any other spec as it is. Raises ModelError."""
    from edgeslm.pipeline.stage import RUN, student_of

    if model.startswith(RUN):
        return str(student_of(Path("runs"), model.removeprefix(RUN)))
    folder = Path(model)
    return str(student_of(folder.parent, folder.name)) if (folder / "run.json").is_file() else model


def as_gguf(source: Any, grid: str) -> Path:
    """A teacher of any kind as a GGUF of "f16" or "f32", made once and cached."""
    import torch

    from edgeslm.export.gguf import export
    from edgeslm.models.arch.base import plain
    from edgeslm.models.load import load, write_tokenizer
    from edgeslm.models.pypi import cache_folder
    from edgeslm.quantize.freeze import freeze_floats

    out = cache_folder() / "as-gguf" / f"{source.sha256[:16]}-{grid}.gguf"
    if out.exists():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    loaded = load(source, torch.float32)
    with tempfile.TemporaryDirectory() as work:
        write_tokenizer(loaded.tokenizer, Path(work) / "tokenizer")
        weights = dict(loaded.model.named_parameters())
        config = plain(loaded.model.config)
        tokenizer = Path(work) / "tokenizer"
        export(freeze_floats(weights, grid, loaded.arch.name, config, tokenizer, f"teacher-{grid}", {}), out)
    return out


def format_table() -> list[dict[str, Any]]:
    """One row per grid: what it costs, what it can do, which container holds it, what runs it fast."""
    from edgeslm.export.table import rows

    return rows()


def format_lines() -> list[str]:
    """The same for a terminal, as wide as it is; as wide as it gets where the output is no terminal."""
    from edgeslm.export.table import rows, text

    return text(rows(), shutil.get_terminal_size((240, 24)).columns)
