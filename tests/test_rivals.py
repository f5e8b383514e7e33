"""The rivals of quality_ladder: llama.cpp's quantiser for real on a tiny model, the others where they are installed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.rivals import RIVALS, auto_round, gptq, llama_cpp, rows, venv
from benchmarks.rivals.base import (
    EMBEDDING,
    HEAD,
    Candidate,
    Made,
    Options,
    Rival,
    RivalFailure,
    Student,
    described,
    gguf_bytes,
    matrix_types,
    source_types,
)
from benchmarks.rivals.graft import graft, matrices, names_and_orders
from benchmarks.rivals.lattice import inherited
from edgeslm.export.gguf import export
from edgeslm.models import gguf_file, imatrix
from edgeslm.quantize.freeze import freeze_floats
from edgeslm.quantize.importance import input_statistics
from tests import tiny

OPTIONS = Options(threads=1)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return made(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Student:
    """With a head of its own, whose teacher's file has it in Q8_0."""
    return replace(made(tmp_path_factory.mktemp("untied"), tied=False), source_types={HEAD: "q8_0"})


def made(folder: Path, tied: bool = True) -> Student:
    """Three layers of 64 columns: 32-weight blocks fit, 256-weight ones do not."""
    pytest.importorskip("llama_cpp")
    model = tiny.llama(layers=3, tied=tied)
    model.save_pretrained(folder / "hf")
    tiny.tokenizer().save_pretrained(folder / "hf")
    weights = dict(model.named_parameters())
    frozen = freeze_floats(weights, "f32", "llama", model.config.to_dict(), folder / "hf", "tiny", {})
    export(frozen, folder / "f32.gguf")
    calibration = torch.randint(0, 260, (4, 32), generator=torch.Generator().manual_seed(0))
    found = input_statistics(model, calibration)
    bare = Student("tiny", folder / "f32.gguf", folder / "hf", calibration.tolist(), folder / "imatrix.gguf")
    names = {ours: theirs for ours, (theirs, _) in names_and_orders(bare).items()}
    means = {name: mean.numpy() for name, mean in found.mean_squares.items()}
    imatrix.write(imatrix.from_means(means, found.tokens, names, ("random",), 32), bare.importance)
    return bare


def choice(name: str, **settings: object) -> Candidate:
    plain = {"type": name, "weighted": False, "embedding": None, "head": None, "pure": False, "types": {}}
    return Candidate("llama.cpp", name, plain | settings)


def test_every_rival_has_a_row_in_the_table() -> None:
    assert set(RIVALS) == {"llama.cpp", "auto-round", "gptq", "torchao", "onnxruntime-genai"}
    for name, rival in RIVALS.items():
        assert rival.name == name and rival.title
        assert rival.needs_venv == (name != "llama.cpp")


def test_bits_are_those_of_the_file(student: Student, tmp_path: Path) -> None:
    """Pure Q4_0: 4.5 bits for every matrix, 32 for the norms; nothing of the metadata."""
    candidate = choice("Q4_0", pure=True, embedding="q4_0")
    made = llama_cpp.make(candidate, student, tmp_path / "a.gguf", OPTIONS)
    row = described(candidate, made, student)
    vectors = sum(np.prod(s) for s in student.shapes.values() if len(s) == 1)
    expected = (4.5 * (student.parameters - vectors) + 32 * vectors) / student.parameters
    assert row["bits"] == pytest.approx(expected, rel=1e-12)
    assert set(row["types"]) == {"q4_0"} and row["embedding"] == "q4_0" and row["fallback_tensors"] == 0


def test_importance_changes_the_file(student: Student, tmp_path: Path) -> None:
    """The same types with other weights of the error: other codes, and less error where the inputs are strong."""
    files = {}
    for weighted in (False, True):
        candidate = choice("Q4_0", pure=True, embedding="q4_0", weighted=weighted)
        files[weighted] = llama_cpp.make(candidate, student, tmp_path / f"{weighted}.gguf", OPTIONS).path
    entries = imatrix.read(student.importance).entries
    whole = gguf_file.read(student.gguf)
    wrong = dict.fromkeys(files, 0.0)
    for weighted, path in files.items():
        made = gguf_file.read(path)
        for name in (n for n in entries if n != EMBEDDING):
            difference = (made.load(name) - whole.load(name)).numpy()
            wrong[weighted] += float((np.square(difference) * entries[name].mean()).sum())
    assert wrong[True] < wrong[False]


