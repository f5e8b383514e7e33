"""Scales of channels move without changing the float model, in every family, and to where rounding gains by it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from test_models import CONFIGS, tiny_model

from edgeslm import recipe as recipes
from edgeslm.errors import RecipeError
from edgeslm.formats import FORMATS
from edgeslm.models.arch import ARCHS
from edgeslm.pipeline.run import run
from edgeslm.progress import Progress
from edgeslm.quantize import equalise
from edgeslm.quantize.curvature import LOSS_DAMPENING, curvature
from edgeslm.quantize.feedback import layer_error, round_with_feedback
from edgeslm.quantize.frozen import Frozen
from edgeslm.quantize.loss_moments import loss_moments
from edgeslm.recipe import Recipe
from edgeslm.report import render
from tests import tiny

# sites of a layer: what its attention reads, its values, what its feed-forward part reads and, where gated, its units
IN_A_LAYER = {"gpt2": 3, "starcoder2": 3}
IDS = torch.randint(0, 90, (16, 24), generator=torch.Generator().manual_seed(0))


def awake(name: str) -> Any:
    """A tiny model whose norms and biases are not what they are made as."""
    model, g = tiny_model(name), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=g) * 0.2)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_is_the_same_function_with_other_scales(name: str) -> None:
    model, g = awake(name), torch.Generator().manual_seed(1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    found = equalise.sites(model)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    layers = model.config.num_hidden_layers
    assert len(found) == layers * IN_A_LAYER.get(name.split()[0], 4) + (not tied)
    drawn = {site.source: torch.exp(torch.randn(site.channels, generator=g)) for site in found}
    with torch.no_grad():
        wanted = model(input_ids=IDS).logits
        equalise.move(model, found, drawn, ARCHS[model.config.model_type].offset)
        logits = model(input_ids=IDS).logits
    assert torch.allclose(logits, wanted, atol=2e-4 * float(wanted.abs().max())), (logits - wanted).abs().max()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    fixed = (
        "embed_tokens.weight",
        "wte.weight",
        "wpe.weight",
        "mlp.c_proj.weight",
        *(["lm_head.weight"] if tied else []),
    )
    assert changed >= {f"{site.source}.weight" for site in found}
    assert changed >= {n for n, p in before.items() if p.dim() == 2 and not n.endswith(fixed)}


def test_copies_of_a_value_head_are_counted_together() -> None:
    site = equalise.Site("v", ("o",), channels=4, group=2, copies=3)
    s = torch.tensor([1.0, 2.0, 3.0, 4.0])
    columns = torch.tensor([1.0, 2, 1, 2, 1, 2, 3, 4, 3, 4, 3, 4])
    assert torch.equal(site.to_columns(s), columns)
    assert torch.equal(site.of_columns(columns), 3 * s)


def outsized(site: equalise.Site, model: Any) -> None:
    """The columns of one channel in eight ten times as large, and what feeds them a tenth."""
    s = torch.ones(site.channels)
    s[::8] = 0.1
    equalise.move(model, [site], {site.source: 1 / s})


@pytest.mark.parametrize("reader", ["q_proj", "down_proj", "o_proj"])
def test_scales_are_found_that_lose_less_where_channels_differ_and_none_where_not(reader: str) -> None:
    model = awake("llama")
    names = [n for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    site = next(s for s in equalise.sites(model) if s.readers[0].endswith(reader))
    found = {}
    for kind in ("as it is", "outsized"):
        if kind == "outsized":
            outsized(site, model)
        known, unseen = (loss_moments(model, part, names, outputs=False) for part in (IDS[:8], IDS[8:]))
        assert not known.outputs
        found[kind] = equalise.choose(model, site, known, unseen)
        print(kind, found[kind].strength, found[kind].left)
        assert float(found[kind].scales.log().mean()) == pytest.approx(0, abs=1e-5)
        if found[kind].strength:
            before = rounding_loss(model, site, known, unseen)
            equalise.move(model, [site], {site.source: found[kind].scales})
            known, unseen = (loss_moments(model, part, names, outputs=False) for part in (IDS[:8], IDS[8:]))
            left = rounding_loss(model, site, known, unseen) / before
            assert left == pytest.approx(found[kind].left, rel=0.25)  # as was foretold, but for dampening
    assert found["outsized"].strength > 0 and found["outsized"].left < 0.8
    assert found["as it is"].left > found["outsized"].left


def rounding_loss(model: Any, site: equalise.Site, known: Any, unseen: Any) -> float:
    """Of all rows of the readers, which are no more than a sample has."""
    total = 0.0
    for name in (f"{reader}.weight" for reader in site.readers):
        weight, curve = model.get_parameter(name).detach(), curvature(known.inputs[name], LOSS_DAMPENING)
        rounded = round_with_feedback(weight, curve, FORMATS[equalise.PROBE], sweeps=0).weight
        total += known.felt[name] / len(weight) * layer_error(weight, rounded, unseen.inputs[name])
    return total


def test_channels_that_carry_nothing_keep_a_finite_scale() -> None:
    model = awake("llama")
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[3] = 0.0
    site = equalise.sites(model)[0]
    names = [f"{name}.weight" for name in site.readers]
    moments = loss_moments(model, IDS, names, outputs=False)
    assert torch.isfinite(equalise.choose(model, site, moments, moments).scales).all()


def test_a_recipe_ships_the_moved_scales_and_the_same_float_student(tmp_path: Any) -> None:
    tiny.recipe(tmp_path)
    floats = "quantize={plan: [{pattern: '*', format: f32}], equalise: true}"
    sides = {}
    for name, overrides in {"moved": [floats], "plain": ["quantize={plan: [{pattern: '*', format: f32}]}"]}.items():
        loaded = recipes.load(tmp_path / "tiny.yaml", ["student={kind: copy}", "distill.train.steps=0", *overrides])
        root = run(loaded, tmp_path, tmp_path / name, Progress(quiet=True), until="distill")
        stages = json.loads((root / "run.json").read_text())["stages"]
        assert ("equalise" in stages) == (name == "moved")
        told = render(root)
        page, data = told.markdown.read_text().replace("\\", ""), json.loads(told.json.read_text())
        assert ("Scales of channels moved before rounding" in page) == bool(data["equalised"]) == (name == "moved")
        assert ("input_layernorm" in page) == (name == "moved")
        sides[name] = Frozen.load(root / stages["distill"] / "frozen").tensors
        points = json.loads((root / stages["distill"] / "summary.json").read_text())["heldout"]
        assert points[0]["kl"] == pytest.approx(0, abs=2e-5 if name == "moved" else 1e-6)
    facts = json.loads(next((tmp_path / "moved").glob("tiny/equalise-*/equalise.json")).read_text())
    assert abs(facts["kl"]) < 1e-5
    used = {source for source, site in facts["sites"].items() if site["strength"]}
    assert used and all(site["left"] < 1 for name, site in facts["sites"].items() if name in used)
    changed = {n for n, t in sides["plain"].items() if not torch.equal(t.decode(), sides["moved"][n].decode())}
    assert changed >= {f"{source}.weight" for source in used}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["student={kind: scratch, hidden: 64, layers: 1, heads: 2}"], "drawn at random"),
        (["quantize.importance={file: none.gguf}"], "before equalise moves"),
        (["distill.objective=[{loss: minilm}]"], "which 'minilm' compares"),
    ],
)
def test_what_has_nothing_to_move_is_refused(tmp_path: Any, overrides: list[str], words: str) -> None:
    tiny.recipe(tmp_path)
    with pytest.raises(RecipeError, match=words):
        recipes.load(tmp_path / "tiny.yaml", ["quantize.equalise=true", *overrides])


def test_recipes_from_before_keep_their_hash(tmp_path: Any) -> None:
    tiny.recipe(tmp_path)
    plain, moved = (recipes.load(tmp_path / "tiny.yaml", o) for o in ([], ["quantize.equalise=true"]))
    assert isinstance(plain, Recipe) and "equalise" not in plain.to_yaml() and "equalise: true" in moved.to_yaml()
    assert plain.training_hash != moved.training_hash


def test_seeds_share_scales_and_other_text_to_find_them_by_does_not(tmp_path: Any) -> None:
    tiny.recipe(tmp_path)

    def folder(*overrides: str) -> str:
        text = "data.sources=[{kind: text, paths: [learn.txt]}]"  # what a teacher writes is another text by each seed
        given = ["student={kind: copy}", "quantize.equalise=true", text, *overrides]
        root = run(recipes.load(tmp_path / "tiny.yaml", given), tmp_path, tmp_path, Progress(quiet=True), "equalise")
        return json.loads((root / "run.json").read_text())["stages"]["equalise"]

    first = folder("quantize.importance={tokens: 128}")
    assert folder("quantize.importance={tokens: 128}", "seed=1", "distill.train.lr=0.5") == first
    assert folder("quantize.importance={tokens: 256}") != first


def test_a_layer_that_does_nothing_moves_no_scales() -> None:
    model = awake("llama")
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
    site = equalise.sites(model)[0]
    moments = loss_moments(model, IDS, [f"{name}.weight" for name in site.readers], outputs=False)
    assert equalise.choose(model, site, moments, moments).strength == 0
