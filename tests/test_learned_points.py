"""What students learned: entropies against closed forms, points by hand, and the command on tiny trainings."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from edgeslm import recipe as recipes
from edgeslm.errors import DataError, ModelError
from edgeslm.insight import points, words
from edgeslm.insight.entropy import CEILING, GAUSS, Descent, model_entropies, token_entropies
from edgeslm.pipeline.learned import Question, route, study, thirds
from edgeslm.pipeline.run import run
from edgeslm.progress import Progress
from edgeslm.report.learned import render, verdict

QUIET = Progress(quiet=True)
B, T, D = 3, 10, 64
X = torch.randn(B, T, D, generator=torch.Generator().manual_seed(5))
HOW = Descent()
FORGOTTEN = 4


def copies(x: torch.Tensor) -> torch.Tensor:
    return x


def forgets(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[:, :FORGOTTEN], torch.zeros_like(x[:, :1]), x[:, FORGOTTEN + 1 :]], 1)


def turned_up(gains: torch.Tensor) -> Any:
    return lambda x: gains[:, None] * x


# laws: each takes what measures, so that broken copies can be held to them


def law_a_map_that_copies_has_the_closed_form(measure):
    """sigma^2 = tolerance * var f for every token."""
    found = measure(copies, X, 1.0, HOW)
    variance = (X - X.mean(1, keepdim=True)).square().mean((1, 2))
    expected = 0.5 * torch.log(HOW.tolerance * variance) + GAUSS
    assert found.shape == (B, T)
    assert (found - expected[:, None]).abs().max() < 0.1


def law_gains_have_the_closed_form(measure):
    """sigma_i^2 = tolerance * var f / gain_i^2: what a map makes much of, it keeps."""
    gains = torch.linspace(0.3, 3.0, T)
    f = turned_up(gains)
    y = f(X)
    variance = (y - y.mean(1, keepdim=True)).square().mean((1, 2))
    expected = 0.5 * torch.log(HOW.tolerance * variance[:, None] / gains.square()) + GAUSS
    assert (measure(f, X, 1.0, HOW) - expected).abs().max() < 0.15


def law_a_forgotten_token_has_the_largest_sigma(measure):
    found = measure(forgets, X, 1.0, HOW)
    assert (found[:, FORGOTTEN] > CEILING + GAUSS - 0.3).all()
    others = torch.cat([found[:, :FORGOTTEN], found[:, FORGOTTEN + 1 :]], 1)
    assert others.max() < CEILING + GAUSS - 2


def law_scales_do_not_matter(measure):
    """Neither that of the embeddings, taken with `scale`, nor that of the states."""
    base = measure(copies, X, 1.0, HOW)
    assert torch.allclose(measure(copies, 8 * X, 8.0, HOW), base, atol=1e-3)
    assert torch.allclose(measure(lambda x: 0.125 * x, X, 1.0, HOW), base, atol=1e-3)


def law_more_tolerance_more_entropy(measure):
    tight, loose = (measure(copies, X, 1.0, replace(HOW, tolerance=t)) for t in (0.01, 0.1))
    assert ((loose - tight) - 0.5 * math.log(10)).abs().max() < 0.1


def law_seeds(measure):
    one, same, other = (measure(copies, X, 1.0, replace(HOW, seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)


LAWS = [value for name, value in list(globals().items()) if name.startswith("law_")]


@pytest.mark.parametrize("law", LAWS)
def test_entropies(law):
    assert len(LAWS) == 6
    law(token_entropies)


def _without_descent(f, x, scale, how):
    return token_entropies(f, x, scale, replace(how, lr=0.0))


def _one_sigma_for_all(f, x, scale, how):
    found = token_entropies(f, x, scale, how)
    return found.mean(1, keepdim=True).expand_as(found)


def _sign_lost(f, x, scale, how):
    return 2 * GAUSS - token_entropies(f, x, scale, how)


def _not_by_variance(f, x, scale, how):
    return token_entropies(lambda moved: torch.tanh(0.3 * f(moved)), x, scale, how)


def _own_noise(f, x, scale, how):
    return token_entropies(f, x, scale, replace(how, seed=int(torch.randint(1 << 30, (1,)))))


def _absolute(f, x, scale, how):
    return token_entropies(f, x, 1.0, how)


@pytest.mark.parametrize(
    ("law", "broken"),
    [
        (law_gains_have_the_closed_form, _without_descent),
        (law_gains_have_the_closed_form, _one_sigma_for_all),
        (law_a_forgotten_token_has_the_largest_sigma, _one_sigma_for_all),
        (law_a_forgotten_token_has_the_largest_sigma, _sign_lost),
        (law_more_tolerance_more_entropy, _sign_lost),
        (law_scales_do_not_matter, _not_by_variance),
        (law_scales_do_not_matter, _absolute),
        (law_seeds, _own_noise),
    ],
)
def test_laws_catch_broken_copies(law, broken):
    with pytest.raises(AssertionError):
        law(broken)


def test_a_model_whose_layers_do_nothing_has_the_closed_form_at_any_layer():
    """Its states are its embeddings: noise counts where it leaves the direction of a token, D - 1 of D values."""
    model = tiny.llama().requires_grad_(False)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    ids = torch.randint(3, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    x = model.get_input_embeddings()(ids)
    scale = (x - x.mean((0, 1))).square().mean().sqrt()
    size = x.square().mean(-1).sqrt()
    unit = x / size[..., None]
    variance = (unit - unit.mean(1, keepdim=True)).square().mean((1, 2))
    width = x.shape[-1]
    sigma2 = HOW.tolerance * variance[:, None] * size.square() * width / (width - 1)
    expected = 0.5 * torch.log(sigma2) - scale.log() + GAUSS
    for layer in (0, 4):
        found = model_entropies(model, ids, layer, HOW)
        assert (found - expected)[:, 1:].abs().max() < 0.15


def test_a_model_is_left_as_it_was_and_measured_the_same_again():
    model = tiny.llama().requires_grad_(False)
    ids = torch.randint(3, 200, (1, 12), generator=torch.Generator().manual_seed(0))
    ticks: list[int] = []
    found = model_entropies(model, ids, 4, HOW, lambda: ticks.append(1))
    assert len(ticks) == HOW.steps
    assert torch.equal(found, model_entropies(model, ids, 4, HOW))
    assert torch.isfinite(found).all() and all(p.grad is None for p in model.parameters())


# words


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


def test_frequent_words_and_signs_are_background(tokenizer):
    text = "the whale and the ship and the sea. the end, and a lighthouse"
    ids = [1, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    spelt = words.spelling(ids, tokenizer)
    background = words.frequent([ids], spelt)
    assert background == {"the", "and"}  # 7 of 12 running words; one of them alone would be 4
    found = words.words(ids, spelt)
    assert list(dict.fromkeys(w for w in found if w)) == [
        "the",
        "whale",
        "and",
        "ship",
        "sea",
        "end",
        "a",
        "lighthouse",
    ]
    told = words.content(ids, spelt, background)
    kept = {w for w, c in zip(found, told, strict=True) if c}
    assert kept == {"whale", "ship", "sea", "end", "a", "lighthouse"}
    assert found[0] is None and not told[0]  # the begin token
    assert "".join(words.read(ids[1:], tokenizer)) == text


def test_chinese_signs_are_words_by_themselves():
    class Signs:
        all_special_ids = ()

        def batch_decode(self, lists):
            return [chr(i) for (i,) in lists]

        def convert_ids_to_tokens(self, ids):
            return [chr(i) for i in ids]

    ids = [ord(c) for c in "的船的海,的"]
    spelt = words.spelling(ids, Signs())
    assert words.words(ids, spelt) == ["的", "船", "的", "海", None, "的"]
    assert words.frequent([ids], spelt) == {"的"}


# points

CONTENT = np.array([[False, True, True, False, True]])
COUNTED = np.array([[False, True, True, True, True]])
#   tokens:   no   A    B    bg   C      the background's mean is 1.0, the margin 0.2
ROUTE = np.array([
    [[[9.0, 0.5, 1.0, 1.0, 1.0]]],  # A
    [[[9.0, 1.0, 0.5, 1.0, 0.9]]],  # B (C lies within the margin)
    [[[9.0, 0.5, 0.5, 1.0, 0.5]]],  # A, B, C
    [[[0.0, 0.5, 0.9, 1.0, 0.5]]],  # A, C: B is lost; what does not count is none
])  # fmt: skip
WAY = np.array([0.0, 0.1, 0.3, 0.4])


def test_points_by_hand():
    held = points.held(ROUTE, CONTENT, COUNTED, 0.2)
    assert held[:, 0, 0].sum(-1).tolist() == [1, 1, 3, 2]
    found = points.figures(held, CONTENT, WAY)
    assert (found["points"], found["content"], found["content_share"], found["at_start"]) == (2, 2, 1.0, 1)
    assert found["learned"] == 2  # B at 0.1, C at 0.3; A was there
    assert found["d_mean"] == pytest.approx(0.2) and found["d_std"] == pytest.approx(0.1)
    assert found["d_std_of_way"] == pytest.approx(0.25)
    assert (found["peak_mean"], found["peak_std"]) == (0.3, 0.0)
    assert found["rho"] == pytest.approx(2 / 3)
    assert points.counts(held, CONTENT)["content"].tolist() == [[1], [1], [3], [2]]
    assert points.counts(held, CONTENT)["background"].tolist() == [[0], [0], [0], [0]]
    assert points.again(held[-1], held[1], CONTENT) == 0.0 and points.again(held[-1], held[2], CONTENT) == 1.0
    assert points.walked(np.array([3.0, 4.0]), 10.0).tolist() == pytest.approx([0.0, 0.3, 0.7])


def test_a_larger_margin_holds_fewer_and_a_straight_path_has_rho_one():
    noise = np.random.default_rng(0).normal(size=(4, 2, 3, 40))
    content, counted = np.arange(40) % 2 == 0, np.ones((3, 40), dtype=bool)
    content = np.broadcast_to(content, (3, 40))
    sizes = [points.held(noise, content, counted, margin).sum() for margin in (0.0, 0.3, 1.0, 9.0)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[2] > sizes[3] == 0
    growing = np.cumsum(points.held(noise, content, counted, 1.0), 0) > 0
    assert points.figures(growing, content, WAY)["rho"] == 1.0
    assert points.figures(growing[::-1], content, WAY)["rho"] < 1.0
    nothing = points.figures(np.zeros_like(growing), content, WAY)
    assert nothing["rho"] is None and nothing["d_mean"] is None and nothing["content_share"] is None


def test_differences_are_taken_window_by_window():
    held = np.zeros((4, 1, 3, 5), dtype=bool)
    held[-1, 0, :, :3] = True
    content = np.ones((3, 5), dtype=bool)
    more = held.copy()
    more[-1, 0, :2, 3] = True  # one more in two of three windows
    mean, error = points.difference(more, held, content, (WAY, WAY), "content")
    assert mean == pytest.approx(2 / 3) and error == pytest.approx(1 / 3)
    assert all(map(math.isnan, points.difference(held[:, :, :1], held[:, :, :1], content[:1], (WAY, WAY), "content")))


@pytest.mark.parametrize(
    ("figure", "difference", "error", "words"),
    [
        ("rho", 0.3, 0.1, "as the paper"),
        ("rho", -0.3, 0.1, "against the paper"),
        ("rho", 0.1, 0.1, "undecided"),
        ("d_std", -0.3, 0.1, "as the paper"),
        ("d_std", 0.3, 0.1, "against the paper"),
        ("d_std", None, None, "not measured"),
        ("d_std", math.nan, math.nan, "not measured"),
    ],
)
def test_verdicts(figure, difference, error, words):
    assert verdict({"figure": figure, "difference": difference, "standard_error": error}) == words


# the command, on tiny trainings

LOOK = "A grey whale and the old ship met at dawn; the whale sang and nobody on the ship slept until noon. " * 3
WIDTH = "student={kind: width, hidden: 32, ffn: 64, kv_heads: 4, layers: 3, importance_tokens: 256}"
QUICK = ("distill.train.keep=2", "data.sources=[{kind: text, paths: [learn.txt]}]")
TEXT_ALONE = "distill.objective=[{loss: cross_entropy}]"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Two trainings: `tiny` pruned in depth, on its grid, by its teacher; `text` pruned in width, by text alone. And
    copies of the first: `none` kept no points, `three` kept one more."""
    folder = tmp_path_factory.mktemp("learned")
    path = tiny.recipe(folder)
    (folder / "look.txt").write_text(LOOK, encoding="utf-8")
    runs = folder / "runs"
    for overrides in ((), ("name=text", WIDTH, TEXT_ALONE)):
        run(recipes.load(path, (*QUICK, *overrides)), folder, runs, QUIET, until="distill")
    for name in ("none", "three"):
        shutil.copytree(runs / "tiny", runs / name)
        recipe = runs / name / "recipe.yaml"
        recipe.write_text(recipe.read_text(encoding="utf-8").replace("name: tiny", f"name: {name}"), encoding="utf-8")
    shutil.rmtree(next((runs / "none").glob("distill-*")) / "route")
    route = next((runs / "three").glob("distill-*")) / "route"
    shutil.copytree(route / "2", route / "3")
    return folder


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def asked(folder: Path, **changes: Any) -> Question:
    quick = Descent(steps=6)
    return replace(Question((folder / "look.txt",), length=24, windows=4, descent=quick), **changes)


