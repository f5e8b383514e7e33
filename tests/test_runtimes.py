"""Runtimes: jobs, results, every way a worker can fail, and workers that agree with each other and with torch."""

from __future__ import annotations

import dataclasses
import importlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny

from edgeslm.artifact import Artifact
from edgeslm.devices.fake import FakeDevice, Turn
from edgeslm.devices.local import LocalDevice
from edgeslm.errors import EdgeSLMError, RuntimeFailure
from edgeslm.evaluate import execute as bench_side
from edgeslm.evaluate.execute import execute
from edgeslm.runtimes import RUNTIMES
from edgeslm.runtimes.base import SHARED, WORKERS, Runtime

DEVICE = LocalDevice(facts={"id": "test", "cores": 1})
NAMES = sorted(name for name, runtime in RUNTIMES.items() if runtime.host == "python")
GENERATE = {"task": "generate", "prompts": [[5, 6, 7]], "max_new": 4, "threads": 1, "context": 32}


def run(artifact: Artifact, task: dict[str, Any], folder: Path, **options: Any) -> bench_side.Outcome:
    return execute(DEVICE, artifact, {"threads": 1, "context": 64, **task}, folder, timeout_s=120, **options)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Artifact]:
    """An artifact whose runtime runs the given program instead of a worker."""

    def make(code: str, **options: Any) -> Artifact:
        script = tmp_path / "worker.py"
        script.write_text("import json, os, signal, sys, time\njob = json.load(open(sys.argv[1]))\n" + code)
        monkeypatch.setitem(RUNTIMES, "stub", Runtime("stub", "stub", ("stub",), str(script), (), **options))
        (tmp_path / "model.bin").write_bytes(b"x")
        return Artifact("model.bin", tmp_path / "model.bin", "stub", "0", 1, 1, 1, "f32")

    return make


def test_table_equals_the_folder() -> None:
    package = Path(bench_side.__file__).parents[1] / "runtimes"
    assert {p.stem for p in package.glob("*.py") if "RUNTIME = Runtime(" in p.read_text()} == set(RUNTIMES)
    workers = {p.name for p in WORKERS.glob("*.py")} - {"__init__.py", *SHARED}
    assert {RUNTIMES[name].worker for name in NAMES} == workers
    assert all(runtime.name == name for name, runtime in RUNTIMES.items())


@pytest.mark.parametrize("name", NAMES)
def test_versions_come_from_metadata(name: str) -> None:
    assert RUNTIMES[name].versions()


