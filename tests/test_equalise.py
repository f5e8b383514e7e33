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
from edgeslm.quantize.feedback import round_plainly
from edgeslm.quantize.frozen import Frozen
from edgeslm.quantize.loss_moments import felt_channels, loss_moments
from edgeslm.recipe import Recipe
from tests import tiny

# sites of a layer: what its attention reads, its values, what its feed-forward part reads and, where gated, its units
IN_A_LAYER = {"gpt2": 3, "starcoder2": 3}
IDS = torch.randint(0, 90, (4, 24), generator=torch.Generator().manual_seed(0))


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


def test_what_channels_are_felt_is_the_diagonal_of_the_moments() -> None:
    model = awake("llama untied")
    names = [n for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    felt, moments = felt_channels(model, IDS, names, seed=3), loss_moments(model, IDS, names, seed=3)
    assert set(felt) == set(names)
    for name in names:
        ratio = felt[name] / moments.inputs[name].diagonal()
        assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-3), name


def test_channels_that_matter_lose_less_in_all() -> None:
    """Felt channels of a norm's readers a thousand times those of others; the loss is that of rounding, weighed so."""
    model, g = awake("llama"), torch.Generator().manual_seed(2)
    found = [s for s in equalise.sites(model) if s.readers[0].endswith("down_proj")]
    felt = {f"{s.readers[0]}.weight": torch.exp(3 * torch.randn(s.channels, generator=g)) for s in found}
    assert found

    def loss() -> float:
        total = 0.0
        for site in found:
            weight = model.get_submodule(site.readers[0]).weight.detach()
            lost = weight - round_plainly(weight, FORMATS["q4_0"]).weight
            h = felt[f"{site.readers[0]}.weight"] / moved.get(site.source, torch.ones(site.channels)) ** 2
            total += float((lost.square() * h).sum())
        return total

    moved: dict[str, torch.Tensor] = {}
    plain = loss()
    chosen = equalise.scales(model, found, felt, strength=1.0)
    assert all(float(s.log().mean()) == pytest.approx(0, abs=1e-5) for s in chosen.values())
    equalise.move(model, found, chosen)
    moved = chosen
    print(f"{loss() / plain:.3f} of the loss is left")
    assert loss() < 0.6 * plain


def test_channels_that_carry_nothing_keep_a_finite_scale() -> None:
    model = awake("llama")
    (first, *_) = equalise.sites(model)
    felt = {f"{name}.weight": torch.zeros(first.channels) for name in first.readers}
    assert torch.isfinite(equalise.scales(model, [first], felt)[first.source]).all()
    felt[f"{first.readers[0]}.weight"][0] = 1.0
    s = equalise.scales(model, [first], felt)[first.source]
    assert torch.isfinite(s).all() and s.argmax() == 0


def test_a_recipe_ships_the_moved_scales_and_the_same_float_student(tmp_path: Any) -> None:
    tiny.recipe(tmp_path)
    floats = "quantize={plan: [{pattern: '*', format: f32}], equalise: true}"
    sides = {}
    for name, overrides in {"moved": [floats], "plain": ["quantize={plan: [{pattern: '*', format: f32}]}"]}.items():
        loaded = recipes.load(tmp_path / "tiny.yaml", ["student={kind: copy}", "distill.train.steps=0", *overrides])
        root = run(loaded, tmp_path, tmp_path / name, Progress(quiet=True), until="distill")
        stages = json.loads((root / "run.json").read_text())["stages"]
        assert ("equalise" in stages) == (name == "moved")
        sides[name] = Frozen.load(root / stages["distill"] / "frozen").tensors
        points = json.loads((root / stages["distill"] / "summary.json").read_text())["heldout"]
        assert points[0]["kl"] == pytest.approx(0, abs=2e-5 if name == "moved" else 1e-6)
    norm = next(n for n in sides["plain"] if n.endswith("input_layernorm.weight"))
    assert not torch.equal(sides["moved"][norm].decode(), sides["plain"][norm].decode())
    facts = json.loads(next((tmp_path / "moved").glob("tiny/equalise-*/equalise.json")).read_text())
    assert abs(facts["kl"]) < 1e-5 and facts["scales"][0] < 1 < facts["scales"][1]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["student={kind: scratch, hidden: 64, layers: 1, heads: 2}"], "drawn at random"),
        (["quantize.importance={file: none.gguf}"], "before equalise moves"),
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