@pytest.fixture(scope="module")
def document(trained) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        return study([trained / "runs" / name for name in ("tiny", "text")], asked(trained), QUIET)


def test_the_document_of_two_trainings(document):
    one, other = document["runs"]
    assert [r["name"] for r in (one, other)] == ["tiny", "text"]
    assert (one["taught"], other["taught"]) == (True, False) and other["objective"] == ["cross_entropy"]
    for r in (one, other):
        assert [p["label"] for p in r["points"]] == ["start", "1", "2", "end"]
        assert [p["step"] for p in r["points"]] == [0, 3, 5, 8]
        way = [p["walked"] for p in r["points"]]
        assert way[0] == 0 and way == sorted(way) and way[1] > 0
        assert r["layers"] == [1, 2, 3] and r["depth"] == 3
        shape = np.array(r["entropies"]).shape
        assert shape == (4, 3, document["asked"]["windows"], 24) and np.isfinite(r["entropies"]).all()
        assert 0 < r["figures"]["again"] <= 1
        assert sum(r["counts"]["content"][-1]) == r["figures"]["content"]
    assert not any(row[0] for row in document["text"]["counted"])
    assert "".join(document["text"]["tokens"][0][1:]) in LOOK
    names = [c["figure"] for c in document["claims"]]
    assert names == ["content", "content_share", "d_mean", "d_std", "d_std_of_way", "rho"]


