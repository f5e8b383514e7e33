"""Schemes, targets and teachers as recipes name them: whole runs on tiny models, and what is refused before them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch

from edgeslm import recipe as recipes
from edgeslm.cli import app as cli
from edgeslm.data.rows import Rows
from edgeslm.errors import DataError, RecipeError
from edgeslm.pipeline.check import check
from edgeslm.pipeline.run import run, stages
from edgeslm.pipeline.stage import Context, place
from edgeslm.progress import Progress
from edgeslm.quantize.frozen import Frozen
from edgeslm.schemes import SCHEMES, checkpoint

RECIPE = """
threads: 1
teacher: {model: teacher}
data: {sequence: 32, sources: [{kind: text, paths: [learn.txt]}]}
student: {kind: depth, layers: 3, importance_tokens: 64}
distill:
  train: {steps: 4, batch_tokens: 128, micro_rows: 2, lr: 0.002, checkpoint_every: 2, precision: f32}
export: {kinds: [gguf], teacher: [gguf-f32]}
evaluate: {paths: [judge.txt], context: 32, windows: 2}
benchmark: null
"""
F32 = "quantize.plan=[{pattern: '*', format: f32}]"
BOTH = "distill.objective=[{loss: cross_entropy}, {loss: forward_kl}]"
MORE = "teacher.more=[{model: other, weight: 2}]"


@pytest.fixture(scope="module", autouse=True)
def no_timing():
    yield from tiny.no_timing()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two teachers of one vocabulary, one narrow one, one of another vocabulary, a recipe, its texts."""
    made = tmp_path_factory.mktemp("recipes")
    tiny.recipe(made)
    for name, model in {
        "other": tiny.llama(layers=2, seed=5),
        "narrow": tiny.llama(layers=2, seed=6, hidden=32),
        "odd": tiny.llama(seed=7),
        "padded": padded(),
    }.items():
        model.save_pretrained(made / name)
        tokenizer = tiny.tokenizer()
        if name == "odd":
            tokenizer.add_tokens(["<|odd|>"])
        tokenizer.save_pretrained(made / name)
    (made / "small.yaml").write_text(RECIPE, encoding="utf-8")
    return made


def padded():
    """The first teacher with more rows of the embedding than there are tokens in the vocabulary."""
    model = tiny.llama(seed=8)
    model.resize_token_embeddings(320, mean_resizing=False)
    return model


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


def load(folder: Path, *overrides: str) -> recipes.Recipe:
    return recipes.load(folder / "small.yaml", overrides)


def made(folder: Path, runs: Path, *overrides: str, until: str = "distill") -> dict[str, Path]:
    """{stage: its folder} of a run up to `until`."""
    root = run(load(folder, *overrides), folder, runs, Progress(quiet=True), until=until)
    return {stage: root / name for stage, name in json.loads((root / "run.json").read_text())["stages"].items()}


def lines(made: dict[str, Path]) -> list[dict]:
    return [json.loads(line) for line in (made["distill"] / "log.jsonl").read_text().splitlines()]


def same(a: dict[str, Path], b: dict[str, Path]) -> bool:
    left, right = (Frozen.load(x["distill"] / "frozen") for x in (a, b))
    return left.tensors.keys() == right.tensors.keys() and all(
        torch.equal(t.codes, right.tensors[n].codes)
        and all(torch.equal(t.scales[k], right.tensors[n].scales[k]) for k in t.scales)
        for n, t in left.tensors.items()
    )


@pytest.fixture(scope="module")
def first(folder, runs) -> dict[str, Path]:
    """A plain run that keeps two points of its route: what others start from."""
    return made(folder, runs, "name=first", "distill.train.keep=3", until="export")


# Recorded targets ---------------------------------------------------------------------------------------------------

TOPK = "distill.targets={kind: topk, k: 12}"
SAMPLED = "distill.targets={kind: sampled, keep: 4, samples: 6, temperature: 2}"
HOT = "distill.objective=[{loss: forward_kl, temperature: 2}, {loss: cross_entropy, weight: 0.1}]"


