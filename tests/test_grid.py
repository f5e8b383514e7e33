"""What a recipe says of scales, importance, rounding, activations and the teacher's grid reaches the shipped codes."""

import json

import pytest
import torch

from edgeslm import recipe as recipes
from edgeslm.data.rows import Rows
from edgeslm.errors import EdgeSLMError, RecipeError
from edgeslm.models.load import load
from edgeslm.models.source import resolve
from edgeslm.pipeline.run import run
from edgeslm.progress import Progress
from edgeslm.quantize.frozen import Frozen
from tests import tiny

ONE = ["quantize.start=0", "distill.train.steps=2", "student={kind: copy}"]
FIXED = "quantize.scales={kind: fixed}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("grid")
    tiny.recipe(path)
    return path


def distilled(folder, runs, *overrides) -> Frozen:
    loaded = recipes.load(folder / "tiny.yaml", [*ONE, *overrides])
    root = run(loaded, folder, runs, Progress(quiet=True), until="distill")
    stages = json.loads((root / "run.json").read_text())["stages"]
    return Frozen.load(root / stages["distill"] / "frozen")


def same(a: Frozen, b: Frozen) -> bool:
    return all(t.decode().equal(b.tensors[n].decode()) for n, t in a.tensors.items())


@pytest.fixture(scope="module")
def plain(folder, tmp_path_factory) -> Frozen:
    return distilled(folder, tmp_path_factory.mktemp("plain"), FIXED)


@pytest.mark.parametrize(
    "override",
    [
        "quantize.scales={kind: learned, lr: 0.01}",
        "quantize.scales={kind: alone, lr: 0.01}",
        "quantize.importance={tokens: 128}",
        "quantize.rounding=feedback",
        "quantize.rounding=fisher",
        "quantize.equalise=true",
        "quantize.activations=llama.cpp",
        "teacher.format=q4_0",
    ],
)
def test_every_option_changes_what_is_trained_and_twice_gives_the_same(folder, tmp_path, plain, override):
    first = distilled(folder, tmp_path / "a", FIXED, override)
    assert not same(first, plain)
    assert same(first, distilled(folder, tmp_path / "b", FIXED, override))


@pytest.mark.parametrize("rounding", ["nearest", "feedback"])
def test_where_scales_are_trained_alone_every_code_ships_as_it_was_found(folder, tmp_path, rounding):
    how = FIXED, f"quantize.rounding={rounding}", "quantize.scales={kind: alone, lr: 0.02}"
    before = distilled(folder, tmp_path / "before", *how, "distill.train.steps=0").tensors
    after = distilled(folder, tmp_path / "after", *how, "distill.train.steps=4").tensors
    on_grid = [name for name, tensor in before.items() if tensor.scales]
    assert on_grid and len(on_grid) < len(before)
    assert all(after[name].codes.equal(before[name].codes) for name in on_grid)
    assert all(any(not v.equal(before[n].scales[k]) for k, v in after[n].scales.items()) for n in on_grid)
    assert any(not t.decode().equal(before[name].decode()) for name, t in after.items() if name not in on_grid)  # norms


def test_a_student_starts_nearer_with_feedback_than_without(folder, tmp_path):
    """Before any training, on the rows whose inputs decided the rounding."""
    kl = {}
    for rounding in ("nearest", "feedback", "fisher"):
        frozen = distilled(folder, tmp_path / rounding, FIXED, f"quantize.rounding={rounding}", "distill.train.steps=0")
        loaded = load(resolve(str(folder / "teacher"), folder), torch.float32).model
        exact = {n: p.detach().clone() for n, p in loaded.named_parameters()}
        ids = Rows.load(next((tmp_path / rounding).glob("tiny/data-*")) / "rows.safetensors").ids.long()
        with torch.no_grad():
            wanted = torch.log_softmax(loaded(input_ids=ids).logits, -1)
            for name, parameter in loaded.named_parameters():
                parameter.copy_(frozen.tensors[name].decode())
            found = torch.log_softmax(loaded(input_ids=ids).logits, -1)
            for name, parameter in loaded.named_parameters():
                parameter.copy_(exact[name])
        kl[rounding] = float((wanted.exp() * (wanted - found)).sum(-1).mean())
    print(kl)
    assert 0 < kl["feedback"] < kl["nearest"] and 0 < kl["fisher"] < kl["nearest"]


