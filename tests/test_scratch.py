"""Students from scratch: every knob gives a model that llama.cpp runs, muP keeps sizes at any width, a teacher's layers
are where they were asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from test_architectures import frozen, logits
from test_export import LLAMA_CPP, program
from test_models import tiny_model, tiny_tokenizer
from tiny import llama, step_of
from tiny import recipe as made_recipe

from edgeslm import cost
from edgeslm import recipe as recipes
from edgeslm.data.batch import Batch
from edgeslm.design import families
from edgeslm.errors import ModelError, RecipeError
from edgeslm.export import EXPORTERS
from edgeslm.models import load
from edgeslm.models.arch import ARCHS
from edgeslm.models.arch.base import plain
from edgeslm.models.blocks import layers_of
from edgeslm.models.shapes import parameter_shapes
from edgeslm.pipeline.check import check
from edgeslm.pipeline.run import run
from edgeslm.pipeline.stage import Context
from edgeslm.progress import Progress
from edgeslm.recipe.scratch import ScratchStudent
from edgeslm.students import mup, scratch

SIZES: dict[str, Any] = {"kind": "scratch", "hidden": 64, "layers": 2, "heads": 4}
KNOBS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama gqa": {"attention": "gqa"},
    "llama mqa": {"attention": "mqa", "ffn_ratio": 1.5},
    "llama wide heads": {"head_dim": 32, "tied": False},
    "qwen3": {"family": "qwen3", "kv_heads": 2},
    "qwen2": {"family": "qwen2"},
    "smollm3": {"family": "smollm3", "layers": 4},
    "gemma3_text": {"gated": True, "activation": "gelu"},
    "starcoder2": {"gated": False, "attention": "mqa"},
    "gpt2": {"family": "gpt2", "ffn": 128},
}


def part(**more: Any) -> Any:
    return ScratchStudent(**(SIZES | more))


def teacher() -> Any:
    model = llama(layers=3)
    model.config.eos_token_id = model.config.bos_token_id = 1
    return model


def test_the_families_are_architectures() -> None:
    assert set(families.FAMILIES) <= set(ARCHS) and {name.split()[0] for name in KNOBS} == set(families.FAMILIES)


def test_every_knob_is_a_model_that_llama_cpp_runs(tmp_path: Path) -> None:
    load.write_tokenizer(tiny_tokenizer(), tmp_path / "tokenizer")
    ids = list(range(3, 23))
    for name, knobs in KNOBS.items():
        student, facts = scratch.build(part(**knobs, init={"kind": "normal", "std": 0.2}), tiny_model("llama"), 5)
        config = plain(student.config)
        assert config["model_type"] == name.split()[0] == facts["family"]
        assert parameter_shapes(config) == {n: tuple(p.shape) for n, p in student.named_parameters()}
        assert cost.counts(config).total == sum(p.numel() for p in student.parameters())
        made = EXPORTERS["gguf"](
            frozen(student, "f32", tmp_path / "tokenizer"), tmp_path / f"{name}.gguf".replace(" ", "-")
        )
        done = program(LLAMA_CPP, str(made.path), json.dumps(ids), str(tmp_path / "logits.npy"))
        assert json.loads(done.stdout.splitlines()[-1])["status"] == 0
        ours, theirs = logits(student, ids), np.load(tmp_path / "logits.npy")
        assert np.abs(ours - theirs).max() < 5e-3 * max(1.0, float(np.abs(ours).max())), name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"heads": 5}, "no multiple of 5 heads"),
        ({"kv_heads": 3}, "cannot be shared evenly"),
        ({"attention": "mla"}, "mla is in no family"),
        ({"gated": False, "activation": "silu"}, r"no family has .*gpt2 \(plain gelu"),
        ({"family": "gpt2", "attention": "mqa"}, r"there is gpt2 \(plain gelu, layer norm, mha,"),
        ({"norm": "layer", "gated": True}, "no family has"),
        ({"ffn": 96, "ffn_ratio": 2.0}, "give one of them"),
        ({"attention": "mqa", "kv_heads": 2}, "does not have 2 of 4"),
        ({"family": "starcoder2", "head_dim": 32}, "heads of hidden / heads"),
        ({"head_dim": 3}, "odd number"),
        ({"family": "gemma3_text", "init": {"kind": "mup"}}, "scales its inputs"),
        ({"init": {"kind": "teacher", "layers": [0]}}, "names 1 layers for a student of 2"),
    ],
)
def test_what_makes_no_model_is_refused_when_the_recipe_is_read(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        TypeAdapter(ScratchStudent).validate_python(SIZES | change)


def test_the_same_seed_draws_the_same_weights() -> None:
    (a, _), (b, _), (c, _) = (scratch.build(part(), teacher(), seed) for seed in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.model.embed_tokens.weight, c.model.embed_tokens.weight)


def test_layers_of_the_teacher_start_where_they_are_asked_for() -> None:
    big = teacher()
    same = {"ffn": 96, "kv_heads": 2, "layers": 4}
    student, facts = scratch.build(part(**same, init={"kind": "teacher", "layers": [2, None, 0, 2]}), big, 0)
    ours, theirs = layers_of(student), layers_of(big)
    for at, source in ((0, 2), (2, 0), (3, 2)):
        assert all(torch.equal(a, b) for a, b in zip(ours[at].parameters(), theirs[source].parameters(), strict=True))
    assert not torch.equal(ours[1].mlp.up_proj.weight, theirs[1].mlp.up_proj.weight)
    assert torch.equal(student.model.embed_tokens.weight, big.model.embed_tokens.weight)
    assert facts["from_teacher"]["layers"] == [2, None, 0, 2]
    for change, says in (
        ({"ffn": 128}, "intermediate_size is 96"),
        ({"heads": 2, "kv_heads": 2}, "num_attention_heads is 4"),
        ({"family": "qwen3"}, "model_type is llama"),
    ):
        with pytest.raises(ModelError, match=says):
            scratch.build(part(**(same | change), init={"kind": "teacher", "layers": [0, 1, 2, 0]}), big, 0)
    with pytest.raises(ModelError, match="names layer 3"):
        scratch.build(part(**same, init={"kind": "teacher", "layers": [0, 1, 2, 3]}), big, 0)


def test_mup_starts_and_learns_by_the_table_of_the_paper() -> None:
    knobs = {"hidden": 256, "heads": 16, "init": {"kind": "mup", "base_width": 64, "std": 0.05}}
    for tied in (True, False):
        student, _ = scratch.build(part(**knobs, tied=tied), teacher(), 0)
        student.requires_grad_(False)
        layer, m = layers_of(student)[0], 4.0
        assert float(layer.self_attn.q_proj.weight.std()) == pytest.approx(0.05 / m**0.5, rel=0.02)
        assert float(layer.mlp.down_proj.weight.std()) == pytest.approx(0.05 / m**0.5 / 2, rel=0.02)
        assert float(student.model.embed_tokens.weight.std()) == pytest.approx(0.05, rel=0.02)
        assert torch.all(student.model.norm.weight == (1 / m if tied else 1.0))
        shares = mup.shares(student, 64)
        hidden = {n for n in dict(student.named_parameters()) if n.endswith("proj.weight")}
        last = {"model.norm.weight"} if tied else {"lm_head.weight"}
        assert shares == dict.fromkeys(hidden | last, 0.25)
        if not tied:
            assert float(student.lm_head.weight.std()) == pytest.approx(0.05 / m, rel=0.02)
    assert mup.shares(student, 256) == {}


def test_shares_of_the_learning_rate_reach_the_weights_and_decay_is_the_same() -> None:
    model = llama(layers=1)
    shares = {"model.layers.0.mlp.up_proj.weight": 0.25}
    step = step_of(model, [{"loss": "cross_entropy"}], weight_decay=0.1, shares=shares)
    assert len(step.optimiser.param_groups) == 3
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    ids = torch.randint(3, 280, (4, 16), generator=torch.Generator().manual_seed(0))
    step(Batch(ids, torch.ones(ids.shape), None), None, lr=0.01, grid=False, index=0)
    moved = {n: p.detach() - before[n] for n, p in model.named_parameters()}
    decay = 0.01 * 0.1  # of any matrix, whatever its share
    for name, share in (("model.layers.0.mlp.up_proj.weight", 0.25), ("model.layers.0.mlp.gate_proj.weight", 1.0)):
        # Adam's first step moves every weight by the learning rate, against its gradient's sign
        assert float((moved[name] + decay * before[name]).abs().median()) == pytest.approx(0.01 * share, rel=0.02)


def coordinates(width: int, base_width: int | None, steps: int = 3) -> list[float]:
    """By how much (root mean square) a few steps change each hidden state and the logits, at one learning rate."""
    knobs = {"hidden": width, "heads": width // 16, "layers": 2}
    init = {"kind": "mup", "base_width": base_width} if base_width else {"kind": "normal"}
    model, _ = scratch.build(part(**knobs, init=init), teacher(), 3)
    ids = torch.randint(3, 280, (4, 16), generator=torch.Generator().manual_seed(1))

    def seen() -> list[torch.Tensor]:
        with torch.no_grad():
            out = model(ids, output_hidden_states=True)
        return [*out.hidden_states[1:-1], out.logits]

    start = seen()
    shares = mup.shares(model, base_width) if base_width else {}
    step = step_of(model, [{"loss": "cross_entropy"}], shares=shares)
    for index in range(steps):
        step(Batch(ids, torch.ones(ids.shape), None), None, lr=0.01, grid=False, index=index)
    return [float((b - a).pow(2).mean().sqrt()) for a, b in zip(start, seen(), strict=True)]


def test_coordinate_check() -> None:
    """Appendix D.1 of the paper: with muP nothing grows with the width; without it the logits do."""
    narrow, wide = 64, 256
    with_mup, without = (np.array([coordinates(w, base) for w in (narrow, wide)]) for base in (64, None))
    assert with_mup.min() > 1e-3, "nothing moved"
    growth, plain_growth = with_mup[1] / with_mup[0], without[1] / without[0]
    assert np.all(growth < 1.25) and np.all(growth > 0.5), growth
    assert plain_growth[-1] > 2.0 and np.all(plain_growth > 2 * growth), plain_growth


def test_a_recipe_from_scratch_runs_and_comes_back(tmp_path: Path) -> None:
    path = made_recipe(tmp_path)
    student = (
        "student={kind: scratch, hidden: 64, layers: 2, heads: 4, attention: mqa, init: {kind: mup, base_width: 32}}"
    )
    loaded = recipes.load(path, [student, "distill.train.steps=4"])
    context = Context(loaded, tmp_path, tmp_path / "runs" / "tiny", Progress(quiet=True))
    found = check(context)
    assert not found.problems and dict(found.plan)["student"].startswith("scratch, 2 layers")
    folder = run(loaded, tmp_path, tmp_path / "runs", Progress(quiet=True), "export")
    stages = json.loads((folder / "run.json").read_text())["stages"]
    facts = json.loads((folder / stages["student"] / "importance.json").read_text())
    assert facts["method"] == "scratch_mup" and facts["kl_after"] > 0
    from test_models import at

    shipped = load.load(at(folder / stages["export"] / "student.gguf"), torch.float32)
    assert shipped.model.config.num_key_value_heads == 1 and shipped.summary.arch == "llama"


def test_check_refuses_before_any_compute(tmp_path: Path) -> None:
    path = made_recipe(tmp_path)
    for init, says in (("[0, 9]", "names layer 9"), ("[0, 1]", "intermediate_size is 96")):
        student = f"student={{kind: scratch, hidden: 64, layers: 2, heads: 4, init: {{kind: teacher, layers: {init}}}}}"
        loaded = recipes.load(path, [student])
        found = check(Context(loaded, tmp_path, tmp_path / "runs" / "tiny", Progress(quiet=True)))
        assert any(says in problem for problem in found.problems), found.problems
    with pytest.raises(RecipeError, match="cannot be shared evenly"):
        recipes.load(path, ["student={kind: scratch, hidden: 64, layers: 2, heads: 4, kv_heads: 3}"])
    onnx = recipes.load(
        path, ["student={kind: scratch, hidden: 64, layers: 2, heads: 4, gated: false}", "export.kinds=[onnx]"]
    )
    found = check(Context(onnx, tmp_path, tmp_path / "runs" / "tiny", Progress(quiet=True)))
    assert any("knows no StarCoder2" in problem for problem in found.problems)


def test_the_best_learning_rate_is_the_lowest_point_of_a_parabola() -> None:
    from benchmarks import mup as bench

    curve = [(x, (x + 6.25) ** 2 + 2.0) for x in range(-9, -3)]
    assert bench.best(curve) == (pytest.approx(-6.25), True)
    assert bench.best([(-9, 1.0), (-8, 2.0), (-7, None)]) == (-9, False)  # at the edge: not known to be the best
    runs = [
        {"width": w, "start": s, "log2_lr": x, "loss": (x - at) ** 2}
        for s, ats in (("mup", (-6.0, -6.5)), ("standard", (-6.0, -8.0)))
        for w, at in zip((64, 512), ats, strict=True)
        for x in range(-11, -3)
    ]
    factor, found, inside = bench.drift(runs, "mup")
    assert factor == pytest.approx(2**0.5) and found == {"64": -6.0, "512": -6.5} and inside
    assert bench.drift(runs, "standard")[0] == pytest.approx(4.0)
