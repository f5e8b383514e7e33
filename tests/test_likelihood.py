"""Likelihoods of continuations: every runtime against torch, packing, and a worker that dies in the middle."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny

from edgeslm.artifact import Artifact
from edgeslm.devices.local import LocalDevice
from edgeslm.errors import DataError, EdgeSLMError, RuntimeFailure
from edgeslm.evaluate import likelihood as module
from edgeslm.evaluate.likelihood import Likelihood, likelihoods, truncated
from edgeslm.evaluate.store import Store
from edgeslm.runtimes import RUNTIMES
from edgeslm.runtimes.base import WORKERS, Runtime

DEVICE = LocalDevice(facts={"id": "test", "cores": 1})


def worker_module() -> Any:
    sys.path.insert(0, str(WORKERS))
    try:
        return importlib.import_module("likelihood")
    finally:
        sys.path.remove(str(WORKERS))


def pairs() -> list[tuple[list[int], list[int]]]:
    """Shared prefixes, single ids, a prefix of one id, one pair twice, and one that is long."""
    shared, other = tiny.ids(9), tiny.ids(30, 4)
    found = [(shared, tiny.ids(n, n)) for n in (4, 1, 7)] + [(other, tiny.ids(3, 5)), (shared, tiny.ids(1, 1))]
    return [*found, (tiny.ids(1, 4), tiny.ids(2, 6)), (tiny.ids(150, 7), tiny.ids(20, 8)), found[0]]


def oracle(asked: list[tuple[list[int], list[int]]]) -> list[Likelihood]:
    import torch
    from transformers import LlamaForCausalLM

    net = LlamaForCausalLM.from_pretrained(tiny.built() / "teacher-hf").double()
    found = []
    for prefix, ids in asked:
        with torch.no_grad():
            rows = net(torch.tensor([[*prefix, *ids]])).logits[0, len(prefix) - 1 : -1].log_softmax(-1)
        greedy = rows.argmax(-1).tolist() == list(ids)
        found.append(Likelihood(float(rows.gather(-1, torch.tensor(ids)[:, None]).sum()), greedy))
    return found


def ask(artifact: Artifact, asked: Any, folder: Path, store: Store | None = None) -> list[Likelihood]:
    return likelihoods(
        artifact, asked, threads=1, device=DEVICE, workdir=folder, store=store or Store(None, artifact.sha256)
    )


@pytest.mark.parametrize("runtime", [name for name, one in RUNTIMES.items() if one.host == "python"])
def test_every_runtime_agrees_with_torch(runtime: str, tmp_path: Path) -> None:
    asked = pairs()
    greedy = next(
        ([*tiny.ids(9), *extra], [token]) for extra in ([], [5]) for token in _best([*tiny.ids(9), *extra])
    )  # one that greedy decoding would write
    found, expected = ask(tiny.artifacts()[runtime], [*asked, greedy], tmp_path), oracle([*asked, greedy])
    assert [f.nats for f in found] == pytest.approx([e.nats for e in expected], rel=1e-4, abs=1e-4)
    assert [f.greedy for f in found] == [e.greedy for e in expected] and found[-1].greedy


def _best(ids: list[int]) -> list[int]:
    import torch
    from transformers import LlamaForCausalLM

    net = LlamaForCausalLM.from_pretrained(tiny.built() / "teacher-hf")
    with torch.no_grad():
        return [int(net(torch.tensor([ids])).logits[0, -1].argmax())]


def test_packs_hold_everything_once_and_keep_to_their_room() -> None:
    packs, cells = worker_module().packs, worker_module().cells
    draw = random.Random(0)
    groups = [
        ([1] * draw.randint(1, 60), [[2] * draw.randint(1, 9) for _ in range(draw.randint(1, 12))]) for _ in range(50)
    ]
    for room, sequences in ((512, 64), (80, 4), (70, 1)):
        seen: dict[int, list[list[int]]] = {}
        for pack in packs(groups, room, sequences):
            assert sum(len(part[1]) for _, _, part in pack) <= sequences
            assert sum(cells(part) for _, _, part in pack) <= room
            for number, start, part in pack:
                assert start == len(seen.get(number, []))
                seen.setdefault(number, []).extend(part[1])
        assert seen == {i: continuations for i, (_, continuations) in enumerate(groups)}


def test_sums_of_a_group_by_hand() -> None:
    logits = np.array([[0.0, 0.0], [np.log(3.0), 0.0]], np.float32)
    found = worker_module().scores(logits, [[0, 1], [0]], [[1, 0], [0]])
    assert found[0] == [pytest.approx(np.log(0.5) + np.log(0.75)), False]
    assert found[1] == [pytest.approx(np.log(0.5)), True]


@pytest.mark.parametrize("group", [[[], [[5]]], [[5], []], [[5], [[]]], [[5], [[500]]], [[5] * 300, [[5] * 300]]])
def test_what_cannot_be_scored_is_refused(group: Any, tmp_path: Path) -> None:
    from edgeslm.evaluate.execute import execute

    task = {"task": "likelihood", "groups": [[[5], [[6]]], group], "context": 256, "threads": 1}
    with pytest.raises(RuntimeFailure, match="group 1"):
        execute(DEVICE, tiny.artifacts()["llama_cpp"], task, tmp_path, timeout_s=60)


def test_contexts_are_cut_on_the_left_as_lm_eval_cuts_them() -> None:
    assert truncated(([1, 2, 3, 4], [5, 6]), 4) == ([2, 3, 4], [5, 6])
    assert truncated(([1, 2], [5]), 2) == ([1, 2], [5])
    with pytest.raises(DataError, match="does not fit"):
        truncated(([1], [5, 6, 7]), 2)


@pytest.fixture
def dying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Artifact]:
    """An artifact whose worker answers group by group with minus the group's number, until `code` says else."""

    def make(code: str) -> Artifact:
        script = tmp_path / "worker.py"
        script.write_text(
            "import json, os, signal, sys\njob = json.load(open(sys.argv[1]))\n"
            "open(os.path.dirname(sys.argv[1]) + '/result.json', 'w').write('{\"engine\": {}, \"groups\": 1}')\n"
            "for i, (prefix, wanted) in enumerate(job['groups']):\n"
            "    scores = [[-float(len(prefix)), False] for _ in wanted]\n"
            f"    {code}\n"
            "    print(json.dumps({'group': i, 'scores': scores}), flush=True)\n"
            "print('{\"ok\": true}')\n"
        )
        monkeypatch.setitem(RUNTIMES, "stub", Runtime("stub", "stub", ("stub",), str(script), ()))
        (tmp_path / "model.bin").write_bytes(b"x")
        return Artifact("model.bin", tmp_path / "model.bin", "stub", "5" * 64, 1, 1, 1, "f32")

    return make


