"""lm-eval over shipped files: item by item what its own transformers backend says; damaged data is refused."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import tiny

from edgeslm.artifact import Artifact, path_bytes, path_sha256
from edgeslm.devices.local import LocalDevice
from edgeslm.errors import DataError, RuntimeFailure
from edgeslm.evaluate.harness import local

pytest.importorskip("lm_eval", reason="tasks need lm-eval: pip install 'edgeslm[eval]'")

from edgeslm.evaluate.harness.run import Tasks, TaskScore, quiet
from edgeslm.evaluate.store import Store

DEVICE = LocalDevice(facts={"id": "test", "cores": 1})
_KEPT: list[tempfile.TemporaryDirectory[str]] = []

ROWS: dict[str, list[dict[str, Any]]] = {
    "arc_easy": [
        {"query": "Question: What is the sun?", "choices": ["a star", "a moon", "a planet", "a lamp"], "gold": 0},
        {"query": "Question: What do cows eat?", "choices": ["stones", "grass", "rain"], "gold": 1},
        {"query": "Question: What is ice?", "choices": ["frozen water", "glass", "salt", "sand"], "gold": 0},
    ],
    "piqa": [
        {"query": "Question: How do I cut bread?\n", "choices": ["with a knife", "with a spoon"], "gold": 0},
        {"query": "Question: How do I dry a shirt?\n", "choices": ["in the sea", "in the sun"], "gold": 1},
    ],
    "openbookqa": [
        {"query": "Fish live in", "choices": ["water", "fire", "trees", "books"], "gold": 0},
        {"query": "The night is", "choices": ["loud", "bright", "dark", "square"], "gold": 2},
    ],
    "winogrande": [
        {
            "context_options": [
                "He used the pen, not the pencil, as the pen",
                "He used the pen, not the pencil, as the pencil",
            ],
            "continuation": "was full of ink.",
            "gold": 0,
        },
        {
            "context_options": ["The cup broke the plate since the cup", "The cup broke the plate since the plate"],
            "continuation": "was heavy.",
            "gold": 0,
        },
    ],
    "lambada_openai": [
        {"context": "She opened the door of the house and left the", "continuation": "house"},
        {"context": "The cat saw the dog and the dog saw the", "continuation": "cat"},
    ],
}  # fmt: skip


def write(folder: Path, rows: dict[str, list[dict[str, Any]]] = ROWS) -> Path:
    folder.mkdir(exist_ok=True)
    for task, found in rows.items():
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in found), encoding="utf-8")
    return folder


@functools.cache
def shipped() -> tuple[Artifact, Any, Any]:
    """(a GGUF, the same weights in transformers, their tokenizer)."""
    from edgeslm.export.gguf import export
    from edgeslm.quantize.freeze import freeze_floats

    _KEPT.append(tempfile.TemporaryDirectory(prefix="harness-"))
    folder = Path(_KEPT[0].name)
    net, tokenizer = tiny.llama(layers=2), tiny.tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    frozen = freeze_floats(
        dict(net.named_parameters()), "f32", "llama", net.config.to_dict(), folder / "tokenizer", "tiny", {}
    )
    path = folder / "tiny.gguf"
    export(frozen, path)
    return Artifact("tiny.gguf", path, "gguf", path_sha256(path), path_bytes(path), 1, 1, "f32"), net, tokenizer


def judge(tasks: Tasks, folder: Path, limit: int = 256, store: Store | None = None) -> list[TaskScore]:
    artifact, _, tokenizer = shipped()
    kept = store or Store(None, artifact.sha256)
    return tasks.judge(artifact, tokenizer, limit, threads=1, device=DEVICE, workdir=folder, store=kept)


def by_lm_eval(tasks: Tasks, limit: int = 256) -> dict[str, Any]:
    """The same task objects through lm-eval's own transformers backend."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    _, net, tokenizer = shipped()
    with quiet():
        model = HFLM(pretrained=net, tokenizer=tokenizer, max_length=limit, batch_size=1)
        return simple_evaluate(
            model, tasks=list(tasks.tasks.values()), bootstrap_iters=0, num_fewshot=0, task_manager=tasks.manager
        )  # type: ignore[return-value]


