"""`edgeslm export RUN --to ollama|genai|hub-folder|optimum`: the same student, laid out for whoever takes it next.

ollama      student.gguf and a Modelfile: template, stop marks, sampling, licence
genai       onnxruntime-genai's folder with the student's sampling in its genai_config.json
hub-folder  a repository of a model hub, ready to upload: README.md (the card), LICENCE.md, the file, its tokenizer
optimum     the same with a graph of optimum's in onnx/, for `ORTModelForCausalLM` and transformers.js
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from edgeslm.artifact import Artifact, path_bytes
from edgeslm.errors import ExportError
from edgeslm.export.bundle import Origin, describe_model, refuse_other_folder
from edgeslm.export.bundle_card import card
from edgeslm.export.bundle_files import LICENCE
from edgeslm.export.bundle_template import Flat
from edgeslm.export.describe import tokenizer_folder
from edgeslm.export.optimum_config import config_for_all, files_note, tokenizer_for_all
from edgeslm.export.place import put_in_place
from edgeslm.export.terms import Terms, terms_of
from edgeslm.export.terms import text as licence_text
from edgeslm.quantize.frozen import Frozen

Lay = Callable[[Path, Artifact, Frozen, dict[str, Any], Terms, str], None]


def write(
    destination: str, artifact: Artifact, frozen: Frozen, origin: Origin, out: Path, licence: str = "", name: str = ""
) -> Path:
    """Writes the folder `out`. Raises ExportError for an unknown destination or a model it does not take."""
    if destination not in DESTINATIONS:
        raise ExportError(f"--to {destination}: no such destination; known are {', '.join(DESTINATIONS)}")
    lay, mark, container = DESTINATIONS[destination]
    if container not in ("any", artifact.format):
        raise ExportError(f"--to {destination} takes {container} and {artifact.name} is {artifact.format}")
    refuse_other_folder(out, mark)
    terms = terms_of(origin.base_model, licence or frozen.metadata.get("license", ""))
    manifest = describe_model(artifact, frozen, origin, terms, name)
    with put_in_place(out, path_bytes(artifact.path) + path_bytes(frozen.tokenizer)) as part:
        part.mkdir()
        lay(part, artifact, frozen, manifest, terms, origin.recipe)
        (part / LICENCE).write_text(licence_text(terms, origin.base_model), encoding="utf-8")
    return out


def _ollama(folder: Path, artifact: Artifact, frozen: Frozen, manifest: dict[str, Any], terms: Terms, _: str) -> None:
    shutil.copyfile(artifact.path, folder / "student.gguf")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(frozen))
    stops = [str(tokenizer.convert_ids_to_tokens(i)) for i in manifest["stop_ids"]]
    licence = licence_text(terms, manifest["origin"]["base_model"])
    (folder / "Modelfile").write_text(modelfile(manifest, stops, licence), encoding="utf-8")


def modelfile(manifest: dict[str, Any], stops: list[str], licence: str) -> str:
    """Ollama's own description of a model. Its templates are Go's; every fixed text is a quoted constant in it, so no
    blank is lost. Source: ollama's docs/modelfile.md and docs/template.md."""
    generation = manifest["generation"]
    lines = ["FROM ./student.gguf"]
    if manifest["template"] is not None:
        begun = manifest["tokenizer"]["begin_id"] is not None  # then the runtime puts the begin token
        lines.append(f'TEMPLATE """{go_template(Flat.from_json(manifest["template"]), begun)}"""')
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    lines += [
        f"PARAMETER temperature {generation['temperature']}",
        f"PARAMETER top_p {generation['top_p']}",
        f"PARAMETER num_ctx {generation['context']}",
        f"PARAMETER num_predict {generation['max_new']}",
        'LICENSE """' + licence.replace('"""', "'''") + '"""',
    ]
    return "\n".join(lines) + "\n"


