"""What `check` says of memory against what trainings take: a small one here, real models behind the marker."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import hub_layout
import pytest
import tiny

from benchmarks import memory_pair, memory_plan

MODELS = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edgeslm" / "dev-models"
TOKENIZER = Path(__file__).parents[2] / "shared" / "data" / "stories15m" / "tokenizer.model"
MIDDLE = (
    "student={kind: scratch, hidden: 384, layers: 6, heads: 6, kv_heads: 3, ffn: 1024}",
    "quantize={plan: [{pattern: '*', format: f32}]}",
    "data.sources=[{kind: text, paths: [long.txt]}]",
    "data.sequence=128",
    "distill.objective=[{loss: cross_entropy}]",
    "distill.train.steps=2",
    "distill.train.batch_tokens=2048",
    "threads=1",
)


pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")


def measured(folder: Path, *changes: str, stages: tuple[str, ...] = ("student", "distill")) -> dict[str, float]:
    recipe = tiny.recipe(folder)
    (folder / "long.txt").write_text("The old fox jumps over the lazy dog, and nobody saw. " * 2000, encoding="utf-8")
    return memory_plan.one(recipe, [*MIDDLE, *changes], folder / "runs", stages)


def test_a_training_takes_what_the_estimate_says(tmp_path: Path) -> None:
    row = measured(tmp_path, "distill.train.micro_rows=16")
    assert row["measured_bytes"] > 3e8 and abs(memory_plan.error(row)) < memory_plan.BOUND


def test_stages_before_training_are_measured_from_the_student_on(tmp_path: Path) -> None:
    how = ("student={kind: copy}", "quantize={target: {bits: 5.0}}", "distill.objective=[{loss: forward_kl}]")
    row = measured(tmp_path, *how, *memory_plan.PREPARED, stages=("round",))
    assert set(row["estimate"]) == {"equalise", "plan", "round"}
    assert row["estimated_bytes"] == max(row["estimate"].values()) and row["measured_bytes"] > 0


def test_every_row_is_a_recipe_that_loads() -> None:
    from edgeslm import recipe as recipes

    given = argparse.Namespace(stories="stories15M.bin", tokenizer="tokenizer.model", threads=1)
    for name in memory_plan.ROWS:
        assert recipes.load(*memory_plan.said(name, given)).distill.train.steps == memory_plan.STEPS


def test_show_tells_the_largest_error(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"dtype": "float32", "estimated_bytes": 9e8, "measured_bytes": 1e9}
    told = memory_plan.show([{"rows": {"a": row, "b": row | {"estimated_bytes": 1.2e9}}}])
    assert told["largest_error"] == pytest.approx(0.2) and not told["within_bound"]
    assert "900 MB estimated" in capsys.readouterr().out and told["estimate_over_measured"]["a"] == pytest.approx(0.9)


def test_a_row_measured_again_takes_the_place_of_the_first() -> None:
    row = {"dtype": "float32", "estimated_bytes": 9e8, "measured_bytes": 1e9}
    again = {"rows": {"a": row | {"measured_bytes": 9e8}}}
    elsewhere = {
        "rows": {"a": row | {"device": "cuda"}, memory_plan.PAIR: row | {"device": "cuda"}},
        "card_bytes": 24e9,
    }
    rows = memory_plan.latest([{"rows": {"a": row, "b": row}}, again, elsewhere])
    assert [round(memory_plan.error(r), 3) for r in rows.values()] == [0.0, -0.1, -0.1, -0.1]
    assert list(rows)[2:] == ["a, on a GPU held to 24 GB", f"{memory_plan.PAIR_SAID}, on a GPU held to 24 GB"]
    assert "held to 24 GB" in memory_plan.table(rows)


@pytest.mark.parametrize(
    ("asked", "told"),
    [({"card": 10**9}, "sees none"), ({"rows": ["pair"]}, "sees none"), ({"tokenizer_folder": Path("x")}, "give both")],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_made(
    asked: dict[str, object], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    given = {"rows": ["stories15m-6m"], "card": None, "tokenizer_folder": None} | asked
    with pytest.raises(SystemExit, match=told):
        memory_plan.run(argparse.Namespace(**given))


def test_the_pair_has_the_shapes_of_the_models_it_stands_for() -> None:
    published = {"7b": "Qwen/Qwen2.5-7B-Instruct", "1.5b": "Qwen/Qwen2.5-1.5B-Instruct"}
    for name, repo in published.items():
        shape = memory_pair.SHAPES[name]
        assert {key: hub_layout.PUBLISHED[repo][key] for key in shape} == shape


@pytest.mark.proof
@pytest.mark.parametrize("changes", [("distill.train.micro_rows=2",), ("distill.train.recompute=true",)], ids=str)
def test_so_does_one_in_other_ways(changes: tuple[str, ...], tmp_path: Path) -> None:
    """Gradients decide it; layers run again."""
    assert abs(memory_plan.error(measured(tmp_path, *changes))) < memory_plan.BOUND


@pytest.mark.proof
@pytest.mark.parametrize("name", memory_plan.ROWS)
def test_real_models_take_what_the_estimate_says(name: str, tmp_path: Path) -> None:
    stories = MODELS / "stories15M.bin"
    if name.startswith("stories15m") and not (stories.is_file() and TOKENIZER.is_file()):
        pytest.skip("stories15M.bin or its tokenizer is not on this machine")
    given = argparse.Namespace(stories=stories, tokenizer=TOKENIZER, threads=1)
    assert abs(memory_plan.error(memory_plan.one(*memory_plan.said(name, given), tmp_path))) < memory_plan.BOUND
