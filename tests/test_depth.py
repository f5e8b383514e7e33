"""Depth pruning: every way to choose layers finds the ones that matter least, and recipes chain what they choose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import torch
from pydantic import ValidationError

from edgeslm import recipe as recipes
from edgeslm.errors import ModelError
from edgeslm.pipeline.check import check
from edgeslm.pipeline.run import run
from edgeslm.pipeline.stage import Context
from edgeslm.progress import Progress
from edgeslm.quantize.frozen import Frozen
from edgeslm.recipe.student import DepthStudent
from edgeslm.report.folder import read
from edgeslm.report.making import making
from edgeslm.students import depth

IDS = torch.randint(3, 280, (4, 24), generator=torch.Generator().manual_seed(1))
FAMILIES = sorted(tiny.FAMILIES)


def silenced(family: str, quiet: tuple[int, ...], layers: int = 6):
    """A model whose layers `quiet` change nothing."""
    model = tiny.FAMILIES[family](layers)
    with torch.no_grad():
        for index in quiet:
            layer = model.base_model.layers[index]
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model


@torch.no_grad()
def written_by(model) -> torch.Tensor:
    """Text that the model finds likelier than any model without one of its layers does."""
    ids, generator = IDS[:, :1].repeat(2, 1), torch.Generator().manual_seed(2)
    for _ in range(31):
        p = torch.softmax(2 * model(ids, use_cache=False).logits[:, -1], dim=-1)
        ids = torch.cat([ids, torch.multinomial(p, 1, generator=generator)], dim=1)
    return ids


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(IDS, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["influence", "loss", "greedy"])
def test_layers_that_change_nothing_go_first(family: str, how: str) -> None:
    model = silenced(family, (1, 4))
    chosen = depth.choose(model, written_by(model), 4, how)
    assert chosen.dropped == [1, 4] and chosen.kept == [0, 2, 3, 5]
    assert torch.allclose(logits(depth.prune(model, chosen.kept)), logits(model), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["influence", "loss"])
def test_one_run_of_layers_goes_where_it_is_asked_for(family: str, how: str) -> None:
    model = silenced(family, (0, 3, 4))
    text = written_by(model)
    chosen = depth.choose(model, text, 4, how, contiguous=True)
    assert chosen.dropped == [3, 4] and len(chosen.scores) == 5 and chosen.method.endswith("_of_runs")
    assert depth.choose(model, text, 3, how).dropped == [0, 3, 4]


def test_greedy_measures_again_after_every_layer_that_goes() -> None:
    """Layers 1 and 2 undo each other: either alone is missed badly, both together are not missed at all."""
    model = silenced("llama", (4,))
    layers = model.base_model.layers
    with torch.no_grad():
        for layer in layers[1:3]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        layers[1].register_forward_hook(lambda module, inputs, output: output + 3.0)
        layers[2].register_forward_hook(lambda module, inputs, output: output - 3.0)
    text = written_by(model)
    alone = depth.loss_without(model, text, range(6))
    assert alone[4] == pytest.approx(0, abs=1e-5) and min(alone[1], alone[2]) > 0.1
    after = depth.loss_without(model, text, [0, 2, 3, 4, 5])  # without layer 1, layer 2 is better gone
    assert after[1] == pytest.approx(-alone[1], rel=1e-3)
    chosen = depth.choose(model, text, 5, "greedy")
    assert chosen.dropped == [4] and chosen.scores == pytest.approx(alone)


@pytest.mark.parametrize("how", list(depth.METHODS))
@pytest.mark.parametrize("contiguous", [False, True])
@pytest.mark.parametrize("keep", [3, 5])
def test_passes_over_the_text_are_those_told_beforehand(how: str, contiguous: bool, keep: int) -> None:
    told = list[int]()
    depth.choose(tiny.llama(5), IDS, keep, how, contiguous, told.append)
    assert sum(told) == depth.passes(5, keep, how, contiguous) * IDS.numel()


def test_position_alone() -> None:
    model = tiny.llama(7)
    assert depth.choose(model, IDS, 4, "even").kept == [0, 2, 4, 6]
    assert depth.choose(model, IDS, 1, "even").kept == [6]
    assert depth.choose(model, IDS, 3, "first").kept == [0, 1, 2]
    assert depth.choose(model, IDS, 2, (0, 5)).kept == [0, 5]
    with pytest.raises(ModelError, match=r"student\.choose names layer 9 but the teacher has 7 layers"):
        depth.choose(model, IDS, 2, (0, 9))
    with pytest.raises(ModelError, match=r"student\.layers is 8 but the teacher has 7 layers"):
        depth.choose(model, IDS, 8, "even")


@pytest.mark.parametrize("family", FAMILIES)
def test_computing_with_some_layers_is_computing_with_the_pruned_model(family: str) -> None:
    model = tiny.FAMILIES[family](5)
    before = logits(model)
    with depth.only(model, [0, 2, 4]):
        some = logits(model)
    assert torch.equal(some, logits(depth.prune(model, [0, 2, 4]))) and torch.equal(logits(model), before)
    assert torch.equal(some, logits(depth.prune(model, [0, 2, 4], share=True))) and torch.equal(logits(model), before)
    assert model.config.num_hidden_layers == 5
    own = torch.nn.functional.cross_entropy(before[:, :-1].reshape(-1, 288), IDS[:, 1:].reshape(-1))
    assert depth.text_loss(model, IDS) == pytest.approx(float(own), rel=1e-5)


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"layers": 3, "choose": [0, 1]}, "names 2 layers"),
        ({"choose": [2, 1]}, "once each, in order"),
        ({"layers": 2, "choose": "even", "contiguous": True}, "contiguous: is for"),
    ],
)
def test_choices_that_contradict_themselves_are_refused(given: dict, wrong: str) -> None:
    with pytest.raises(ValidationError, match=wrong):
        DepthStudent.model_validate({"kind": "depth", **given})


def test_named_layers_count_themselves() -> None:
    assert DepthStudent.model_validate({"kind": "depth", "choose": [0, 2, 3]}).layers == 3


def stages(root: Path) -> dict[str, Path]:
    return {name: root / folder for name, folder in json.loads((root / "run.json").read_text())["stages"].items()}


def test_pruning_goes_on_from_an_earlier_student(tmp_path: Path) -> None:
    """Recipes chain: each cuts what the one before it shipped, taught by the first teacher all the while."""
    path, runs = tiny.recipe(tmp_path), tmp_path / "runs"
    short = ("distill.train.steps=2", "quantize.start=0", "quantize.plan=[{pattern: '*', format: f32}]")
    first = recipes.load(path, (*short, "name=first", "student.compare=[even, first]"))
    root = run(first, tmp_path, runs, Progress(quiet=True))
    facts = json.loads((stages(root)["student"] / "importance.json").read_text())
    assert [row["choice"] for row in facts["choices"]] == ["chosen", "even", "first"]
    assert facts["choices"][0]["loss"] == facts["loss_after"] and facts["choices"][2]["kept"] == [0, 1, 2]
    assert all(row["kl"] > 0 for row in facts["choices"])  # each beside the whole teacher
    shown = [getattr(block, "title", "") for block in making(read(root)).blocks]
    assert "Loss before any training, by choice of layers" in shown
    then = ("student={kind: width, layers: 2, ffn: 64, origin: 'run:first', choose: loss, importance_tokens: 128}",)
    second = recipes.load(path, (*short, "name=second", *then))
    found = check(Context(second, tmp_path, runs / "second", Progress(quiet=True)))
    assert found.problems == [] and "2 layers" in dict(found.plan)["student"]
    made = run(second, tmp_path, runs, Progress(quiet=True), until="distill")
    told = json.loads((stages(made)["student"] / "importance.json").read_text())
    assert len(told["scores"]) == 3  # of the earlier student's layers, not of the teacher's four
    frozen = Frozen.load(stages(made)["distill"] / "frozen")
    assert frozen.config["num_hidden_layers"] == 2 and frozen.config["intermediate_size"] == 64
    deeper = recipes.load(path, (*short, "student={kind: depth, layers: 4, origin: 'run:first'}"))
    found = check(Context(deeper, tmp_path, runs / "tiny", Progress(quiet=True)))
    assert "student.layers is 4 but the teacher has 3 layers" in found.problems
