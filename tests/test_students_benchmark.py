"""The students benchmark: what its table makes of records, and that a token curve runs from teacher to figures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import tiny

from benchmarks import record, students, students_curve, students_picture, students_rows, students_table
from edgeslm.recipe import Recipe


def test_tokens_to_a_loss_lie_between_two_budgets() -> None:
    points = [(100, 4.0), (1000, 3.0), (10000, 2.9)]
    assert students_table.tokens_to(points, 4.5) == 100
    assert students_table.tokens_to(points, 3.5) == pytest.approx(10**2.5)
    assert students_table.tokens_to(points, 2.8) is None and students_table.tokens_to([], 1.0) is None


def training(arm: str, tokens: int, loss: float, seed: int = 0, purpose: str = "figure") -> dict:
    return {
        "kind": "training", "run": "a", "arm": arm, "tokens": tokens, "loss": loss, "kl": loss - 2, "seed": seed,
        "lr": 1e-3, "parameters": 6, "before": {"kl": 5.0, "loss": 7.0}, "purpose": purpose,
    }  # fmt: skip


def test_headline_of_a_token_curve() -> None:
    records = [{"kind": "plan", "run": "a"}, training("scratch", 1000, 9.0, purpose="tune")]
    assert students_table.headline(records) == {}
    records += [training("scratch", 100_000, 3.0), training("pruned", 5000, 2.9), training("pruned", 1000, 3.1)]
    records += [training(f"cut:{n}", 500, v + s / 100, s) for n, v in (("loss", 3), ("even", 4)) for s in range(3)]
    found = students_table.headline(records)
    assert found["token_saving"] == pytest.approx(100_000 / (1000 * 5**0.5)) and not found["token_saving_is_bound"]
    told = found["importance_over_even"]["curve"]
    assert told["choice"] == "loss" and told["after"] == pytest.approx(1.01 / 2.01)
    assert told["spread"] == pytest.approx(0.02 / 2.01)


def test_headline_of_fewer_tokens() -> None:
    told = {
        "kept": 40, "of": 100, "whole_teacher": {"bits_per_byte": 2.0, "tokens_per_byte": 0.2},
        "student": {"bits_per_byte": 2.1, "tokens_per_byte": 0.22},
    }  # fmt: skip
    row = {"kind": "row", "base": "smollm2", "row": "vocabulary", "tokens": 0, "vocabulary": told, "bits": None}
    found = students_table.vocabulary([row])
    assert found["vocabulary_removed"] == 0.6 and found["vocabulary_bits_per_byte_ratio"] == pytest.approx(1.05)
    trained = row | {"tokens": 9, "bits": {"bits_per_byte": 1.98, "tokens_per_byte": 0.22}}
    assert students_table.vocabulary([row, trained])["vocabulary_bits_per_byte_ratio"] == pytest.approx(0.99)
    assert students_table.more(1.05) == "5.0% more" and students_table.more(0.99) == "1.0% fewer"


@pytest.mark.parametrize("base", list(students_rows.BASES))
@pytest.mark.parametrize("row", students_rows.NAMES)
def test_every_row_is_a_recipe(base: str, row: str) -> None:
    assert Recipe.model_validate(students_rows.recipe(base, row, 4, 1, "teacher", None, None)).tokens == 4 * 2048


def test_a_token_curve_from_teacher_to_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    tiny.llama(3).save_pretrained(tmp_path / "teacher")
    parser = argparse.ArgumentParser()
    students.options(parser)
    given = ["--curve", "--teacher", str(tmp_path / "teacher"), "--tiny", "--tokens", "2048", "--length", "16"]
    given += ["--windows", "4", "--batch", "128", "--small-batch", "64", "--workers", "1", "--lrs", "0.001", "0.01"]
    given += ["--shape", json.dumps({"layers": 2, "choose": "greedy"}), "--budget-s", "300"]
    end = students_curve.run(parser.parse_args(given))
    records = record.read("students")
    figures = [r for r in records if r["kind"] == "training" and r["purpose"] == "figure"]
    assert end["trainings"] == 4 + len(figures) and {r["arm"] for r in figures} == {"scratch", "pruned", "pruned_text"}
    assert all(r["tokens"] >= 512 and r["curve"] and r["held_out"] and "failed" not in r for r in figures)
    (scratch,) = [r for r in figures if r["arm"] == "scratch"]
    assert scratch["tokens"] == 2048 and scratch["loss"] < scratch["before"]["loss"]
    assert set(students_table.headline(records)) >= {"token_saving", "pruned"}
    drawn = students_picture.draw(records)
    assert drawn.count("<circle") == sum(map(len, students_picture.curves(records).values())) + 3  # and the legend
    assert students_picture.draw([]) == ""


def test_choices_and_the_saving_may_be_of_two_runs() -> None:
    """The last run that tells of it counts, for each; a student from scratch among choices is no token curve."""
    plan = {"kind": "plan", "shape": {"layers": 4}, "lrs": [0.1], "judged_tokens": 8}
    of = {"kind": "training", "purpose": "figure", "parameters": 10, "before": {"kl": 3.0}}

    def row(run: str, arm: str, tokens: int, loss: float, seed: int = 0) -> dict[str, object]:
        return {**of, "run": run, "arm": arm, "tokens": tokens, "loss": loss, "kl": loss - 1, "lr": 0.1, "seed": seed}

    first = [row("a", "cut:influence", 5, 1.5), row("a", "cut:even", 5, 1.6)]
    second = [row("b", "scratch", 400, 1.4), row("b", "pruned", 10, 1.5), row("b", "pruned", 40, 1.3)]
    records = [{**plan, "run": "a"}, *first, {**plan, "run": "b"}, *second]
    found = students_table.headline(records)
    assert found["token_saving"] == pytest.approx(20)
    assert found["importance_over_even"]["curve"]["after"] == pytest.approx(0.5 / 0.6)
    said = students_table.saved(records).splitlines()
    assert len(said) == 1 and "20 times fewer" in said[0] and "4 layers" in said[0] and "the least tried" in said[0]
    assert "cut:" not in "".join(students_table.curve_table(records))
