"""Width pruning on tiny random models: what it must not change, what it must, and that runtimes agree with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import test_export
import torch
from test_export import IDS, LLAMA_CPP, ONNXRUNTIME, program, tiny
from tiny import recipe as made_recipe

from edgeslm import recipe as recipes
from edgeslm import units
from edgeslm.errors import ModelError
from edgeslm.export import EXPORTERS
from edgeslm.models.arch import ARCHS
from edgeslm.models.load import load
from edgeslm.models.shapes import parameter_shapes, pruned
from edgeslm.models.source import resolve
from edgeslm.pipeline.check import check
from edgeslm.pipeline.run import run
from edgeslm.pipeline.stage import Context
from edgeslm.progress import Progress
from edgeslm.quantize.freeze import freeze_floats
from edgeslm.quantize.frozen import Frozen
from edgeslm.students import width

TEXT = torch.randint(0, 250, (8, 32), generator=torch.Generator().manual_seed(4))
FAMILIES = ["llama", "qwen2"]
tokenizer = test_export.tokenizer  # a fixture


def logits(model: torch.nn.Module, ids: torch.Tensor = TEXT) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


def divergence(teacher: torch.nn.Module, student: torch.nn.Module) -> float:
    p, q = (torch.log_softmax(logits(m).double(), -1) for m in (teacher, student))
    return float((p.exp() * (p - q)).sum(-1).mean())


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["importance", "pca"])
def test_nothing_pruned_nothing_changed(family: str, method: str) -> None:
    teacher = tiny(family, True)
    student, facts = width.prune(teacher, {"hidden": 64, "ffn": None, "heads": 4}, method, TEXT)
    assert facts == {} and torch.equal(logits(student), logits(teacher))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 2), (8, 4), (16, 8), (32, 4), (4, 4)])
def test_copies_of_heads_change_no_logit(family: str, heads: int, kv_heads: int) -> None:
    teacher = tiny(family, True)
    student, facts = width.prune(teacher, {"heads": heads, "kv_heads": kv_heads}, "importance", TEXT)
    assert torch.allclose(logits(student), logits(teacher), atol=1e-5)
    attention = student.base_model.layers[1].self_attn
    assert attention.o_proj.weight.shape == (64, heads * 16) and attention.k_proj.weight.shape == (kv_heads * 16, 64)
    for found in facts["heads"]:
        assert set(found["heads"]) == {0, 1, 2, 3} and set(found["kv_heads"]) == {0, 1}
        each = heads // kv_heads
        assert [head // 2 for head in found["heads"]] == [g for g in found["kv_heads"] for _ in range(each)]
    # no two copies have a column in common, so that training can part them
    out = attention.o_proj.weight.reshape(64, heads, 16)
    chosen = facts["heads"][1]["heads"]
    for a in range(heads):
        for b in range(a):
            if chosen[a] == chosen[b]:
                assert not bool(((out[:, a] != 0) & (out[:, b] != 0)).any())


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_of_no_energy_are_dropped_without_a_trace(family: str) -> None:
    """Group 0 gives nothing, and of group 1 only head 2 does: the student of one head computes the same."""
    teacher = tiny(family, True)
    with torch.no_grad():
        for layer in teacher.base_model.layers:
            layer.self_attn.o_proj.weight[:, :32] = 0
            layer.self_attn.o_proj.weight[:, 48:] = 0
    student, facts = width.prune(teacher, {"heads": 1, "kv_heads": 1}, "importance", TEXT)
    assert facts["heads"] == [{"heads": [2], "kv_heads": [1]}] * 2
    assert torch.allclose(logits(student), logits(teacher), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_units_of_no_energy_are_dropped_without_a_trace(family: str) -> None:
    teacher = tiny(family, True)
    with torch.no_grad():
        for layer in teacher.base_model.layers:
            layer.mlp.up_proj.weight[1::2] = 0
    student, facts = width.prune(teacher, {"ffn": 80}, "importance", TEXT)
    assert facts["ffn_kept"] == [list(range(0, 160, 2))] * 2
    assert torch.allclose(logits(student), logits(teacher), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", ["importance", "pca"])
def test_silent_channels_are_dropped_without_a_trace(family: str, tied: bool, method: str) -> None:
    """16 channels that nothing writes to: norms divide by another root mean square, and gains make up for it."""
    teacher, silent = tiny(family, tied), torch.arange(3, 64, 4)
    with torch.no_grad():
        teacher.base_model.embed_tokens.weight[:, silent] = 0
        for layer in teacher.base_model.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight[silent] = 0
        if method == "pca" and tied:  # the split of the final norm is exact where it is one number, up to its sign
            teacher.base_model.norm.weight.copy_(torch.where(torch.arange(64) % 8 == 0, -1.3, 1.3))
    student, facts = width.prune(teacher, {"hidden": 48}, method, TEXT)
    if method == "importance":
        assert not set(facts["hidden_kept"]) & set(silent.tolist())
    else:
        assert facts["hidden_energy"] == pytest.approx(1)
    assert divergence(teacher, student) < 1e-5


@pytest.mark.parametrize("method", ["importance", "pca"])
def test_what_is_kept_makes_up_for_what_is_lost(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels that are mixtures of others can be read from them; without the least squares they are lost."""
    teacher = tiny("llama", False)
    mix = torch.randn(64, 48, generator=torch.Generator().manual_seed(2)) / 7
    with torch.no_grad():
        writers = [w for y in teacher.base_model.layers for w in (y.self_attn.o_proj.weight, y.mlp.down_proj.weight)]
        for weight in writers:
            weight.copy_(mix @ weight[:48])
        embedding = teacher.base_model.embed_tokens.weight
        embedding.copy_(embedding[:, :48] @ mix.T)
    student, _ = width.prune(teacher, {"hidden": 48}, method, TEXT)
    fitted = divergence(teacher, student)
    monkeypatch.setattr(width, "RIDGE", 1e9)
    lost = divergence(teacher, width.prune(teacher, {"hidden": 48}, method, TEXT)[0])
    assert fitted < 0.2 * lost


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_shapes_are_those_told_beforehand_and_weights_the_same_again(family: str, tied: bool) -> None:
    teacher = tiny(family, tied)
    sizes = {"hidden": 48, "ffn": 96, "heads": 3, "kv_heads": 1}
    first, facts = width.prune(teacher, sizes, "importance", TEXT)
    again, same = width.prune(teacher, sizes, "importance", TEXT)
    assert facts == same and shapes(first) == parameter_shapes(pruned(teacher.config.to_dict(), sizes))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert (first.lm_head.weight is first.base_model.embed_tokens.weight) == tied
    assert parameter_shapes(first.config.to_dict()) == shapes(first)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sizes", [{}, {"ffn": 96}, {"heads": 2, "kv_heads": 1}, {"hidden": 48}])
