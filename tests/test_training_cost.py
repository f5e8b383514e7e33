"""The training-cost benchmark: its shapes, its points, and the four findings put to made-up rows that go both ways."""

from __future__ import annotations

import argparse
import json
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import record, training_cost
from benchmarks.training_cost_findings import (
    FINDINGS,
    Finding,
    attention_matters_more_for_small_models,
    data_parallel_suffices,
    dearest_device_is_not_cheapest_per_token,
    full_memory_is_not_the_cost_optimum,
)
from benchmarks.training_cost_shapes import SHAPES, config_of
from edgeslm import cost
from edgeslm.training_cost import launch, worker
from edgeslm.training_cost.grid import ALONE, Point
from edgeslm.training_cost.store import MEASURED, NO_MEMORY
from edgeslm.training_cost.study import TOO_LARGE

SIZES = {"20M": 20e6, "60M": 60e6, "125M": 125e6, "350M": 350e6, "1B": 1e9, "2B": 2e9}
HOLDS, NOT, UNTESTED = "holds", "does not hold", "cannot be tested here"
WIDE = [0.5, 1.0, 1.6]  # processes that tell nothing


def row(speed: float, noise: float = 0.001, **more: Any) -> dict[str, Any]:
    """Three processes around `speed`."""
    plain = {
        "shape": "20M", "parameters": 20e6, "machine": "a", "memory_bytes": 100.0, "own_memory": True, "rows": 8,
        "length": 64, "per_hour": None, "currency": None, "attention": "sdpa", "micro_rows": 8, "compile": False,
        "ranks": 1, "parallel": ALONE, "backend": ALONE, "state": MEASURED, "kernel": "flash_attention",
        "tokens_per_s": [speed * (1 - noise), speed, speed * (1 + noise)], "peak_memory_bytes": [50],
    }  # fmt: skip
    return {**plain, **more}


def gains(small: float, large: float, noise: float = 0.001, fused: str = "sdpa") -> list[dict[str, Any]]:
    big = {"shape": "1B", "parameters": 1e9}
    return [row(small, noise, attention=fused), row(1.0, attention="eager"),
            row(large, -noise, attention=fused, **big), row(1.0, attention="eager", **big)]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "verdict", "why"),
    [
        (gains(2.0, 1.2), HOLDS, "sdpa over eager: 2.00 times at 20M, 1.20 at 1B"),
        (gains(2.0, 1.2, fused="flash"), HOLDS, "flash over eager"),
        (gains(1.2, 2.0), NOT, "1.20 times at 20M"),
        (gains(1.5, 1.5), NOT, "1.50 times at 20M"),
        (gains(1.5, 1.3, noise=0.4), UNTESTED, "inside the spread"),
        (gains(2.0, 1.2)[:2], UNTESTED, "two sizes at least"),
        ([{**r, "kernel": "math"} for r in gains(2.0, 1.2)], UNTESTED, "needs fused and eager"),
        ([{**r, "tokens_per_s": r["tokens_per_s"][:1]} for r in gains(2.0, 1.2)], UNTESTED, "two sizes at least"),
        ([], UNTESTED, "two sizes at least"),
    ],
)
def test_attention(rows: Any, verdict: str, why: str) -> None:
    check(attention_matters_more_for_small_models(rows), verdict, why)


def test_attention_is_compared_at_one_micro_batch() -> None:
    other = [{**r, "micro_rows": 1, "tokens_per_s": [9.0] * 3} for r in gains(1.0, 1.0)[:1]]
    check(attention_matters_more_for_small_models([*other, *gains(2.0, 1.2)]), HOLDS, "(8 rows of 64 at once)")
    mixed = [*gains(2.0, 1.2)[:2], *({**r, "length": 128} for r in gains(2.0, 1.2)[2:])]
    check(attention_matters_more_for_small_models(mixed), UNTESTED, "two sizes at least")


def devices(cheap: float, dear: float, noise: float = 0.001, per_hour: float = 4.0) -> list[dict[str, Any]]:
    some = {"currency": "EUR"}
    return [row(cheap, noise, per_hour=1.0, **some), row(0.1 * cheap, attention="eager", per_hour=1.0, **some),
            row(dear, noise, machine="b", per_hour=per_hour, **some)]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "verdict", "why"),
    [
        (devices(100, 200), HOLDS, "beside b, the dearest, at 20M: a: 2.00 times the tokens"),
        (devices(100, 800), NOT, "0.50 times the tokens"),
        (devices(100, 400), NOT, "1.00 times the tokens"),
        (devices(100, 350, noise=0.5), UNTESTED, "inside the spread"),
        (devices(100, 200)[:2], UNTESTED, "two kinds of devices with a price"),
        ([{**r, "per_hour": None} for r in devices(100, 200)], UNTESTED, "the record has 0"),
        (devices(100, 200, per_hour=1.0), UNTESTED, "the same price"),
        ([*devices(100, 200)[:2], {**devices(100, 200)[2], "currency": "USD"}], UNTESTED, "several currencies"),
        ([*devices(100, 200)[:2], {**devices(100, 200)[2], "shape": "1B"}], UNTESTED, "no shape was trained on two"),
    ],
)
def test_dearest_device(rows: Any, verdict: str, why: str) -> None:
    check(dearest_device_is_not_cheapest_per_token(rows), verdict, why)


