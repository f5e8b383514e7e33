"""Closeness and answers: against a float64 oracle, zero at equality, problems that do not end the run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import tiny_models as tiny

from edgeslm.artifact import Artifact
from edgeslm.devices.local import LocalDevice
from edgeslm.errors import DataError, DeviceError, RuntimeFailure
from edgeslm.evaluate.answers import Conversation, answers
from edgeslm.evaluate.closeness import EDGES, evaluate, histogram, windows
from edgeslm.runtimes import RUNTIMES

DEVICE = LocalDevice(facts={"id": "test", "cores": 1})
CONTEXT = 64


def test_windows_are_whole_and_consecutive() -> None:
    ids = list(range(100))
    assert windows(ids, 30, 2) == [ids[:30], ids[30:60]] and len(windows(ids, 30, 99)) == 3
    with pytest.raises(DataError, match="less than one window"):
        windows(ids, 102, 1)
    with pytest.raises(DataError, match="even number"):
        windows(ids, 31, 1)


def oracle(chosen: list[list[int]]) -> dict[str, np.ndarray]:
    """nll, KL(teacher || near) and agreement per token, float64, by torch and transformers."""
    import torch
    from transformers import LlamaForCausalLM

    folder = tiny.built()
    nets = [LlamaForCausalLM.from_pretrained(folder / name) for name in ("teacher-hf", "near-hf")]
    out: dict[str, list[np.ndarray]] = {"nll": [], "kl": [], "match": []}
    first = CONTEXT // 2
    with torch.no_grad():
        for window in chosen:
            t, s = (net(torch.tensor([window])).logits[0, first:-1].double().log_softmax(-1) for net in nets)
            out["nll"].append(-s.gather(-1, torch.tensor(window[first + 1 :])[:, None])[:, 0].numpy())
            out["kl"].append((t.exp() * (t - s)).sum(-1).numpy())
            out["match"].append((t.argmax(-1) == s.argmax(-1)).double().numpy())
    return {name: np.concatenate(parts) for name, parts in out.items()}


def test_closeness_equals_the_oracle_and_is_zero_at_equality(tmp_path: Path) -> None:
    teacher = tiny.artifacts()["llama_cpp"]
    near = tiny.artifact(tiny.built() / "near.gguf", "gguf")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF and nothing more")
    damaged = Artifact("broken.gguf", broken, "gguf", "0", 1, 1, 1, "f32")
    same = tiny.artifact(tiny.built() / "teacher.gguf", "gguf", "same.gguf")
    chosen = windows(tiny.ids(400), CONTEXT, 5)
    said: list[tuple[str, int, int]] = []
    found, problems = evaluate(
        teacher,
        [near, damaged, same, tiny.artifacts()["onnxruntime"]],
        chosen,
        bos_id=1,
        threads=1,
        device=DEVICE,
        workdir=tmp_path / "work",
        on_progress=lambda *p: said.append(p),
    )
    assert [p["artifact"] for p in problems] == ["broken.gguf"] and "cannot load broken.gguf" in problems[0]["what"]
    by = {(m.where.artifact, m.metric): m for m in found}
    assert ("teacher.gguf", "kl") not in by and ("teacher.gguf", "perplexity") in by
    assert ("near.gguf", 5, 5) in said and not list((tmp_path / "work").iterdir())

    expected = oracle([[1, *window[1:]] for window in chosen])
    kl, top1 = by["near.gguf", "kl"], by["near.gguf", "top1_agreement"]
    # llama.cpp's 16-bit cache and attention differ from float32 by about 1e-6 nats of KL and 2e-3 of one logit
    assert by["near.gguf", "perplexity"].median == pytest.approx(math.exp(expected["nll"].mean()), rel=5e-4)
    assert kl.median == pytest.approx(expected["kl"].mean(), rel=5e-3) and 0.01 < kl.median < 2
    assert abs(top1.median - expected["match"].mean()) <= 1 / len(expected["match"])
    assert kl.unit == "nats/token" and top1.better == "higher"
    assert kl.extra["tokens"] == 5 * 31 == sum(kl.extra["histogram"]["counts"])
    assert kl.extra["percentiles"]["99"] == pytest.approx(np.percentile(expected["kl"], 99), rel=2e-2)
    assert kl.extra["standard_error"] == pytest.approx(expected["kl"].std(ddof=1) / math.sqrt(155), rel=2e-2)

    assert by["same.gguf", "kl"].median == 0.0 and by["same.gguf", "top1_agreement"].median == 1.0
    assert 0 <= by["teacher-onnx", "kl"].median < 1e-5


def test_a_reference_that_fails_leaves_perplexities(tmp_path: Path) -> None:
    (tmp_path / "t.gguf").write_bytes(b"x")
    found, problems = evaluate(
        Artifact("t.gguf", tmp_path / "t.gguf", "gguf", "0", 1, 1, 1, "f32"),
        [tiny.artifacts()["llama_cpp"]],
        windows(tiny.ids(64), CONTEXT, 1),
        bos_id=None,
        threads=1,
        device=DEVICE,
        workdir=tmp_path / "work",
    )
    assert [m.metric for m in found] == ["perplexity"] and problems[0]["artifact"] == "t.gguf"


def test_histogram_counts_everything() -> None:
    made = histogram(np.array([0.0, 1e-7, 0.05, 1000.0]))
    assert sum(made["counts"]) == 4 and made["counts"][0] == 2 and made["counts"][-1] == 1
    assert len(made["edges"]) == len(EDGES) == len(made["counts"]) + 1


def test_answers_side_by_side(tmp_path: Path) -> None:
    bad = Artifact("gone.gguf", tmp_path / "gone.gguf", "gguf", "0", 1, 1, 1, "f32")
    made = tiny.artifacts()
    rows, problems = answers(
        [made["llama_cpp"], bad, made["onnxruntime"]],
        [("first", tiny.ids(7)), ("second", tiny.ids(5, 1))],
        lambda ids: " ".join(map(str, ids)),
        stop=[2],
        max_new=6,
        threads=1,
        device=DEVICE,
        workdir=tmp_path,
    )
    assert [row["prompt"] for row in rows] == ["first", "second"]
    for row in rows:
        assert [a["artifact"] for a in row["answers"]] == ["teacher.gguf", "teacher-onnx"]
        assert row["answers"][0]["text"] == row["answers"][1]["text"] and row["answers"][0]["tokens"] <= 6
    assert [p["artifact"] for p in problems] == ["gone.gguf"]


@pytest.mark.parametrize("name", [name for name, one in RUNTIMES.items() if one.host == "python"])
def test_a_conversation_reuses_what_it_holds_and_says_the_same(name: str, tmp_path: Path) -> None:
    artifact = tiny.artifacts()[name]
    start = tiny.ids(10)
    with Conversation(artifact, device=DEVICE, workdir=tmp_path, threads=1, context=48) as talk:
        first = list(talk.say(start, max_new=6, stop=[]))
        longer = [*start, *first, 9, 8]
        second = list(talk.say(longer, max_new=6, stop=[]))
        assert talk.timings["reused_tokens"] >= len(start) + 5 and talk.timings["tokens"] == 6
        with pytest.raises(RuntimeFailure, match="leave no room"):
            list(talk.say(tiny.ids(60), max_new=1, stop=[]))
        given_up = talk.say(longer, max_new=6, stop=[])
        assert next(given_up) == second[0]  # the rest of it must not leak into the next answer
        again = list(talk.say(longer, max_new=6, stop=[]))  # a refused turn does no harm
    fresh, _ = answers([artifact], [("x", longer)], str, stop=[], max_new=6, threads=1, device=DEVICE, workdir=tmp_path)
    assert str(second) == str(again) == fresh[0]["answers"][0]["text"]


def test_a_conversation_that_cannot_start(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"no model")
    with pytest.raises(RuntimeFailure, match=r"cannot load x\.gguf"):
        Conversation(
            Artifact("x.gguf", tmp_path / "x.gguf", "gguf", "0", 1, 1, 1, "f32"),
            device=DEVICE,
            workdir=tmp_path / "w",
            threads=1,
            context=32,
        )


class FullDevice(LocalDevice):
    """A device whose disk takes models and jobs, but not a reference's log-probabilities."""

    def push(self, path: Path) -> str:
        if path.name == "reference.npy":
            raise DeviceError("reference.npy: no space left on the device")
        return super().push(path)


def test_a_push_that_fails_is_a_problem_of_the_candidate(tmp_path: Path) -> None:
    """What was measured before it stays."""
    found, problems = evaluate(
        tiny.artifacts()["llama_cpp"],
        [tiny.artifact(tiny.built() / "near.gguf", "gguf")],
        windows(tiny.ids(64), CONTEXT, 1),
        bos_id=None,
        threads=1,
        device=FullDevice(facts={"id": "test", "cores": 1}),
        workdir=tmp_path / "work",
    )
    assert [(m.where.artifact, m.metric) for m in found] == [("teacher.gguf", "perplexity")]
    assert problems == [{"artifact": "near.gguf", "what": "reference.npy: no space left on the device"}]
