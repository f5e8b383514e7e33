"""Recipes: all of recipes/ load, and every kind of mistake is one sentence that names the key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from edgeslm import recipe as recipes
from edgeslm.errors import RecipeError

FOLDER = Path(__file__).parent.parent / "recipes"
ALL = sorted(FOLDER.glob("*.yaml"))


def test_there_are_recipes():
    assert "quickstart.yaml" in [p.name for p in ALL]


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.name)
def test_every_recipe_loads_and_starts_with_a_comment(path):
    loaded = recipes.load(path)
    assert loaded.name == path.stem
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert yaml.safe_load(loaded.to_yaml())["name"] == loaded.name


def write(tmp_path, change) -> Path:
    data = yaml.safe_load((FOLDER / "quickstart.yaml").read_text(encoding="utf-8"))
    change(data)
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["distill"]["train"].update(stepz=3), ["distill.train.stepz", "did you mean 'steps'"]),
        (lambda d: d.update(quantise={}), ["unknown key 'quantise'", "did you mean 'quantize'"]),
        (lambda d: d["data"]["sources"][0].update(pathz=1), ["pathz", "did you mean 'paths'"]),
        (lambda d: d["student"].update(kind="deep"), ["student", "deep"]),
        (lambda d: d["student"].pop("layers"), ["student.layers", "required"]),
        (lambda d: d["distill"]["train"].update(lr="fast"), ["distill.train.lr", "fast"]),
        (lambda d: d["distill"]["train"].update(lr=-1), ["distill.train.lr", "greater than 0"]),
        (lambda d: d["distill"]["train"].update(batch_tokens=1000), ["batch_tokens (1000)", "data.sequence (256)"]),
        (lambda d: d.update(name="../up"), ["name"]),
    ],
)
def test_mistakes_are_named(tmp_path, change, words):
    with pytest.raises(RecipeError) as error:
        recipes.load(write(tmp_path, change))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_all_mistakes_are_told_at_once(tmp_path):
    def change(data):
        data["distill"]["train"]["stepz"] = 3
        data["student"]["layers"] = 0

    with pytest.raises(RecipeError) as error:
        recipes.load(write(tmp_path, change))
    assert len(error.value.problems) == 2


@pytest.mark.parametrize("text", ["", "- 1\n- 2", "a: [", "\tx"])
def test_what_is_no_recipe_is_refused(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError):
        recipes.load(path)


def test_a_missing_recipe_is_one_sentence(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe"):
        recipes.load(tmp_path / "none.yaml")


def test_overrides_reach_any_depth():
    path = FOLDER / "quickstart.yaml"
    loaded = recipes.load(path, ["distill.train.steps=7", "data.sources.0.share=2.5", "benchmark=null", "seed=3"])
    assert (loaded.distill.train.steps, loaded.data.sources[0].share, loaded.benchmark, loaded.seed) == (
        7,
        2.5,
        None,
        3,
    )
    assert loaded.tokens == 7 * 2048
    assert loaded.hash != recipes.load(path).hash


@pytest.mark.parametrize(
    "override",
    ["steps", "=3", "distill.train.stepz=1", "data.sources.9.share=1", "name.x=1", "seed=[", "evaluate.context=511"],
)
def test_wrong_overrides_are_refused(override):
    with pytest.raises(RecipeError):
        recipes.load(FOLDER / "quickstart.yaml", [override])


def test_recipes_are_frozen():
    with pytest.raises(ValueError):
        recipes.load(FOLDER / "quickstart.yaml").seed = 1


def test_patterns_that_match_nothing_are_told(tmp_path):
    with pytest.raises(RecipeError, match=r"no file matches 'package:text/none/\*'"):
        recipes.expand(["package:text/none/*"], tmp_path)


def test_shipped_text_is_split_by_author_and_about_1300_kB():
    learned = recipes.expand(["package:text/learn/*.txt", "package:text/more/*.txt"], FOLDER)
    learn = {p.name.split("-")[0] for p in learned}
    judge = {p.name.split("-")[0] for p in recipes.expand(["package:text/judge/*.txt"], FOLDER)}
    assert learn and judge and not learn & judge
    assert 1_200_000 < sum(p.stat().st_size for p in recipes.expand(["package:text/*/*.txt"], FOLDER)) < 1_400_000


def test_a_start_that_leaves_no_step_on_the_grid_is_refused(tmp_path):
    import tiny

    folder = tiny.recipe(tmp_path)
    for start, steps in ((0.99, 8), (0.95, 8)):
        with pytest.raises(RecipeError, match=r"quantize.start \(0.9\d\) leaves none of the 8 steps on the grid"):
            recipes.load(folder, [f"quantize.start={start}", f"distill.train.steps={steps}"])
    for start, steps in ((1.0, 8), (0.9, 8), (0.99, 0), (0.0, 8)):
        recipes.load(folder, [f"quantize.start={start}", f"distill.train.steps={steps}"])