def test_the_dry_run_tells_what_will_be_written(student: Student, tmp_path: Path) -> None:
    found = llama_cpp.candidates(student, OPTIONS)
    assert len({c.name for c in found}) == len(found)
    by_name = {c.name: c for c in found}
    for name in ("Q4_K_M", "Q5_0 ffn_down=q5_0 embedding=iq4_nl imatrix", "IQ3_XXS imatrix"):
        candidate = by_name[name]
        made = llama_cpp.make(candidate, student, tmp_path / "one.gguf", OPTIONS)
        row = described(candidate, made, student)
        assert row["bits"] == pytest.approx(candidate.settings["bits"], rel=1e-12)
        assert matrix_types(made.path) == dict(candidate.settings["identity"])
    assert row["fallback_share"] > 0.9  # 64 columns: no 256-weight block fits


def test_a_type_without_fallback_is_refused(student: Student, tmp_path: Path) -> None:
    with pytest.raises(RivalFailure, match="no tensor type fallback is defined for type q1_0"):
        llama_cpp.make(choice("Q1_0"), student, tmp_path / "x.gguf", OPTIONS)


def test_the_teachers_own_grid_is_flagged(student: Student, tmp_path: Path) -> None:
    """A student read from a Q4_1 file: Q4_1 again uses its grid, Q5_1 with importance holds it, Q5_0 does neither."""
    source = llama_cpp.make(choice("Q4_1", pure=True, embedding="q8_0"), student, tmp_path / "source.gguf", OPTIONS)
    file = gguf_file.read(source.path)
    kinds = source_types(source.path)
    assert set(kinds.values()) == {"q4_1", "q8_0"}
    floats = {
        name: ("f32", file.load(name).contiguous().numpy().view(np.uint8).reshape(-1)) for name in matrices(source.path)
    }
    gridded = replace(student, gguf=graft(student, floats, tmp_path / "f32.gguf"), source_types=kinds)
    flags = {}
    for name in ("Q4_1", "Q5_1", "Q5_0"):
        candidate = choice(name, pure=True, embedding="iq4_nl", weighted=True)
        made = llama_cpp.make(candidate, gridded, tmp_path / f"{name}.gguf", OPTIONS)
        flags[name] = described(candidate, made, gridded)["uses_source_grid"], inherited(made.path, gridded)
    assert flags == {"Q4_1": (True, ["q4_1"]), "Q5_1": (False, ["q5_1"]), "Q5_0": (False, [])}
    assert inherited(made.path, student) == []  # a true float student has no grid to inherit


