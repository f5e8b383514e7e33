"""Students in optimum's layout, on graphs that its exporter left in graphs/, weights taken out (optimum-onnx 0.1.0,
transformers 4.57.6, torch 2.13.0); proofs make them anew.

Oracles: transformers holding the decoded weights, onnxruntime, and, as proofs, `ORTModelForCausalLM` in optimum's own
environment and transformers.js in Node.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
import torch
from test_architectures import frozen as freeze
from test_models import CONFIGS, tiny_model
from transformers import AutoConfig, AutoTokenizer

from edgeslm.cli import bundle as cli_bundle
from edgeslm.errors import DataError, ExportError
from edgeslm.export import optimum, optimum_config, optimum_venv
from edgeslm.export.verify import verify
from edgeslm.quantize.freeze import freeze_floats
from edgeslm.quantize.frozen import Frozen

GRAPHS = Path(__file__).parent / "graphs"
RECORDED = ("llama", "qwen2 untied")
IDS = list(range(20, 44))


def file_of(name: str) -> Path:
    return GRAPHS / f"optimum-{name.replace(' ', '-')}.onnx"


def bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """A traced graph without its random weights."""
    for tensor in model.graph.initializer:
        if not tensor.name.endswith(optimum.COMPUTED) and len(tensor.raw_data) > 64:
            tensor.raw_data = b""
    del model.graph.value_info[:]
    return model


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph of the same config, as optimum's exporter made it."""

    def traced(program: Path, frozen: Frozen, work: Path) -> onnx.ModelProto:
        return onnx.load(file_of(frozen.name))

    monkeypatch.setattr(optimum, "_traced", traced)
    monkeypatch.setattr(optimum_venv, "python", lambda say: Path("python"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.tokenizer().save_pretrained(folder)
    return folder


def student(name: str, form: str, tokenizer: Path) -> tuple[Frozen, Any]:
    """Frozen, and transformers' model with the decoded weights. `name`: of a config of test_models."""
    model = tiny_model(name)
    made = freeze(model, form, tokenizer)
    made = Frozen(made.arch, made.config, made.tensors, tokenizer, name, {"base_model": "a/SmolLM2"})
    model.load_state_dict({n: t.decode() for n, t in made.tensors.items()}, strict=False)
    model.tie_weights()
    return made, model


def wanted(model: Any, ids: list[int] = IDS) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def said(folder: Path, config: dict[str, Any], ids: list[int] = IDS, first: int = 9) -> np.ndarray:
    """Logits [T, V]: `first` ids at once, then one by one on the keys and values that came back."""
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    named = {i.name for i in session.get_inputs()}
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    empty = np.zeros((1, config["num_key_value_heads"], 0, size), np.float32)
    past = {name: empty for name in named if name.startswith("past_key_values.")}
    rows = []
    for at, upto in [(0, first), *((i, i + 1) for i in range(first, len(ids)))]:
        feed = {"input_ids": [ids[at:upto]], "attention_mask": [[1] * upto], "position_ids": [list(range(at, upto))]}
        given = {k: np.array(v, np.int64) for k, v in feed.items() if k in named} | past
        found = dict(zip([o.name for o in session.get_outputs()], session.run(None, given), strict=True))
        rows.append(found.pop("logits")[0])
        past = {n.replace("present", "past_key_values"): v for n, v in found.items()}
    return np.concatenate(rows)


@pytest.mark.parametrize("form", ["q4_0", "iq4_nl", "f32"])
@pytest.mark.parametrize("name", RECORDED)
def test_every_bit_and_transformers_logits(recorded: None, name: str, form: str, tokenizer: Path, tmp_path: Path):
    """Prompt and steps. Planned tensors sit on block operators, each of them once, the lookup's among them."""
    made, model = student(name, form, tokenizer)
    artifact = optimum.export(made, tmp_path / "onnx")
    found = verify(artifact, made, optimum.stored)
    assert found["first_mismatch"] is None and found["exact"] == found["tensors"] == len(made.tensors)
    assert found["planned"] == found["planned_exact"] and bool(found["planned"]) == (form != "f32")
    assert np.abs(said(artifact.path, made.config) - wanted(model)).max() < 1e-3
    graph = onnx.load(artifact.path / "model.onnx", load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("GatherBlockQuantized") == (form != "f32")
    assert kinds.count("MatMulNBits") == (7 * made.config["num_hidden_layers"] + 1 if form != "f32" else 0)
    apart = sum(int(e.value) for t in graph.initializer for e in t.external_data if e.key == "length")
    inside = sum(len(t.raw_data) for t in graph.initializer if t.name in made.tensors)  # small norms
    assert artifact.weight_bytes == apart + inside and (artifact.path / "model.onnx_data").stat().st_size < apart + 4096
    assert {i.name for i in graph.input} >= {"input_ids", "attention_mask", "position_ids", "past_key_values.1.value"}
    assert {o.name for o in graph.output} >= {"logits", "present.0.key", "present.1.value"}


def test_padding_on_the_left_changes_nothing(recorded: None, tokenizer: Path, tmp_path: Path):
    """Rows of a batch, as generate() feeds them: positions count from the first id of each."""
    made, model = student("llama", "q4_0", tokenizer)
    folder = optimum.export(made, tmp_path / "onnx").path
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    config = made.config
    size = (2, config["num_key_value_heads"], 0, config["hidden_size"] // config["num_attention_heads"])
    feed = {n.name: np.zeros(size, np.float32) for n in session.get_inputs() if n.name.startswith("past")}
    mask = np.array([[1] * 8, [0] * 3 + [1] * 5])
    feed |= {"input_ids": np.array([IDS[:8], [0] * 3 + IDS[:5]]), "attention_mask": mask}
    feed["position_ids"] = np.maximum(mask.cumsum(-1) - 1, 0)
    found = session.run(["logits"], feed)[0]
    assert np.abs(found[0] - wanted(model, IDS[:8])).max() < 1e-3
    assert np.abs(found[1, 3:] - wanted(model, IDS[:5])).max() < 1e-3


def test_a_changed_code_is_found(recorded: None, tokenizer: Path, tmp_path: Path):
    made, _ = student("llama", "q4_0", tokenizer)
    artifact = optimum.export(made, tmp_path / "onnx")
    data = bytearray((artifact.path / "model.onnx_data").read_bytes())
    data[1000] ^= 1
    (artifact.path / "model.onnx_data").write_bytes(data)
    found = verify(artifact, made, optimum.stored)
    assert found["exact"] == found["tensors"] - 1 and "in the student" in found["first_mismatch"]


def test_nothing_of_the_tracers_numbers_ships(recorded: None, tokenizer: Path, tmp_path: Path, monkeypatch: Any):
    """A weight that the student has not, one that the graph has not, and a use that no operator fits."""
    made, _ = student("llama", "q4_0", tokenizer)
    name = "model.layers.0.mlp.up_proj.weight"

    def with_one_more(program: Path, frozen: Frozen, work: Path) -> onnx.ModelProto:
        model = onnx.load(file_of("llama"))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "model.extra.weight"))
        return model

    for tensors, how, message in (
        (made.tensors, with_one_more, "holds 'model.extra.weight'"),
        ({**made.tensors, "model.other.weight": made.tensors[name]}, None, "not in the traced graph"),
        ({k: v for k, v in made.tensors.items() if k != name}, None, f"holds '{name}'"),
    ):
        if how is not None:
            monkeypatch.setattr(optimum, "_traced", how)
        else:
            monkeypatch.setattr(optimum, "_traced", lambda *_: onnx.load(file_of("llama")))
        wrong = Frozen(made.arch, made.config, tensors, tokenizer, "llama", {})
        with pytest.raises(ExportError, match=message):
            optimum.export(wrong, tmp_path / "onnx")
        assert not (tmp_path / "onnx").exists()


def test_what_it_cannot_hold_is_refused_first(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(optimum_venv, "python", lambda say: pytest.fail("refused before anything is made"))
    for name, form, message in (
        ("gpt2", "q4_0", "not of gpt2; export to gguf"),
        ("phi3 short", "q4_0", "LongRoPE"),
        ("llama", "q4_k", "cannot hold q4_k exactly"),
    ):
        model = tiny_model(name) if form != "q4_k" else tiny.llama(hidden=256)
        with pytest.raises(ExportError, match=message) as error:
            optimum.export(freeze(model, form, tokenizer), tmp_path / "onnx")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [n for n in CONFIGS if n.split()[0] in optimum.FAMILIES and n[-5:] not in ("short",)])
def test_a_config_says_the_same_to_both(name: str, tmp_path: Path):
    """transformers 5 reads back what it wrote; the older words are there beside it."""
    config = CONFIGS[name]()
    made = optimum_config.config_for_all(config.to_dict())
    (tmp_path / "config.json").write_text(json.dumps(made), encoding="utf-8")
    again = AutoConfig.from_pretrained(tmp_path)
    for key in ("rope_parameters", "head_dim", "layer_types", "hidden_size", "tie_word_embeddings"):
        assert getattr(again, key, None) == getattr(config, key, None), key
    rope = config.rope_parameters
    full = rope.get("full_attention", rope)
    assert made["rope_theta"] == full["rope_theta"] and made["architectures"] == [type(tiny_model(name)).__name__]
    assert bool(made["rope_scaling"]) == (full["rope_type"] != "default")
    if name == "gemma3_text":
        assert made["rope_local_base_freq"] == rope["sliding_attention"]["rope_theta"] != made["rope_theta"]


@pytest.fixture
def run(tmp_path: Path, tokenizer: Path) -> Path:
    """A run folder whose student has the config of the recorded graph."""
    model = tiny_model("llama")
    config = model.config.to_dict() | {"bos_token_id": 1, "eos_token_id": 2}
    metadata = {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct"}
    made = freeze_floats(dict(model.named_parameters()), "f32", "llama", config, tokenizer, "llama", metadata)
    made.save(tmp_path / "run/distill-1/frozen")
    record = {"name": "demo", "stages": {"distill": "distill-1"}}
    (tmp_path / "run/run.json").write_text(json.dumps(record), encoding="utf-8")
    return tmp_path / "run"


def test_the_folder_is_what_both_readers_look_for(recorded: None, run: Path, tmp_path: Path):
    out = tmp_path / "out"
    line = cli_bundle.export(run, None, "optimum", None, out, None, "", "Mini", False)
    assert line.endswith("ready for optimum, 20 of 20 tensors bitwise exact")
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert names >= {
        "onnx/model.onnx", "onnx/model.onnx_data", "config.json", "generation_config.json", "tokenizer.json",
        "tokenizer_config.json", "README.md", "LICENCE.md",
    }  # fmt: skip
    config = json.loads((out / "config.json").read_text())
    assert config["transformers.js_config"] == {"dtype": "fp32", "use_external_data_format": True}
    assert config["model_type"] == "llama" and config["rope_theta"] > 0
    told = json.loads((out / "tokenizer_config.json").read_text())
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast" and told["chat_template"] == tiny.TEMPLATE
    assert told["model_input_names"] == ["input_ids", "attention_mask"]
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [0, 2]
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "library_name: transformers.js" in card and "license: apache-2.0" in card and "# Mini" in card
    messages = [{"role": "user", "content": "the fox"}]
    again = AutoTokenizer.from_pretrained(out)
    both = [t.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] for t in (again, tiny.tokenizer())]
    assert both[0] == both[1]
    cli_bundle.deliver(run, "optimum", out, "", "")  # replaces its own older self
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")], "nothing is left behind"


def test_options_that_do_not_fit_are_refused(run: Path, tmp_path: Path):
    for given, message in (
        ({"to": "optimum", "kind": "gguf"}, "takes onnx and --kind says gguf"),
        ({"to": "ollama", "kind": "onnx"}, "takes gguf and --kind says onnx"),
        ({"to": "ollama", "accuracy_level": 0}, "does not go with --to ollama"),
        ({"to": "optimum", "accuracy_level": 2}, "is 0 or 4"),
        ({"into": tmp_path / "b", "accuracy_level": 0}, "a bundle takes the run's own file"),
    ):
        plain = {"into": None, "to": None, "kind": None, "out": tmp_path / "out", "part_size": None}
        plain |= {"licence": "", "name": "", "as_json": False, "out": None if "into" in given else tmp_path / "out"}
        with pytest.raises((ExportError, DataError), match=message):
            cli_bundle.export(run, **{**plain, **given})
        assert not (tmp_path / "out").exists() and not (tmp_path / "b").exists()


def test_the_environment_is_made_once_and_made_again_when_it_is_not_whole(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[list[str]] = []

    def make(folder: Path, program: Path, wanted: list[str]) -> None:
        made.append(wanted)
        (folder / "lib/x-1.dist-info").mkdir(parents=True, exist_ok=True)
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\nexit 0\n")
        program.chmod(0o755)
        (folder / optimum_venv.NOTE).write_text('["lib/x-1.dist-info"]')

    monkeypatch.setattr(optimum_venv, "_make", make)
    program = optimum_venv.python()
    assert optimum_venv.python() == program and len(made) == 1 and program.is_relative_to(tmp_path / "edgeslm/venvs")
    assert any(line.startswith("optimum-onnx[onnxruntime]") for line in made[0])
    assert any(line.startswith("transformers") and "<4.58" in line for line in made[0])
    folder = program.parents[1]
    for spoil in (
        lambda: (folder / "lib/x-1.dist-info").rmdir(),
        lambda: (folder / optimum_venv.NOTE).unlink(),
        lambda: (folder / optimum_venv.NOTE).write_text("{"),
        lambda: program.write_text("#!/bin/sh\nexit 1\n"),
        lambda: program.unlink(),
    ):
        before = len(made)
        spoil()
        optimum_venv.python()
        assert len(made) == before + 1
    monkeypatch.setattr(optimum_venv, "requires", lambda name: ["torch"])
    with pytest.raises(ExportError, match="knows no extra 'optimum'"):
        optimum_venv.python()


def test_an_environment_that_cannot_be_made_is_one_sentence(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(optimum_venv.subprocess, "run", _failing)
    with pytest.raises(ExportError, match=r"\(No matching distribution\); it needs Python's venv module"):
        optimum_venv.python()


def _failing(command: list[str], **options: Any) -> Any:
    return subprocess.CompletedProcess(command, 1, "", "Looking\nNo matching distribution\n")
