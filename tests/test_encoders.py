"""Encoders: rows, models, the step on classes, spans, vectors and pixels, recipes from teacher to report."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from edgeslm import recipe as recipes
from edgeslm.cli.actions import export_again
from edgeslm.data.batch import Batch
from edgeslm.encoders import BODIES, SOURCES, judge, pixels, rows, students, tokens
from edgeslm.encoders import model as models
from edgeslm.encoders.objective import annealed, bound
from edgeslm.encoders.view import ByTask, EncoderView, inputs
from edgeslm.errors import DataError, ExportError, RecipeError
from edgeslm.knowledge import LOSSES
from edgeslm.knowledge.response import cross_entropy, cross_entropy_fused
from edgeslm.pipeline.check import check
from edgeslm.pipeline.encoder.check import ON_SENTENCES, default
from edgeslm.pipeline.run import run
from edgeslm.pipeline.stage import Context
from edgeslm.progress import Progress
from edgeslm.quantize.frozen import Frozen
from edgeslm.quantize.masters import attach
from edgeslm.schemes.objective import Objective
from edgeslm.schemes.step import Step, StepSettings
from edgeslm.teachers.base import Need
from edgeslm.teachers.live import LiveTeacher
from tests import tiny_encoder

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("encoder-*.yaml"))
SETTINGS = StepSettings(4, 1.0, 0.0, (0.9, 0.98), None)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def encoder(place: Path, task: str = "classify", outputs: int = 2, seed: int = 0) -> models.Encoder:
    return models.read_bert(tiny_encoder.folder(place, seed), "mean", task, outputs, seed, "eager")


def batch(length: int, lengths: tuple[int, ...] = (9, 5, 7), **fields: torch.Tensor) -> Batch:
    """Rows whose text does not depend on `length`."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 60, (len(lengths), 12), generator=generator)
    ids = torch.nn.functional.pad(ids, (0, length - 12))
    mask = (torch.arange(length)[None] < torch.tensor(lengths)[:, None]).float()
    ids = ids * mask.long()
    extra = {"types": torch.zeros_like(ids), "task": torch.zeros(len(ids)), "label": torch.arange(len(ids)) % 2}
    return Batch(ids, mask, None, {**extra, **fields})


def problems(path: Path) -> str:
    loaded = recipes.load(path)
    return "\n".join(check(Context(loaded, path.parent, path.parent / "runs" / "x", Progress(quiet=True))).problems)


def folder_of(root: Path, stage: str) -> Path:
    return root / json.loads((root / "run.json").read_text())["stages"][stage]


# rows


