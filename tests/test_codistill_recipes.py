"""Codistillation by predictions as recipes name it: whole runs on tiny models, a server started from the command line,
and what is refused before them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from edgeslm import recipe as recipes
from edgeslm.cli import eval as cli_eval
from edgeslm.errors import DataError, RecipeError
from edgeslm.pipeline.check import check
from edgeslm.pipeline.groups import SERVERS, VARIABLE, common_hash, served, servers
from edgeslm.pipeline.run import run
from edgeslm.pipeline.stage import Context
from edgeslm.progress import Progress

RECIPE = """
threads: 1
teacher: {model: teacher}
data: {sequence: 32, sources: [{kind: text, paths: [learn.txt]}]}
student: {kind: depth, layers: 3, importance_tokens: 64}
quantize: {start: 0.5}
distill:
  objective: [{loss: cross_entropy}]
  train: {steps: 6, batch_tokens: 128, micro_rows: 2, lr: 0.002, checkpoint_every: 2, precision: f32}
export: {kinds: [gguf], teacher: [gguf-f32]}
evaluate: {paths: [judge.txt], context: 32, windows: 2}
benchmark: null
"""


def scheme(share: str, **more: object) -> str:
    options = {"kind": "codistill", "share": share, "exchange_every": 1, "burn_in": 0.2, **more}
    return f"distill.scheme={{{', '.join(f'{key}: {value}' for key, value in options.items())}}}"


SHARED = "{kind: predictions, rows: 40, k: 8}"
SERVED = "{kind: served, address: '127.0.0.1:9', k: 8, timeout_s: 0.1}"


@pytest.fixture(scope="module", autouse=True)
def no_timing():
    yield from tiny.no_timing()


def with_recipe(made: Path) -> Path:
    """`made` with small.yaml, the recipe of these groups, and what it reads."""
    tiny.recipe(made)
    (made / "small.yaml").write_text(RECIPE, encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return with_recipe(tmp_path_factory.mktemp("recipes"))


def load(folder: Path, *overrides: str) -> recipes.Recipe:
    return recipes.load(folder / "small.yaml", overrides)


def made(folder: Path, runs: Path, *overrides: str, until: str = "distill") -> dict[str, Path]:
    root = run(load(folder, *overrides), folder, runs, Progress(quiet=True), until=until)
    return {stage: root / name for stage, name in json.loads((root / "run.json").read_text())["stages"].items()}


def lines(made: dict[str, Path]) -> list[dict]:
    return [json.loads(line) for line in (made["distill"] / "log.jsonl").read_text().splitlines()]


def test_predictions_on_shared_rows_ship_an_exact_student(folder, tmp_path):
    found = made(folder, tmp_path, "name=shared", scheme(SHARED, groups=3), until="export")
    log = lines(found)
    assert any(line["used"] for line in log) and "forward_kl.2" in log[-1]["terms"]
    (student, _) = json.loads((found["export"] / "exact.json").read_text())
    assert student["exact"] == student["tensors"] >= 20
    assert not list(found["distill"].glob("checkpoint*"))
    pytest.importorskip("llama_cpp")
    # `edgeslm eval --churn` sets the float teacher beside the student on its grid, as two files or as a run
    text = (str(folder / "judge.txt"),)
    options = cli_eval.Options(text=text, context=32, windows=2, churn=True, threads=1, keep=False)
    for asked in ([found["export"] / "teacher-f32.gguf", found["export"] / "student.gguf"], [tmp_path / "shared"]):
        document = cli_eval.evaluate([str(path) for path in asked], None, options, Progress(quiet=True))
        (row,), one = document["churn"], document["students"][0]
        (kl,) = [m["values"][0] for m in document["measurements"] if m["metric"] == "kl"]
        assert row["text"]["kl"] == pytest.approx(kl) and kl > 0 and one["grid"] != "f32" and not document["problems"]
        assert row["text"]["tokens"] > 20 and 0 <= row["text"]["top1_changes"] <= 1


def test_groups_that_share_predictions_meet_beside_their_run_folders(folder, tmp_path, monkeypatch):
    both = []
    for group in "01":
        monkeypatch.setenv(VARIABLE, group)
        both.append(made(folder, tmp_path, "name=pair", scheme(SHARED)))
    assert not any(line["used"] for line in lines(both[0]))
    assert {u["step"] for line in lines(both[1]) for u in line["used"]} == {6}


def test_more_shared_rows_than_there_are_is_an_error(folder, tmp_path):
    with pytest.raises(DataError, match="4000 rows are asked for that all read, and the text has"):
        made(folder, tmp_path, scheme(SHARED.replace("40", "4000")))


def test_a_server_from_the_command_line_teaches_a_group(folder, tmp_path, monkeypatch):
    """The first group trains alone, for there is no server yet; the second is served what it wrote."""
    monkeypatch.setenv(VARIABLE, "0")
    how = scheme(SERVED)
    first = made(folder, tmp_path, "name=asked", how)
    log = lines(first)
    assert not any(line["used"] for line in log)
    assert "the server of group 1 at 127.0.0.1:9 cannot be asked" in log[-1]["exchange_problems"][0]
    command = [sys.executable, "-m", "edgeslm", "serve-peers", str(folder / "small.yaml"), "name=asked", how]
    command += ["--runs", str(tmp_path), "--port", "0"]
    environment = {k: v for k, v in os.environ.items() if k != VARIABLE}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None and server.stderr is not None
        said = server.stdout.readline()
        assert "serving predictions of groups in" in said, server.stderr.read()
        for line in server.stderr:
            if "group 0: step 6" in line:
                break
        monkeypatch.setenv(VARIABLE, "1")
        monkeypatch.setenv(SERVERS, said.split(" at ")[1].split(" ")[0])
        log = lines(made(folder, tmp_path, "name=asked", how.replace("timeout_s: 0.1", "timeout_s: 20")))
    finally:
        server.terminate()
        assert server.wait(20) == 0
    assert [[(u["peer"], u["step"]) for u in line["used"]] for line in log] == [[]] + [[(0, 6)]] * 5
    assert log[-1]["terms"]["forward_kl"] > 0 and "exchange_problems" not in str(log)
    assert (tmp_path / "asked-server").is_dir() and sorted(p.name for p in (tmp_path / "asked-exchange").iterdir()) == [
        "group-0", "group-1",
    ]  # fmt: skip


def test_what_is_each_machines_own_does_not_part_groups(folder, tmp_path):
    done = made(folder, tmp_path, "name=common", until="data")
    from edgeslm.data.rows import Rows

    rows = Rows.load(done["data"] / "rows.safetensors")

    def of(share: str) -> str:
        return common_hash(Context(load(folder, scheme(share)), folder, tmp_path, Progress(quiet=True), done), rows)

    assert of(SERVED) == of(SERVED.replace("127.0.0.1:9", "far:1").replace("0.1", "3"))
    assert len({of(SERVED), of(SERVED.replace("k: 8", "k: 9")), of(SHARED), of("{kind: weights}")}) == 4


def test_a_recipe_from_before_there_was_a_choice_keeps_its_hash(folder):
    def said(how: str) -> bool:
        return "share" in load(folder, how).model_dump()["distill"]["scheme"]

    assert not said("distill.scheme={kind: codistill}") and not said(scheme("{kind: weights}")) and said(scheme(SHARED))


def test_addresses_of_servers(folder, monkeypatch):
    def of(address: str, groups: int = 2):
        return servers(load(folder, scheme(f"{{kind: served, address: {address}}}", groups=groups)))

    assert of("'a:1'", 3) == [("a", 1)] * 3 and of("['a:1', '[::1]:7310']") == [("a", 1), ("::1", 7310)]
    for wrong, said in {
        "'a'": "no HOST:PORT",
        "'a:0'": "no HOST:PORT",
        "['a:1', 'b:2', 'c:3']": "3 addresses for 2",
    }.items():
        with pytest.raises(RecipeError, match=said):
            of(wrong)
    with pytest.raises(RecipeError, match="no server is named"):
        of("null")
    monkeypatch.setenv(SERVERS, "b:2, c:3")
    assert of("null") == of("'a:1'") == [("b", 2), ("c", 3)]
    assert servers(load(folder, scheme(SHARED))) == servers(load(folder)) == []


def test_check_says_what_groups_tell_each_other(folder, tmp_path):
    def plan(share: str) -> dict[str, str]:
        context = Context(load(folder, scheme(share, folder="meet")), folder, tmp_path / "none", Progress(quiet=True))
        found = check(context)
        assert not found.problems
        return dict(found.plan)

    weights = plan("{kind: weights}")
    assert weights["codistillation"] == "a checkpoint of 444.2 kB from each group, every 1 steps"
    assert weights["codistillation, for its peers"] == "444.2 kB more memory in each group"
    shared = plan(SHARED)["codistillation"]
    assert "on 40 shared rows from each group, 34 bytes a token, 42.5 kB every 1 steps" in shared
    assert "34 bytes a token, 4.2 kB a peer and step" in plan(SERVED)["codistillation"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((scheme(SERVED),), "one process that trains all groups meets them inside its run"),
        ((scheme("{kind: served}", group=0),), "no server is named"),
        ((scheme(SHARED, exchange_every=8),), "no copy would learn from another in 6 steps"),
    ],
)
def test_one_clear_sentence_before_any_compute(folder, tmp_path, overrides, words):
    found = check(Context(load(folder, *overrides), folder, tmp_path / "none", Progress(quiet=True))).problems
    assert len(found) == 1 and words in found[0]


def test_serve_is_for_recipes_whose_groups_ask(folder, tmp_path):
    for how in ((), (scheme(SHARED),)):
        with pytest.raises(RecipeError, match="nobody would ask"):
            served(load(folder, *how), folder, tmp_path)