def test_items_agree_with_lm_evals_own_backend(tmp_path: Path) -> None:
    tasks = Tasks(list(ROWS), write(tmp_path / "data"))
    expected, found = by_lm_eval(tasks), judge(tasks, tmp_path)
    assert [score.task for score in found] == list(ROWS)
    for score in found:
        samples = sorted(expected["samples"][score.task], key=lambda s: s["doc_id"])
        assert [i.digest for i in score.items] == [s["doc_hash"] for s in samples] and len(samples) >= 2
        assert [i.value for i in score.items] == [float(s[score.metric]) for s in samples]
        for item, sample in zip(score.items, samples, strict=True):
            if item.nats:
                assert list(item.nats) == pytest.approx([a[0] for a in sample["filtered_resps"]], rel=1e-4, abs=1e-4)
        for metric, value in score.values.items():
            assert value == pytest.approx(expected["results"][score.task][f"{metric},none"], rel=1e-4)
    assert len({score.task for score in found if score.items[0].nats}) == 4 and found[0].source.startswith("arc_easy")


def test_contexts_too_long_are_cut_as_lm_eval_cuts_them_and_counted(tmp_path: Path) -> None:
    long = [{"query": "Question: " + "the old fox " * 40, "choices": ["a star", "a moon"], "gold": 0}] * 2
    tasks = Tasks(["arc_easy"], write(tmp_path / "data", {"arc_easy": long}))
    expected = by_lm_eval(tasks, 64)["samples"]["arc_easy"][0]["filtered_resps"]
    (found,) = judge(tasks, tmp_path, 64)
    assert found.cut == 4 and list(found.items[0].nats) == pytest.approx([a[0] for a in expected], rel=1e-4)


def test_scores_survive_json(tmp_path: Path) -> None:
    (score,) = judge(Tasks(["piqa"], write(tmp_path / "data")), tmp_path)
    assert TaskScore.from_json(json.loads(json.dumps(score.to_json()))) == score


def test_few_shot_examples_come_from_a_file_beside(tmp_path: Path) -> None:
    folder = write(tmp_path / "data")
    with pytest.raises(DataError, match=r"1 examples stand before each item; put them into piqa\.train\.jsonl"):
        Tasks(["piqa"], folder, shots=1)
    (folder / "piqa.train.jsonl").write_text((folder / "piqa.jsonl").read_text())
    (plain,), (shown,) = (judge(Tasks(["piqa"], folder, shots=n), tmp_path) for n in (0, 1))
    assert shown.shots == 1 and shown.items[0].nats != plain.items[0].nats