def test_a_second_study_gives_the_same(trained, document, monkeypatch):
    monkeypatch.chdir(trained)
    again = study([trained / "runs" / name for name in ("tiny", "text")], asked(trained), QUIET)
    assert json.dumps(again) == json.dumps(document)


def test_the_end_is_what_was_frozen_and_the_start_what_was_built(trained, monkeypatch):
    from edgeslm.quantize.frozen import Frozen

    monkeypatch.chdir(trained)
    for name in ("tiny", "text"):
        root = trained / "runs" / name
        made = route(root, QUIET)
        frozen = Frozen.load(next(root.glob("distill-*")) / "frozen")
        start, *_, end = (dict(p.load().named_parameters()) for p in made.points)
        assert set(start) == set(end) == set(frozen.tensors)
        assert all(torch.equal(end[n], t.decode()) for n, t in frozen.tensors.items())
        assert any(not torch.equal(start[n], end[n]) for n in start)
    built = next((trained / "runs" / "text").glob("student-*")) / "model"
    kept = dict(tiny.LlamaForCausalLM.from_pretrained(built, dtype=torch.float32).named_parameters())
    assert all(torch.equal(start[n], kept[n]) for n in start)


def test_the_page_is_a_function_of_the_document(document, tmp_path):
    strange = json.loads(json.dumps(document))
    strange["runs"][0]["name"] = "<b>tiny</b>"
    strange["runs"][1]["figures"] |= {"d_mean": None, "rho": None}
    first, second = (render(strange, tmp_path / name) for name in ("a", "b"))
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    page = first[0].read_text(encoding="utf-8")
    assert "<b>tiny" not in page and page.count("<svg class") == 3 and "not measured" in page
    assert not re.search(r"\bnan\b", page)
    for heading in (
        "Beside the paper",
        "Noise a token bears, by layer",
        "Knowledge points along the way",
        "The way there",
    ):
        assert heading in page