def test_rounding_is_kept_when_training_changes_and_done_anew_when_its_text_does(folder, tmp_path):
    fed = (FIXED, "quantize.rounding=feedback")
    first = distilled(folder, tmp_path, *fed, "distill.train.steps=0")
    distilled(folder, tmp_path, *fed, "distill.train.lr=0.01")
    (kept,) = (tmp_path / "tiny").glob("round-*")
    assert same(Frozen.load(kept / "rounded"), first)  # training begins with what was rounded
    distilled(folder, tmp_path, *fed, "distill.train.steps=0", "quantize.importance={tokens: 64}")
    (other,) = set((tmp_path / "tiny").glob("round-*")) - {kept}
    assert not same(Frozen.load(other / "rounded"), first)


def test_copies_that_start_apart_are_rounded_apart(folder, tmp_path):
    scratch = "student={kind: scratch, hidden: 64, layers: 1, heads: 2, ffn: 64}"
    pair = "distill.scheme={kind: codistill, groups: 2, exchange_every: 1}"
    distilled(folder, tmp_path, FIXED, "quantize.rounding=feedback", scratch, pair)
    (root,) = (tmp_path / "tiny").glob("round-*")
    assert not same(Frozen.load(root / "rounded"), Frozen.load(root / "rounded-1"))


SCRATCH = "student={kind: scratch, hidden: 256, layers: 1, heads: 4, ffn: 256}"


@pytest.mark.parametrize(
    "how",
    [
        ("quantize.scales={kind: learned, lr: 0.01}", "quantize.rounding=feedback"),
        ("quantize.scales={kind: alone, lr: 0.01}", "quantize.rounding=feedback"),
        # which entry of a codebook is nearest is a question of importance too
        (FIXED, "quantize.importance={tokens: 128}", "quantize.plan=[{pattern: '*', format: iq3_s}]", SCRATCH),
    ],
    ids=["learned scales", "scales alone", "codebooks"],
)
def test_a_run_that_was_killed_goes_on_to_the_same_codes(folder, tmp_path, how):
    how = (*how, "distill.train.steps=4")
    whole = distilled(folder, tmp_path / "whole", *how)

    class Stop(Exception):
        pass

    class Killing(Progress):
        def say(self, text):
            if "after 256 tokens" in text:
                raise Stop

    loaded = recipes.load(folder / "tiny.yaml", [*ONE, *how, "distill.train.checkpoint_every=1"])
    with pytest.raises(Stop):
        run(loaded, folder, tmp_path / "cut", Killing(quiet=True), until="distill")
    assert same(whole, distilled(folder, tmp_path / "cut", *how, "distill.train.checkpoint_every=1"))


def test_an_importance_file_is_read_and_another_models_is_refused(folder, tmp_path, plain):
    import numpy as np

    from edgeslm.models import imatrix
    from edgeslm.models.arch import ARCHS

    model = tiny.llama()
    names = ARCHS["llama"].names(model.config.to_dict())
    generator = np.random.default_rng(0)
    means = {
        n: generator.gamma(0.3, size=p.shape[-1]).astype(np.float32) for n, p in model.named_parameters() if p.dim() > 1
    }
    imatrix.write(imatrix.from_means(means, 512, names, ("learn",), 32), tmp_path / "good.gguf")
    found = distilled(folder, tmp_path / "a", FIXED, f"quantize.importance={{file: {tmp_path / 'good.gguf'}}}")
    assert not same(found, plain)
    short = {n: m[:32].copy() for n, m in means.items()}
    imatrix.write(imatrix.from_means(short, 512, names, ("learn",), 32), tmp_path / "short.gguf")
    with pytest.raises(EdgeSLMError, match="belongs to another model"):
        distilled(folder, tmp_path / "b", FIXED, f"quantize.importance={{file: {tmp_path / 'short.gguf'}}}")