def test_the_parent_side_imports_nothing_heavy() -> None:
    code = (
        "import sys, edgeslm.benchmark, edgeslm.evaluate.answers, edgeslm.evaluate.closeness, edgeslm.cost\n"
        "heavy = {'torch', 'numpy', 'llama_cpp', 'onnxruntime', 'transformers'} & set(sys.modules)\n"
        "sys.exit(str(sorted(heavy)) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_job_is_described_without_paths_and_long_lists() -> None:
    job = RUNTIMES["llama_cpp"].job("a.gguf", "/some/where/a.gguf", {"task": "bench", "prompt": list(range(99))})
    described = job.described()
    assert "/some/where" not in json.dumps(described) and described["prompt"]["items"] == 99
    assert described["kv"] == "f16" and described["use_extra_bufts"] is True
    other = RUNTIMES["llama_cpp"].job("b.gguf", "/x/b.gguf", {"task": "bench", "prompt": list(range(99))})
    assert other.described() == described


def test_workers_import_nothing_of_the_project() -> None:
    assert not [p.name for p in WORKERS.glob("*.py") if "edgeslm" in p.read_text()]


# How workers fail


def test_a_crash(stand_in: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = stand_in("print('ggml broke', file=sys.stderr, flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(RuntimeFailure, match=r"stub on model.bin \(generate\) crashed with SIGSEGV.*ggml broke"):
        run(artifact, GENERATE, tmp_path / "w")


def test_a_hang(stand_in: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = stand_in("time.sleep(60)")
    with pytest.raises(RuntimeFailure, match="gave no result within 1 s"):
        execute(DEVICE, artifact, GENERATE, tmp_path / "w", timeout_s=1)


def test_a_kill_for_memory(stand_in: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = stand_in("os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(RuntimeFailure, match="most likely out of memory"):
        run(artifact, GENERATE, tmp_path / "w")


@pytest.mark.parametrize("document", ['{"engine": {}}', "{broken", "[1]", '{"engine": {}, "answers": [{}]}'])
def test_a_malformed_result(stand_in: Callable[..., Artifact], tmp_path: Path, document: str) -> None:
    artifact = stand_in(
        f"open(os.path.dirname(sys.argv[1]) + '/result.json', 'w').write({document!r}); print('{{\"ok\": true}}')"
    )
    with pytest.raises(RuntimeFailure, match="result of 'generate' is malformed"):
        run(artifact, GENERATE, tmp_path / "w")


@pytest.mark.parametrize("change", [{"seconds": 0.0}, {"token_latency_s": None}, {"rails": []}, {"cpu_s": "1"}])
def test_a_bench_run_is_checked_inside(change: dict[str, Any]) -> None:
    run = {"seconds": 1.0, "cpu_s": 1.0, "token_latency_s": [1.0], "rails": [[], []]}
    phase = {"kind": "decode", "tokens": 1, "depth": 0, "warmups": [], "runs": [run]}
    result = {"engine": {}, "load_s": 1.0, "stable": True, "phases": [phase], "memory": {}}
    assert RUNTIMES["llama_cpp"].parse(result, "bench") is result
    broken = [{**phase, "runs": [{**run, **change}]}, {**phase, "runs": []}, {**phase, "kind": "sleep"}]
    for wrong in broken:
        with pytest.raises(RuntimeFailure, match="no usable phases"):
            RUNTIMES["llama_cpp"].parse({**result, "phases": [wrong]}, "bench")


def test_a_result_that_was_never_written_or_never_announced(stand_in: Callable[..., Artifact], tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match="malformed"):
        run(stand_in("print('{\"ok\": true}')"), GENERATE, tmp_path / "w")
    with pytest.raises(RuntimeFailure, match="ended without saying so"):
        run(stand_in("print('hello')"), GENERATE, tmp_path / "w")


def test_an_exception_shows_its_last_line(stand_in: Callable[..., Artifact], tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match="exit code 1; last words: ValueError: odd"):
        run(stand_in("raise ValueError('odd')"), GENERATE, tmp_path / "w")


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_a_sentence(name: str, tmp_path: Path) -> None:
    artifact = tiny.artifacts()[name]
    job = RUNTIMES[name].job(artifact.name, str(artifact.path), GENERATE)
    (tmp_path / "job.json").write_text(json.dumps(job.spec))
    blocked = (
        "import sys, runpy; sys.modules.update(dict.fromkeys(['llama_cpp', 'onnxruntime_genai', 'torch'])); "
        f"sys.path.insert(0, {str(WORKERS)!r}); sys.argv = ['w', {str(tmp_path / 'job.json')!r}]; "
        f"runpy.run_path({str(job.worker)!r}, run_name='__main__')"
    )
    done = DEVICE.run([sys.executable, "-c", blocked], 60)
    sentence = bench_side.failure_sentence(RUNTIMES[name], artifact.name, "generate", done, 60)
    assert done.returncode == 1 and "needs a Python package that is not installed" in sentence


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_model_is_a_sentence(name: str, tmp_path: Path) -> None:
    good = tiny.artifacts()[name]
    path = tmp_path / "broken"
    if good.path.is_file():
        path.write_bytes(good.path.read_bytes()[:1000])
    else:
        path.mkdir()
        (path / "config.json").write_text("{}")
    damaged = dataclasses.replace(good, path=path, name="broken")
    with pytest.raises(RuntimeFailure, match=r"failed: .*\bbroken|failed: .*of the model is missing"):
        run(damaged, GENERATE, tmp_path / "w")


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match="no runtime runs the format 'tflite'"):
        run(Artifact("m", tmp_path, "tflite", "0", 1, 1, 1, "f32"), GENERATE, tmp_path / "w")


def test_a_crash_is_tried_once_more_with_the_fallback(stand_in: Callable[..., Artifact], tmp_path: Path) -> None:
    code = (
        "if job['fast']: os.kill(os.getpid(), signal.SIGILL)\n"
        "d = {'engine': {}, 'answers': []}\n"
        "open(os.path.dirname(sys.argv[1]) + '/result.json', 'w').write(json.dumps(d)); print('{\"ok\": true}')"
    )
    outcome = run(
        stand_in(code, defaults={"fast": True}, fallback={signal.SIGILL: {"fast": False}}), GENERATE, tmp_path / "w"
    )
    assert "died of SIGILL" in outcome.note and outcome.job.described()["fast"] is False
    with pytest.raises(RuntimeFailure, match="SIGILL"):  # and only once
        run(
            stand_in(
                "os.kill(os.getpid(), signal.SIGILL)", defaults={"fast": True}, fallback={signal.SIGILL: {"fast": 0}}
            ),
            GENERATE,
            tmp_path / "w",
        )


def test_llama_cpp_falls_back_to_unrepacked_kernels(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"x")
    artifact = Artifact("m.gguf", tmp_path / "m.gguf", "gguf", "0", 1, 1, 1, "q4_0")
    good = {"engine": {"runtime": "llama.cpp", "version": "1"}, "answers": []}
    fake = FakeDevice(
        [
            Turn(returncode=-11, signal=signal.SIGSEGV),
            Turn(lines=('{"ok": true}',), files={"result.json": good}, expect="llama_cpp_worker.py"),
        ]
    )
    outcome = execute(fake, artifact, GENERATE, tmp_path / "w", timeout_s=1)
    assert outcome.job.spec["use_extra_bufts"] is False and "use_extra_bufts = False" in outcome.note
    assert len(fake.ran) == 2


def test_a_worker_leaves_when_its_stdin_closes(tmp_path: Path) -> None:
    artifact = tiny.artifacts()["llama_cpp"]
    task = {**GENERATE, "task": "bench", "prompt": [3] * 20, "prefill": [20], "depths": [20]}
    task |= {"new_tokens": 40, "warmups": {"least": 1, "most": 1, "within": 0.1}, "repeats": 10**6}
    job = RUNTIMES["llama_cpp"].job(artifact.name, str(artifact.path), {**task, "context": 64})
    (tmp_path / "job.json").write_text(json.dumps(job.spec))
    process = subprocess.Popen(
        [sys.executable, str(job.worker), str(tmp_path / "job.json")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin and process.stdout
    assert b"progress" in process.stdout.readline()
    process.stdin.close()
    start = time.monotonic()
    assert process.wait(timeout=20) == 3 and time.monotonic() - start < 10
    process.stdout.close()
    assert not (tmp_path / "result.json").exists()


# What workers compute


def oracle_nll(windows: list[list[int]], first: int) -> np.ndarray:
    """float64 negative log-likelihoods by torch and transformers."""
    import torch

    net = tiny.model()
    found = []
    with torch.no_grad():
        for window in windows:
            rows = net(torch.tensor([window])).logits[0, first:-1].double().log_softmax(-1)
            found.append(-rows.gather(-1, torch.tensor(window[first + 1 :])[:, None])[:, 0])
    return torch.cat(found).numpy()


@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_torch(name: str, tmp_path: Path) -> None:
    windows = [tiny.ids(64, seed) for seed in range(3)]
    exact = {"kv": "f32", "flash_attention": "off"} if name == "llama_cpp" else {}
    outcome = run(tiny.artifacts()[name], {"task": "score", "windows": windows, "score_from": 32, **exact}, tmp_path)
    np.testing.assert_allclose(np.load(outcome.arrays["nll"]), oracle_nll(windows, 32), atol=1e-4)
    assert outcome.result["tokens"] == 3 * 31


def test_llama_cpp_scores_windows_longer_than_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = [tiny.ids(200)]
    worker = (WORKERS / "llama_cpp_worker.py").read_text().replace("BATCH = 512", "BATCH = 48")
    for name in SHARED:
        (tmp_path / name).write_text((WORKERS / name).read_text())
    (tmp_path / "small.py").write_text(worker)
    stub = {**RUNTIMES["llama_cpp"].__dict__, "worker": str(tmp_path / "small.py")}
    monkeypatch.setitem(RUNTIMES, "llama_cpp", Runtime(**stub))
    task = {
        "task": "score",
        "windows": windows,
        "score_from": 100,
        "context": 200,
        "kv": "f32",
        "flash_attention": "off",
    }
    outcome = run(tiny.artifacts()["llama_cpp"], task, tmp_path / "w")
    np.testing.assert_allclose(np.load(outcome.arrays["nll"]), oracle_nll(windows, 100), atol=1e-4)


def test_every_runtime_says_the_same_ids_and_stops(tmp_path: Path) -> None:
    task = {"task": "generate", "prompts": [tiny.ids(9), [*tiny.ids(9), 5], tiny.ids(4, 1)], "max_new": 12, "stop": [2]}
    greedy, sampled = {}, {}
    for name, artifact in tiny.artifacts().items():
        exact = {"kv": "f32", "flash_attention": "off"} if name == "llama_cpp" else {}
        outcome = run(artifact, {**task, **exact}, tmp_path / name)
        greedy[name] = [answer["ids"] for answer in outcome.result["answers"]]
        sampling = {"temperature": 0.9, "top_k": 30, "top_p": 0.95, "seed": 7}
        outcome = run(artifact, {**task, **exact, "sampling": sampling}, tmp_path / name)
        sampled[name] = [answer["ids"] for answer in outcome.result["answers"]]
    assert greedy["llama_cpp"] == greedy["onnxruntime"] == greedy["torch"]
    assert sampled["llama_cpp"] == sampled["onnxruntime"] == sampled["torch"] != greedy["torch"]
    stop = greedy["torch"][0][3]
    outcome = run(tiny.artifacts()["llama_cpp"], {**task, "stop": [stop]}, tmp_path / "stop")
    answer = outcome.result["answers"][0]
    assert answer["ids"] == greedy["torch"][0][: greedy["torch"][0].index(stop)] and answer["ended"] == "stop"


@pytest.mark.parametrize("name", NAMES)
def test_refusals_of_workers(name: str, tmp_path: Path) -> None:
    artifact = tiny.artifacts()[name]
    bad_window = {"task": "score", "windows": [[3] * 10], "score_from": 9}
    for task, words in (
        (bad_window, "scoring from 9 needs 11"),
        ({"task": "score", "windows": [[tiny.VOCABULARY] * 10], "score_from": 5}, "outside the model's vocabulary"),
    ):
        with pytest.raises(RuntimeFailure, match=words):
            run(artifact, task, tmp_path)


def sampler_of(spec: dict[str, Any]) -> Callable[[np.ndarray], int]:
    """The workers' own sampler: their modules find each other by lying in one folder."""
    sys.path.insert(0, str(WORKERS))
    try:
        return importlib.import_module("tasks").sampler(spec)
    finally:
        sys.path.remove(str(WORKERS))


def test_the_sampler_draws_the_distribution_it_says() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    draws = sampler_of({"temperature": 1.0, "seed": 3})
    counts = np.bincount([draws(logits) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.15, 0.05], atol=0.012)
    draws = sampler_of({"temperature": 1.0, "top_k": 2, "seed": 3})
    counts = np.bincount([draws(logits) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(counts, [0.625, 0.375, 0, 0], atol=0.012)
    draws = sampler_of({"temperature": 1.0, "top_p": 0.75, "seed": 3})
    assert {draws(logits) for _ in range(2000)} == {0, 1}
    assert sampler_of({})(logits) == 0
    same = [sampler_of({"temperature": 2.0, "seed": 5})(logits) for _ in range(2)]
    assert same[0] == same[1]


def test_failures_are_the_projects_own() -> None:
    assert issubclass(RuntimeFailure, EdgeSLMError)


def test_llama_cpp_reads_the_head_size_from_the_file(tmp_path: Path) -> None:
    """Heads of 32 under an embedding of 64 and four heads: 64 / 4 would be wrong."""
    wide = tiny.write_gguf(tiny.model(head_dim=32), tmp_path / "wide.gguf")
    for path, size in ((wide, 32), (tiny.artifacts()["llama_cpp"].path, 16)):
        outcome = run(tiny.artifact(path, "gguf"), GENERATE, tmp_path / "w")
        assert outcome.result["engine"]["head_dim"] == size