def test_tables_are_read_from_json_lines_and_arrow(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    (tmp_path / "a.jsonl").write_text('{"sentence": "one", "label": 1}\n\n{"sentence": "two", "label": -1}\n')
    written = arrow.table({"sentence": ["one", "two"], "label": [1, -1]})
    with arrow.OSFile(str(tmp_path / "a.arrow"), "wb") as file, arrow.ipc.new_stream(file, written.schema) as stream:
        stream.write_table(written)
    from edgeslm.recipe.encoder import TableSource

    source = TableSource(kind="table", paths=("a",), columns={"text": "sentence"})
    expected = [rows.Item("one", label=1), rows.Item("two", label=-1)]
    for name in ("a.jsonl", "a.arrow"):
        assert SOURCES["table"](source, [tmp_path / name]) == expected
    assert SOURCES["table"](source.model_copy(update={"first": 1, "rows": 1}), [tmp_path / "a.jsonl"]) == expected[1:]
    (tmp_path / "b.jsonl").write_text('{"words": "one"}')
    with pytest.raises(DataError, match=r"b\.jsonl, row 1.*text_a and text_b"):
        SOURCES["table"](source, [tmp_path / "b.jsonl"])


def test_a_cloze_blanks_a_name_that_stands_once_nearby(tmp_path: Path) -> None:
    from edgeslm.recipe.encoder import ClozeSource

    told = ["It was cold at sea.", "Then old Queequeg came aboard.", "Nobody spoke to Queequeg for a day.",
            "The wind rose again.", "And so they slept."]  # fmt: skip
    (tmp_path / "a.txt").write_text(" ".join(told * 2))
    items = SOURCES["cloze"](ClozeSource(kind="cloze", paths=("a",), rows=2), [tmp_path / "a.txt"])
    assert items
    for item in items:
        assert item.span is not None and item.pair is not None
        assert item.pair[slice(*item.span)] == "Queequeg" and "Queequeg" not in item.text and "what" in item.text
    table = tokens.tabulate(items, torch.zeros(len(items), dtype=torch.long), ("a",), tiny_encoder.tokenizer(), 64)
    start, end = int(table.fields["start"][0]), int(table.fields["end"][0])
    words = tiny_encoder.tokenizer().decode(table.rows.ids[0, start : end + 1]).replace(" ", "").replace("##", "")
    assert words == "queequeg"


def test_questions_lose_the_mark_that_tells(tmp_path: Path) -> None:
    from edgeslm.recipe.encoder import QuestionSource

    (tmp_path / "a.txt").write_text(
        'Who is there? It was a ship. "Is it far?" Not at all.\n\n王何必曰利？亦有仁義而已矣。'
    )
    items = SOURCES["questions"](QuestionSource(kind="questions", paths=("a",), rows=6), [tmp_path / "a.txt"])
    told = {i.text: i.label for i in items}
    assert told == {"Who is there": 1, "Is it far": 1, "王何必曰利": 1, "It was a ship": 0, "Not at all": 0,
                    "亦有仁義而已矣": 0}  # fmt: skip


def test_order_is_the_seeds_and_reads_every_row_before_any_again() -> None:
    table = tokens.Table(None, {})  # type: ignore[arg-type]
    allowed = torch.tensor([3, 5, 7, 9])
    one, two = (tokens.read_order(table, [(3, allowed)], 2, seed) for seed in (0, 0))
    assert torch.equal(one, two) and sorted(one[:4].tolist()) == [3, 5, 7, 9] and len(one) == 6
    assert not torch.equal(one, tokens.read_order(table, [(3, allowed)], 2, 1))


# models and the step


@pytest.mark.parametrize("kind", sorted(BODIES))
def test_padding_does_not_matter(kind: str, tmp_path: Path) -> None:
    teacher = encoder(tmp_path)
    parts: dict[str, dict[str, Any]] = {
        "bert": {"kind": "depth", "layers": 1, "keep": "spread"},
        "bilstm": {"kind": "bilstm", "units": 8, "width": 32, "embedding": "new"},
        "pixels": {"kind": "pixels", "layers": 1, "hidden": 32, "heads": 2, "ffn": 64, "patch": 8, "columns": 40},
    }
    part = _part(parts[kind])
    made = students.build(part, teacher, 2, 0, "eager")
    drawn = {w: pixels.render(["a good film", "bad", "it was"], w // 8, 8, 0, 0) for w in (160, 240)}
    short, long = (batch(t, pixels=drawn[w]) for t, w in ((12, 160), (20, 240)))
    assert part is not None and torch.allclose(made(*inputs(made, short)), made(*inputs(made, long)), atol=1e-5)


def _part(told: dict[str, Any]) -> Any:
    from pydantic import TypeAdapter

    from edgeslm.recipe.encoder import EncoderStudent

    return TypeAdapter(EncoderStudent).validate_python(told)


TERMS = [
    {"loss": "forward_kl"},
    {"loss": "cross_entropy"},
    {"loss": "hidden", "layers": "all"},
    {"loss": "attention_maps"},
    {"loss": "minilm", "causal": False},
    {"loss": "similarity", "layers": "sentence"},
    {"loss": "cosine", "layers": "sentence"},
]


def test_losses_read_a_bert_and_padding_adds_nothing_to_them(tmp_path: Path) -> None:
    """Every kind of signal at once: a step on rows padded further gives the same figures."""
    logs = []
    for length in (12, 20):
        teacher = encoder(tmp_path / str(length))
        student = students.build(_part({"kind": "depth", "layers": 1}), teacher, 2, 0, "eager")
        with torch.no_grad():
            student.body.bert.encoder.layer[0].output.dense.weight.mul_(1.3)
        objective = bound(TERMS, student, [teacher], torch.Generator().manual_seed(0), 2, torch.device("cpu"))
        masters = attach(student, dict.fromkeys(dict(student.named_parameters()), "f32"), torch.float32)
        seen = EncoderView("classify", length, (2,), (0,))
        step = Step(student, masters, objective, SETTINGS, seen)
        logs.append(step(batch(length), LiveTeacher(teacher, seen), lr=1e-3, grid=False, index=0))
    assert len(logs[0].terms) == len(TERMS) and min(logs[0].terms.values()) > 0
    assert logs[0].terms == pytest.approx(logs[1].terms, rel=5e-3)
    assert logs[0].grad_norm == pytest.approx(logs[1].grad_norm, rel=5e-3)


def test_losses_on_sentences_are_zero_between_equals_and_not_else(tmp_path: Path) -> None:
    one, other = encoder(tmp_path / "one"), encoder(tmp_path / "other", seed=3)
    seen = EncoderView("classify", 12, (2,), (0,))
    for name in ON_SENTENCES:
        over = {} if default(LOSSES[name].fn, "over") is None else {"over": "rows"}
        found = []
        for student in (one, other):
            copied = models.filled(student.plan, dict(student.named_parameters()), "eager")
            term = {"loss": name, "layers": "sentence", **over}
            objective = bound([term], copied, [one], torch.Generator().manual_seed(0), 2, torch.device("cpu"))
            masters = attach(copied, dict.fromkeys(dict(copied.named_parameters()), "f32"), torch.float32)
            step = Step(copied, masters, objective, SETTINGS, seen)
            found.append(step(batch(12), LiveTeacher(one, seen), lr=1e-3, grid=False, index=0).loss)
        assert found[0] < 1e-6 < found[1], name


def test_teacher_and_student_read_different_fields_of_a_row(tmp_path: Path) -> None:
    teacher = encoder(tmp_path, "similarity", 0)
    part = _part({"kind": "pixels", "layers": 1, "hidden": 32, "heads": 2, "ffn": 64, "columns": 12})
    student = students.build(part, teacher, 0, 0, "eager")
    first = batch(12, pixels=pixels.render(["a good film", "bad", "it was"], 12, 8, 0, 0))
    other_words = Batch(first.ids.flip(0), first.mask.flip(0), None, first.fields)
    other_picture = Batch(first.ids, first.mask, None, {**first.fields, "pixels": first.fields["pixels"].flip(0)})
    for changed, sees, blind in ((other_words, teacher, student), (other_picture, student, teacher)):
        assert torch.equal(blind(*inputs(blind, changed)), blind(*inputs(blind, first)))
        assert not torch.allclose(sees(*inputs(sees, changed)), sees(*inputs(sees, first)), atol=1e-4)
    terms = [{"loss": "cosine", "layers": "sentence"}]
    objective = bound(terms, student, [teacher], torch.Generator().manual_seed(0), 1, torch.device("cpu"))
    masters = attach(student, dict.fromkeys(dict(student.named_parameters()), "f32"), torch.float32)
    seen = EncoderView("similarity", 12)
    step = Step(student, masters, objective, replace(SETTINGS, own_share=0.0), seen)
    losses = [step(first, LiveTeacher(teacher, seen), lr=3e-3, grid=False, index=i).loss for i in range(25)]
    assert losses[-1] < 0.5 * losses[0]


def test_every_row_is_taught_by_its_tasks_teacher_in_its_tasks_classes(tmp_path: Path) -> None:
    two = [encoder(tmp_path / str(i), outputs=n, seed=i) for i, n in enumerate((2, 3))]
    views = [EncoderView("classify", 12, (2, 3), (i,)) for i in range(2)]
    given = ByTask([LiveTeacher(m, v, i) for i, (m, v) in enumerate(zip(two, views, strict=True))], [0, 1])
    rows_of = batch(12, task=torch.tensor([0, 1, 1]))
    output = given(rows_of, Need()).output
    assert output is not None
    made = output.rows(slice(0, 3), torch.zeros(3, dtype=torch.long))
    assert isinstance(made, torch.Tensor)
    alone = [m(*inputs(m, rows_of)) for m in two]
    assert torch.allclose(made[0, :2], alone[0][0], atol=1e-5) and torch.allclose(made[1:, 2:], alone[1][1:], atol=1e-5)
    assert made.softmax(-1)[0, 2:].sum() == 0 and made.softmax(-1)[1:, :2].sum() == 0
    targets, _ = views[0].truth(batch(12, task=torch.tensor([0, 1, 1]), label=torch.tensor([1, 2, -1])))
    assert targets.tolist() == [1, 4, -1]


def test_truth_that_is_not_known_costs_nothing() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([1, -1, 4, -1])
    for smoothing in (0.0, 0.2):
        leaf = logits.clone().requires_grad_()
        value = cross_entropy(leaf, None, targets, label_smoothing=smoothing)
        (grad,) = torch.autograd.grad(value.sum(), leaf)
        fused = cross_entropy_fused(logits, None, targets, label_smoothing=smoothing)
        assert torch.allclose(fused[0], value, atol=1e-6) and torch.allclose(fused[1], grad, atol=1e-6)
        assert value[targets < 0].abs().sum() == 0 and grad[targets < 0].abs().sum() == 0 and (value[::2] > 0).all()


def test_annealing_goes_from_the_teacher_to_the_truth() -> None:
    objective = Objective.build([{"loss": "forward_kl", "weight": 2.0}, {"loss": "cross_entropy"}])
    weights = [[t.weight for t in annealed(objective, done).terms] for done in (0.0, 0.5, 1.0)]
    assert weights == [[2.0, 0.0], [1.0, 0.5], [0.0, 1.0]]


def test_figures_of_judged_rows() -> None:
    made = np.array([[2.0, 1], [0, 1], [3, 0], [0, 2]])
    found = judge.figures("classify", made, {"label": np.array([0, 1, 1, 1])}, made)
    assert found == {"accuracy": 0.75, "majority": 0.75, "agreement": 1.0}
    assert judge.spearman(np.array([1.0, 2, 3]), np.array([1.0, 8, 27])) == pytest.approx(1.0)
    assert judge.spearman(np.array([1.0, 2, 2, 4]), np.array([3.0, 2, 2, 1])) == pytest.approx(-1.0)


# recipes


def test_recipes_of_the_folder_load() -> None:
    assert len(RECIPES) >= 8
    for path in RECIPES:
        loaded: Any = recipes.load(path)
        assert loaded.family == "encoder" and loaded.name == path.stem
        assert path.read_text(encoding="utf-8").startswith("#")


def test_unknown_keys_are_refused_with_the_nearest(tmp_path: Path) -> None:
    path = tiny_encoder.recipe(tmp_path)
    with pytest.raises(RecipeError, match=r"unknown key 'distill\.train\.stepz'; did you mean 'steps'"):
        recipes.load(path, ["distill.train.stepz=3"])
    with pytest.raises(RecipeError, match="unknown family 'decoder'"):
        recipes.load(path, ["family=decoder"])
    with pytest.raises(RecipeError, match="must learn its tasks"):
        recipes.load(path, ["teachers.0.tune=null"])


REFUSED = [
    ({"student": {"kind": "bilstm"}}, "shares no layers; say layers: sentence"),
    ({"student": {"kind": "depth", "layers": 9}}, "the teacher has 2 layers, 9 are asked for"),
    ({"length": 80}, "the teacher has 64 positions"),
    ({"quantize": {"plan": [{"pattern": "*", "format": "q4_1"}]}}, "cannot hold q4_1 exactly"),
    ({"quantize": {"plan": [{"pattern": "*", "format": "q6_k"}]}}, "rows of 32 are no multiple"),
]


@pytest.mark.parametrize("changes, said", REFUSED, ids=[s for _, s in REFUSED])
def test_what_cannot_be_done_is_refused_first(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert said in problems(tiny_encoder.recipe(tmp_path, **changes))


WRONG_LOSSES = [
    ({"loss": "forward_kl", "temprature": 2}, "'forward_kl' has no option 'temprature'"),
    ({"loss": "forward_k"}, "did you mean 'forward_kl'"),
    ({"loss": "minilm"}, "set causal: false"),
    ({"loss": "attention_maps"}, "set distill.train.attention: eager"),
    ({"loss": "cross_entropy"}, "wants the truth, and transfer rows have none"),
    ({"loss": "teacher_free"}, "wants the truth of every row"),
    ({"loss": "hidden", "layers": [[5, 1]]}, "the student has layers 0 to 1, not 5"),
    ({"loss": "attention_maps", "layers": "sentence"}, "means nothing on one vector a row"),
    ({"loss": "probabilistic", "layers": "sentence"}, "set over: rows"),
]


@pytest.mark.parametrize("term, said", WRONG_LOSSES, ids=[s for _, s in WRONG_LOSSES])
def test_losses_that_do_not_fit_are_refused_first(term: dict[str, Any], said: str, tmp_path: Path) -> None:
    phases = [{"objective": [term], "rows": "transfer"}]
    assert said in problems(tiny_encoder.recipe(tmp_path, distill={"phases": phases, "train": {"steps": 2}}))


def test_judged_rows_must_not_be_trained_on(tmp_path: Path) -> None:
    path = tiny_encoder.recipe(tmp_path)
    shutil.copy(tmp_path / "learn.jsonl", tmp_path / "judge.jsonl")
    assert "40 of its 40 rows are trained on too" in problems(path)
    (tmp_path / "learn.jsonl").write_text('{"text": "good", "label": 7}')
    assert "labels must be 0 to 1; there are [7]" in problems(path)


# from teacher to report


def test_a_recipe_ships_exactly_what_it_trained(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    import onnx

    from edgeslm.artifact import Artifact
    from edgeslm.export import onnx_encoder
    from edgeslm.export.verify import verify

    path = tiny_encoder.recipe(tmp_path)
    root = run(recipes.load(path), tmp_path, tmp_path / "runs", Progress(quiet=True))
    exact = json.loads((folder_of(root, "export") / "exact.json").read_text())
    assert len(exact) == 2 and all(e["exact"] == e["tensors"] for e in exact)
    assert exact[0]["planned"] == exact[0]["planned_exact"] == 7  # six products of a layer and the table
    graph = onnx.load(folder_of(root, "export") / "student-onnx" / "model.onnx", load_external_data=False).graph
    kinds = [n.op_type for n in graph.node]
    assert kinds.count("MatMulNBits") == 6 and kinds.count("GatherBlockQuantized") == 1
    judged = json.loads((folder_of(root, "evaluate") / "judged.json").read_text())
    assert judged["torch_difference"]["student-onnx"] < 1e-4 and judged["rows"] == 20
    assert judged["speed_over_teacher"] > 0 and "mood: teacher" in judged["figures"]
    assert "student-onnx" in (root / "report.md").read_text() and (root / "report.html").exists()
    before = {p: p.stat().st_mtime_ns for p in root.glob("*/done.json")}
    run(recipes.load(path), tmp_path, tmp_path / "runs", Progress(quiet=True))
    assert before == {p: p.stat().st_mtime_ns for p in root.glob("*/done.json")}
    with pytest.raises(ExportError, match="holds an encoder; its recipe ships it"):
        export_again(root, "onnx", None, None)
    # one changed byte is found
    (told, *_) = json.loads((folder_of(root, "export") / "artifacts.json").read_text())
    place = folder_of(root, "export") / "student-onnx"
    data = bytearray((place / "model.onnx.data").read_bytes())
    data[0] ^= 1
    (place / "model.onnx.data").write_bytes(data)
    frozen = Frozen.load(folder_of(root, "distill") / "frozen")
    again = verify(Artifact.from_json({**told, "path": place}), frozen, onnx_encoder.stored)
    assert again["exact"] == again["tensors"] - 1


def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = recipes.load(tiny_encoder.recipe(tmp_path))

    def weights(runs: Path) -> bytes:
        return (folder_of(runs / "tiny", "distill") / "frozen" / "frozen.safetensors").read_bytes()

    run(loaded, tmp_path, tmp_path / "whole", Progress(quiet=True), until="distill")
    call, count = Step.__call__, 0

    def stopping(self: Step, *args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count in (4, 10):  # inside tuning, then inside distilling
            raise KeyboardInterrupt
        return call(self, *args, **options)

    monkeypatch.setattr(Step, "__call__", stopping)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(loaded, tmp_path, tmp_path / "stopped", Progress(quiet=True), until="distill")
    run(loaded, tmp_path, tmp_path / "stopped", Progress(quiet=True), until="distill")
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


STUDENTS = [
    {"kind": "bilstm", "units": 16, "embedding": "teacher"},
    {"kind": "pixels", "layers": 1, "hidden": 64, "heads": 2, "ffn": 64, "columns": 40},
    {"kind": "scratch", "layers": 1, "hidden": 32, "heads": 2, "ffn": 32},
]


@pytest.mark.parametrize("student", STUDENTS, ids=[str(s["kind"]) for s in STUDENTS])
def test_students_of_every_kind_ship_exactly(student: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tiny_encoder.similarity(tmp_path, student, [{"loss": "cosine", "layers": "sentence"}])
    root = run(recipes.load(path), tmp_path, tmp_path / "runs", Progress(quiet=True))
    exact = json.loads((folder_of(root, "export") / "exact.json").read_text())
    assert all(e["exact"] == e["tensors"] for e in exact) and exact[0]["planned"] > 0
    judged = json.loads((folder_of(root, "evaluate") / "judged.json").read_text())
    assert judged["torch_difference"]["student-onnx"] < 1e-4
    assert {"spearman", "retrieval"} <= set(judged["figures"]["near: student"])


def test_spans_and_several_teachers_run(tmp_path: Path) -> None:
    """Two teachers of one task are mixed; a span's answer is a place in its context."""
    told = [{"question": f"who was {w}", "context": f"it was {w} {n} and man", "start": 7, "end": 7 + len(w)}
            for w in ("good", "bad", "poor") for n in ("ship", "sea", "whale", "film")]  # fmt: skip
    path = tiny_encoder.recipe(
        tmp_path,
        task="span",
        tasks=[{"name": "who", "train": [{"kind": "table", "paths": ["qa.jsonl"], "rows": 8}],
                "judge": [{"kind": "table", "paths": ["qa.jsonl"], "first": 8}]}],
        teachers=[{"model": m, "tune": {"steps": 2, "batch_rows": 4}} for m in ("teacher", "other")],
        distill={"phases": [{"objective": [{"loss": "forward_kl"}, {"loss": "cross_entropy"}]}],
                 "train": {"steps": 2, "batch_rows": 4}},
    )  # fmt: skip
    tiny_encoder.folder(tmp_path / "other", seed=1)
    (tmp_path / "qa.jsonl").write_text("\n".join(map(json.dumps, told)))
    root = run(recipes.load(path), tmp_path, tmp_path / "runs", Progress(quiet=True))
    judged = json.loads((folder_of(root, "evaluate") / "judged.json").read_text())
    assert {"exact", "first_token", "agreement"} <= set(judged["figures"]["who: student"])
    assert yaml.safe_load((root / "recipe.yaml").read_text())["task"] == "span"