def test_one_run_has_nothing_to_be_set_beside(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained)
    alone = study([trained / "runs" / "text"], asked(trained, layers=(2,)), QUIET)
    assert alone["claims"] == [] and alone["runs"][0]["layers"] == [2]
    assert "Beside the paper" not in render(alone, tmp_path)[0].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("runs", "changes", "words"),
    [
        (["none"], {}, "none: its training kept no points .* distill.train.keep=4"),
        (["missing"], {}, "missing: is no run folder"),
        (["tiny", "tiny"], {}, "two of the runs are named tiny"),
        (["tiny", "three"], {}, "tiny and three kept 2 and 3 points"),
        (["tiny"], {"layers": (2, 9)}, "--layers 9: tiny has layers 1 to 3"),
        (["tiny"], {"length": 5000}, "less than one window of 5000"),
        (["tiny"] * 7, {}, "7 runs are too many"),
    ],
)
def test_refusals_come_before_any_compute(trained, monkeypatch, runs, changes, words):
    monkeypatch.chdir(trained)
    monkeypatch.setattr("edgeslm.insight.entropy.model_entropies", lambda *_: pytest.fail("computed"))
    with pytest.raises((ModelError, DataError), match=words):
        study([trained / "runs" / name for name in runs], asked(trained, **changes), QUIET)