def test_a_student_has_weights_of_its_own_and_the_teacher_keeps_its(tied: bool, sizes: dict[str, int]) -> None:
    teacher = tiny("qwen2", tied)
    before = [weight.clone() for weight in teacher.parameters()]
    student, _ = width.prune(teacher, dict(sizes), "importance", TEXT)
    theirs = {weight.data_ptr() for weight in teacher.parameters()}
    assert not theirs & {weight.data_ptr() for weight in student.parameters()}
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    assert len(list(student.parameters())) == len(before)


@pytest.mark.parametrize("sizes", [{}, {"ffn": 96}, {"heads": 2, "kv_heads": 1}, {"ffn": 96, "hidden": 48}])
def test_passes_over_the_text_are_those_told_beforehand(sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, told = tiny("llama", True), list[int]()
    monkeypatch.setattr(width, "MOMENT_BYTES", 4 * teacher.config.intermediate_size**2)  # a layer at a time
    width.prune(teacher, dict(sizes), "importance", TEXT, on_tokens=told.append)
    assert sum(told) == width.passes(teacher, dict(sizes)) * TEXT.numel()


@pytest.mark.parametrize("tied", [True, False])
def test_tables_are_turned_a_few_rows_at_a_time(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = tiny("llama", tied)
    whole, _ = width.prune(teacher, {"hidden": 48}, "pca", TEXT)
    monkeypatch.setattr(width, "TABLE_ROWS", 7)
    parts, _ = width.prune(teacher, {"hidden": 48}, "pca", TEXT)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)


def test_sizes_that_cannot_be_had_are_refused() -> None:
    config = tiny("llama", True).config.to_dict()
    with pytest.raises(ModelError, match=r"student\.hidden is 80 but the teacher has 64 hidden channels"):
        pruned(config, {"hidden": 80})
    with pytest.raises(ModelError, match="5 heads cannot be shared evenly by 2 key-value heads"):
        pruned(config, {"heads": 5})
    with pytest.raises(ModelError, match="transformers refuses 6 heads for a hidden width of 64"):
        pruned(config, {"heads": 6})
    qwen = pruned(tiny("qwen2", True).config.to_dict(), {"hidden": 48})
    with pytest.raises(ModelError, match="4 heads of 16 dimensions do not make up the 48 hidden channels"):
        ARCHS["qwen2"].metadata(qwen)


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("llama", {"hidden": 48, "ffn": 96, "heads": 8, "kv_heads": 4}),  # heads wider than the stream, copies
        ("qwen2", {"hidden": 48, "ffn": 96, "heads": 3, "kv_heads": 1}),
    ],
)
def test_runtimes_agree_with_the_student(
    family: str,
    sizes: dict[str, int],
    tokenizer: Path,
    tmp_path: Path,
) -> None:
    student, _ = width.prune(tiny(family, True), sizes, "importance", TEXT)
    weights = dict(student.named_parameters())
    frozen = freeze_floats(weights, "f32", family, student.config.to_dict(), tokenizer, "narrow", {})
    expected = logits(student, torch.tensor([IDS]))[0].numpy()
    file = EXPORTERS["gguf"](frozen, tmp_path / "student.gguf").path
    done = program(LLAMA_CPP, str(file), json.dumps(IDS), str(tmp_path / "gguf.npy"))
    assert json.loads(done.stdout.splitlines()[-1]) == {"status": 0, "complaints": []}
    assert np.abs(np.load(tmp_path / "gguf.npy") - expected).max() < 1e-3
    read = load(resolve(str(file), tmp_path, None, None), torch.float32).model
    assert np.abs(logits(read, torch.tensor([IDS]))[0].numpy() - expected).max() < 1e-4
    folder = EXPORTERS["onnx"](frozen, tmp_path / "student-onnx").path
    program(ONNXRUNTIME, str(folder), json.dumps(IDS), str(tmp_path / "onnx.npz"))
    assert np.abs(np.load(tmp_path / "onnx.npz")["plain"] - expected).max() < 1e-3


