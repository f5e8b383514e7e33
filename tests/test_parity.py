"""benchmarks.parity: what each side is asked and how its answer is read; the figures of a record."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import parity, parity_sides
from benchmarks.parity_sides import BENCH, GENAI, Setting


def setting(folder: Path, **other: Any) -> Setting:
    (folder / "m.gguf").write_bytes(b"GGUF")
    return Setting(folder / "m.gguf", threads=2, prompt=10, new=5, repeats=2, scratch=folder, **other)


def stub(path: Path, code: str) -> Path:
    path.write_text(f"#!{sys.executable}\nimport json, sys\nopen('argv', 'w').write(json.dumps(sys.argv[1:]))\n{code}")
    path.chmod(0o755)
    return path


def entry(native: list[float], bench: list[float]) -> dict[str, Any]:
    def speeds(value: float) -> dict[str, list[float]]:
        return {"prefill": [value * 0.9, value * 2, value * 2.1], "decode": [value]}

    rounds = [{"native": speeds(a), BENCH: speeds(b)} for a, b in zip(native, bench, strict=True)]
    memory = [{"native": {"reported": 99, "vm_hwm": 100, "group_peak": 98}, BENCH: {"vm_hwm": 100}}]
    about = {"date": "2026-01-01T00:00:00", "model": "m.gguf", "prompt_tokens": 10, "new_tokens": 5, "threads": 2}
    return about | {"rounds": rounds, "memory": memory}


def test_figures_are_medians_of_the_ratios_of_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    record = entry([10, 40, 33], [10, 20, 30])  # ratios 1, 2, 1.1: not the ratio of medians, 33 / 20
    found = parity.show([record])
    assert found["decode_ratio"] == found["prefill_ratio"] == pytest.approx(1.1)
    assert found["decode_ratio_range"] == [1, 2] and found["memory_ratio"] == 0.99
    assert found["memory_over_group_peak"] == pytest.approx(99 / 98)
    assert "1.100 (1.000–2.000)" in capsys.readouterr().out
    assert "| native worker | llama-bench | 1.100 (1.000–2.000) |" in parity.table(record)
    record["memory"][0][BENCH]["vm_hwm"] = None  # a kernel that does not tell
    assert parity.figures(record)["memory_ratio"] is None and parity.table(record).count("| – |") == 1


def test_llama_bench_is_asked_the_same_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = [
        {"n_prompt": 10, "n_gen": 0, "samples_ns": [10**9, 5 * 10**8]},
        {"n_prompt": 0, "n_gen": 5, "samples_ns": [10**9, 2 * 10**9]},
    ]
    tool = stub(tmp_path / "llama-bench", f"print(json.dumps({tests!r}))")
    monkeypatch.setattr(parity_sides, "tool", lambda name: tool)
    asked = setting(tmp_path)
    assert parity_sides.llama_bench(BENCH, asked, False) == {"prefill": [10, 20], "decode": [5, 2.5]}
    argv = json.loads((tmp_path / "argv").read_text())
    assert argv[argv.index("-p") + 1] == "10" and argv[argv.index("-n") + 1] == "5" and "mmap" in argv
    assert parity_sides.llama_bench(BENCH, asked, True)["vm_hwm"] > 1e6
    argv = json.loads((tmp_path / "argv").read_text())
    assert argv[argv.index("-pg") + 1] == "10,5" and argv[argv.index("-n") + 1] == "0"  # in one context, as ours


def test_genais_benchmark_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"x")
    (folder / "genai_config.json").write_text('{"model": {"decoder": {}}}')
    text = "Average Prompt Processing Latency (per token): 2.0 ms\nAverage Token Generation Latency (per token): 4.0 ms"
    script = stub(tmp_path / "benchmark_e2e.py", f"print({text!r})")
    asked = setting(tmp_path, onnx=folder, script=script)
    assert parity_sides.genai(GENAI, asked, False) == {"prefill": [500], "decode": [250]}
    laid = json.loads((tmp_path / "onnx" / "genai_config.json").read_text())
    assert laid["model"]["decoder"]["session_options"]["intra_op_num_threads"] == 2
    assert json.loads((folder / "genai_config.json").read_text()) == {"model": {"decoder": {}}}
    assert asked.sides == (GENAI, "onnx", BENCH, "native", "python") and asked.path("onnx") == folder


def test_a_side_that_fails_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with pytest.raises(SystemExit, match="llama-bench failed: no such model"):
        parity_sides.launch(command, setting(tmp_path), BENCH, False)
    arguments = argparse.Namespace(onnx=tmp_path, genai_benchmark=None)
    with pytest.raises(SystemExit, match="belong together"):
        parity.run(arguments)


def test_a_process_is_watched_until_it_ends(tmp_path: Path) -> None:
    code = "held = b'x' * (100 << 20); del held; import time; time.sleep(0.05)"
    found = parity_sides.launch([sys.executable, "-c", code], setting(tmp_path), BENCH, True)
    assert 100 << 20 < found["vm_hwm"] < 160 << 20


@pytest.mark.parametrize("name", ["memory.peak", "memory.max_usage_in_bytes"])
def test_both_versions_of_control_groups(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("12345\n")
    parity_sides.join(tmp_path)
    assert (tmp_path / "cgroup.procs").read_text() == "0" and parity_sides.group_peak(tmp_path) == 12345