def joined(whole: float, shared: float, noise: float = 0.001, **of_ddp: Any) -> list[dict[str, Any]]:
    both = {"ranks": 2, "backend": "gloo"}
    return [row(whole, noise, parallel="ddp", **both, **of_ddp), row(shared, noise, parallel="fsdp2", **both)]


@pytest.mark.parametrize(
    ("rows", "verdict", "why"),
    [
        (joined(2.0, 1.0), HOLDS, "20M, 2 ranks, gloo: ddp is 2.00 times as fast as fsdp2"),
        (joined(1.0, 1.0), HOLDS, "1.00 times"),
        (joined(1.0, 2.0), NOT, "0.50 times"),
        (joined(1.0, 1.0, state=NO_MEMORY, tokens_per_s=[]), NOT, "only fsdp2 fits"),
        (joined(1.0, 1.0, state=TOO_LARGE, tokens_per_s=[]), NOT, "only fsdp2 fits"),
        ([*joined(2.0, 1.0), *({**r, "shape": "1B"} for r in joined(1.0, 2.0))], NOT, "1B, 2 ranks"),
        (
            [joined(1.0, 1.0)[0], {**joined(1.0, 1.0)[1], "tokens_per_s": WIDE}],
            UNTESTED,
            "inside the spread",
        ),
        ([joined(1.0, 1.0)[0], {**joined(1.0, 1.0)[1], "backend": "nccl"}], UNTESTED, "rows of ddp and of fsdp2"),
        ([row(1.0)], UNTESTED, "rows of ddp and of fsdp2"),
    ],
)
def test_data_parallel(rows: Any, verdict: str, why: str) -> None:
    check(data_parallel_suffices(rows), verdict, why)


def filled(small: float, full: float, peak: float = 95, noise: float = 0.001) -> list[dict[str, Any]]:
    return [row(small, noise, micro_rows=4), row(full, noise, micro_rows=16, peak_memory_bytes=[peak])]


@pytest.mark.parametrize(
    ("rows", "verdict", "why"),
    [
        (filled(2.0, 1.0), HOLDS, "4 rows at once are 2.00 times as fast as 16, which fill 95 %"),
        (filled(1.0, 1.0), HOLDS, "1.00 times"),
        (filled(1.0, 2.0), NOT, "0.50 times"),
        ([*filled(2.0, 1.0), *({**r, "shape": "1B"} for r in filled(1.0, 2.0))], NOT, "1B, sdpa"),
        (filled(2.0, 1.0, peak=60), UNTESTED, "the fullest takes 60 % of it"),
        ([*filled(2.0, 1.0, 60), row(0.0, micro_rows=32, state=TOO_LARGE, tokens_per_s=[])], HOLDS, "fill 60 %"),
        ([*filled(1.0, 2.0, 60), row(0.0, micro_rows=32, state=NO_MEMORY, tokens_per_s=[])], NOT, "fill 60 %"),
        (
            [filled(1.0, 1.0)[0], {**filled(1.0, 1.0)[1], "tokens_per_s": WIDE}],
            UNTESTED,
            "inside the spread",
        ),
        (filled(2.0, 1.0)[1:], UNTESTED, "no micro-batch fills the memory"),
    ],
)
def test_full_memory(rows: Any, verdict: str, why: str) -> None:
    check(full_memory_is_not_the_cost_optimum(rows), verdict, why)


def test_ranks_that_share_a_memory_fill_it_together() -> None:
    both = [{**r, "own_memory": False, "ranks": 2, "peak_memory_bytes": [45, 45]} for r in filled(2.0, 1.0)]
    check(full_memory_is_not_the_cost_optimum(both), HOLDS, "fill 90 %")


def check(found: Finding, verdict: str, why: str) -> None:
    assert found.verdict == verdict and why in found.why, found
    assert json.loads(json.dumps(found.to_json()))["verdict"] == verdict


def test_each_finding_is_tested_by_its_name() -> None:
    assert [name for name, test in FINDINGS.items() if test.__name__ != name] == [] and len(FINDINGS) == 4


def test_shapes_are_as_large_as_they_are_called() -> None:
    assert list(SHAPES) == list(SIZES)
    for name, size in SIZES.items():
        assert cost.counts(config_of(name)).total == pytest.approx(size, rel=0.05)