def go_template(flat: Flat, begun: bool) -> str:
    """`{{ "constant" }}` and `{{ .Content }}`. A template that trims what was said keeps it as it is here: Go has no
    trim in ollama's templates."""
    text = "" if begun else _constant(flat.start)
    system = _constant(flat.default_system)
    if "system" in flat.roles:
        given = _segments(flat, "system", ".System")
        otherwise = f"{{{{ else }}}}{system}" if system else ""
        text += f"{{{{ if .System }}}}{given}{otherwise}{{{{ end }}}}"
    else:
        text += system
    user, reply = _segments(flat, "user", ".Content"), _segments(flat, "assistant", ".Content")
    turns = f'{{{{ if eq .Role "user" }}}}{user}{{{{ else if eq .Role "assistant" }}}}{reply}{{{{ end }}}}'
    return f"{text}{{{{ range .Messages }}}}{turns}{{{{ end }}}}{_constant(flat.generation)}"


def _segments(flat: Flat, role: str, field: str) -> str:
    return "".join(_constant(s["text"]) if "text" in s else f"{{{{ {field} }}}}" for s in flat.roles[role])


def _constant(text: str) -> str:
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def _genai(
    folder: Path, artifact: Artifact, frozen: Frozen, manifest: dict[str, Any], terms: Terms, recipe: str
) -> None:
    shutil.copytree(artifact.path, folder, dirs_exist_ok=True)
    path, generation = folder / "genai_config.json", manifest["generation"]
    config = json.loads(path.read_text(encoding="utf-8"))
    search = {"do_sample": True, **{key: generation[key] for key in ("temperature", "top_p")}}
    config["search"] = {**config.get("search", {}), **search, "max_length": generation["context"]}
    config["model"]["eos_token_id"] = manifest["stop_ids"]
    path.write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(manifest, terms, recipe), encoding="utf-8")


def _hub(folder: Path, artifact: Artifact, frozen: Frozen, manifest: dict[str, Any], terms: Terms, recipe: str) -> None:
    told = "Tokenizer and `config.json` are in transformers' layout; the weights are in "
    if artifact.path.is_dir():
        shutil.copytree(artifact.path, folder / "onnx")
        told += "`onnx/`, for onnxruntime-genai."
    else:
        name = "".join(c if c.isalnum() or c in "._-" else "-" for c in manifest["name"])
        shutil.copyfile(artifact.path, folder / f"{name}-{manifest['model']['grid']}.gguf")
        told += f"`{name}-{manifest['model']['grid']}.gguf`, for llama.cpp and what embeds it."
    shutil.copytree(tokenizer_folder(frozen), folder, dirs_exist_ok=True)
    kept = {k: v for k, v in frozen.config.items() if k not in ("_name_or_path", "quantization_config")}
    _write_json(folder / "config.json", kept)
    _write_json(folder / "generation_config.json", _generation(manifest, frozen))
    (folder / "README.md").write_text(card(manifest, terms, recipe, told), encoding="utf-8")


def _optimum(
    folder: Path, artifact: Artifact, frozen: Frozen, manifest: dict[str, Any], terms: Terms, recipe: str
) -> None:
    shutil.copytree(artifact.path, folder / "onnx")
    tokenizer_for_all(tokenizer_folder(frozen), folder)
    # without a word of it transformers.js looks for another file in a browser, and for no second one beside it
    names = {"transformers.js_config": {"dtype": "fp32", "use_external_data_format": True}}
    _write_json(folder / "config.json", config_for_all(frozen.config) | names)
    _write_json(folder / "generation_config.json", _generation(manifest, frozen))
    text = card(manifest, terms, recipe, files_note(frozen.config), "transformers.js")
    (folder / "README.md").write_text(text, encoding="utf-8")


def _generation(manifest: dict[str, Any], frozen: Frozen) -> dict[str, Any]:
    """generation_config.json: what `edgeslm chat` uses unless told otherwise."""
    pad = frozen.config.get("pad_token_id")
    return {
        **({} if pad is None else {"pad_token_id": pad}),
        "do_sample": True, "eos_token_id": manifest["stop_ids"], "max_new_tokens": manifest["generation"]["max_new"],
        **{key: manifest["generation"][key] for key in ("temperature", "top_p")},
    }  # fmt: skip


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# destination -> what lays it out, the file by which its folder is known again, the container it takes
DESTINATIONS: dict[str, tuple[Lay, str, str]] = {
    "ollama": (_ollama, "Modelfile", "gguf"),
    "genai": (_genai, "genai_config.json", "onnx"),
    "hub-folder": (_hub, "README.md", "any"),
    "optimum": (_optimum, "README.md", "onnx"),
}
