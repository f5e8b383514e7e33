"""Mixed precision: the solver against all choices, costs against measured KL, and the stage on a tiny teacher."""

from __future__ import annotations

import itertools
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import tiny
import torch

from edgeslm import recipe as recipes
from edgeslm import units
from edgeslm.errors import FormatError, RecipeError
from edgeslm.formats import FORMATS
from edgeslm.pipeline.check import check
from edgeslm.pipeline.run import run
from edgeslm.pipeline.stage import Context
from edgeslm.progress import Progress
from edgeslm.quantize import planner, sensitivity
from edgeslm.quantize.plan import planned_bytes

SMALL = ("q4_0", "q4_1", "q5_0", "q8_0")


def instance(seed: int) -> tuple[dict, dict]:
    """A few tensors of odd sizes with random costs, not even falling with bits, and a norm."""
    rng = random.Random(seed)
    shapes = {f"model.layers.{i}.x.weight": (rng.randrange(1, 9), 32 * rng.randrange(1, 5)) for i in range(5)}
    costs = {n: {f: rng.random() for f in rng.sample(SMALL, rng.randrange(1, 5))} for n in shapes}
    return costs, {**shapes, "norm": (32,)}


def every_choice(costs: dict, shapes: dict) -> list[tuple[int, float]]:
    """(bytes, cost) of all choices."""
    vectors = planned_bytes({n: "f32" for n in shapes if n not in costs}, shapes)
    found = []
    for picks in itertools.product(*(row for row in costs.values())):
        formats = dict(zip(costs, picks, strict=True))
        found.append((vectors + planned_bytes(formats, shapes), sum(costs[n][f] for n, f in formats.items())))
    return found


@pytest.mark.parametrize("seed", range(12))
def test_the_choice_is_the_best_there_is_at_every_size(seed):
    costs, shapes = instance(seed)
    choices = every_choice(costs, shapes)
    for allowed in sorted({size for size, _ in choices}):
        solution = planner.solve(costs, shapes, allowed)
        size = planned_bytes({n: solution.formats.get(n, "f32") for n in shapes}, shapes)
        assert size <= allowed
        assert solution.cost == pytest.approx(min(cost for s, cost in choices if s <= allowed))
        assert solution.cost == pytest.approx(sum(costs[n][f] for n, f in solution.formats.items()))
    for size, cost in solution.frontier:
        assert cost == pytest.approx(min(c for s, c in choices if s <= size))


def test_sizes_without_a_common_divisor_stay_within_the_budget(monkeypatch):
    monkeypatch.setattr(planner, "CELLS", 40)
    for seed in range(12):
        costs, shapes = instance(seed)
        choices = every_choice(costs, shapes)
        low, high = min(s for s, _ in choices), max(s for s, _ in choices)
        allowed = low + 2 * (high - low) // 3
        solution = planner.solve(costs, shapes, allowed)
        assert planned_bytes({n: solution.formats.get(n, "f32") for n in shapes}, shapes) <= allowed
        assert solution.cost >= min(c for s, c in choices if s <= allowed) - 1e-12


def test_equal_costs_go_to_the_smaller_format():
    costs = {"a.weight": dict.fromkeys(SMALL, 1.0)}
    assert planner.solve(costs, {"a.weight": (4, 32)}, 10**6).formats == {"a.weight": "q4_0"}