def test_text_without_content_is_refused(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained)
    (tmp_path / "dots.txt").write_text(". , ; : ! ? " * 40, encoding="utf-8")
    with pytest.raises(DataError, match="content words and background"):
        study([trained / "runs" / "tiny"], asked(trained, files=(tmp_path / "dots.txt",)), QUIET)


def test_a_start_without_its_teacher_is_refused(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the recipe names its teacher relative to its own folder
    with pytest.raises(ModelError, match="in the folder of its recipe"):
        study([trained / "runs" / "tiny"], asked(trained), QUIET)
    (tmp_path / "teacher").mkdir()
    tiny.llama(seed=1).save_pretrained(tmp_path / "teacher")
    tiny.tokenizer().save_pretrained(tmp_path / "teacher")
    with pytest.raises(ModelError, match="has changed since"):
        study([trained / "runs" / "tiny"], asked(trained), QUIET)


def test_thirds():
    assert [thirds(n) for n in (1, 2, 3, 6, 7)] == [(1,), (1, 2), (1, 2, 3), (2, 4, 6), (3, 5, 7)]


def test_the_command(trained, tmp_path):
    options = ["--text", "look.txt", "--length", "24", "--windows", "2", "--layers", "3", "--threads", "1"]
    command = [sys.executable, "-m", "edgeslm", "learned", "runs/tiny", "runs/text", *options, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=trained)
    assert done.returncode == 0, done.stderr
    assert "learned: " in done.stderr and "steps/s" in done.stderr
    assert re.search(r"^tiny +\d+ +\d+ ", done.stdout, re.M) and "text, layer 3 of 3" in done.stdout
    assert {p.name for p in tmp_path.iterdir()} == {"learned.html", "learned.md", "learned.json"}
    assert json.loads((tmp_path / "learned.json").read_text(encoding="utf-8"))["asked"]["steps"] == HOW.steps
    refused = subprocess.run([*command[:4], "runs/none"], capture_output=True, text=True, check=False, cwd=trained)
    assert refused.returncode == 2 and "distill.train.keep" in refused.stderr