@pytest.mark.parametrize("overrides", [(TOPK,), (SAMPLED, HOT)])
def test_targets_are_recorded_once_and_trained_on(folder, runs, overrides):
    found = made(folder, runs, "name=recorded", *overrides)
    assert list(found) == ["teacher", "data", "student", "record", "distill"]
    index = json.loads((found["record"] / "index.json").read_text())
    count, samples = (12, 0) if len(overrides) == 1 else (4, 6)
    assert (index["count"], index["samples"], index["vocabulary"]) == (count, samples, 288)
    assert index["sequence"] == 32 and len(index["teacher"]) == 64
    names = Rows.load(found["data"] / "rows.safetensors").row_ids()
    held = [name for shard in index["shards"] for name in shard["rows"]]
    assert len(held) == len(set(held)) and set(held) <= set(names)
    log = lines(found)
    assert len(log) == 4 and all(0 < line["terms"]["forward_kl"] < 20 for line in log)
    before = {p: p.stat().st_mtime_ns for p in found["record"].iterdir()}
    other = made(folder, runs, "name=recorded", *overrides, "distill.train.lr=0.001")
    assert other["record"] == found["record"] and other["distill"] != found["distill"]
    assert before == {p: p.stat().st_mtime_ns for p in found["record"].iterdir()}


def test_a_run_killed_while_it_records_and_while_it_trains_is_as_one_never_killed(folder, tmp_path, monkeypatch):
    from edgeslm.teachers import recorded

    monkeypatch.setattr(recorded, "SHARD_ROWS", 5)
    asked = (TOPK, "distill.objective=[{loss: reverse_kl}]", "distill.train.steps=5")
    whole = made(folder, tmp_path / "whole", *asked)
    shards, saves = [], []
    write, save = recorded._write_shard, checkpoint.save

    def killed_in_shards(path, *rest):
        if len(shards) == 1:
            shards.append(path)
            raise KeyboardInterrupt
        shards.append(path)
        write(path, *rest)

    def killed_in_steps(*args):
        saves.append(args[2])
        if len(saves) == 2:
            raise KeyboardInterrupt
        save(*args)

    monkeypatch.setattr(recorded, "_write_shard", killed_in_shards)
    monkeypatch.setattr("edgeslm.schemes.loop.checkpoint.save", killed_in_steps)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            made(folder, tmp_path / "killed", *asked)
    found = made(folder, tmp_path / "killed", *asked)
    assert saves == [2, 4, 4, 5] and len(shards) == len(set(shards)) + 1 > 3
    assert same(whole, found)
    for path in whole["record"].glob("*.safetensors"):
        assert path.read_bytes() == (found["record"] / path.name).read_bytes()
    record = json.loads((found["record"].parent / "run.json").read_text())
    assert record["resumed"]["record"] and record["resumed"]["distill"]


def test_targets_recorded_elsewhere_teach_the_same(folder, runs):
    own = made(folder, runs, "name=own", TOPK)
    shutil.copytree(own["record"], folder / "targets", dirs_exist_ok=True)
    there = made(folder, runs, "name=there", "distill.targets={kind: topk, k: 12, folder: targets}")
    assert same(own, there) and [p.name for p in there["record"].iterdir()] == ["done.json"]
    absolute = made(folder, runs, "name=there", f"distill.targets={{kind: topk, k: 12, folder: {own['record']}}}")
    assert same(own, absolute)
    # other batches and another seed read the same rows' targets; other rows are refused
    bigger = "distill.targets={kind: topk, k: 12, folder: all}"
    everything = made(folder, runs, "name=own", TOPK, "distill.train.steps=40", until="record")
    shutil.copytree(everything["record"], folder / "all", dirs_exist_ok=True)
    assert len(lines(made(folder, runs, "name=there", bigger, "seed=3", "distill.train.batch_tokens=64"))) == 4
    with pytest.raises(DataError, match="training rows were not recorded; record with the same data"):
        made(folder, runs, "name=there", bigger, "data.sequence=16")
    # the folder's content decides the weights
    index = folder / "targets" / "index.json"
    context = Context(load(folder, "name=there", TOPK[:-1] + ", folder: targets}"), folder, runs / "there", None)
    context.folders = dict(there)
    (record,) = (s for s in stages(context.recipe) if s.name == "record")
    before = place(record, context)
    index.write_text(index.read_text() + " ")
    assert place(record, context) != before == there["record"]


