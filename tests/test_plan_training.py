"""plan-training: the grid, prices, what is kept, the recommendation's law, and a tiny recipe from command to page."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_training_memory import kept_bytes, student

from edgeslm import recipe as recipes
from edgeslm import training_memory
from edgeslm.errors import DataError, RecipeError, RuntimeFailure
from edgeslm.measurement import Measurement, Where
from edgeslm.models.arch.base import plain
from edgeslm.progress import Progress
from edgeslm.statistics import ratio
from edgeslm.training_cost import figures, fit, grid, launch, of_recipe, page, prices, study, worker
from edgeslm.training_cost import prepare as prepared
from edgeslm.training_cost.choose import Candidate, choose, sentence
from edgeslm.training_cost.grid import Asked, Point
from edgeslm.training_cost.machine import Here
from edgeslm.training_cost.prepare import Prepared, prepare
from edgeslm.training_cost.store import FAILED, MEASURED, NO_MEMORY, Store
from edgeslm.training_cost.study import How

OWN = Point("sdpa", 2)
QUICK = (
    "data.sources=[{kind: text, paths: [learn.txt]}]", "student={kind: depth, layers: 3, importance_tokens: 64}",
    "evaluate.prompts=[]",
)  # fmt: skip
JOINED = ("ddp", "gloo")
HOW = How(steps=2, warmups=1)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("planned")
    loaded = recipes.load(tiny.recipe(folder), QUICK)
    return prepare(loaded, folder, folder / "runs", Progress(quiet=True), HOW.steps + HOW.warmups)


def result(seconds: float, warmup: float = 1.0, peak: int = 1000, tokens: int = 128) -> dict[str, Any]:
    return {
        "state": MEASURED, "seconds": [seconds] * 2, "warmup_seconds": [warmup], "tokens_per_step": tokens,
        "mixed": False, "loss": 1.0, "peak_memory_bytes": [peak], "dtype": "float32", "threads": 1, "kernel": "math",
    }  # fmt: skip


def test_without_an_axis_everything_differs_from_the_recipe_in_one():
    found = grid.points(replace(OWN, micro_rows=4), Asked(), 8, JOINED)
    assert found[0] == replace(OWN, micro_rows=4) and [p.changes(found[0]) for p in found[1:]] == [1] * 5
    assert {p.micro_rows for p in found} == {1, 4, 8} and {p.attention for p in found} == {"sdpa", "eager"}
    assert [p.label for p in found if p.ranks == 2] == ["sdpa, 4 rows at once, 2 processes (ddp, gloo)"]
    assert {p.micro_rows for p in grid.points(OWN, Asked(), 2, JOINED)} == {1, 2}  # no more than a batch holds


def test_axes_are_combined_and_points_of_one_process_are_one():
    wanted = grid.asked("eager,sdpa", "1, 2,64", "on,off", "1,2", "ddp,fsdp2", "gloo")
    found = grid.points(OWN, wanted, 8, JOINED)
    assert found[0] == OWN and len(found) == len(set(found)) == 2 * 3 * 2 * (1 + 2)
    assert {p.micro_rows for p in found} == {1, 2, 8}
    assert {(p.parallel, p.backend) for p in found if p.ranks == 1} == {(grid.ALONE, grid.ALONE)}
    assert grid.asked("", "", "", "", "", "") == Asked()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("sdpa,fast", "", "", "", "", ""), "--attention sdpa,fast: 'fast' is none of sdpa, eager, flash"),
        (("", "0,2", "", "", "", ""), "--micro-rows 0,2: is no list of numbers"),
        (("", "", "maybe", "", "", ""), "--compile maybe"),
        (("", "", "", "two", "", ""), "--ranks two"),
        (("", "", "", "", "zero", ""), "--parallel zero"),
        (("", "", "", "", "", "mpi"), "--backend mpi: 'mpi' is none of gloo, nccl"),
    ],
)
def test_axes_that_are_none_are_refused(given, words):
    with pytest.raises(DataError, match=words.replace("(", r"\(")):
        grid.asked(*given)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prices: [", "not valid YAML"),
        ("- a", "has the keys currency and prices"),
        ("currency: EUR", "has the keys currency and prices"),
        ("currency: EUR\nprices: {a: 1}\nper_hour: 2", "has the keys currency and prices"),
        ("currency: 3\nprices: {a: 1}", "currency is a word"),
        ("currency: EUR\nprices: {}", "prices names machines"),
        ("currency: EUR\nprices: {a: 0}", "the price of 'a' is an amount an hour above 0"),
        ("currency: EUR\nprices: {a: .inf}", "the price of 'a'"),
        ("currency: EUR\nprices: {a: true}", "the price of 'a'"),
        ("currency: EUR\nprices: {a: cheap}", "not 'cheap'"),
    ],
)
def test_files_of_prices_that_say_something_else_are_refused(text, words, tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        prices.load(path)
    with pytest.raises(DataError, match=r"nowhere\.yaml: cannot be read"):
        prices.load(tmp_path / "nowhere.yaml")


def test_a_price_is_found_by_the_machines_name_or_the_one_given(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text("currency: EUR\nprices: {Some CPU: 1.8, other: 3, 'SOME CPU, 4 cores': 0.9}", encoding="utf-8")
    found = prices.load(path)
    assert prices.price_of(found, ("some cpu, 4 cores", "Some CPU"), None).per_hour == 0.9
    assert prices.price_of(found, ("Some CPU, 8 cores", "Some CPU"), None).per_hour == 1.8
    assert prices.price_of(found, ("A GPU",), None) is None
    other = prices.price_of(found, ("A GPU",), "other")
    assert (other.cost(1200), other.tokens_per_unit(10)) == (1.0, 12000)
    with pytest.raises(DataError, match="--machine mine: has no price; the file names Some CPU, other"):
        prices.price_of(found, (), "mine")


def candidate(point: Point, *seconds: float, peak: float = 1e9) -> Candidate:
    where = Where({"id": "a"}, "torch", "1", point.label, "-", "torch", {}, 2)
    m = Measurement("training_time", "s", seconds, where, kind="estimated", extra={"processes": len(seconds)})
    return Candidate(point, m, peak)


@pytest.mark.parametrize("seed", range(40))
def test_nothing_that_was_measured_is_faster_than_what_is_recommended(seed):
    """The law, for made-up machines of any noise; it knows no order of points and no unit of time."""
    dice = random.Random(seed)
    points = grid.points(OWN, grid.asked("sdpa,eager", "1,2,4", "on,off", "", "", ""), 8, JOINED)
    noise, count = dice.choice([0.001, 0.02, 0.3]), dice.choice([1, 3, 5])
    made = []
    for point in dice.sample(points, dice.randint(1, 8)):
        middle = dice.choice([10.0, 10.1, 11.0, 20.0])
        made.append(candidate(point, *(middle * dice.lognormvariate(0, noise) for _ in range(count)),
                              peak=dice.choice([1e9, 2e9])))  # fmt: skip
    taken = choose(made, OWN)
    chosen = next(c for c in made if c.point == taken.point)
    verdicts = {c.point: ratio(chosen.seconds, c.seconds, paired=True).verdict for c in made if c is not chosen}
    assert "higher" not in verdicts.values()
    own = next((c for c in made if c.point == OWN), None)
    if own and all(ratio(own.seconds, c.seconds, paired=True).verdict != "higher" for c in made if c is not own):
        assert taken.point == OWN and taken.faster is None
    if taken.faster is not None:
        assert taken.faster.verdict == "higher"
    later = [candidate(c.point, *(3.6 * v for v in c.seconds.values), peak=c.peak_bytes) for c in made]
    assert choose(dice.sample(later, len(later)), OWN).point == taken.point


def test_the_recommendation_says_what_it_rests_on():
    slow, fast = candidate(OWN, 20.0, 20.1, 19.9), candidate(replace(OWN, micro_rows=8), 10.0, 10.1, 9.9)
    eager = candidate(replace(OWN, attention="eager"), 20.0, 20.2, 19.8)
    said = sentence(choose([slow, fast, eager], OWN), OWN)
    assert said.startswith("Take sdpa, 8 rows at once: it is 2.00 times (") and "1.0 GB of memory" in said
    kept = sentence(choose([slow, eager], OWN), OWN)
    assert kept.startswith("Keep the recipe as it is (sdpa, 2 rows at once)") and "3 processes" in kept
    assert "As fast within the spread: eager, 2 rows at once" in kept
    alone = sentence(choose([fast], OWN), OWN, "does not fit (an estimate): 9 GB of 8 GB")
    assert "the recipe as it is was not measured (does not fit" in alone
    assert choose([], OWN) is None


def test_a_training_takes_its_first_steps_as_they_were():
    found = result(2.0, warmup=30.0)
    assert (figures.tokens_per_s(found), figures.training_s(found, 10)) == (64.0, 30 + 9 * 2.0)
    assert figures.training_s(found, 1) == 30.0
    assert figures.step_s({**found, "seconds": [1.0, 1.0, 4.0]}) == 1.0
    assert figures.step_s({**found, "seconds": [1.0, 1.0, 4.0], "mixed": True}) == 2.0
    ranks = [{**found, "peak_memory_bytes": [3, 9]}, {**found, "peak_memory_bytes": [5, 4]}]
    assert figures.peaks(ranks) == [5, 9] and figures.peaks([{**found, "peak_memory_bytes": [None]}]) == []


def test_what_came_of_a_process_is_told():
    assert launch.outcome('{"state": "measured"}', 1, "") == {"state": MEASURED}
    assert launch.outcome(None, -9, "")["state"] == NO_MEMORY
    assert launch.outcome(None, 1, "worker.py FAILED\n exitcode: -9 (pid: 3)")["state"] == NO_MEMORY
    told = "Traceback\n  File\nRuntimeError: the shapes differ\ntorch.elastic ChildFailedError: \n=====\nfailed"
    assert launch.outcome(None, 1, told) == {"state": FAILED, "why": "RuntimeError: the shapes differ"}
    ranked = "[rank1]: Traceback\n[rank1]: edgeslm.errors.DataError: too few rows\nE1126 exitcode: 1"
    assert launch.outcome(None, 1, ranked)["why"] == "edgeslm.errors.DataError: too few rows"
    assert launch.outcome(None, 1, "")["why"] == "no message"
    assert "torch.distributed.run" in launch.command(Path("a"), Path("b"), 2)
    assert "torch.distributed.run" not in launch.command(Path("a"), Path("b"), 1)


def test_what_takes_too_long_is_ended(monkeypatch, tmp_path):
    alive = tmp_path / "alive"
    code = f"import pathlib, time\nfor _ in range(200): pathlib.Path({str(alive)!r}).touch(); time.sleep(0.05)"
    monkeypatch.setattr(launch, "command", lambda *_: ["sh", "-c", f'"{sys.executable}" -c "$0" & wait', code])
    assert launch.run({}, 1, timeout_s=2) == {"state": FAILED, "why": "took longer than 2 s"}
    alive.unlink(missing_ok=True)
    time.sleep(0.3)
    assert not alive.exists()


def test_ranks_are_ended_with_what_started_them(monkeypatch, tmp_path):
    """torchrun's ranks have sessions of their own."""
    script = tmp_path / "rank.py"
    script.write_text(
        "import os, pathlib, time\n"
        "mine = pathlib.Path(__file__).with_name('rank' + os.environ['RANK'])\n"
        "while True: mine.touch(); time.sleep(0.05)\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    monkeypatch.setattr(launch, "command", lambda *_: torchrun)
    alive = [tmp_path / "rank0", tmp_path / "rank1"]
    process: list[Any] = []
    popen = launch.subprocess.Popen

    def started(*given: Any, **how: Any) -> Any:
        process.append(popen(*given, **how))
        end = time.monotonic() + 60
        while not all(file.exists() for file in alive) and time.monotonic() < end:
            time.sleep(0.05)
        return process[-1]

    monkeypatch.setattr(launch.subprocess, "Popen", started)
    assert launch.run({}, 2, timeout_s=0.1) == {"state": FAILED, "why": "took longer than 0.1 s"}
    for file in alive:
        file.unlink()  # both had begun
    time.sleep(0.5)
    assert not any(file.exists() for file in alive)


def test_running_out_of_memory_is_a_result_and_other_errors_are_not():
    def fails(error: Exception) -> Any:
        def run() -> Any:
            raise error

        return run

    cpu = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes")
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried 9 GiB"), MemoryError(), cpu):
        assert worker.held(fails(error))["state"] == NO_MEMORY
    with pytest.raises(RuntimeError, match="shapes differ"):
        worker.held(fails(RuntimeError("shapes differ")))
    assert worker.held(lambda: {"loss": 1.0}) == {"state": MEASURED, "loss": 1.0} and worker.held(lambda: None) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_eager_attention_keeps_what_is_estimated(dtype):
    model, ids = student("llama", dtype), torch.randint(3, 300, (2, 192), generator=torch.Generator().manual_seed(0))
    fused = kept_bytes(model, ids)
    model.set_attn_implementation("eager")
    more = fit.eager_bytes(plain(model.config), training_memory.Step(2, 192, dtype.itemsize))
    assert kept_bytes(model, ids) - fused == pytest.approx(more, rel=0.02)


def test_needs_of_ranks():
    shape = plain(student("llama", torch.float32).config)
    step, card = training_memory.Step(2, 64, 4), training_memory.Step(2, 64, 4, gpu=True)
    one = fit.needs(shape, shape, OWN, step)
    assert one.per_rank_bytes == one.on_one_device == pytest.approx(training_memory.total(shape, shape, step))
    ddp, shared = (replace(OWN, ranks=2, parallel=kind, backend="gloo") for kind in grid.PARALLEL)
    whole = fit.needs(shape, shape, ddp, step)
    assert whole.on_one_device == 2 * whole.per_rank_bytes and whole.per_rank_bytes > one.per_rank_bytes  # buckets
    own = fit.needs(shape, shape, ddp, card)
    assert own.on_one_device == own.per_rank_bytes
    assert fit.needs(shape, shape, shared, step).per_rank_bytes < one.per_rank_bytes
    peers = fit.needs(shape, shape, OWN, step, peers=2).per_rank_bytes
    assert one.per_rank_bytes < peers < 2 * one.per_rank_bytes
    assert one.fits(None) and one.fits(2 * one.per_rank_bytes) and not one.fits(one.per_rank_bytes)


def test_what_cannot_run_here_is_told():
    here = Here("c, 2 cores", "a", "cpu", "bfloat16", 2, 1e9, 2, 0, False, False, {"torch": "1"})
    many = replace(OWN, ranks=2, parallel="ddp", backend="nccl")
    assert here.names == ("c, 2 cores", "c") and here.backend == "gloo" and here.refusal(OWN) is None
    assert "flash-attn" in here.refusal(replace(OWN, attention="flash"))
    assert "no C++ compiler" in here.refusal(replace(OWN, compile=True))
    assert "nccl joins CUDA devices only" in here.refusal(many)
    assert here.refusal(replace(many, ranks=3)) == "there are 2 cores here"
    card = replace(here, device="cuda", gpus=1, flash=True)
    assert card.refusal(many) == "there is 1 GPU here" and card.refusal(replace(OWN, attention="flash")) is None


def test_the_store_goes_on_after_half_a_line(tmp_path):
    path = tmp_path / "points.jsonl"
    store = Store(path)
    store.add("a", {}, result(1.0))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"key": "a", "resu')
    again = Store(path)
    assert len(again.results("a")) == 1
    again.add("a", {}, {"state": FAILED, "why": "x"})
    again.add("b", {}, {"state": NO_MEMORY, "why": "x"})
    last = Store(path)
    assert len(last.results("a")) == 1 and last.results("b")[0]["state"] == NO_MEMORY and last.results("c") == []


def test_rounds_go_over_all_points_in_another_order_and_a_stop_loses_nothing(ready, tmp_path):
    points, ran = grid.points(ready.own, grid.asked("sdpa,eager", "1,2,4", "", "", "", ""), 4, JOINED), []
    assert len(points) == 6

    def stopped(job: Any, ranks: int) -> dict[str, Any]:
        if len(ran) == 8:
            raise KeyboardInterrupt
        ran.append(job["point"]["attention"] + str(job["point"]["micro_rows"]))
        if job["point"]["attention"] == "eager" and job["point"]["micro_rows"] == 4:
            return {"state": NO_MEMORY, "why": "it is full"}
        return result(1.0)

    with pytest.raises(KeyboardInterrupt):
        study.study(ready, points, HOW, Store(tmp_path / "p.jsonl"), Progress(quiet=True), stopped)
    assert len(set(ran[:6])) == 6 and ran[6:] != ran[:2]
    left: list[str] = []

    def goes_on(job: Any, ranks: int) -> dict[str, Any]:
        left.append(job["point"]["attention"] + str(job["point"]["micro_rows"]))
        return result(1.0)

    rows = study.study(ready, points, HOW, Store(tmp_path / "p.jsonl"), Progress(quiet=True), goes_on)
    assert sorted(ran + left) == sorted([f"{p.attention}{p.micro_rows}" for p in points if p.attention == "sdpa"] * 3
                                        + ["eager1", "eager2"] * 3 + ["eager4"])  # fmt: skip
    assert {r.state for r in rows} == {MEASURED, NO_MEMORY} and all(len(r.results) == 3 for r in rows if r.results)
    study.study(ready, points, HOW, Store(tmp_path / "p.jsonl"), Progress(quiet=True), stopped)  # runs nothing
    with pytest.raises(KeyboardInterrupt):  # other steps are other figures
        study.study(ready, points, How(3, 1), Store(tmp_path / "p.jsonl"), Progress(quiet=True), stopped)


@pytest.mark.parametrize("load", [0.1, 99.0])
def test_a_busy_machine_is_told(ready, tmp_path, monkeypatch, capsys, load):
    monkeypatch.setattr(study, "busy_cores", lambda: load)
    study.study(ready, [ready.own], HOW, Store(tmp_path / "p.jsonl"), Progress(), lambda job, ranks: result(1.0))
    said = capsys.readouterr().err
    assert "3 processes of 1 + 2 steps" in said and ("other programs keep 99.0 cores busy" in said) == (load > 1)


def test_nothing_measured_is_an_error_with_reasons(ready, tmp_path):
    with pytest.raises(RuntimeFailure, match="sdpa, 2 rows at once: failed, it broke"):
        study.study(ready, [ready.own], HOW, Store(tmp_path / "p.jsonl"), Progress(quiet=True),
                    lambda job, ranks: {"state": FAILED, "why": "it broke"})  # fmt: skip
    small = replace(ready, here=replace(ready.here, memory_bytes=1e6))
    (row,) = study.rows_of(small, [ready.own])
    assert row.state == study.TOO_LARGE and row.why.endswith("of 1.0 MB")
    compiled = replace(ready, here=replace(ready.here, compiler=False))
    (row,) = study.rows_of(compiled, [replace(ready.own, compile=True)])
    assert row.state == study.REFUSED and "C++ compiler" in row.why


def test_what_a_recipe_refuses_of_a_point_is_told(ready):
    def why(point: Point, *overrides: str) -> str:
        loaded = recipes.load(ready.context.base / "tiny.yaml", [*QUICK, *overrides])
        context = replace(ready.context, recipe=loaded)
        (row,) = study.rows_of(replace(ready, context=context), [point])
        assert row.state == study.REFUSED
        return row.why

    two = replace(ready.own, ranks=2, parallel="ddp", backend="gloo")
    assert "distill.train.offload: is for one process" in why(two, "distill.train.offload=true")
    assert "rows a step leave some of" in why(replace(two, ranks=5))
    assert "set compile or recompute to false" in why(replace(ready.own, compile=True), "distill.train.recompute=true")


def test_a_point_in_the_words_of_a_recipe(ready):
    recipe, own = ready.context.recipe, ready.own
    changed = Point("eager", 1, True, 2, "fsdp2", "gloo")
    said = prepared.overrides(recipe, changed, own)
    assert said[:3] == ["distill.train.attention=eager", "distill.train.micro_rows=1", "distill.train.compile=true"]
    train = recipes.load(ready.context.base / "tiny.yaml", [*QUICK, *said]).distill.train
    assert (train.attention, train.micro_rows, train.compile, train.parallel.kind) == ("eager", 1, True, "fsdp2")
    assert prepared.overrides(recipe, own, own) == [] and prepared.offered(recipe, changed, "gloo")
    assert not prepared.offered(recipe, replace(own, attention="flash"), "gloo")
    assert not prepared.offered(recipe, changed, "nccl") and prepared.offered(recipe, own, "nccl")
    started = prepared.command(recipe, changed, own)
    assert started == f"torchrun --nproc-per-node 2 -m edgeslm run RECIPE {' '.join(said)}"
    assert prepared.command(recipe, own, own) == ""
    two = replace(own, ranks=2, parallel="ddp", backend="gloo")
    assert prepared.command(recipe, two, own) == "torchrun --nproc-per-node 2 -m edgeslm run RECIPE"
    shared = recipes.load(ready.context.base / "tiny.yaml", [*QUICK, "distill.train.parallel={kind: fsdp2}"])
    assert prepared.overrides(shared, own, own) == ["distill.train.parallel.kind=ddp"]
    assert of_recipe.begun(shared.model_dump(mode="json"), changed.to_json(), 3).distill.train.parallel.kind == "fsdp2"
    flash = of_recipe.begun(recipe.model_dump(mode="json"), replace(own, attention="flash").to_json(), 3)
    assert flash.distill.train.attention == "flash_attention_2" and flash.distill.train.parallel.kind == "ddp"


def test_page_and_lines_say_the_same(ready, tmp_path):
    points = [ready.own, replace(ready.own, attention="eager"), replace(ready.own, attention="flash")]
    seconds = iter([1.0, 2.0] * 3)

    def run(job: Any, ranks: int) -> dict[str, Any]:
        return result((1.0 if job["point"]["attention"] == "sdpa" else 2.0) + 0.001 * next(seconds))

    rows = study.study(ready, points, HOW, Store(tmp_path / "p.jsonl"), Progress(quiet=True), run)
    price = prices.Price("mine", 3.6, "EUR")
    document = study.document(ready, rows, HOW, price, "")
    own = next(p for p in document["points"] if p["own"])
    assert own["tokens_per_unit"] == pytest.approx(1000 * own["tokens_per_s"]["estimate"])
    assert own["cost"] == pytest.approx(own["training_s"]["estimate"] / 1000)
    assert document["recommendation"]["sentence"].startswith("Keep the recipe") and len(page.measured(document)) == 2
    said = "\n".join(page.lines(document))
    assert "EUR for all of it" in said and "flash-attn" in said and "Keep the recipe" in said
    files = page.render(document, tmp_path / "out")
    html, text, data = (f.read_text(encoding="utf-8") for f in files)
    assert "<svg" in html and "Keep the recipe as it is" in html and "flash-attn" in html
    assert "Keep the recipe as it is" in text and json.loads(data)["price"]["per_hour"] == 3.6
    without = study.document(ready, rows, HOW, None, "no file of prices was given (--prices)")
    assert "EUR" not in "\n".join(page.lines(without)) and "cost" not in without["points"][0]
    assert "no file of prices" in page.build(without)[-1].blocks[-1].text


def test_a_recipe_is_measured_by_its_own_training(ready, tmp_path):
    job = ready.job(ready.own, 2, 1) | {"scratch": str(tmp_path)}
    found = worker.held(lambda: worker.KINDS["recipe"](job))
    assert found["state"] == MEASURED and len(found["seconds"]) == 2 and len(found["warmup_seconds"]) == 1
    assert found["tokens_per_step"] == 128 and found["loss"] > 0 and not found["mixed"]
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(log) == 3 and all(line["grid"] for line in log)
    assert not list(tmp_path.glob("checkpoint*")) and found["peak_memory_bytes"][0] > 1 << 20


def test_two_processes_measure_one_point(ready):
    point = replace(ready.own, ranks=2, parallel="ddp", backend="gloo")  # fsdp2: test_training_cost
    found = launch.run(ready.job(point, 1, 1), 2, 120)
    assert found["state"] == MEASURED, found
    assert len(found["peak_memory_bytes"]) == 2 and len(found["seconds"]) == 1 and found["tokens_per_step"] == 128


def test_a_finished_run_keeps_its_record(ready, tmp_path):
    root = ready.context.root
    (root / "run.json").write_text('{"stages": {"benchmark": "b"}}', encoding="utf-8")
    recipe = ready.context.recipe
    other = recipe.model_copy(update={"data": recipe.data.model_copy(update={"sequence": 16})})
    prepare(other, ready.context.base, root.parent, Progress(quiet=True), 3)
    assert json.loads((root / "run.json").read_text(encoding="utf-8")) == {"stages": {"benchmark": "b"}}
    assert len(list(root.glob("data-*"))) == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["distill.train.steps=2"], "2 are too few to plan for"),
        (["distill.scheme={kind: codistill}"], "what a codistillation costs"),
    ],
)
def test_what_a_few_steps_cannot_show_is_refused(overrides, words, tmp_path):
    loaded = recipes.load(tiny.recipe(tmp_path), [*QUICK, *overrides])
    with pytest.raises(RecipeError, match=words):
        prepare(loaded, tmp_path, tmp_path / "runs", Progress(quiet=True), 3)