def test_text_is_generated_to_its_stop(tmp_path: Path) -> None:
    """generate_until by lm-eval's own backend and ours: the same text, cut at the same place."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from edgeslm.evaluate.harness.adapter import ShippedLM

    artifact, net, tokenizer = shipped()

    def instance(kind: str, arguments: Any) -> Instance:
        return Instance(kind, {}, arguments, 0, ("some_task", 0, 1))

    asked = [("The red fox", {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}),
             ("A whale", {"until": ["e", "zz"], "max_gen_toks": 30, "do_sample": False})]  # fmt: skip
    requests = [instance("generate_until", a) for a in asked]
    theirs = HFLM(pretrained=net, tokenizer=tokenizer, max_length=256, batch_size=1).generate_until(requests, True)
    store = Store(None, artifact.sha256)
    ours = ShippedLM(artifact, tokenizer, 256, threads=1, device=DEVICE, workdir=tmp_path, store=store)
    assert ours.generate_until(requests) == theirs and any(theirs)
    sums = ours.loglikelihood_rolling([instance("loglikelihood_rolling", ("the red fox ran " * 30,))])
    with quiet():
        model = HFLM(pretrained=net, tokenizer=tokenizer, max_length=256, batch_size=1)
        expected = model.loglikelihood_rolling(
            [instance("loglikelihood_rolling", ("the red fox ran " * 30,))], disable_tqdm=True
        )
    assert sums == pytest.approx(expected, rel=1e-4)
    with pytest.raises(DataError, match="no runtime here has: num_beams"):
        ours.generate_until([instance("generate_until", ("x", {"num_beams": 3, "until": []}))])
    with pytest.raises(
        DataError, match="some_task: asks for 256 new tokens, which leaves no room in the 256 positions"
    ):
        ours.generate_until([instance("generate_until", ("x", {"max_gen_toks": 256, "until": []}))])


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        ("piqa", {"query": "Q", "choices": ["one"], "gold": 0}, "item 1: 'choices' must be two or more texts"),
        ("piqa", {"query": "Q", "choices": ["one", "two"], "gold": 2}, "'gold' must be the number of a choice, 0 to 1"),
        ("piqa", {"query": "Q", "choices": ["one", "two"], "gold": True}, "'gold' must be the number"),
        ("arc_easy", {"choices": ["one", "two"], "gold": 0}, "has no 'query'; arc_easy wants question, choices"),
        ("arc_easy", {"query": " ", "choices": ["one", "two"], "gold": 0}, "'query' must be a text"),
        ("winogrande", {"context_options": ["a", "a"], "continuation": "b", "gold": 0}, "must differ at their ends"),
        ("lambada_openai", {"context": 5, "continuation": "b"}, "'context' must be a text"),
    ],
)
def test_damaged_rows_are_refused_with_their_place(task: str, row: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        Tasks([task], write(tmp_path / "data", {task: [row]}))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "data")
    with pytest.raises(DataError, match=r"no such folder"):
        Tasks(["piqa"], tmp_path / "none")
    with pytest.raises(DataError, match="did you mean 'arc_easy'"):
        Tasks(["arc_eazy"], folder)
    (folder / "piqa.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"piqa\.jsonl: holds no row"):
        Tasks(["piqa"], folder)
    (folder / "piqa.jsonl").write_text('{"query": "Q"\n')
    with pytest.raises(DataError, match=r"piqa.jsonl:1: not valid JSON"):
        Tasks(["piqa"], folder)
    (folder / "boolq.jsonl").write_text('{"nothing": "that boolq knows"}\n')
    with pytest.raises(DataError, match="does not fit lm-eval's definition of boolq"):
        Tasks(["boolq"], folder)


def test_a_task_that_only_the_hub_has_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("the hub does not answer")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"boolq cannot be had from the hub.*holds no boolq.jsonl"):
        Tasks(["boolq"], write(tmp_path / "data"))
    with pytest.raises(DataError, match=r"put boolq.jsonl into a folder and name it with --data"):
        Tasks(["boolq"], None)


def test_rows_in_a_tasks_own_fields_are_left_alone() -> None:
    assert set(local.READERS) >= set(ROWS)
    row = {"goal": "g", "sol1": "a", "sol2": "b", "label": 1}
    assert local._as_wanted("piqa", row, "here") is row


def test_a_blank_is_put_where_the_options_part() -> None:
    made = local.winogrande(ROWS["winogrande"][0])
    assert made["sentence"] == "He used the pen, not the pencil, as the _ was full of ink."
    assert (made["option1"], made["option2"], made["answer"]) == ("pen", "pencil", "1")


def test_a_runtime_that_dies_gives_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeslm.evaluate import likelihood

    def die(*_: Any, **__: Any) -> None:
        raise RuntimeFailure("llama.cpp on tiny.gguf (likelihood) crashed with SIGSEGV")

    monkeypatch.setattr(likelihood, "execute_keeping", die)
    with pytest.raises(RuntimeFailure, match="SIGSEGV"):
        judge(Tasks(["piqa"], write(tmp_path / "data")), tmp_path)


def test_the_chinese_items_that_ship_with_edgeslm(tmp_path: Path) -> None:
    """Four different answers each, the right one at no fixed place, the whole of them asked."""
    rows = [json.loads(line) for line in (local.OWN / "edgeslm_zh.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 64 and all(len(set(r["choices"])) == 4 and 0 <= r["gold"] < 4 for r in rows)
    assert all(8 <= sum(r["gold"] == g for r in rows) <= 24 for g in range(4))
    (score,) = judge(Tasks(["edgeslm_zh"], None, limit=3), tmp_path)
    assert len(score.items) == 3 and all(len(i.nats) == 4 for i in score.items)


@pytest.mark.parametrize(
    ("task", "second", "said"),
    [
        ("piqa", {"goal": "g", "sol1": "a", "sol2": "b", "label": 5}, "item 2 says that choice 5 is right, and has 2"),
        ("piqa", {"goal": None, "sol1": "a", "sol2": "b", "label": 0}, "item 2 has no 'goal', which item 1 has"),
        ("piqa", {"goal": "g", "sol1": "a", "label": 0}, "item 2: has no 'choices'; piqa wants goal"),
    ],
)
def test_damage_past_the_first_row_is_found_before_anything_runs(
    task: str, second: dict[str, Any], said: str, tmp_path: Path
) -> None:
    first = {"goal": "g", "sol1": "a", "sol2": "b", "label": 1}
    with pytest.raises(DataError, match=said):
        Tasks([task], write(tmp_path / "data", {task: [first, second]}))
    arc = {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}
    with pytest.raises(DataError, match=r"arc_easy\.jsonl: item 2 does not fit the task's definition"):
        Tasks(["arc_easy"], write(tmp_path / "data", {"arc_easy": [arc, {**arc, "answerKey": "Z"}]}))
    with pytest.raises(DataError, match="item 1 has no text to ask"):
        Tasks(["lambada_openai"], write(tmp_path / "data", {"lambada_openai": [{"text": "word"}]}))


def test_every_document_counts_once_whatever_filters_a_task_has(tmp_path: Path) -> None:
    """gsm8k scores each answer by two filters: items are of one of them, figures of both."""
    rows = [{"question": f"What is {n} and 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(4)]
    folder = write(tmp_path / "data", {"gsm8k": rows})
    with pytest.raises(DataError, match="gsm8k: 5 examples stand before each item"):
        Tasks(["gsm8k"], folder)  # as many as its definition says
    tasks = Tasks(["gsm8k"], folder, shots=0)
    tasks.tasks["gsm8k"].config.generation_kwargs["max_gen_toks"] = 4
    (score,) = judge(tasks, tmp_path)
    assert len(score.items) == 4 == len({i.digest for i in score.items}) and score.metric == "exact_match"
    assert {"exact_match,strict-match", "exact_match,flexible-extract"} <= set(score.values)


def test_a_metric_that_is_no_score_gives_no_items(tmp_path: Path) -> None:
    """wikitext's perplexities: figures, but nothing that a retention could be taken of."""
    folder = write(
        tmp_path / "data", {"wikitext": [{"page": "The red fox ran. " * 9}, {"page": "A whale swam by. " * 9}]}
    )
    (score,) = judge(Tasks(["wikitext"], folder), tmp_path)
    assert score.items == () and score.values["word_perplexity"] > 1


