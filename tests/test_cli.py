"""Sub-commands as a user types them, on tiny models."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from edgeslm.cli.app import COMMANDS
from edgeslm.models.load import write_tokenizer
from edgeslm.quantize.freeze import freeze_floats

needs_llama_cpp = pytest.mark.skipif(
    not list(Path(sys.prefix).glob("lib/python*/site-packages/llama_cpp")),
    reason="needs llama-cpp-python: python -m edgeslm.runtimes.native",
)


def edgeslm(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeslm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory) -> Path:
    """A tiny float32 teacher as a GGUF file."""
    from edgeslm.export.gguf import export

    folder = tmp_path_factory.mktemp("gguf")
    write_tokenizer(tiny.tokenizer(), folder / "tokenizer")
    model = tiny.llama()
    weights = dict(model.named_parameters())
    frozen = freeze_floats(weights, "f32", "llama", model.config.to_dict(), folder / "tokenizer", "tiny", {})
    return export(frozen, folder / "tiny.gguf").path


def test_formats_lists_every_grid():
    from edgeslm.formats import FORMATS

    rows = json.loads(edgeslm("formats", "--json").stdout)
    assert [r["name"] for r in rows] == list(FORMATS)
    q4_0 = next(r for r in rows if r["name"] == "q4_0")
    assert (q4_0["bits"], q4_0["gguf"], q4_0["onnx"]) == (4.5, "exact", "exact")
    assert next(r for r in rows if r["name"] == "q4_1")["onnx"] == "refused"
    assert "q4_0" in edgeslm("formats").stdout


def test_doctor_says_what_is_missing_and_how_to_get_it():
    found = json.loads(edgeslm("doctor", "--json").stdout)
    names = {f["name"]: f for f in found}
    assert names["torch"]["ok"] and {"llama-cpp-python", "onnxruntime", "energy counters", "disk"} <= set(names)
    assert all(f["remedy"] for f in found if not f["ok"])


@pytest.mark.parametrize("option", ["--part-size", "--licence", "--name"])
def test_options_of_bundles_are_not_taken_and_ignored(option: str, tmp_path: Path):
    done = edgeslm("export", tmp_path, option, "1MB")
    assert done.returncode == 2 and f"error: {option} goes with --bundle or --to" in done.stderr


@pytest.mark.parametrize("command", [*COMMANDS, "devices"])
def test_every_command_has_help(command: str):
    assert re.search(rf"^\W*{command} ", edgeslm("--help").stdout, re.MULTILINE)
    assert edgeslm(command, "--help").returncode == 0


@needs_llama_cpp
def test_eval_of_a_file_against_itself_is_zero(gguf, tmp_path):
    text = tmp_path / "judge.txt"
    text.write_text("Once there was a lighthouse that nobody had visited for years. " * 6, encoding="utf-8")
    options = ["--context", 64, "--windows", 3, "--no-cache", "--out", tmp_path / "out", "--json"]
    done = edgeslm("eval", gguf, "--teacher", gguf, "--text", text, *options)
    assert done.returncode == 0, done.stderr
    found = {m["metric"]: m for m in json.loads(done.stdout)["measurements"]}
    assert abs(found["kl"]["values"][0]) < 1e-6 and found["top1_agreement"]["values"] == [1.0]


@needs_llama_cpp
def test_bench_gives_every_figure(gguf):
    options = ["--prefill", 8, "--depths", "0,8", "--new-tokens", 4, "--processes", 1, "--repeats", 2, "--json"]
    done = edgeslm("bench", gguf, *options)
    assert done.returncode == 0, done.stderr
    every = json.loads(done.stdout)["measurements"]
    assert [m["extra"]["depth"] for m in every if m["metric"] == "decode"] == [0, 8]
    found = {m["metric"]: m for m in every}
    assert {"load", "kv_cache", "time_to_first_token", "prefill", "decode", "rss_anon_peak", "vm_hwm"} <= set(found)
    assert len(found["decode"]["values"]) == 2 and len(found["decode"]["warmups"]) >= 1
    assert not any(m["metric"].startswith("energy") and m["kind"] == "measured" for m in found.values())


@needs_llama_cpp
def test_chat_streams_what_transformers_would_say(gguf):
    done = edgeslm("chat", gguf, "--temperature", 0, "--max-new", 12, input="Hi\n")
    assert done.returncode == 0, done.stderr
    tokenizer, model = tiny.tokenizer(), tiny.llama()
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    wanted = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    said = tokenizer.decode(wanted, skip_special_tokens=True)
    assert said.rstrip("\ufffd")[:8] in done.stdout, (said, done.stdout)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench", "nothing.gguf"], "neither a .gguf file nor an exported ONNX folder"),
        (["chat", "nothing.gguf"], "nothing.gguf"),
        (["export", "nowhere"], "no run folder"),
        (["report", "nowhere"], "nowhere"),
        (["run", "nowhere.yaml"], "no such recipe"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(arguments, words, tmp_path):
    done = edgeslm(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_truncated_gguf_is_one_sentence(gguf, tmp_path):
    short = tmp_path / "short.gguf"
    short.write_bytes(gguf.read_bytes()[: gguf.stat().st_size // 2])
    done = edgeslm("bench", short)
    assert done.returncode == 2 and "short.gguf" in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_a_run_whose_runtime_crashed_says_so_and_exits_1(option, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from edgeslm.cli.app import app

    record = {"stages": {}, "problems": [{"stage": "evaluate", "artifact": "student.gguf", "what": "it crashed"}]}

    def done(*_: object) -> Path:
        (tmp_path / "run.json").write_text(json.dumps(record), encoding="utf-8")
        return tmp_path

    monkeypatch.setattr("edgeslm.pipeline.run.run", done)
    tiny.recipe(tmp_path)
    for problems, code in ((record["problems"], 1), ([], 0)):
        record["problems"] = problems
        result = CliRunner().invoke(app, ["run", str(tmp_path / "tiny.yaml"), option])
        assert result.exit_code == code and ("student.gguf: it crashed" in result.stderr) == bool(problems)
        assert result.stdout.strip() == (json.dumps(record) if option == "--json" else str(tmp_path))


def test_eval_refuses_another_vocabulary_of_the_same_size(gguf, tmp_path):
    """Sizes agree, ids do not: what one file calls 3 is another token of the other."""
    from tokenizers import Tokenizer

    from edgeslm.export.gguf import export

    state = json.loads(tiny.tokenizer().backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary["!"], vocabulary["#"] = vocabulary["#"], vocabulary["!"]
    other = tiny.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|im_end|>")
    write_tokenizer(other, tmp_path / "tokenizer")
    model = tiny.llama()
    weights, config = dict(model.named_parameters()), model.config.to_dict()
    file = export(freeze_floats(weights, "f32", "llama", config, tmp_path / "tokenizer", "t", {}), tmp_path / "o.gguf")
    (tmp_path / "judge.txt").write_text("Once there was a lighthouse. " * 20, encoding="utf-8")
    done = edgeslm("eval", file.path, "--teacher", gguf, "--text", tmp_path / "judge.txt", "--context", 64)
    assert done.returncode == 2 and re.search("cannot be compared: token '[!#]' has id", done.stderr), done.stderr


def test_losses_prints_every_loss_and_scheme_with_its_options():
    from edgeslm.knowledge import LOSSES
    from edgeslm.schemes import SCHEMES

    found = json.loads(edgeslm("losses", "--json").stdout)
    assert [r["loss"] for r in found["losses"]] == list(LOSSES)
    assert {r["scheme"] for r in found["schemes"]} == set(SCHEMES)
    by = {r["loss"]: r for r in found["losses"]}
    assert by["jsd"]["options"] == {"beta": 0.5, "temperature": 1.0} and by["jsd"]["recorded"]
    assert by["minilm"]["reads"] == ["query", "key", "value"] and not by["minilm"]["recorded"]
    assert all(r["what"] and r["source"] for r in found["losses"])
    text = edgeslm("losses").stdout
    assert all(name in text for name in (*LOSSES, *SCHEMES))