def test_gptq_codes_become_q4_0_blocks(student: Student, tmp_path: Path) -> None:
    """The worker's codes and scales, packed, decode to (code - 8) scale in GGUF's row order."""
    generator = np.random.default_rng(0)
    places = names_and_orders(student)
    name = "model.layers.0.self_attn.q_proj"
    theirs, order = places[f"{name}.weight"]
    rows, columns = student.shapes[theirs]
    codes = generator.integers(0, 16, (rows, columns), dtype=np.uint8)
    scales = generator.random((rows, columns // 32)).astype(np.float16)
    layers: dict[str, Any] = {f"{name}|codes": codes, f"{name}|scales": scales}
    np.savez(tmp_path / "layers.npz", **layers)
    packed = gptq.layers(tmp_path / "layers.npz", student)
    assert set(packed) == {theirs} and order is not None
    bare = graft(student, packed, tmp_path / "bare.gguf")
    out = tmp_path / "all.gguf"
    llama_cpp.grid_the_rest(bare, out, "q5_0", {theirs: "q4_0"}, OPTIONS)
    wanted = (codes.astype(np.float32) - 8) * np.repeat(scales.astype(np.float32), 32, axis=1)
    assert torch.equal(gguf_file.read(out).load(theirs), torch.from_numpy(wanted)[order])
    kinds = matrix_types(out)
    assert kinds.pop(theirs) == "q4_0" and set(kinds.values()) == {"q5_0"}


def test_what_torchao_trained_becomes_a_file_for_every_embedding(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its training is a worker's; what the worker leaves is quantised by llama.cpp, and trained once a rate."""
    from safetensors.torch import load_file, save_file

    from benchmarks.rivals import torchao_qat

    jobs: list[dict] = []

    def work(worker: Path, job: dict, scratch: Path, timeout_s: float) -> dict:
        jobs.append(job)
        save_file({k: 1.5 * v for k, v in load_file(student.folder / "model.safetensors").items()}, job["out"])
        return {"seconds": 1.0}

    monkeypatch.setattr(torchao_qat.venv, "work", work)
    found = torchao_qat.candidates(student, OPTIONS)
    rate = [c for c in found if c.settings["lr"] == 1e-4 and not c.settings["weighted"]]
    for candidate in rate:
        made = torchao_qat.make(candidate, student, tmp_path / "out.gguf", OPTIONS)
        kinds = matrix_types(made.path)
        assert kinds[EMBEDDING] == candidate.settings["embedding"] and len(set(kinds.values())) <= 2
    assert len(rate) > 1 and len(jobs) == 1


def test_a_head_of_its_own_is_named_beside_the_embedding(untied: Student, tmp_path: Path) -> None:
    """Never its teacher's own type, never a worse one than the embedding's; what has the teacher's type says so."""
    named = [c for c in llama_cpp.candidates(untied, OPTIONS) if c.settings["embedding"]]
    pairs = {(c.settings["embedding"], c.settings["head"]) for c in named}
    order = llama_cpp.EMBEDDINGS.index
    assert ("q4_0", "q5_0") in pairs and all(h != "q8_0" and order(h) <= order(e) for e, h in pairs)
    (chosen,) = (c for c in named if c.name == "Q4_1 embedding=q4_0 head=q5_0 imatrix")
    kinds = matrix_types(llama_cpp.make(chosen, untied, tmp_path / "a.gguf", OPTIONS).path)
    assert (kinds[EMBEDDING], kinds[HEAD]) == ("q4_0", "q5_0") and not chosen.settings["own_grid"]
    plain = next(c for c in llama_cpp.candidates(untied, OPTIONS) if c.name == "Q8_0")
    assert plain.settings["own_grid"]


def test_a_head_that_is_packed_stays_as_it_is(untied: Student, tmp_path: Path) -> None:
    rows, columns = untied.shapes[HEAD]
    bare = graft(untied, {HEAD: ("q4_0", np.zeros(rows * columns // 32 * 18, np.uint8))}, tmp_path / "bare.gguf")
    llama_cpp.grid_the_rest(bare, tmp_path / "all.gguf", "q5_0", {HEAD: "q4_0"}, OPTIONS)
    kinds = matrix_types(tmp_path / "all.gguf")
    assert kinds.pop(HEAD) == "q4_0" and set(kinds.values()) == {"q5_0"}


def test_a_graft_keeps_metadata_and_refuses_strangers(student: Student, tmp_path: Path) -> None:
    same = gguf_file.read(graft(student, {}, tmp_path / "same.gguf"))
    whole = gguf_file.read(student.gguf)
    assert same.metadata == whole.metadata and list(same.tensors) == list(whole.tensors)
    assert all(torch.equal(same.load(name), whole.load(name)) for name in whole.tensors)
    with pytest.raises(RivalFailure, match=r"blk\.9"):
        graft(student, {"blk.9.attn_q.weight": ("q4_0", np.zeros(18, np.uint8))}, tmp_path / "x.gguf")
    with pytest.raises(RivalFailure, match="18 bytes of q4_0"):
        graft(student, {EMBEDDING: ("q4_0", np.zeros(18, np.uint8))}, tmp_path / "x.gguf")


def test_choice_near_budgets() -> None:
    def at(name: str, bits: float | None, **settings: object) -> Candidate:
        identity = settings.pop("identity", name)
        return choice(name, bits=bits, identity=identity, **settings)

    plain = [
        at("default", 6.2),
        at("pure far", 6.2, pure=True),
        at("near", 5.4, embedding="q5_0"),
        at("the same file", 5.4, embedding="q5_0", identity="near"),
        at("its source's grid", 5.4, embedding="q8_0", own_grid=True),
        at("too light", 4.9, embedding="q5_0"),
        at("refused", None),
        Candidate("other", "weight unknown"),
    ]
    names = [c.name for c in rows.chosen(plain, (5.5, 3.0), 0.4)]
    assert names == ["default", "near", "its source's grid", "refused", "weight unknown"]
    names = [c.name for c in rows.chosen(plain, (5.5, 3.0), 0.4, by_default=False)]
    assert names == ["near", "weight unknown"]


def test_rows_are_scored_saved_and_resumed(student: Student, tmp_path: Path) -> None:
    """Through evaluate: a good file, one that its rival cannot make, one done before; nothing stays on disk."""

    def make(candidate: Candidate, student: Student, out: Path, options: Options) -> Made:
        return llama_cpp.make(candidate, student, out, options)

    def listed(student: Student, options: Options) -> list[Candidate]:
        return [
            Candidate("fake", "good", choice("Q8_0", embedding="q8_0").settings),
            Candidate("fake", "bad", choice("Q1_0").settings),
            Candidate("fake", "old", choice("Q4_0").settings),
        ]

    saved: list[dict] = []
    windows = [row[:16] for row in student.rows]
    table = {"fake": Rival("fake", "a fake", listed, make)}
    found = rows.rival_rows(
        student, windows, tmp_path / "work", OPTIONS, saved.append, rivals=table, budgets=(9.0,), done=("fake: old",)
    )
    assert found == saved and [r["name"] for r in saved] == ["good", "bad"]
    good, bad = saved
    assert 0 <= good["kl"] < 0.1 and good["top1_agreement"] > 0.8 and good["perplexity"] > 1 and good["tokens"] > 0
    assert "no tensor type fallback" in bad["error"] and "kl" not in bad
    assert json.loads(json.dumps(saved)) == saved
    assert not list((tmp_path / "work").rglob("*.gguf"))


def test_best_rival_counts_only_honest_rows() -> None:
    table: list[dict[str, Any]] = [
        {"name": "own grid", "bits": 5.0, "kl": 0.001, "uses_source_grid": True, "inherits_source_grid": ["q4_1"]},
        {"name": "holds it", "bits": 5.0, "kl": 0.002, "uses_source_grid": False, "inherits_source_grid": ["q5_1"]},
        {"name": "good", "bits": 5.4, "kl": 0.1, "uses_source_grid": False, "inherits_source_grid": []},
        {"name": "better, too big", "bits": 6.0, "kl": 0.05, "uses_source_grid": False},
        {"name": "failed", "error": "no"},
    ]
    by_the_letter, strict = rows.best_rival(table, 5.5), rows.best_rival(table, 5.5, inheriting=False)
    assert by_the_letter is not None and by_the_letter["name"] == "holds it"
    assert strict is not None and strict["name"] == "good"
    assert rows.best_rival(table, 4.9) is None


@pytest.mark.proof
@pytest.mark.parametrize("name", [n for n, r in RIVALS.items() if r.needs_venv])
def test_rivals_with_an_environment_make_a_file(name: str, student: Student, tmp_path: Path) -> None:
    if not venv.installed():
        pytest.skip(f"the rivals' environment is not in {venv.folder().parent}: run benchmarks.quality_ladder once")
    rival = RIVALS[name]
    options = Options(threads=1, tokens=256, iterations=2)
    candidate = rival.candidates(student, options)[0]
    made = rival.make(candidate, student, tmp_path / "file", options)
    row = described(candidate, made, student)
    assert 4 < row["bits"] < 33
    if made.path.is_file():
        assert gguf_bytes(made.path) < made.path.stat().st_size
    if name == auto_round.NAME:
        assert row["embedding"] == "q8_0"


def test_a_student_trained_elsewhere_has_the_row_it_would_have_here(student: Student, tmp_path: Path) -> None:
    from benchmarks import ladder_ours

    path, runs = tiny.recipe(tmp_path), tmp_path / "runs"
    overrides = [f"teacher.model={student.folder}", "student={kind: copy}", "distill.train.steps=2", "name=there"]
    windows = torch.randint(3, 260, (3, 32), generator=torch.Generator().manual_seed(1)).tolist()
    saved: list[dict[str, Any]] = []
    ladder_ours.our_rows({"4.5": path}, [3], overrides, student, windows, runs, 1, saved.append)
    stage = json.loads((runs / "there" / "run.json").read_text())["stages"]["distill"]
    brought = ladder_ours.brought_row("4.5", path, runs / "there" / stage, student, windows, tmp_path, 1)
    assert brought["trained_on"] == "cpu" and brought["seconds"]["distill"] > 0
    assert brought["seed"] == 3 and brought["exact_tensors"] == 1.0 and len(brought["curve"]) == len(saved[0]["curve"])
    assert {k: v for k, v in brought.items() if k not in ("seconds", "trained_on", "training")} == {
        k: v for k, v in saved[0].items() if k not in ("seconds", "training")
    }
