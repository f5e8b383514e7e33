"""Benchmarks: what is recorded, fair order, bounds, doubts; on tiny models and on transcripts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny

from edgeslm.artifact import Artifact
from edgeslm.benchmark import doubts
from edgeslm.benchmark.run import bench, cool_down, thermometer
from edgeslm.benchmark.settings import Settings, watch_files
from edgeslm.devices.facts import temperature_c
from edgeslm.devices.fake import FakeDevice, Turn
from edgeslm.devices.local import LocalDevice
from edgeslm.errors import DataError
from edgeslm.measurement import dump, load, ratio

FACTS = {"id": "test", "cores": 1}
SHAPE = {
    "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 8,
}  # fmt: skip
RATES = {"threads": 1, "read_bytes_per_s": [1e9, 1e10], "copy_bytes_per_s": [1e9], "flops_f32": [1e11]}
CEILINGS = Turn(lines=('{"ok": true}',), files={"result.json": RATES}, expect="job.json")
ALWAYS = {"load", "time_to_first_token", "prefill", "decode", "token_latency"}


def test_everything_the_report_needs(tmp_path: Path) -> None:
    made = [tiny.artifacts()[name] for name in ("llama_cpp", "onnxruntime")]
    said: list[tuple[str, int, int]] = []
    settings = Settings(
        prefill=(24,),
        depths=(24,),
        new_tokens=8,
        processes=2,
        repeats=2,
        warmups=1,
        most_warmups=1,
        threads=1,
        watts_per_core=3.0,
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
    assert bandwidth.where.artifact == "-" and min(bandwidth.values) > 1e8
    for artifact in made:
        mine = {m.metric: m for m in found if m.where.artifact == artifact.name}
        assert set(mine) >= ALWAYS | {"decode_bound", "rss_anon_peak", "rss_file_peak", "vm_hwm", "pss_peak"}
        assert mine["decode"].n == mine["prefill"].n == 4 and len(mine["decode"].warmups) == 2
        assert mine["load"].n == 2 and mine["token_latency"].n == 32
        assert all(v > 0 for m in mine.values() for v in m.values if m.metric != "swap_peak")
        bound = mine["decode_bound"]
        kv = 2 * tiny.LAYERS * tiny.KV_HEADS * 16 * (2 if artifact.format == "gguf" else 4) * (24 + 4)
        moved = artifact.weight_bytes + kv
        assert bound.kind == "modelled" and bound.median <= max(bandwidth.values) / moved * 1.001
        assert bound.extra["measured"] == mine["decode"].median and str(moved) in bound.note
        assert mine["energy_per_token"].kind in ("estimated", "measured")
        assert mine["decode"].where.job["prompt"]["items"] == 24 and mine["decode"].where.threads == 1
        assert artifact.path.as_posix() not in str(mine["decode"].where.job)
    dump(found, tmp_path / "results.json")
    assert load(tmp_path / "results.json") == found


def turn(decode_s: float = 1.0) -> Turn:
    run = {"seconds": 1.0, "cpu_s": 1.0, "rails": [[], []]}
    step = {**run, "seconds": decode_s, "token_latency_s": [decode_s]}
    result: dict[str, Any] = {
        "engine": {"runtime": "llama.cpp", "version": "1"},
        "load_s": 0.5,
        "phases": [
            {"kind": "prefill", "tokens": 2, "depth": 0, "warmups": [], "runs": [{**run, "first_s": 1.0}]},
            {"kind": "decode", "tokens": 1, "depth": 2, "warmups": [], "runs": [step]},
        ],
        "stable": True,
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
            Settings(prefill=(2,), depths=(2,), new_tokens=1, processes=6, warmups=0, repeats=1, seed=seed),
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
        Settings(prefill=(2,), depths=(2,), new_tokens=1, processes=1, warmups=0, repeats=1),
        device=FakeDevice([turn(0.5), turn(0.5)]),
        workdir=tmp_path / "w",
    )
    decode = [m for m in found if m.metric == "decode"]
    assert ratio(*decode) == 1.0
    assert {m.metric for m in found} == ALWAYS  # no memory, no energy, no bandwidth: no number


def test_a_failing_artifact_is_a_problem_and_not_run_again(tmp_path: Path) -> None:
    artifacts = files(tmp_path, "a.gguf", "b.gguf")
    gone = Artifact("gone.gguf", tmp_path / "gone.gguf", "gguf", "0", 1, 1, 1, "f32")
    device = FakeDevice([turn() for _ in range(6)])
    found, problems = bench(
        [*artifacts, gone],
        [1],
        Settings(prefill=(2,), depths=(2,), new_tokens=1, processes=3, warmups=0, repeats=1),
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
    for quiet in ([0.1, 0.2], [], [None]):
        assert doubts.background(quiet, 2) == ""
    assert "1.7 cores busy" in doubts.background([0.0, 1.7], 2)


def one_result(**change: Any) -> dict[str, Any]:
    run = {"seconds": 1.0, "others_cores": 0.1, "watch": {"khz": [[2_000_000], [1_990_000]]}, **change}
    return {"stable": True, "phases": [{"runs": [run]}], "steps": {"wall_minus_monotonic_s": [5.0, 5.0]}}


def test_a_disturbed_run_says_by_what() -> None:
    assert doubts.of_results([one_result(), one_result(others_cores=None, watch={})]) == []
    found = doubts.of_results([one_result(others_cores=1.25), one_result()])
    assert found == ["others kept up to 1.2 cores busy during 1 of 2 runs"]
    (clock,) = doubts.of_results([one_result(watch={"khz": [[2_000_000], [1_500_000, None]]})])
    assert clock == "the clock moved between 1.50 and 2.00 GHz"
    (heat,) = doubts.of_results([one_result(watch={"millicelsius": [[40_000], [62_000]]})])
    assert "from 40 to 62 degrees" in heat
    (step,) = doubts.of_results([{**one_result(), "steps": {"wall_minus_monotonic_s": [5.0, 65.0]}}])
    assert "set by +60.0 s" in step and "monotonic" in step
    (loose,) = doubts.of_results([{**one_result(), "stable": False}])
    assert "not steady" in loose


def test_strict_refuses_what_was_disturbed(tmp_path: Path) -> None:
    disturbed = turn()
    disturbed.files["result.json"]["phases"][1]["runs"][0]["others_cores"] = 2.0
    settings = Settings(prefill=(2,), depths=(2,), new_tokens=1, processes=1, warmups=0, repeats=1)
    for strict in (False, True):
        found, problems = bench(
            files(tmp_path, "a.gguf"), [1], replace(settings, strict=strict), device=FakeDevice([disturbed]),
            workdir=tmp_path / "w",
        )  # fmt: skip
        assert bool(found) is not strict
        assert [p["what"] for p in problems] == (
            ["refused, the run was disturbed: others kept up to 2.0 cores busy during 1 of 2 runs; "
             "let the device rest and run it again"] if strict else []
        )  # fmt: skip


def test_what_decoding_does_not_read_raises_the_ceiling(tmp_path: Path) -> None:
    tied, untied = (replace(a, weight_bytes=800, shape=SHAPE) for a in files(tmp_path, "a.gguf", "b.gguf"))
    found, _ = bench(
        [tied, replace(untied, unread_bytes=600)],
        [1],
        Settings(prefill=(2,), depths=(2,), new_tokens=1, processes=1, warmups=0, repeats=1),
        device=FakeDevice([turn(), turn(0.5), CEILINGS], FACTS),
        workdir=tmp_path / "w",
    )
    by = {(m.metric, m.where.artifact): m for m in found}
    cache = 2 * 1 * 1 * 4 * 2 * 2  # keys and values, 4 channels, 2 bytes, 2 positions
    assert by["decode_bound", "a.gguf"].median == pytest.approx(1e10 / (800 + cache))
    assert by["decode_bound", "b.gguf"].median == pytest.approx(1e10 / (200 + cache))
    assert by["memory_bandwidth", "-"].values == (1e9, 1e10) and by["compute", "-"].median == 1e11
    told = by["predicted_decode", "a.gguf"]  # by the share that the other one reached
    rate = by["decode", "b.gguf"].median
    assert told.median == pytest.approx(rate * (200 + cache) / (800 + cache)) and "b.gguf" in told.note
    assert told.kind == "modelled" and told.extra["measured"] == by["decode", "a.gguf"].median
    assert by["prefill_bound", "a.gguf"].extra["prompt_tokens"] == 2


def test_cooling_down_waits_for_the_first_temperature(tmp_path: Path) -> None:
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    heat = [60, 55, 43, 41]
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        (zone / "temp").write_text(f"{heat[len(waits)]}000\n")

    (zone / "temp").write_text("60000\n")
    cool_down(lambda: temperature_c(tmp_path), 40.0, 30.0, sleep)
    assert len(waits) == 3  # 41 degrees is near enough to 40
    (zone / "temp").write_text("90000\n")
    cool_down(lambda: temperature_c(tmp_path), 40.0, 3.0, lambda s: waits.append(s))
    assert len(waits) == 6  # gave up after three seconds
    cool_down(lambda: temperature_c(tmp_path / "bare"), 40.0, 30.0, sleep)
    assert len(waits) == 6  # no sensor, nothing to wait for


def test_a_device_behind_a_link_is_looked_at_again_while_it_cools(tmp_path: Path) -> None:
    zone, heat = tmp_path / "sys/class/thermal/thermal_zone0", [60, 50, 40]
    zone.mkdir(parents=True)

    class Far(FakeDevice):
        def refresh(self) -> Path:
            (zone / "temp").write_text(f"{heat.pop(0)}000\n")
            return tmp_path

    waits: list[float] = []
    cool_down(thermometer(Far(), Path("/")), 40.0, 30.0, waits.append)
    assert heat == [] and len(waits) == 2
    assert thermometer(FakeDevice(), Path("/"))() is None  # not this machine's warmth


def test_clocks_and_thermal_zones_are_watched_where_they_are(tmp_path: Path) -> None:
    for cpu in (0, 1, 4):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text("1800000\n")
    assert [len(watch_files(tmp_path)[k]) for k in ("khz", "millicelsius")] == [3, 0]
    (only,) = watch_files(tmp_path, (4,))["khz"]
    assert "cpu4" in only
