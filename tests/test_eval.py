"""`edgeslm eval` as a user types it, and the pieces of its document: tokens, instructions, answers, report, gate."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_harness as harness
import tiny
import torch

from edgeslm.artifact import Artifact
from edgeslm.cli import eval as cli_eval
from edgeslm.errors import DataError, ModelError
from edgeslm.evaluate import checks, prompted, tokens
from edgeslm.evaluate.closeness import Scores
from edgeslm.measurement import Where
from edgeslm.progress import Progress
from edgeslm.report.evaluation import SECTIONS, build, render


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A tiny teacher, one that is near it, one that is not, as GGUF; text, tasks and prompts beside them."""
    from edgeslm.export.gguf import export
    from edgeslm.models.load import write_tokenizer
    from edgeslm.quantize.freeze import freeze_floats

    root = tmp_path_factory.mktemp("eval")
    write_tokenizer(tiny.tokenizer(), root / "tokenizer")
    made: dict[str, Path] = {}
    for name, spread in (("teacher", 0.0), ("near", 0.01), ("far", 0.08)):
        model = tiny.llama(layers=2)
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += spread * torch.randn_like(parameter)
        weights, config = dict(model.named_parameters()), model.config.to_dict()
        frozen = freeze_floats(weights, "f32", "llama", config, root / "tokenizer", name, {})
        made[name] = export(frozen, root / f"{name}.gguf").path
    (root / "judge.txt").write_text("A whale swam slowly past the ship in 1851, and nobody saw. " * 12, "utf-8")
    rows = [{"prompt": "Say hi.", "checks": [{"check": "at_most_words", "count": 500}]}, {"prompt": "List 3 things."}]
    (root / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    harness.write(root / "data")
    return made | {"root": root}


def edgeslm(files: dict[str, Path], *arguments: object, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    root = files["root"]
    shared = ["--text", root / "judge.txt", "--context", 64, "--windows", 3, "--out", root / "out"]
    command = [sys.executable, "-m", "edgeslm", "eval", *map(str, [*arguments, *shared])]
    command += [] if cache else ["--no-cache"]
    environment = {**os.environ, **({"XDG_CACHE_HOME": str(cache)} if cache else {})}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        if tag not in ("meta", "br", "hr", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_whole_command(files: dict[str, Path], tmp_path: Path) -> None:
    root = files["root"]
    asked = [files["near"], files["far"], "--teacher", files["teacher"], "--tasks", "arc_easy,piqa", "--data",
             root / "data", "--prompts", root / "prompts.jsonl", "--new-tokens", 8, "--churn",
             "--at-least", "top1_agreement=0", "--json"]  # fmt: skip
    done = edgeslm(files, *asked, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [s["name"] for s in document["students"]] == ["near.gguf", "far.gguf"] and not document["problems"]
    kl = {m["where"]["artifact"]: m["values"][0] for m in document["measurements"] if m["metric"] == "kl"}
    assert 0 < kl["near.gguf"] < kl["far.gguf"]
    metrics = {m["metric"] for m in document["measurements"]}
    assert metrics == set(cli_eval.FIGURES)
    assert [r["task"] for r in document["retention"]["near.gguf"]["tasks"]] == ["arc_easy", "piqa"]
    assert len(document["churn"]) == 3 and document["churn"][0]["text"]["kl"] == pytest.approx(kl["near.gguf"])
    assert document["generation"]["near.gguf"]["answers"] == 2 and "wins" not in document["generation"]["teacher.gguf"]
    described = document["tokens"]["far.gguf"]
    assert (
        sum(r["tokens"] for r in described["by_class"]) == 3 * 31 == sum(r["tokens"] for r in described["by_position"])
    )
    assert described["worst"][0]["kl"] == max(w["kl"] for w in described["worst"]) and "whale" in str(
        described["worst"]
    )

    again = edgeslm(files, *asked, cache=tmp_path / "cache")  # all of it from the stores
    assert json.loads(again.stdout) == document

    pages = {p.name: p.read_text("utf-8") for p in (root / "out").iterdir()}
    assert set(pages) == {"report.html", "report.md", "evaluation.json", "1-near.gguf.html", "2-far.gguf.html"}
    for name in ("report.html", "1-near.gguf.html"):
        parser = Tags()
        parser.feed(pages[name])
        assert not parser.open and "<script" not in pages[name]
    assert "far.gguf" in pages["report.html"] and "far.gguf" not in pages["1-near.gguf.html"]
    assert json.loads(pages["evaluation.json"]) == document


def test_churn_of_two_trained_models_is_what_torch_says(files: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    """Two folders of transformers, as trainings keep them, and a quantised file beside one of them."""
    from edgeslm.data.text import documents
    from edgeslm.evaluate.closeness import even_windows, with_begin
    from edgeslm.models.stop import begin_id

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    models = []
    for name, seed in (("one", 0), ("other", 1)):
        models.append(tiny.llama(layers=2, seed=seed))
        models[-1].save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    options = cli_eval.Options(
        text=(str(files["root"] / "judge.txt"),), context=64, windows=2, churn=True, threads=1, keep=False
    )
    trained = [str(tmp_path / "one"), str(tmp_path / "other")]
    document = cli_eval.evaluate([*trained, str(files["far"])], None, options, Progress(quiet=True))
    assert [(r["one"], r["other"]) for r in document["churn"]][:2] == [("one", "other"), ("one", "far.gguf")]
    tokenizer = tiny.tokenizer()
    windows = even_windows(documents([files["root"] / "judge.txt"], tokenizer), 64, 2)
    ids = torch.tensor(with_begin(windows, begin_id(tokenizer)))
    with torch.no_grad():
        logs = [torch.log_softmax(m(ids).logits[:, 32:-1].double(), -1) for m in models]
    truth = [log.gather(2, ids[:, 33:, None])[..., 0].exp() for log in logs]
    wanted = {
        "tokens": 62,
        "kl": float((logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean()),
        "top1_changes": float((logs[0].argmax(-1) != logs[1].argmax(-1)).double().mean()),
        "mean_absolute_delta_p": float((truth[0] - truth[1]).abs().mean()),
    }
    assert document["churn"][0]["text"] == pytest.approx(wanted, rel=2e-3)


def test_gates_leave_with_one(files: dict[str, Path]) -> None:
    done = edgeslm(files, files["far"], "--teacher", files["teacher"], "--at-most", "kl=0.0001")
    assert done.returncode == 1 and re.search(
        r"gate: far\.gguf: kl is \d\.\d+, which is not kl at most 0\.0001", done.stderr
    )
    assert "far.gguf" in done.stdout and "perplexity_ratio" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--at-least", "retention=0.9"], "the gate names 'retention', which this evaluation does not give"),
        (["--at-most", "kl"], "--at-most kl: is no NAME=NUMBER"),
        (["--tasks", "arc_easy", "--data", "nowhere"], "--data nowhere: no such folder"),
        (["--prompts", "nowhere.jsonl"], "no file matches 'nowhere.jsonl'"),
        (["--prompts", "own", "--new-tokens", "250"], "is more than the 256 positions of the model"),
        (["--at-least", "answers.bogus=1", "--prompts", "own", "--new-tokens", "8"], "the gate names 'answers.bogus'"),
    ],
)
def test_what_is_wrong_is_refused_in_a_sentence(files: dict[str, Path], arguments: list[str], said: str) -> None:
    done = edgeslm(files, files["near"], "--teacher", files["teacher"], *arguments)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_files_are_told_apart_and_runs_stand_for_their_files(
    files: dict[str, Path], tmp_path: Path, monkeypatch
) -> None:
    for run in ("one", "two", "runs/three"):
        export = tmp_path / run / "export-1"
        export.mkdir(parents=True)
        (export / "student.gguf").write_bytes(files["near"].read_bytes())
        (export / "teacher-f32.gguf").write_bytes(files["teacher"].read_bytes())
        (tmp_path / run / "run.json").write_text(json.dumps({"stages": {"export": "export-1"}}))
    teacher, students, _ = cli_eval.files_of([str(tmp_path / "one"), str(tmp_path / "two")], None, False)
    assert teacher.name == "one/export-1/teacher-f32.gguf"
    assert [s.name for s in students] == ["one/export-1/student.gguf", "two/export-1/student.gguf"]
    monkeypatch.chdir(tmp_path)
    named = cli_eval.files_of(["run:three"], None, False)
    (tmp_path / "runs/three/distill-1/route/1").mkdir(parents=True)
    with pytest.raises(ModelError, match="holds no kept point 1"):
        cli_eval.files_of(["run:three@1"], None, False)
    assert cli_eval.files_of([str(files["near"])], "run:three", False)[2] == [named[2][0], files["near"]]
    assert named[2] == [Path(f"runs/three/export-1/{name}.gguf") for name in ("teacher-f32", "student")]
    alone, others, _ = cli_eval.files_of([str(files["near"]), str(files["far"])], None, True)
    assert (alone.name, [o.name for o in others]) == ("near.gguf", ["far.gguf"])
    with pytest.raises(ModelError, match="name the float teacher with --teacher"):
        cli_eval.files_of([str(files["near"])], None, False)
    with pytest.raises(ModelError, match="is given twice"):
        cli_eval.files_of([str(files["near"]), str(files["near"])], str(files["teacher"]), False)
    (tmp_path / "one" / "run.json").write_text('{"stages": {}}')
    with pytest.raises(ModelError, match=r"has exported no student\.gguf"):
        cli_eval.files_of([str(tmp_path / "one")], None, False)


def test_a_damaged_run_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ModelError, match=r"run\.json: is damaged .*run the recipe again"):
        cli_eval.files_of([str(tmp_path)], None, False)


def test_a_reference_that_fails_is_asked_again(files: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    """What a student scored without its teacher is no answer to how close it is, and is not kept as one."""
    from edgeslm.errors import RuntimeFailure
    from edgeslm.evaluate import closeness

    sound, fails = closeness.execute, [True]

    def execute(device: Any, artifact: Any, *rest: Any, **options: Any) -> Any:
        if artifact.name == "teacher.gguf" and fails[0]:
            raise RuntimeFailure("llama.cpp on teacher.gguf (score) crashed with SIGSEGV")
        return sound(device, artifact, *rest, **options)

    monkeypatch.setattr(closeness, "execute", execute)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = cli_eval.Options(text=(str(files["root"] / "judge.txt"),), context=64, windows=2, churn=True, threads=1)
    broken = cli_eval.evaluate([str(files["near"])], str(files["teacher"]), options, Progress(quiet=True))
    assert {m["metric"] for m in broken["measurements"]} == {"perplexity"} and "SIGSEGV" in broken["problems"][0][
        "what"
    ]
    assert "text" not in broken["churn"][0]
    fails[0] = False
    mended = cli_eval.evaluate([str(files["near"])], str(files["teacher"]), options, Progress(quiet=True))
    assert "kl" in {m["metric"] for m in mended["measurements"]} and not mended["problems"]
    assert mended["churn"][0]["text"]["kl"] > 0

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("everything is kept, no worker is needed")

    monkeypatch.setattr(closeness, "execute", never)
    again = cli_eval.evaluate([str(files["near"])], str(files["teacher"]), options, Progress(quiet=True))
    assert again["measurements"] == mended["measurements"] and again["churn"] == mended["churn"]


# tokens


WHERE = Where({}, "r", "1", "a", "0", "gguf", {}, 1)


def test_tokens_are_placed_and_classed() -> None:
    places = tokens.scored([[1, 2, 3, 4, 5, 6], [7, 8, 9, 10]], 2)
    assert [(p.window, p.position, p.token) for p in places] == [(0, 2, 4), (0, 3, 5), (0, 4, 6), (1, 2, 10)]
    expected = {
        ("Ġthe", " the"): "word, its beginning",
        ("ing", "ing"): "word, further on",
        ("▁a", "a"): "word, its beginning",
        ("Ġ42", " 42"): "number",
        (",", ","): "punctuation",
        ("Ċ", "\n"): "white space",
        ("ä½ł", "你"): "Chinese character",
        ("ä", "\ufffd"): "part of a character",
    }
    assert {key: tokens.token_class(*key) for key in expected} == expected


def test_the_summary_adds_up() -> None:
    windows = [list(range(3, 13)), list(range(13, 23))]
    count = len(tokens.scored(windows, 5))
    kl = np.arange(count, dtype=float)
    arrays = {"nll": kl, "confidence": np.full(count, 0.5), "top1": np.zeros(count), "kl": kl,
              "reference_nll": kl, "delta_p": -kl, "top5_overlap": kl, "reference_top1": np.zeros(count)}  # fmt: skip
    found = tokens.summary(Scores(WHERE, arrays), windows, 5, tiny.tokenizer(), worst=3)
    assert [w["kl"] for w in found["worst"]] == [7.0, 6.0, 5.0] and found["worst"][0]["delta_p"] == -7.0
    assert (
        np.average([r["kl"] for r in found["by_position"]], weights=[r["tokens"] for r in found["by_position"]]) == 3.5
    )
    assert [r["from"] for r in found["by_position"]] == [6, 7, 8, 9] and found["calibration"]["error"] == 0.5
    assert sum(r["tokens"] for r in found["by_class"]) == count


# instructions

GOOD: dict[str, tuple[dict[str, Any], str, str]] = {
    "at_most_words": ({"count": 3}, "one two three", "one two three four"),
    "at_least_words": ({"count": 3}, "春天来了", "one two"),
    "sentences": ({"count": 2}, "It rains. I stay!", "It rains, I stay."),
    "bullets": ({"count": 2}, "- a\n- b\n**c**\n---\n3.5 million", "a and b\n**c**\n---"),
    "paragraphs": ({"count": 2}, "One.\n\nTwo.", "One.\nTwo."),
    "lower_case": ({}, "all small", "Not small"),
    "upper_case": ({}, "LOUD 1", "Loud"),
    "no_commas": ({}, "no comma here", "one，two"),
    "contains": ({"words": ["Lamp", "sea"]}, "the lamp by the sea", "the lamp"),
    "excludes": ({"words": ["yellow", "黄"]}, "yellowish", "Yellow"),
    "begins_with": ({"words": "Dear"}, "dear friend", "Oh dear"),
    "ends_with": ({"words": "over."}, "It is over.", "over and out"),
    "one_of": ({"words": ["yes", "no"]}, "Yes.", "yes indeed"),
    "is_json": ({}, '```json\n{"a": 1}\n```', "{a: 1}"),
    "in_chinese": ({}, "今天下雨", "it rains 今天"),
}


def test_every_check_says_yes_and_no() -> None:
    assert set(GOOD) == set(checks.CHECKS)
    for name, (arguments, good, bad) in GOOD.items():
        wanted = checks.checked([{"check": name, **arguments}], "here")
        assert checks.followed(good, wanted) == [True] and checks.followed(bad, wanted) == [False], name
        assert checks.followed("", wanted) == [False], name


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("bullets", "'checks' is a list"),
        ([{"check": "bulets", "count": 1}], "no check is called 'bulets'"),
        ([{"check": "bullets"}], "takes count"),
        ([{"check": "lower_case", "count": 1}], "takes no further keys"),
        ([{"check": "bullets", "count": "3"}], "'count' of the check 'bullets' must be a int"),
        ([{"check": "contains", "words": "a"}], "must be a list"),
        ([{"check": "contains", "words": [1]}], "must hold words"),
    ],
)
def test_damaged_checks_are_refused(wanted: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        checks.checked(wanted, "here")


@pytest.mark.parametrize("name", ["instructions", "instructions-zh"])
def test_shipped_prompts_are_sound(name: str) -> None:
    assets = Path(checks.__file__).parents[1] / "assets" / "chat"
    assert len(prompted.read([assets / f"{name}.jsonl"])) >= 12


def test_damaged_prompts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    for text, said in (("", "hold no prompt"), ('{"text": "x"}', "has no text 'prompt'"),
                       ('{"prompt": "x", "check": []}', "unknown key 'check'"),
                       ('{"prompt": "x", "system": 5}', "'system' must be a text")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(DataError, match=said):
            prompted.read([path])


def test_repetition_and_duels() -> None:
    assert prompted.repetition([1, 2, 3]) == 0.0 and prompted.repetition(list(range(50))) == 0.0
    assert prompted.repetition([1, 2] * 30) > 0.9

    def answer(nats: float | None, followed: list[bool], ended: str = "stop") -> dict[str, Any]:
        return {"artifact": "x", "tokens": 4, "ended": ended, "repetition": 0.0, "leaked": [],
                "followed": followed, "teacher_nats_per_token": nats}  # fmt: skip

    rows = [
        {"answers": [answer(-1.0, [True]) | {"artifact": "t"}, answer(-0.5, [False]) | {"artifact": "s"}]},
        {"answers": [answer(-1.0, []) | {"artifact": "t"}, answer(-1.05, [], "length") | {"artifact": "s"}]},
        {"answers": [answer(-1.0, [True, True]) | {"artifact": "t"}, answer(None, [True, False]) | {"artifact": "s"}]},
    ]
    found = prompted.totals(rows)
    assert (found["s"]["wins"], found["s"]["ties"], found["s"]["losses"]) == (1, 1, 1)
    assert found["t"]["prompts_followed"] == 1.0 and found["s"]["prompts_followed"] == 0.0
    assert found["s"]["instructions_followed"] == pytest.approx(1 / 3) and found["s"]["stopped"] == pytest.approx(2 / 3)


# report


def test_a_document_of_nothing_still_has_a_page(tmp_path: Path) -> None:
    artifact = Artifact("s.gguf", tmp_path / "s.gguf", "gguf", "0", 8, 4, 1, "q4_0")
    bare = {**artifact.to_json(), "path": "s.gguf", "bits_per_weight": 32.0}
    document = {"schema": 1, "teacher": {**bare, "name": "t.gguf"}, "students": [bare],
                "problems": [{"part": "text", "artifact": "s.gguf", "what": "it <crashed> & died"}]}  # fmt: skip
    sections = build(document, ["s.gguf"])
    assert [s.key for s in sections] == ["headline", "problems"] and len(SECTIONS) == 8
    page = render(document, tmp_path)[0].read_text("utf-8")
    assert "it &lt;crashed&gt; &amp; died" in page


def test_the_terminal_says_why_there_is_no_retention() -> None:
    row = {"task": "piqa", "items": 4, "student": 0.5, "teacher": 0.5, "chance": 0.5, "value": None,
           "standard_error": None, "why": "fewer than 30 items", "p": 1.0, "difference": "none"}  # fmt: skip
    document = {"retention": {"s.gguf": {"tasks": [row], "mean": None, "standard_error": None}}}
    assert "fewer than 30 items" in "\n".join(cli_eval.lines(document))