def test_a_kind_that_hurts_more_than_predicted_gets_more_bits():
    """Two kinds of equal costs; measuring says that one matters four times as much as the other."""
    names = {f"model.layers.{i}.{kind}.weight": kind for i in range(4) for kind in ("up_proj", "down_proj")}
    shapes = dict.fromkeys(names, (32, 64))
    costs = {n: {f: 4.0 ** -FORMATS[f].bits for f in ("q4_0", "q5_0", "q8_0")} for n in names}

    def measure(formats):
        return sum(costs[n][f] * (2.0 if names[n] == "down_proj" else 0.5) for n, f in formats.items()) * 1.1

    low, high = planner.limits({n: list(row) for n, row in costs.items()}, shapes)
    planned = planner.plan(costs, shapes, (low + high) // 2, measure)
    bits = {k: sum(FORMATS[f].bits for n, f in planned.formats.items() if names[n] == k) for k in names.values()}
    assert bits["down_proj"] > bits["up_proj"]
    assert planned.kinds["down_proj"]["factor"] == pytest.approx(2.2)
    assert planned.predicted == pytest.approx(measure(planned.formats))


def test_a_kind_that_feedback_serves_better_gets_fewer_bits_and_costs_stay_those_of_nearest_rounding():
    names = {f"model.layers.{i}.{kind}.weight": kind for i in range(4) for kind in ("up_proj", "q_proj")}
    shapes = dict.fromkeys(names, (32, 64))
    costs = {n: {f: 4.0 ** -FORMATS[f].bits for f in ("q4_0", "q5_0", "q8_0")} for n in names}
    left = {n: 0.1 if kind == "q_proj" else 0.9 for n, kind in names.items()}

    def measure(formats):
        return sum(costs[n][f] for n, f in formats.items())

    low, high = planner.limits({n: list(row) for n, row in costs.items()}, shapes)
    planned = planner.plan(costs, shapes, (low + high) // 2, measure, left)
    bits = {k: sum(FORMATS[f].bits for n, f in planned.formats.items() if names[n] == k) for k in names.values()}
    assert bits["q_proj"] < bits["up_proj"]
    assert planned.predicted == pytest.approx(measure(planned.formats))
    fed = sum(left[n] * costs[n][f] for n, f in planned.formats.items())
    plain = planner.plan(costs, shapes, (low + high) // 2, measure)
    assert fed < sum(left[n] * costs[n][f] for n, f in plain.formats.items())
    assert (
        planned.left == left
        and plain.left is None
        and plain.predicted < planned.predicted
        and plain.frontier == planned.frontier
    )


def test_options_leave_out_what_does_not_fit_or_is_the_teachers_own():
    shapes = {"a.weight": (4, 64), "b.weight": (4, 256), "n": (64,)}
    found = planner.options(shapes, None, refused=["q5_0"], own={"a.weight": "q4_1"})
    assert set(found) == {"a.weight", "b.weight"}
    assert "q4_0" in found["a.weight"] and "q4_1" not in found["a.weight"] and "q4_1" in found["b.weight"]
    assert all("q5_0" not in row and "f16" not in row for row in found.values())
    assert all(64 % FORMATS[f].block == 0 for f in found["a.weight"])
    bits = [FORMATS[f].bits for f in found["b.weight"]]
    assert bits == sorted(bits)
    with pytest.raises(FormatError, match=r"c\.weight: none of q4_0 fits its rows of 48"):
        planner.options({"c.weight": (2, 48)}, ["q4_0"])
    with pytest.raises(FormatError, match=r"its own type in the teacher's file .q4_0. is left out"):
        planner.options({"a.weight": (4, 64)}, ["q4_0"], own={"a.weight": "q4_0"})


def test_targets_that_cannot_be_met_name_what_can():
    shapes = {"a.weight": (64, 64), "n": (64,)}
    choices = planner.options(shapes, ["q4_0", "q8_0"])
    assert planner.limits(choices, shapes) == (64 * 64 // 32 * 18 + 256, 64 * 64 // 32 * 34 + 256)
    assert planner.budget(6.0, None, choices, shapes) == math.floor(6.0 * (64 * 64 + 64) / 8)
    with pytest.raises(FormatError, match=r"the smallest that these formats give is .* 4\.92 bits"):
        planner.budget(4.0, None, choices, shapes)
    with pytest.raises(FormatError, match="the largest formats need only"):
        planner.budget(None, 10**6, choices, shapes)


def test_rows_drawn_by_mass_estimate_sums_without_bias():
    generator = torch.Generator().manual_seed(0)
    mass = torch.rand(1000, generator=generator) ** 6
    value = mass * (1 + 0.3 * torch.randn(1000, generator=generator))
    rows, often = sensitivity.sample_rows(mass, 100)
    assert len(rows) <= 100 and int(mass.argmax()) in rows.tolist()
    assert float((mass[rows] * often).sum()) == pytest.approx(float(mass.sum()), rel=1e-4)
    assert float((value[rows] * often).sum()) == pytest.approx(float(value.sum()), rel=0.08)
    rows, often = sensitivity.sample_rows(mass[:50], 100)
    assert rows.tolist() == list(range(50)) and float(often.sum()) == 50


@pytest.fixture(scope="module")
def measured():
    """(costs, reference, model) of a tiny model on random text."""
    model = tiny.llama()
    ids = torch.randint(3, 280, (24, 32), generator=torch.Generator().manual_seed(1))
    diagonal = sensitivity.fisher(model, ids, 0, lambda tokens: None)
    matrices = {n: p for n, p in model.named_parameters() if p.dim() > 1}
    assert diagonal.keys() == matrices.keys() and all(p.grad is None for p in model.parameters())
    costs = {n: sensitivity.rounding_costs(p.detach(), diagonal[n], SMALL) for n, p in matrices.items()}
    return costs, sensitivity.Reference(model, ids, {}), model


def test_predicted_costs_are_the_kl_that_is_measured(measured):
    """Every tensor alone on q4_0, and all of them together."""
    costs, reference, model = measured
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    every = slice(0, None)
    ratios = [costs[n]["q4_0"] / reference.kl({n: "q4_0"}, every) for n in costs]
    assert all(0.4 < r < 2.5 for r in ratios), ratios
    assert 0.75 < math.exp(sum(map(math.log, ratios)) / len(ratios)) < 1.33
    together = reference.kl(dict.fromkeys(costs, "q4_0"), every)
    assert sum(row["q4_0"] for row in costs.values()) == pytest.approx(together, rel=0.35)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert abs(reference.kl({}, every)) < 1e-6


def test_more_bits_cost_less_and_important_tensors_more(measured):
    costs, _, model = measured
    assert all(row["q8_0"] < 0.1 * row["q5_0"] and row["q5_0"] < row["q4_0"] for row in costs.values())
    head = costs["model.embed_tokens.weight"]["q4_0"]
    assert head == max(row["q4_0"] for row in costs.values())  # the head's errors meet no norm before the logits
    torch.manual_seed(0)
    idle = model.get_parameter("model.layers.1.mlp.up_proj.weight").detach()
    assert sensitivity.rounding_costs(idle, torch.zeros_like(idle), ["q4_0"]) == {"q4_0": 0.0}


def test_importance_reaches_the_fit(measured):
    _, _, model = measured
    name = "model.layers.0.mlp.down_proj.weight"
    weight = model.get_parameter(name).detach()
    strong = torch.ones(weight.shape[1])
    strong[:8] = 1e4
    plain = sensitivity.rounding_costs(weight, strong.expand_as(weight), ["q4_0"])["q4_0"]
    assert sensitivity.rounding_costs(weight, strong.expand_as(weight), ["q4_0"], strong)["q4_0"] < 0.9 * plain


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    tiny.recipe(made)
    return made


TARGET = "quantize={target: {bits: 5.2, formats: [q4_0, q5_0, q5_1, q8_0], sensitivity_tokens: 512}}"


def until(folder: Path, runs: Path, stage: str, *overrides: str) -> Path:
    loaded = recipes.load(folder / "tiny.yaml", [TARGET, *overrides])
    root = run(loaded, folder, runs, Progress(quiet=True), until=stage)
    return root / json.loads((root / "run.json").read_text())["stages"][stage]


@pytest.fixture(scope="module")
def planned(folder, tmp_path_factory) -> Path:
    return until(folder, tmp_path_factory.mktemp("runs"), "plan")


def test_the_stage_meets_the_size_and_says_what_it_expects(planned):
    plan = json.loads((planned / "plan.json").read_text())
    assert 5.1 < plan["bits"] <= 5.2 and plan["bytes"] <= plan["allowed_bytes"]
    assert len({f for _, f in plan["rules"]}) > 1
    assert {n for n, _ in plan["rules"]} == set(plan["tensors"]) and len(plan["rules"]) == 3 * 7 + 1
    assert plan["measured_kl"] == pytest.approx(plan["predicted_kl"], rel=0.5)
    assert plan["tokens"] == {"sensitivity": 512, "kinds": 128, "measured_kl": 128}
    sizes, kls = zip(*plan["frontier"], strict=True)
    assert list(sizes) == sorted(sizes) and list(kls) == sorted(kls, reverse=True)
    uniform = {u["format"]: u for u in plan["uniform"]}
    assert set(uniform) == {"q4_0", "q5_0", "q5_1", "q8_0"}
    assert uniform["q8_0"]["kl"] < plan["predicted_kl"] < uniform["q4_0"]["kl"]


def test_the_same_again_is_the_same_plan(folder, planned, tmp_path):
    again = until(folder, tmp_path, "plan")
    assert again.name == planned.name
    assert (again / "plan.json").read_text() == (planned / "plan.json").read_text()


def test_a_plan_depends_on_target_and_containers_not_on_text_to_judge_by(folder, planned, tmp_path):
    assert until(folder, tmp_path, "plan", "quantize.target.bits=5.3").name != planned.name
    assert until(folder, tmp_path, "plan", "evaluate.windows=2").name == planned.name


def test_what_was_planned_is_trained_and_ships_exactly(folder, planned, tmp_path):
    from edgeslm.quantize.frozen import Frozen

    root = until(folder, planned.parent.parent, "export").parent
    stages = json.loads((root / "run.json").read_text())["stages"]
    frozen = Frozen.load(root / stages["distill"] / "frozen")
    plan = json.loads((planned / "plan.json").read_text())
    assert {n: t.format for n, t in frozen.tensors.items() if len(t.shape) > 1} == dict(plan["rules"])
    assert frozen.weight_bytes == plan["bytes"]
    exact = json.loads((root / stages["export"] / "exact.json").read_text())
    assert exact[0]["exact"] == exact[0]["tensors"] > 20


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("quantize={target: {bits: 3.0, formats: [q4_0, q8_0]}}", "the smallest that these formats give is"),
        ("quantize={target: {size: 60MB}}", "the largest formats need only"),
        ("quantize={target: {bits: 5, formats: [q4_9]}}", "unknown format 'q4_9'"),
        ("quantize={target: {bits: 5, formats: [q6_k]}}", "none of q6_k fits its rows of 64"),
        ("quantize={target: {bits: 5}, plan: [{pattern: '*', format: q4_0}]}", "exclude each other"),
        ("quantize={target: {bits: 5, size: 60MB}}", "either bits"),
        ("quantize={target: {size: big}}", "such as 60MB"),
    ],
)
def test_impossible_targets_are_refused_before_any_compute(folder, tmp_path, override, words):
    with pytest.raises(RecipeError) as refused:
        loaded = recipes.load(folder / "tiny.yaml", [override])
        run(loaded, folder, tmp_path, Progress(quiet=True))
    assert words in str(refused.value.problems) and not (tmp_path / "tiny").exists()


def test_check_shows_the_target(folder, tmp_path):
    context = Context(recipes.load(folder / "tiny.yaml", [TARGET]), folder, tmp_path / "none", Progress(quiet=True))
    found = check(context)
    assert found.problems == [] and "possible from" in dict(found.plan)["plan: target"]
    assert "q4_0, q5_0, q5_1, q8_0" in dict(found.plan)["plan: chosen for 22 matrices from"]


def test_the_report_shows_the_choice_and_survives_a_damaged_plan(planned):
    from edgeslm.report import render

    files = render(planned.parent)
    page, plan = files.html.read_text(), json.loads((planned / "plan.json").read_text())
    for key in ("plan-grid", "plan-curve"):
        drawn = page[page.index(f'aria-labelledby="{key}-t') :].split("</svg>")[0]
        assert ElementTree.fromstring(f"<svg {drawn}</svg>") is not None
    assert page.count('class="cell b') == len(plan["tensors"])
    assert all(f"{n}: {f}" in page for n, f in plan["rules"])
    assert "Predicted KL against size" in files.markdown.read_text()
    assert json.loads(files.json.read_text())["plan"]["rules"] == plan["rules"]
    good = (planned / "plan.json").read_text()
    try:
        (planned / "plan.json").write_text('{"tensors": 3}')
        assert "this part cannot be shown" in render(planned.parent).html.read_text()
    finally:
        (planned / "plan.json").write_text(good)


def test_weights_that_lie_on_a_grid_already_are_not_offered_it():
    """Q4_1 weights are found again by q4_1 and by what contains it; a teacher's own grid is no choice."""
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    grid = FORMATS["q4_1"]
    weight = grid.dequantize(grid.reference(weight.view(-1, 32)), (64, 256))  # as a file made by ggml
    formats = planner.options({"w": (64, 256)}, None)["w"]
    every = sensitivity.rounding_costs(weight, torch.ones_like(weight), formats)
    left = sensitivity.rounding_costs(weight, torch.ones_like(weight), formats, own_grids=False)
    assert list(every) == formats and {"q4_1", "q5_1"} <= every.keys() - left.keys()
    assert {"q4_0", "q5_0", "q8_0"} <= left.keys()
    fresh = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    assert sensitivity.rounding_costs(fresh, torch.ones_like(fresh), formats, own_grids=False).keys() == set(formats)


def test_sizes_are_read_as_people_write_them():
    assert units.parse_bytes("60MB") == 60_000_000 and units.parse_bytes("1.5 GB") == 1_500_000_000
    assert units.parse_bytes(512) == 512 and units.parse_bytes("64kB") == 64_000 and units.parse_bytes(None) is None
    for bad in ("60 megs", "-3MB", "0", 0, True):
        with pytest.raises(ValueError, match="a size is a number with a unit"):
            units.parse_bytes(bad)


def test_the_command_prints_the_table(folder, planned):
    command = [sys.executable, "-m", "edgeslm", "plan", folder / "tiny.yaml", TARGET, "--runs", planned.parent.parent]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "down_proj" in done.stdout and "predicted" in done.stdout and "plan: done before" in done.stderr
    refused = subprocess.run(
        [*command[:5], "--runs", planned.parent.parent], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2 and "quantize.target" in refused.stderr
