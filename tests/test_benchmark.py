"""Benchmarks: what is recorded, fair order, bounds, doubts; on tiny models and on transcripts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny

from edgeslm.artifact import Artifact
from edgeslm.benchmark import Settings, background_note, bench
from edgeslm.devices.fake import FakeDevice, Turn
from edgeslm.devices.local import LocalDevice
from edgeslm.errors import DataError
from edgeslm.measurement import dump, load, ratio

FACTS = {"id": "test", "cores": 1, "bandwidth_bytes_per_s": 1e10, "bandwidth_counts": "by hand"}
ALWAYS = {"load", "time_to_first_token", "prefill", "decode", "token_latency", "decode_bound"}


def test_everything_the_report_needs(tmp_path: Path) -> None:
    made = [tiny.artifacts()[name] for name in ("llama_cpp", "onnxruntime")]
    said: list[tuple[str, int, int]] = []
    settings = Settings(
        prompt_tokens=24, new_tokens=8, processes=2, repeats=2, warmups=1, threads=1, watts_per_core=3.0
    )
    found, problems = bench(
        made,
        tiny.ids(7),
        settings,
        device=LocalDevice(facts=FACTS),
        workdir=tmp_path,
        on_progress=lambda *p: said.append(p),
    )
    assert problems == [] and [p[1:] for p in said] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    (bandwidth,) = [m for m in found if m.metric == "memory_bandwidth"]
    assert bandwidth.where.artifact == "-" and bandwidth.values == (1e10,)
    for artifact in made:
        mine = {m.metric: m for m in found if m.where.artifact == artifact.name}
        assert set(mine) >= ALWAYS | {"rss_anon_peak", "rss_file_peak", "vm_hwm", "pss_peak"}
        assert mine["decode"].n == mine["prefill"].n == 4 and len(mine["decode"].warmups) == 2
        assert mine["load"].n == 2 and mine["token_latency"].n == 32
        assert all(value > 0 for m in mine.values() for value in m.values)
        bound = mine["decode_bound"]
        kv = 2 * tiny.LAYERS * tiny.KV_HEADS * 16 * (2 if artifact.format == "gguf" else 4) * (24 + 4)
        assert bound.kind == "modelled" and bound.median == pytest.approx(1e10 / (artifact.weight_bytes + kv))
        assert mine["energy_per_token"].kind in ("estimated", "measured")
        assert mine["decode"].where.job["prompt"]["items"] == 24 and mine["decode"].where.threads == 1
        assert artifact.path.as_posix() not in str(mine["decode"].where.job)
    dump(found, tmp_path / "results.json")
    assert load(tmp_path / "results.json") == found


def turn(decode_s: float = 1.0) -> Turn:
    run = {
        "prefill_s": 1.0,
        "time_to_first_token_s": 1.0,
        "decode_s": decode_s,
        "token_latency_s": [decode_s],
        "decode_cpu_s": 1.0,
        "rails": [[], []],
    }
    result: dict[str, Any] = {
        "engine": {"runtime": "llama.cpp", "version": "1"},
        "load_s": 0.5,
        "prompt_tokens": 2,
        "new_tokens": 1,
        "warmups": [],
        "runs": [run],
        "memory": {"before_load": {}, "samples": []},
    }
    return Turn(lines=('{"ok": true}',), files={"result.json": result})


def files(tmp_path: Path, *names: str) -> list[Artifact]:
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    return [Artifact(name, tmp_path / name, "gguf", name, 8, 8, 2, "f32") for name in names]


def test_order_is_seeded_and_every_round_runs_all(tmp_path: Path) -> None:
    artifacts = files(tmp_path, "a.gguf", "b.gguf", "c.gguf")

    def order(seed: int) -> list[str]:
        said: list[str] = []
        bench(
            artifacts,
            [1, 2],
            Settings(prompt_tokens=2, new_tokens=1, processes=6, warmups=0, repeats=1, seed=seed),
            device=FakeDevice([turn() for _ in range(18)]),
            workdir=tmp_path / "w",
            on_progress=lambda name, done, total: said.append(name),
        )
        return said

    first = order(0)
    assert first == order(0) != order(1)
    rounds = [first[i : i + 3] for i in range(0, 18, 3)]
    assert all(sorted(r) == ["a.gguf", "b.gguf", "c.gguf"] for r in rounds) and len({tuple(r) for r in rounds}) > 1


def test_like_runs_can_be_compared_and_no_sensor_is_no_number(tmp_path: Path) -> None:
    artifacts = files(tmp_path, "a.gguf", "b.gguf")
    found, _ = bench(
        artifacts,
        [1],
        Settings(prompt_tokens=2, new_tokens=1, processes=1, warmups=0, repeats=1),
        device=FakeDevice([turn(0.5), turn(0.5)]),
        workdir=tmp_path / "w",
    )
    decode = [m for m in found if m.metric == "decode"]
    assert ratio(*decode) == 1.0
    assert {m.metric for m in found} == ALWAYS - {"decode_bound"}  # no memory, no energy, no bandwidth: no number


def test_a_failing_artifact_is_a_problem_and_not_run_again(tmp_path: Path) -> None:
    artifacts = files(tmp_path, "a.gguf", "b.gguf")
    gone = Artifact("gone.gguf", tmp_path / "gone.gguf", "gguf", "0", 1, 1, 1, "f32")
    device = FakeDevice([turn() for _ in range(6)])
    found, problems = bench(
        [*artifacts, gone],
        [1],
        Settings(prompt_tokens=2, new_tokens=1, processes=3, warmups=0, repeats=1),
        device=device,
        workdir=tmp_path / "w",
    )
    assert [p["artifact"] for p in problems] == ["gone.gguf"] and device.turns == []
    assert {m.where.artifact for m in found} == {"a.gguf", "b.gguf"}


def test_settings_are_refused_first(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"repeats must be at least 1; .*watts_per_core must be positive"):
        bench([], [1], Settings(repeats=0, watts_per_core=0.0), device=FakeDevice(), workdir=tmp_path)
    with pytest.raises(DataError, match="no tokens"):
        bench([], [], Settings(), device=FakeDevice(), workdir=tmp_path)


def test_a_busy_machine_is_a_doubt() -> None:
    assert background_note([0.1, 0.2], 2) == "" and background_note([], 2) == "" and background_note([None], 2) == ""
    assert "1.7 cores busy" in background_note([0.0, 1.7], 2)


def test_what_decoding_does_not_read_raises_the_ceiling(tmp_path: Path) -> None:
    tied, untied = files(tmp_path, "a.gguf", "b.gguf")
    found, _ = bench(
        [tied, replace(untied, unread_bytes=6)],
        [1],
        Settings(prompt_tokens=2, new_tokens=1, processes=1, warmups=0, repeats=1),
        device=FakeDevice([turn(), turn()], FACTS),
        workdir=tmp_path / "w",
    )
    bounds = {m.where.artifact: m for m in found if m.metric == "decode_bound"}
    assert bounds["a.gguf"].median == 1e10 / 8 and bounds["b.gguf"].median == 1e10 / 2
    assert "2 of weights" in bounds["b.gguf"].note
