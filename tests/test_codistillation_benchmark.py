"""The plan of benchmarks.codistillation: which trainings, in which order, and what is read off their curves."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks import codistillation_plan as plan
from benchmarks import codistillation_table as table
from benchmarks.codistillation_worker import Job
from edgeslm.recipe.distill import CodistillScheme

DESIGN = plan.Design(480, (0.001, 0.002), 3, 20, (2, 80), (0.0, 0.3))


def result(loss: float) -> dict:
    """Loss falls on a straight line from 4 to `loss`."""
    return {"curve": [[s, 0.0, y, y] for s in range(10, 481, 10) for y in [4 + (loss - 4) * s / 480]], "ages": None}


def finished(losses: dict[str, float]) -> tuple[dict[str, dict], list[Job]]:
    """Everything that becomes ready is done at once; the loss by arm and learning rate."""
    done: dict[str, dict] = {}
    while new := [j for j in plan.ready(DESIGN, done) if j.name not in done]:
        done |= {j.name: result(losses.get(f"{j.arm} {j.lr:g}", losses.get(j.arm, 3.0))) for j in new}
    return done, plan.ready(DESIGN, done)


def test_the_plan_begins_with_the_sweep_and_ends_with_every_arm():
    first = plan.ready(DESIGN, {})
    assert {(j.arm, j.lr) for j in first} == {(a, lr) for a in plan.TUNED[:-1] for lr in DESIGN.lrs}
    done, jobs = finished({"single 0.002": 2.5, "disjoint 0.001": 2.0, "offline 0.002": 2.0})
    assert len({j.name for j in jobs}) == len(jobs)
    by_arm = {arm: {j.training for j in jobs if j.arm == arm} for arm in {j.arm for j in jobs}}
    counts = {arm: len(found) for arm, found in by_arm.items()}
    assert counts == {
        "single": 7, "double": 4, "disjoint": 4, "same": 4, "offline": 4, "four": 1, "staleness": 2, "burn-in": 2,
    }  # fmt: skip
    assert {j.lr for j in jobs if j.arm in ("four", "staleness", "burn-in")} == {0.001}
    taught = {j.seed: j.teachers for j in jobs if j.arm == "offline"}
    assert taught == {s: (f"single-s{2 * s}-lr0.002/0", f"single-s{2 * s + 1}-lr0.002/0") for s in range(3)}
    assert all(set(j.teachers) <= set(done) for j in jobs)
    cost = {"single": 1, "double": 2, "offline": 5 / 3, "four": 2}
    assert DESIGN.units == pytest.approx(sum(cost.get(j.arm, 4 / 3) for j in jobs))


def test_partners_follow_each_other_and_read_as_their_arm_says():
    for arm, count in (("disjoint", 2), ("same", 2), ("four", 4)):
        jobs = plan.training(DESIGN, arm, 1, 0.001)
        assert [j.group for j in jobs] == list(range(count)) and {j.training for j in jobs} == {jobs[0].training}
        assert {j.rows for j in jobs} == {"same" if arm == "same" else "shard"}
    (stale, _), (burnt, _) = plan.training(DESIGN, "staleness", 0, 0.1, "80"), plan.training(
        DESIGN, "burn-in", 0, 0.1, "0"
    )  # fmt: skip
    assert stale.scheme["exchange_every"] == 80 and (burnt.scheme["burn_in"], burnt.scheme["ramp"]) == (0, 0)
    part = CodistillScheme(kind="codistill", **stale.scheme)
    assert set(stale.scheme) | {"kind"} == set(CodistillScheme.model_fields) and part.groups == 2


def test_a_learning_rate_is_chosen_by_the_text_to_tune_by():
    done = {f"single-s0-lr{lr:g}/0": result(3.0) for lr in DESIGN.lrs}
    done["single-s0-lr0.001/0"] = {"curve": [[1, 0.0, 2.0, 9.0]]}
    assert plan.best_lr(DESIGN, "single", done) == 0.001
    assert plan.best_lr(DESIGN, "single", {"single-s0-lr0.001/0": result(1.0)}) is None


def test_steps_to_a_loss_lie_between_looks():
    line = [(s, 4 - s / 100) for s in range(10, 201, 10)]
    assert table.steps_to(line, 3.0) == pytest.approx(110)  # the running mean of three looks is one look behind
    assert table.steps_to(line, 1.0) is None and table.steps_to(line, 5.0) == 10


def test_the_headline_is_read_off_the_curves():
    done, _ = finished({"single": 3.0, "disjoint": 2.0, "same": 2.5})
    found = table.arms(DESIGN, done)
    assert found["single"]["mean_steps_to_baseline"] == pytest.approx(1.0, abs=0.03)
    churn = {"single": {"mean_absolute_delta_p": 0.2}, "disjoint": {"mean_absolute_delta_p": 0.1}}
    head = table.headline(found, churn)
    assert head["steps_to_baseline"] == pytest.approx(0.5, abs=0.04) and head["churn_ratio"] == 0.5
    assert head["disjoint_over_same"] == pytest.approx(0.75, abs=0.04) and head["ensemble_churn_ratio"] is None
    losing = table.arms(DESIGN, {**done, **{n: result(3.5) for n in done if n.startswith("disjoint")}})
    assert losing["disjoint"]["steps_to_baseline"] == [None] * 3
    assert losing["disjoint"]["mean_steps_to_baseline"] == 1.0
    few = replace(DESIGN, seeds=1)
    assert table.predictors(few, {n: r for n, r in done.items() if "-s2" not in n})["ensemble"] == [
        ("single-s0-lr0.001/0", "single-s1-lr0.001/0")
    ]


def test_torch_and_transformers_are_enough():
    """The schemes load where the other packages are missing."""
    code = (
        "import sys, importlib.util as u\n"
        "find = u.find_spec\n"
        "gone = ('pydantic', 'gguf', 'typer', 'lm_eval', 'onnx')\n"
        "u.find_spec = lambda name, *a: None if name.split('.')[0] in gone else find(name, *a)\n"
        "class Gone:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in gone: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Gone())\n"
        "from benchmarks import bare, codistillation, codistillation_text\n"
        "assert bare.stand_in() == ['pydantic', 'gguf']\n"
        "from edgeslm.schemes import SCHEMES, exchange, loop, step\n"
        "from edgeslm.quantize import masters, plan\n"
        "from edgeslm.data import order, rows\n"
        "assert 'codistill' in SCHEMES and bare.stand_in() == []\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