def test_a_recipe_can_take_what_another_run_shipped_as_its_teacher(folder, tmp_path):
    runs = tmp_path / "runs"
    with pytest.raises(RecipeError, match="run the recipe of that name first"):
        distilled(folder, runs, "name=second", "teacher.model=run:tiny")
    first = recipes.load(folder / "tiny.yaml", [*ONE, "quantize={plan: [{pattern: '*', format: f32}]}"])
    run(first, folder, runs, Progress(quiet=True), until="export")
    second = distilled(folder, runs, FIXED, "name=second", "teacher.model=run:tiny")
    assert second.metadata["base_model"] == "run:tiny"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["quantize.scales={kind: learned}", "quantize.start=0.5"], "scales that are trained"),
        (["quantize.scales={kind: alone}", "quantize.start=0.5"], "scales that are trained"),
        (["quantize.rounding=feedback", "quantize.start=0.5"], "feedback"),
        (["quantize.rounding=fisher", "quantize.start=0.5"], "fisher rounding is made before"),
        (["quantize.importance={file: none.gguf}"], "none.gguf"),
        (["quantize.importance={file: none.gguf}", "quantize.rounding=feedback", FIXED], "nothing would read it"),
        (
            ["quantize={plan: [{pattern: '*', format: f16}], scales: {kind: alone}}", "export.kinds=[gguf]"],
            "there is no scale to train",
        ),
        (["teacher.format=q4_k"], "q4_k"),
        (["teacher.format=q9"], "q9"),
    ],
)
def test_what_cannot_be_is_refused_before_any_compute(folder, tmp_path, overrides, words):
    with pytest.raises(EdgeSLMError, match=words):
        run(
            recipes.load(folder / "tiny.yaml", ["student={kind: copy}", "quantize.start=0", *overrides]),
            folder,
            tmp_path,
            Progress(quiet=True),
            until="teacher",
        )
    assert not list(tmp_path.glob("*/*/done.json"))


def test_fused_layers_train_to_nearly_the_same_weights_and_need_a_compiler(folder, tmp_path, plain, monkeypatch):
    """One compiled step beside one as written: the arithmetic is reordered, nothing else."""
    from edgeslm import compute

    if compute.compiler_missing("cpu"):
        pytest.skip("no C++ compiler")
    fused = distilled(folder, tmp_path / "fused", FIXED, "distill.train.compile=true")
    for name, tensor in fused.tensors.items():
        torch.testing.assert_close(tensor.decode(), plain.tensors[name].decode(), rtol=0, atol=0.2)
    near = [(t.codes != plain.tensors[n].codes).float().mean() for n, t in fused.tensors.items() if t.format == "q4_0"]
    assert near and max(near) < 0.01
    monkeypatch.setattr(compute, "compiler_missing", lambda device: True)
    with pytest.raises(RecipeError, match="no C\\+\\+ compiler"):
        distilled(folder, tmp_path / "none", FIXED, "distill.train.compile=true")


def test_runs_of_other_seeds_share_a_plan(folder, tmp_path):
    """Which format a tensor gets depends on student and text; seeds move training only."""
    target = "quantize={target: {bits: 5.5, formats: [q4_0, q5_0, q8_0], sensitivity_tokens: 64}}"
    text = "data.sources=[{kind: text, paths: [learn.txt]}]"
    for seed in (0, 1):
        distilled(folder, tmp_path, target, text, f"seed={seed}")
    assert len(list((tmp_path / "tiny").glob("plan-*"))) == 1
    assert len(list((tmp_path / "tiny").glob("distill-*"))) == 2
