"""Tasks of a recipe: refused before any compute, asked of the shipped files, shown in the run's report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

pytest.importorskip("lm_eval", reason="tasks need lm-eval: pip install 'edgeslm[eval]'")
import test_harness as harness

from edgeslm import recipe as recipes
from edgeslm.errors import RecipeError
from edgeslm.pipeline.check import check
from edgeslm.pipeline.run import run
from edgeslm.pipeline.stage import Context
from edgeslm.progress import Progress

QUIET = Progress(quiet=True)


def with_tasks(folder: Path, teachers: str = "[gguf-f32]") -> Path:
    """A tiny recipe with 36 items of one task and 4 of another."""
    path = tiny.recipe(folder, teachers=teachers)
    harness.write(folder / "data", {"arc_easy": harness.ROWS["arc_easy"] * 12, "piqa": harness.ROWS["piqa"] * 2})
    text = path.read_text("utf-8").replace(
        "answer_tokens: 4}", "answer_tokens: 4, tasks: [arc_easy, piqa], data: data}"
    )
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    found = check(Context(recipes.load(path, overrides), path.parent, path.parent / "runs" / "tiny", QUIET))
    return found.problems


def test_a_run_tells_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = with_tasks(tmp_path)
    root = run(recipes.load(path, ["benchmark=null"]), tmp_path, tmp_path / "runs", QUIET)
    record = json.loads((root / "run.json").read_text("utf-8"))
    assert record["problems"] == []
    found = json.loads((root / record["stages"]["evaluate"] / "tasks.json").read_text("utf-8"))
    rows = found["retention"]["student.gguf"]["tasks"]
    assert [(r["task"], r["items"]) for r in rows] == [("arc_easy", 36), ("piqa", 4)]
    assert rows[1]["why"] == "fewer than 30 items"
    report = (root / "report.md").read_text("utf-8")
    assert "## Retention" in report and "arc\\_easy" in report and "fewer than 30 items" in report
    assert json.loads((root / "results.json").read_text("utf-8"))["tasks"]["retention"]


def test_what_is_wrong_with_tasks_is_refused_before_compute(tmp_path: Path) -> None:
    path = with_tasks(tmp_path)
    assert problems(path) == []
    assert "lm-eval has no such task; did you mean 'arc_easy'" in problems(path, "evaluate.tasks=[arc_eazy]")[0]
    unused = problems(path, "evaluate.limit=4", "evaluate.tasks=[]", "evaluate.data=null")
    assert len(unused) == 1 and "how many items of each task are asked, and tasks names none" in unused[0]
    assert "no such folder" in problems(path, "evaluate.data=nowhere")[0]
    assert "add tasks or leave it out" in problems(path, "evaluate.tasks=[]")[0]
    assert "retention needs the teacher's file too" in problems(path, "export.teacher=[]")[0]
    (tmp_path / "data" / "piqa.jsonl").write_text('{"query": "Q"}\n')
    with pytest.raises(RecipeError, match="item 1: has no 'choices'"):
        run(recipes.load(path), tmp_path, tmp_path / "runs", QUIET)
    assert not list((tmp_path / "runs").glob("tiny/*-*"))