def given(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    training_cost.options(parser)
    return parser.parse_args([*arguments, "--threads", "1"])


def test_points_of_sizes() -> None:
    how = given("--parallel", "ddp,fsdp2", "--micro-rows", "1,8")
    small = training_cost.points_of("20M", how, "gloo")
    assert Point("sdpa", 8, compile=True) in small and len(small) == 4 + 1 + 2
    assert {(p.parallel, p.backend, p.micro_rows) for p in small if p.ranks == 2} == {
        ("ddp", "gloo", 4),
        ("fsdp2", "gloo", 4),
    }
    assert len(training_cost.points_of("125M", how, "gloo")) == 4


@pytest.fixture
def tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "20M", (64, 2))


def test_a_shape_is_measured_by_our_step(tiny_shape: None) -> None:
    how = given("--length", "32", "--rows", "4", "--steps", "2", "--precision", "f32")
    job = training_cost.job_of(config_of("20M"), Point("eager", 2), how)
    found = worker.held(lambda: worker.KINDS["shape"](job))
    assert found["state"] == MEASURED and (len(found["seconds"]), len(found["warmup_seconds"])) == (2, 2)
    assert found["tokens_per_step"] == 128 and found["kernel"] == "eager" and found["threads"] == 1
    assert found["parameters"] == cost.counts(config_of("20M")).total
    chosen = worker.KINDS["shape"]({**job, "point": Point("sdpa", 2).to_json()})
    assert chosen["kernel"] in ("flash_attention", "math") and chosen["loss"] == pytest.approx(found["loss"], rel=1e-3)


def test_a_shape_is_measured_by_two_processes(tiny_shape: None) -> None:
    how = given("--length", "32", "--rows", "4", "--steps", "1", "--warmups", "1", "--precision", "f32")
    point = Point("sdpa", 2, False, 2, "fsdp2", "gloo")
    found = launch.run(training_cost.job_of(config_of("20M"), point, how), 2, 120)
    assert found["state"] == MEASURED, found
    assert len(found["peak_memory_bytes"]) == 2 and len(found["seconds"]) == 1 and found["loss"] > 1


def test_a_record_from_run_to_headline(tiny_shape: None, tmp_path: Any, monkeypatch: pytest.MonkeyPatch,
                                       capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """Processes are stood in for by made-up results: what is told of them is what is tested."""
    prices = tmp_path / "prices.yaml"
    prices.write_text("currency: EUR\nprices: {mine: 1.5}", encoding="utf-8")
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    ran = []

    def run(job: Any, ranks: int) -> dict[str, Any]:
        ran.append(job["point"])
        seconds = 2.0 if job["point"]["attention"] == "eager" else 1.0
        return {
            "state": MEASURED, "seconds": [seconds], "warmup_seconds": [seconds], "tokens_per_step": 2048,
            "mixed": False, "loss": 9.0, "peak_memory_bytes": [1 << 30] * ranks, "dtype": "float32", "threads": 1,
            "parameters": 1, "kernel": "flash_attention",
        }  # fmt: skip

    monkeypatch.setattr(launch, "run", run)
    how = given("--shapes", "20M", "--prices", str(prices), "--machine", "mine", "--precision", "f32")
    record.append("training_cost", training_cost.run(how))
    head = training_cost.show(record.read("training_cost"))
    out = capsys.readouterr().out
    points = training_cost.points_of("20M", how, "gloo")
    joined = HOLDS if any(point["ranks"] > 1 for point in ran) else UNTESTED  # a single core joins none
    told = {"data_parallel_suffices": joined, "tokens_per_s": {"20M": 2048.0}}
    assert head == {**dict.fromkeys(FINDINGS, UNTESTED), **told}
    assert len(ran) >= 3 * 4 and len(ran) % 3 == 0
    assert all(point.label in out for point in points)
    flat = training_cost.latest(record.read("training_cost"))
    assert {r["per_hour"] for r in flat} == {1.5} and len(flat) == len(points)
    assert {r["attention"]: r["tokens_per_s"] for r in flat if r["micro_rows"] == 1} == {
        "sdpa": [2048.0] * 3,
        "eager": [1024.0] * 3,
    }


def test_a_round_that_time_runs_out_in_does_not_count(tiny_shape: None, monkeypatch: pytest.MonkeyPatch) -> None:
    how = given("--shapes", "20M", "--minutes", "1")
    points = [Point("sdpa", 1), Point("eager", 1)]
    rows = [(config_of("20M"), training_cost.Row(point)) for point in points]
    clock, ran = iter([0.0, 1.0, 2.0, 3.0, 99.0]), []

    def run(job: Any, ranks: int) -> dict[str, Any]:
        ran.append(job)
        return {"state": MEASURED}

    monkeypatch.setattr(training_cost, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(launch, "run", run)
    training_cost.measure(rows, how)
    assert len(ran) == 3 and [len(row.results) for _, row in rows] == [1, 1]
    assert {row.state for _, row in rows} == {MEASURED}