def test_another_second_teacher_is_recorded_anew(folder, runs):
    """What a recording depends on: the content of every teacher, not the name of its folder."""
    shutil.copytree(folder / "other", folder / "changing")
    recipe = load(folder, "name=changing", TOPK, "teacher.more=[{model: changing}]")
    found = made(folder, runs, "name=changing", TOPK, "teacher.more=[{model: changing}]", until="record")

    def recorded_in() -> Path:
        context = Context(recipe, folder, runs / "changing", Progress(quiet=True))
        context.folders = dict(found)
        (record,) = (s for s in stages(recipe) if s.name == "record")
        return place(record, context)

    assert recorded_in() == found["record"]
    tiny.llama(layers=2, seed=9).save_pretrained(folder / "changing")
    assert recorded_in() != found["record"]


# Several teachers, and schemes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("combine", ["weighted", "sample", "token"])
def test_several_teachers_teach_as_one(folder, runs, combine):
    found = made(folder, runs, "name=several", MORE, f"teacher.combine={combine}")
    alone = made(folder, runs, "name=several")
    assert found["distill"] != alone["distill"] and found["student"] == alone["student"]
    assert lines(found)[0]["loss"] != pytest.approx(lines(alone)[0]["loss"], rel=1e-3)


def test_the_second_teachers_layers_teach(folder, runs):
    terms = "[{loss: forward_kl}, {loss: hidden, teacher: 1, layers: [[1, 1], [3, 2]]}]"
    found = made(folder, runs, "name=several", "teacher.more=[{model: narrow}]", f"distill.objective={terms}")
    assert set(lines(found)[0]["terms"]) == {"forward_kl", "hidden"}


LAYERS = "[{loss: forward_kl}, {loss: minilm}, {loss: attention_maps}, {loss: fsp}, {loss: feature_discriminator}]"
WHOLE = {
    "layers": (f"distill.objective={LAYERS}", "distill.train.attention=eager"),
    "relations": ("distill.objective=[{loss: rkd_distance}, {loss: similarity}, {loss: cross_entropy}]",),
    "adversary": ("distill.objective=[{loss: logit_discriminator}, {loss: forward_kl}]",),
    "online": ("distill.scheme={kind: online, peers: 3, learn_from: ensemble}", BOTH),
    "online with a teacher": ("distill.scheme={kind: online, outer_share: 0.5}",),
    "online, writing": (
        "distill.scheme={kind: online}", BOTH, "distill.on_policy={share: 0.6, prompt: 8, candidates: 2}",
    ),
    "average": ("distill.scheme={kind: self}", BOTH),
    "snapshot": ("distill.scheme={kind: self, teacher: snapshot, every: 2}", BOTH),
    "deep": ("distill.scheme={kind: self, teacher: deep, exits: [1, 2]}", BOTH),
    "blockwise": ("distill.scheme={kind: blockwise, blocks: 2, loss: cosine}",),
    "codistill": ("distill.scheme={kind: codistill, exchange_every: 1, groups: 3, after: average}",),
    "writing": ("distill.on_policy={share: 1, prompt: 8}",),
    "writing with the teacher": ("distill.on_policy={share: 1, prompt: 8, teacher_share: 0.3, candidates: 2}",),
    "writing by an adversary": ("distill.on_policy={share: 1, prompt: 8, contrast: 0.5}",),
    "padded": (
        "distill.objective=[{loss: logit_discriminator}, {loss: forward_kl}]", "teacher.model=padded",
        "student={kind: existing, model: other}", "distill.on_policy={share: 0.5, prompt: 8, candidates: 2}",
    ),
    "written": ("data.sources=[{kind: written, seeds: [chat.jsonl], rows: 6, max_new: 40, batch: 4}]",),
    "text alone": ("distill.objective=[{loss: cross_entropy, label_smoothing: 0.1}]",),
}  # fmt: skip