def test_cut_contexts_belong_to_their_task(tmp_path: Path) -> None:
    rows = {"arc_easy": [{"query": "Question: " + "the old fox " * 40, "choices": ["a star", "a moon"], "gold": 0}],
            "piqa": ROWS["piqa"]}  # fmt: skip
    arc, piqa = judge(Tasks(["arc_easy", "piqa"], write(tmp_path / "data", rows)), tmp_path, 64)
    assert (arc.cut, piqa.cut) == (2, 0)


def test_chat_turns_are_put_as_lm_eval_puts_them(tmp_path: Path) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    tasks = Tasks(["piqa"], write(tmp_path / "data"))
    artifact, net, tokenizer = shipped()
    with quiet():
        expected = simple_evaluate(
            HFLM(pretrained=net, tokenizer=tokenizer, max_length=256, batch_size=1),
            tasks=list(tasks.tasks.values()), bootstrap_iters=0, num_fewshot=0, task_manager=tasks.manager,
            apply_chat_template=True,
        )  # fmt: skip
    (found,) = tasks.judge(
        artifact, tokenizer, 256, threads=1, device=DEVICE, workdir=tmp_path, chat=True,
        store=Store(None, artifact.sha256),
    )  # fmt: skip
    assert expected is not None
    for item, sample in zip(found.items, expected["samples"]["piqa"], strict=True):
        assert list(item.nats) == pytest.approx([a[0] for a in sample["filtered_resps"]], rel=1e-4, abs=1e-4)
    (plain,) = judge(tasks, tmp_path)
    assert plain.items[0].nats != found.items[0].nats