def test_a_recipe_makes_the_same_student_again(tmp_path: Path) -> None:
    recipe_path = made_recipe(tmp_path)
    overrides = ("student={kind: width, hidden: 32, ffn: 64, kv_heads: 4, layers: 3, importance_tokens: 256}",)
    overrides += ("distill.train.steps=2",)
    loaded = recipes.load(recipe_path, overrides)
    found = check(Context(loaded, tmp_path, tmp_path / "runs" / "tiny", Progress(quiet=True)))
    assert found.problems == []
    said = dict(found.plan)["student"]
    roots = [run(loaded, tmp_path, tmp_path / name, Progress(quiet=True), until="distill") for name in "ab"]
    stages = json.loads((roots[0] / "run.json").read_text())["stages"]
    assert json.loads((roots[1] / "run.json").read_text())["stages"] == stages
    first, again = (Frozen.load(root / stages["distill"] / "frozen") for root in roots)
    assert all(torch.equal(t.codes, again.tensors[n].codes) for n, t in first.tensors.items())
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    assert [first.config[key] for key in sizes] == [32, 64, 4, 4, 16]
    facts = json.loads((roots[0] / stages["student"] / "importance.json").read_text())
    assert len(facts["kept"]) == 3 and len(facts["hidden_kept"]) == 32 and facts["method"] == "width_importance"
    assert facts["parameters_after"] == first.parameters and units.count(first.parameters) in said
    assert facts["kl_after"] > 0
    refused = recipes.load(recipe_path, ("student={kind: width, hidden: 96}",))
    found = check(Context(refused, tmp_path, tmp_path / "runs" / "tiny", Progress(quiet=True)))
    assert "student.hidden is 96 but the teacher has 64 hidden channels" in found.problems