@pytest.mark.parametrize("name", list(WHOLE))
def test_a_recipe_runs_to_exact_files(folder, runs, name):
    found = made(folder, runs, "name=kinds", *WHOLE[name], until="export")
    log = lines(found)
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    (student, _) = json.loads((found["export"] / "exact.json").read_text())
    assert student["exact"] == student["tensors"] >= 20 and student["planned_exact"] == student["planned"] > 10
    frozen = Frozen.load(found["distill"] / "frozen")
    names = {n for n, _ in tiny.llama(layers=2 if name == "padded" else 3).named_parameters()}
    assert set(frozen.tensors) == names  # what belongs to losses does not ship
    assert not list(found["distill"].glob("checkpoint*"))
    notes = {
        "online": "peer_losses", "blockwise": "block", "writing": "written", "online, writing": "leader",
        "codistill": "used",
    }  # fmt: skip
    assert notes.get(name, "loss") in log[0]


def test_every_scheme_is_run_somewhere_here():
    named = {o.split("kind: ")[1].split(",")[0].rstrip("}") for w in WHOLE.values() for o in w if "scheme" in o}
    assert named | {"offline", "route", "residual"} == set(SCHEMES)


def test_groups_of_their_own_meet_beside_their_run_folders(folder, runs, monkeypatch):
    """Two jobs, one after the other: the later one finds what the earlier one left."""
    scheme = "distill.scheme={kind: codistill, exchange_every: 1, burn_in: 0.25}"
    monkeypatch.setenv("EDGESLM_GROUP", "0")
    first = made(folder, runs, "name=pair", scheme, "distill.objective=[{loss: cross_entropy}]")
    monkeypatch.setenv("EDGESLM_GROUP", "1")
    second = made(folder, runs, "name=pair", scheme, "distill.objective=[{loss: cross_entropy}]")
    assert [x["distill"].parent.name for x in (first, second)] == ["pair-group0", "pair-group1"]
    assert [p.name for p in sorted((runs / "pair-exchange").iterdir())] == ["group-0", "group-1"]
    assert not any(line["used"] for line in lines(first))
    assert [line["used"] for line in lines(second)][1:] == [
        [{"group": 1, "peer": 0, "step": 4, "age": age}] for age in (-3, -2, -1)
    ]
    # another recipe is not learned from, and the log says why
    other = made(folder, runs, "name=pair", scheme, "distill.objective=[{loss: forward_kl}]", "seed=7")
    assert not any(line["used"] for line in lines(other))
    assert "of another recipe" in lines(other)[1]["exchange_problems"][0]
    monkeypatch.setenv("EDGESLM_GROUP", "2")
    with pytest.raises(RecipeError, match="EDGESLM_GROUP=2: is none of 2 groups"):
        made(folder, runs, "name=pair", scheme)


SCRATCH = "student={kind: scratch, hidden: 32, layers: 2, heads: 2, kv_heads: 2, ffn: 64, family: llama}"


def test_copies_from_scratch_start_apart(folder, runs):
    from safetensors.torch import load_file

    scheme = "distill.scheme={kind: codistill, exchange_every: 1, burn_in: 0.5, folder: apart-exchange, keep: 9}"
    made(folder, runs, "name=apart", scheme, "distill.objective=[{loss: cross_entropy}]", SCRATCH, F32)
    both = [load_file(folder / "apart-exchange" / f"group-{g}" / "step-00000001.safetensors") for g in (0, 1)]
    name = "model.layers.0.mlp.up_proj.weight"
    assert both[0].keys() == both[1].keys() and (both[0][name] - both[1][name]).abs().mean() > 0.01
    assert both[0][name].std().item() == pytest.approx(both[1][name].std().item(), rel=0.1)
    with pytest.raises(RecipeError, match="no common average"):
        made(folder, runs, "name=apart", scheme.replace("keep: 9", "after: average"), SCRATCH, F32)
    mean = scheme.replace("keep: 9", "after: average")
    with pytest.raises(RecipeError, match="scales trained alone have no common average"):
        made(folder, runs, "name=mean", mean, "quantize.scales={kind: alone}")