def test_the_command_measures_recommends_and_goes_on(tmp_path):
    recipe, file = tiny.recipe(tmp_path), tmp_path / "prices.yaml"
    file.write_text("currency: EUR\nprices: {mine: 0.36}", encoding="utf-8")
    command = [sys.executable, "-m", "edgeslm", "plan-training", recipe, *QUICK, "--micro-rows", 2, "--steps", 1]
    command += ["--runs", tmp_path / "runs", "--prices", file, "--machine", "mine"]

    def run(*more: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*map(str, command), *more], capture_output=True, text=True, check=False, timeout=300)

    first = run()
    assert first.returncode == 0, first.stderr
    assert "3 processes of 2 + 1 steps are left: about" in first.stderr and "EUR for all of it" in first.stdout
    folder = tmp_path / "runs" / "tiny" / "plan-training"
    assert {f.name for f in folder.iterdir()} >= {f"plan-training.{e}" for e in ("html", "md", "json")}
    lines = (folder / "points.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    again = run("--json")
    assert again.returncode == 0, again.stderr
    document = json.loads(again.stdout)
    assert (folder / "points.jsonl").read_text(encoding="utf-8").splitlines() == lines
    assert [len(p["raw"]) for p in document["points"]] == [3] and document["price"]["per_hour"] == 0.36
    assert document["recommendation"]["sentence"] in first.stdout
    wrong = run("--machine", "yours")
    assert wrong.returncode == 2 and "--machine yours: has no price" in wrong.stderr