def test_a_worker_that_dies_leaves_what_it_said_and_the_next_call_asks_for_the_rest(
    dying: Callable[[str], Artifact], tmp_path: Path
) -> None:
    asked = [([5] * n, [6]) for n in range(1, 8)]
    artifact = dying("if i == 3: os.kill(os.getpid(), signal.SIGKILL)")
    with (
        Store(tmp_path / "kept", artifact.sha256) as store,
        pytest.raises(RuntimeFailure, match=r"out of memory.*3 of 7 answers are kept, the same command goes on"),
    ):
        ask(artifact, asked, tmp_path / "w", store)
    artifact = dying(f"open({str(tmp_path / 'asked')!r}, 'a').write(str(len(prefix)) + ' ')")
    with Store(tmp_path / "kept", artifact.sha256) as store:
        assert [f.nats for f in ask(artifact, asked, tmp_path / "w", store)] == [-n for n in range(1, 8)]
        assert (tmp_path / "asked").read_text().split() == ["4", "3", "2", "1"]  # 7, 6 and 5 were kept
        (tmp_path / "asked").unlink()
        ask(artifact, asked, tmp_path / "w", store)
        assert not (tmp_path / "asked").exists()  # nothing was asked again


@pytest.mark.parametrize(
    "code",
    ["scores = scores[1:]", "scores = [[float('nan'), False]]", "scores = [['x', False]]", "i = 99", "scores = None"],
)
def test_a_damaged_answer_is_never_a_score(code: str, dying: Callable[[str], Artifact], tmp_path: Path) -> None:
    artifact = dying(f"if i == 1: {code}")
    with pytest.raises(EdgeSLMError, match="1 of 3 likelihoods never came"):
        ask(artifact, [([5] * n, [6]) for n in range(1, 4)], tmp_path / "w")


def test_stores_keep_files_and_conditions_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pairs()[:3]
    near = tiny.artifact(tiny.built() / "near.gguf", "gguf")
    teacher = tiny.artifacts()["llama_cpp"]
    with Store(tmp_path, teacher.sha256) as one, Store(tmp_path, near.sha256) as two:
        first, second = ask(teacher, asked, tmp_path / "w", one), ask(near, asked, tmp_path / "w", two)
        assert first != second
        monkeypatch.setattr(module, "conditions", lambda artifact: ["another version"])
        monkeypatch.setattr(module, "execute_keeping", lambda *a, **k: None)
        with pytest.raises(RuntimeFailure, match="never came"):  # what another version said is not taken
            ask(teacher, asked, tmp_path / "w", one)


def test_a_store_that_is_no_store_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / ("a" * 32 + ".sqlite")).write_bytes(b"this is no database, whatever its name says" * 9)
    with pytest.raises(DataError, match="no usable store of answers"):
        Store(tmp_path, "a" * 64)
    with Store(tmp_path, "b" * 64) as store:
        store.put({"x": [1.5, True]})
        store._base.execute("INSERT INTO answers VALUES ('y', '{broken')")
        assert store.get(["x", "y", "z"]) == {"x": [1.5, True]}