def test_groups_read_shards_or_the_same_rows_in_their_own_order(folder, runs):
    from edgeslm.pipeline.groups import orders

    done = made(folder, runs, "name=first", "distill.train.keep=3", until="data")
    found = {}
    for data in ("disjoint", "same"):
        recipe = load(folder, f"distill.scheme={{kind: codistill, exchange_every: 1, data: {data}}}", "name=first")
        context = Context(recipe, folder, runs / "first", Progress(quiet=True), done)
        found[data] = [set(map(int, o)) for o in orders(context, Rows.load(done["data"] / "rows.safetensors"))]
        assert len(found[data]) == 2
    assert not found["disjoint"][0] & found["disjoint"][1] and found["same"][0] & found["same"][1]
    few = load(folder, "distill.scheme={kind: codistill, exchange_every: 1, groups: 4000}", "name=first")
    with pytest.raises(DataError, match="fewer rows than there are groups"):
        orders(
            Context(few, folder, runs / "first", Progress(quiet=True), done),
            Rows.load(done["data"] / "rows.safetensors"),
        )


def test_a_route_of_kept_points(folder, runs, first):
    kept = [p.name for p in sorted((first["distill"] / "route").iterdir())]
    assert kept == ["1", "2", "3"]
    scheme = "distill.scheme={kind: route, anchors: ['run:first@1', 'run:first@3']}"
    found = made(folder, runs, "name=along", scheme, "distill.train.steps=6", "student.layers=2")
    assert [line["anchor"] for line in lines(found)] == [0, 0, 1, 1, 2, 2]
    as_teacher = made(folder, runs, "name=after", "teacher.model=run:first@2", "student.layers=2")
    assert json.loads((as_teacher["teacher"] / "teacher.json").read_text())["config"]["num_hidden_layers"] == 3
    with pytest.raises(RecipeError, match=r"run:first@4: .* holds no kept point 4 \(distill.train.keep\)"):
        made(folder, runs, "name=along", "distill.scheme={kind: route, anchors: ['run:first@4']}")


def test_a_kept_point_is_the_student_as_it_was(folder, runs, first, monkeypatch):
    """Kept before the last step, on the grid; a run of so many steps ends with other weights only by its schedule."""
    from safetensors.torch import load_file

    weights = [load_file(first["distill"] / "route" / str(p) / "model.safetensors") for p in (1, 2, 3)]
    frozen = Frozen.load(first["distill"] / "frozen")
    assert all(set(w) == set(frozen.tensors) for w in weights)
    name = "model.layers.0.mlp.up_proj.weight"
    assert len({w[name].sum().item() for w in weights} | {frozen.tensors[name].decode().sum().item()}) == 4


def test_a_residual_student_is_judged_with_the_earlier_one(folder, runs, first):
    scheme = "distill.scheme={kind: residual, base: 'run:first'}"
    terms = "distill.objective=[{loss: forward_kl}, {loss: hidden, layers: [[3, 4]]}]"  # the base has three layers
    found = made(folder, runs, "name=rest", scheme, terms, until="export")
    summary = json.loads((found["distill"] / "summary.json").read_text())
    assert summary["kl_by_forward"]["float32"] == pytest.approx(summary["heldout"][-1]["kl"], rel=1e-3)
    alone = made(folder, runs, "name=rest", "distill.objective=[{loss: forward_kl}]")
    assert lines(found)[0]["terms"]["forward_kl"] != pytest.approx(lines(alone)[0]["loss"], rel=1e-2)


def test_a_student_writes_with_layers_as_they_were_written(folder, tmp_path, monkeypatch):
    """Compiled ones would be compiled anew for each length of the text so far."""
    from contextlib import contextmanager

    from edgeslm import compute
    from edgeslm.data import on_policy

    inside, write = [], on_policy.write_batch

    @contextmanager
    def plain():
        inside.append(1)
        yield
        inside.pop()

    def look(*asked):
        assert inside
        return write(*asked)

    monkeypatch.setattr(compute, "uncompiled", plain)
    monkeypatch.setattr(on_policy, "write_batch", look)
    found = made(folder, tmp_path, "distill.on_policy={share: 1, prompt: 8}")
    assert all(line["written"] for line in lines(found))


# Refused first ------------------------------------------------------------------------------------------------------


def problems(folder: Path, runs: Path, *overrides: str) -> list[str]:
    return check(Context(load(folder, *overrides), folder, runs / "none", Progress(quiet=True))).problems


def objective(*terms: str) -> str:
    return f"distill.objective=[{', '.join(terms)}]"


def test_what_stops_before_training_needs_no_memory_to_train(folder, tmp_path) -> None:
    huge = load(folder, "distill.train.micro_rows=100000", "distill.train.batch_tokens=102400000")
    context = Context(huge, folder, tmp_path / "none", Progress(quiet=True))
    assert any("of memory and there are" in problem for problem in check(context).problems)
    assert not check(context, until="student").problems


ROUTED = "distill.scheme={kind: route, anchors: [other]}"
REFUSED = [
    ((objective("{loss: hiden}"),), "distill.objective.0: unknown loss 'hiden'; did you mean 'hidden'?"),
    ((objective("{loss: hidden, normalize: true}"),), "'hidden' has no option 'normalize'; it takes normalise"),
    ((objective("{loss: minilm, relations: [keys]}"),), "relations: ['keys'] is not valid"),
    (("distill.scheme={kind: self}", objective("{loss: cross_entropy}")), "distill.scheme: no loss of the objective"),
    (("teacher.format=q4_0", objective("{loss: cross_entropy}")), "teacher.format: no loss of the objective"),
    (("teacher.format=Q4_O",), "teacher.format: unknown format 'Q4_O'; did you mean 'q4_"),
    (("distill.train.micro_rows=100000", "distill.train.batch_tokens=102400000"), "of memory and there are"),
    ((objective("{loss: attention_maps}"),), "reads attention maps; set distill.train.attention: eager"),
    ((objective("{loss: forward_kl, layers: last}"),), "looks at the output, not at layers; leave layers out"),
    ((objective("{loss: hidden, layers: evenly}"),), "distill.objective.0.layers: unknown map 'evenly'"),
    ((objective("{loss: hidden, layers: [[1, 5]]}"),), "the teacher has layers 0 to 4, not 5"),
    ((objective("{loss: hidden, layers: [[4, 4]]}"),), "the student has layers 0 to 3, not 4"),
    ((objective("{loss: hidden, layers: []}"),), "names no pair"),
    ((objective("{loss: minilm, layers: all}"),), "layer 0 is the embedding, which has no query"),
    ((objective("{loss: fsp, layers: last}"),), "fsp compares a model's layers with each other; map at least two"),
    ((objective("{loss: minilm, relation_heads: 7}"),), "a width of 64 does not split into relation_heads: 7"),
    ((objective("{loss: layer_graph, heads: 5}"),), "layer_graph: heads: 5 does not divide the width 64"),
    ((objective("{loss: hidden, teacher: 1}"),), "teacher 1 is asked for, but there are 1, from 0 on"),
    ((objective("{loss: rkd_angle}"),), "'rkd_angle' compares 3 rows or more with each other"),
    ((objective("{loss: rkd_distance}"), "distill.train.micro_rows=1"), "'rkd_distance' compares 2 rows or more"),
    ((objective("{loss: similarity}"), "distill.train.micro_rows=3"), "'similarity' compares 2 rows or more"),
    ((objective("{loss: hidden}"), "distill.train.compile=true"), "compiled layers do not show"),
    ((TOPK, objective("{loss: hidden}")), "'hidden' looks at layers, which are not recorded"),
    ((TOPK, objective("{loss: forward_kl, temperature: 2}")), "recorded at temperature 1.0, not 2"),
    ((SAMPLED, objective("{loss: reverse_kl, temperature: 2}")), "sampled targets serve forward_kl alone"),
    ((TOPK, objective("{loss: logit_mse}")), "'logit_mse' needs the teacher's whole distribution"),
    (("distill.targets={kind: topk, folder: nowhere}",), "nowhere: holds no recorded targets"),
    ((TOPK, "student={kind: existing, model: teacher}", "teacher.model=padded"), "320 rows, the student's 288"),
    (("teacher.more=[{model: odd}]",), "teacher.more.0: speaks another vocabulary than the first teacher"),
    (("teacher.more=[{model: nowhere}]",), "nowhere"),
    (("distill.scheme={kind: route, anchors: [odd]}",), "distill.scheme: odd: speaks another vocabulary"),
    (("distill.scheme={kind: route, anchors: ['run:gone@1']}",), "run:gone@1: "),
    ((ROUTED, objective("{loss: hidden}")), "other: has 2 layers of width 64, the recipe's teacher 4 of 64"),
    (
        (ROUTED.replace("other", "teacher"), MORE, objective("{loss: hidden, teacher: 1}")),
        "anchors of a route are one teacher each",
    ),
    (("distill.scheme={kind: residual, base: 'run:gone'}",), "run:gone: "),
    (("distill.scheme={kind: residual, base: padded}",), "padded: its head has 320 rows, the student's 288"),
    (("distill.scheme={kind: online}",), "peers that only follow each other learn nothing"),
    (("distill.scheme={kind: codistill}",), "no copy would learn from another in 4 steps"),
    (
        ("distill.scheme={kind: codistill, exchange_every: 2, lag: 2, exchange: scheduled}",),
        "every 2 (lag 2), comes too late",
    ),
    (("distill.scheme={kind: online}", objective("{loss: hidden}", "{loss: cross_entropy}")), "does not exchange"),
    (("distill.scheme={kind: self}", objective("{loss: hidden}")), "scheme 'self' does not exchange"),
    (("distill.scheme={kind: self, teacher: deep, exits: [1, 3]}",), "exits: layer 3 is not before the last of 3"),
    (("distill.scheme={kind: self, teacher: deep, exits: [1]}", "distill.train.compile=true"), "exits read layers"),
    (
        ("distill.scheme={kind: self, teacher: deep, exits: [1]}", objective("{loss: hidden}")),
        "exits have nothing to learn",
    ),
    (("distill.scheme={kind: blockwise, blocks: 4}",), "distill.scheme.blocks: 4 blocks of 3 layers"),
    (("distill.scheme={kind: blockwise, loss: forward_kl}",), "distill.scheme.loss: 'forward_kl' is no loss on layers"),
    (("distill.scheme={kind: blockwise, loss: hiden}",), "distill.scheme.loss: 'hiden' is no loss on layers"),
    (("distill.scheme={kind: blockwise, loss: attention_maps}",), "distill.scheme.loss: 'attention_maps' reads"),
    (("distill.scheme={kind: blockwise, loss: fsp}",), "distill.scheme.loss: fsp compares a model's layers"),
    (("distill.scheme={kind: blockwise, loss: rkd_angle}",), "distill.scheme.loss: 'rkd_angle' compares 3 rows"),
    (("distill.on_policy={share: 0.5, prompt: 31}",), "distill.on_policy.prompt: 31 tokens leave the student nothing"),
    (
        ("distill.on_policy={share: 0.5, prompt: 8}", objective("{loss: cross_entropy}")),
        "nothing grades what the student writes",
    ),
]


@pytest.mark.parametrize(("overrides", "words"), REFUSED, ids=[words[:40] for _, words in REFUSED])
def test_one_clear_sentence_before_any_compute(folder, tmp_path, overrides, words):
    found = problems(folder, tmp_path, *overrides)
    assert any(words in problem for problem in found), found
    assert all(words in problem for problem in found) or found[-1].startswith("no file matches 'nowhere/index.json'")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((TOPK, "distill.scheme={kind: self}"), "recorded targets teach in the offline scheme, not in 'self'"),
        ((TOPK, "distill.on_policy={share: 0.5}"), "text that the student writes has no recorded targets"),
        (("distill.scheme={kind: self}", "distill.on_policy={share: 0.5}"), "on_policy: students write"),
        (("distill.scheme={kind: residual, base: x}", "distill.on_policy={share: 0.5}"), "on_policy: students write"),
        (("distill.scheme={kind: self, teacher: deep}",), "exits: name the layers that get an exit"),
        (("distill.scheme={kind: self, exits: [1]}",), "exits: name the layers that get an exit"),
        (("distill.scheme={kind: online, peers: 1}",), "greater than or equal to 2"),
        (("distill.scheme={kind: codistill, group: 2}",), "group: 2 is none of 2 groups"),
        ((TOPK, "distill.scheme={kind: codistill}"), "recorded targets teach in the offline scheme"),
        (("distill.scheme={kind: on_line}",), "'online'"),
        (("distill.scheme={kind: online, piers: 3}",), "did you mean 'peers'"),
        (("distill.train.keep=4",), "keep: 4 points do not fit before the end of 4 steps"),
        (("distill.targets={kind: topk, k: 0}",), "greater than 0"),
        (("distill.on_policy={share: 1.5}",), "less than or equal to 1"),
    ],
)
def test_keys_that_do_not_fit_together_are_refused_when_a_recipe_is_read(folder, overrides, words):
    with pytest.raises(RecipeError, match=words):
        load(folder, *overrides)


def test_targets_recorded_otherwise_are_refused(folder, runs, tmp_path):
    found = made(folder, runs, "name=own", TOPK)
    there = f"folder: {found['record']}"
    for asked in (f"{{kind: topk, k: 9, {there}}}", f"{{kind: sampled, keep: 12, samples: 4, {there}}}"):
        (problem,) = problems(folder, tmp_path, f"distill.targets={asked}")
        assert "was recorded with 12 kept and 0 sampled outcomes at temperature 1.0; the recipe asks for" in problem
    index = json.loads((found["record"] / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps({**index, "vocabulary": 320}))
    (problem,) = problems(folder, tmp_path, f"distill.targets={{kind: topk, k: 12, folder: {tmp_path}}}")
    assert "320 rows, the student's 288" in problem


def test_what_is_asked_for_rightly_passes(folder, tmp_path):
    """The neighbours of what is refused."""
    tokens = objective("{loss: rkd_angle, over: tokens}", "{loss: fsp}", "{loss: minilm, relation_heads: 2}")
    for overrides in (
        (tokens, "distill.train.micro_rows=1"),
        (objective("{loss: rkd_angle}"), "distill.train.micro_rows=8"),
        (objective("{loss: hidden, layers: all}", "{loss: cosine, layers: [[0, 0], [3, [3, 4]]]}"),),
        ("distill.scheme={kind: route, anchors: [other]}",),
        ("distill.scheme={kind: blockwise, loss: minilm}",),
        ("distill.scheme={kind: online, outer_share: 0.1}",),
        ("distill.train.keep=3",),
        ("distill.train.steps=0", "distill.train.keep=3"),
    ):
        assert problems(folder, tmp_path, *overrides) == []


def test_check_on_the_command_line(folder, monkeypatch, capsys):
    """Several problems at once, one sentence each, and no trace of Python; and a plan where there is none."""

    def edgeslm(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["edgeslm", "check", str(folder / "small.yaml"), *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        return int(left.value.code or 0), " ".join((said.out + said.err).split())

    bad = objective("{loss: hiden}", "{loss: attention_maps}")
    code, text = edgeslm(bad, "distill.scheme={kind: online}")
    assert code == 2 and "unknown loss 'hiden'" in text and "attention: eager" in text
    assert "peers that only follow each other" in text and "Traceback" not in text
    code, text = edgeslm(TOPK, "--json")
    assert code == 0 and '"training"' in text
