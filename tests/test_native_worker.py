"""The native worker beside the Python worker: same ids, same scores, same shapes, same sentences, same protocol.

Needs the program in the cache (`edgeslm devices build-runtime native`, minutes); without it all of this is skipped.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models as tiny

from edgeslm.artifact import Artifact
from edgeslm.devices import facts as machine
from edgeslm.devices.local import LocalDevice
from edgeslm.errors import RuntimeFailure
from edgeslm.evaluate.execute import EXACT, Outcome, execute
from edgeslm.meters import METERS
from edgeslm.runtimes import RUNTIMES, build

FACTS = machine.facts()
BUILT = build.sound(build.TARGETS["native"])
needs_native = pytest.mark.skipif(not BUILT, reason="not built here: edgeslm devices build-runtime native")
BENCH: dict[str, Any] = {
    "task": "bench", "prompt": tiny.ids(24), "prefill": [8, 24], "depths": [0, 8], "new_tokens": 4, "repeats": 2,
    "warmups": {"least": 1, "most": 2, "within": 0.5}, "watch": {"khz": ["/nowhere"], "millicelsius": []}, "rails": [],
}  # fmt: skip
ENERGY: dict[str, Any] = {
    "task": "energy", "prompt": tiny.ids(8), "prefill": [8], "new_tokens": 4, "idle_s": 0.05, "seconds": 0.1,
    "sample": {"interval_s": 0.01, "files": ["/proc/sys/kernel/ostype", "/nowhere"],
               "commands": [["echo", " 5 W "], ["false"], ["no-such-program"]]},
}  # fmt: skip
PROMPTS = {"task": "generate", "prompts": [tiny.ids(9), [*tiny.ids(9), 5], tiny.ids(4, 1)], "max_new": 12, "stop": [2]}


LOAD = "others_cores"  # a number, or null for a run that was too short to tell


class Shell(LocalDevice):
    """This machine as a device that has no Python."""

    hosts = ("native",)


PYTHON, SHELL = LocalDevice(facts=FACTS), Shell(facts=FACTS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return tiny.artifact(tiny.write_gguf(tiny.model(), tmp_path_factory.mktemp("tiny") / "teacher.gguf"), "gguf")


def run(device: LocalDevice, artifact: Artifact, task: dict[str, Any], folder: Path) -> Outcome:
    return execute(device, artifact, {"threads": 2, "context": 64, **task}, folder, timeout_s=120)


def both(artifact: Artifact, task: dict[str, Any], folder: Path) -> tuple[Outcome, Outcome]:
    """(native, Python)"""
    return run(SHELL, artifact, task, folder / "native"), run(PYTHON, artifact, task, folder / "python")


def shape(value: Any) -> Any:
    """A document with its numbers and texts replaced by their types, lists of one kind by their first item."""
    if isinstance(value, dict):
        return {key: key == LOAD or shape(inner) for key, inner in sorted(value.items())}
    if isinstance(value, list):
        return [shape(inner) for inner in value[:1]]
    return type(value).__name__


@needs_native
def test_scores_equal_the_python_workers(model: Artifact, tmp_path: Path) -> None:
    task = {"task": "score", "windows": [tiny.ids(64, seed) for seed in range(3)], "score_from": 32, **EXACT}
    native, python = both(model, task, tmp_path)
    assert native.runtime.name == "llama_native" and python.runtime.name == "llama_cpp"
    assert native.result["tokens"] == 3 * 31 and shape(native.result["means"]) == shape(python.result["means"])
    for name, path in python.arrays.items():
        mine, theirs = np.load(native.arrays[name]), np.load(path)
        assert mine.dtype == theirs.dtype
        np.testing.assert_allclose(mine, theirs, atol=2e-5)
    assert native.result["means"]["nll"] == pytest.approx(np.load(native.arrays["nll"]).mean())


@needs_native
def test_scores_beside_a_reference(model: Artifact, tmp_path: Path) -> None:
    """Either worker writes a reference that either reads; a wider one is compared over the ids that both have."""
    task = {"task": "score", "windows": [tiny.ids(40, seed) for seed in range(2)], "score_from": 20, **EXACT}
    files = {}
    for name, outcome in zip(
        ("native", "python"), both(model, task | {"reference_out": "r.npy"}, tmp_path), strict=True
    ):
        files[name] = tmp_path / name / "r.npy"
        assert outcome.result["tokens"] == len(np.load(files[name]))
    written = np.load(files["native"])
    np.testing.assert_allclose(written, np.load(files["python"]), atol=2e-5)
    np.testing.assert_allclose(np.exp(written.astype(float)).sum(-1), 1, atol=1e-6)
    other = np.roll(written, 1, axis=-1)
    for reference in (written, other, np.pad(other, ((0, 0), (0, 4)), constant_values=-20)):
        np.save(tmp_path / "reference.npy", reference)
        outcomes = both(model, task | {"reference_in": str(tmp_path / "reference.npy")}, tmp_path)
        native, python = ({name: np.load(path) for name, path in outcome.arrays.items()} for outcome in outcomes)
        assert native.keys() == python.keys()
        for name in native:
            np.testing.assert_allclose(native[name], python[name], atol=2e-4, err_msg=name)
        assert (native["kl"].max() < 1e-9) == (reference is written)


@needs_native
def test_a_window_longer_than_a_batch(model: Artifact, tmp_path: Path) -> None:
    task = {"task": "score", "windows": [tiny.ids(600)], "score_from": 500, "context": 600, **EXACT}
    native, python = both(model, task, tmp_path)
    np.testing.assert_allclose(np.load(native.arrays["nll"]), np.load(python.arrays["nll"]), atol=2e-5)


@needs_native
@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.9, "top_k": 30, "top_p": 0.95, "seed": 7},
        {"temperature": 1.5, "seed": 2**40 + 3},
        {"temperature": 1.2, "top_p": 0.6},
    ],
)
def test_the_same_ids_are_said(model: Artifact, tmp_path: Path, sampling: dict[str, Any]) -> None:
    native, python = both(model, {**PROMPTS, **EXACT, "sampling": sampling}, tmp_path)
    kept = [
        [{k: v for k, v in answer.items() if not k.endswith("_s")} for answer in outcome.result["answers"]]
        for outcome in (native, python)
    ]
    assert kept[0] == kept[1] and kept[0][1]["reused_tokens"] == 9
    assert shape(native.result["answers"]) == shape(python.result["answers"])


@needs_native
def test_it_stops_where_it_is_told(model: Artifact, tmp_path: Path) -> None:
    whole = run(SHELL, model, {**PROMPTS, **EXACT}, tmp_path).result["answers"][0]["ids"]
    answer = run(SHELL, model, {**PROMPTS, **EXACT, "stop": [whole[3]]}, tmp_path).result["answers"][0]
    at = whole.index(whole[3])
    assert answer["ids"] == whole[:at] and answer["tokens"] == at + 1
    assert (answer["ended"], answer["stopped_by"]) == ("stop", whole[3])


@needs_native
def test_bench_has_the_shape_that_meters_read(model: Artifact, tmp_path: Path) -> None:
    native, python = both(model, {**BENCH, "sustained_s": 0.01, "cpus": [0]}, tmp_path)
    phases = [[(p["kind"], p["tokens"], p["depth"]) for p in o.result["phases"]] for o in (native, python)]
    assert phases[0] == phases[1]
    assert phases[0] == [("decode", 4, 0), ("prefill", 8, 0), ("decode", 4, 8), ("prefill", 24, 0)]
    for mine, theirs in zip(native.result["phases"], python.result["phases"], strict=True):
        assert shape(mine | {"warmups": []}) == shape(theirs | {"warmups": []})
        assert len(mine["runs"]) == 2 and 1 <= len(mine["warmups"]) <= 2
    outer = [
        {key: value for key, value in o.result.items() if key not in ("engine", "phases")} for o in (native, python)
    ]
    assert shape(outer[0]) == shape(outer[1])
    differ = {
        key for key in native.result["engine"] if native.result["engine"][key] != python.result["engine"].get(key)
    }
    assert differ == {"version", "target"}
    for meter in METERS.values():
        names = [[reading.metric for reading in meter.read([o.result], {})] for o in (native, python)]
        assert names[0] == names[1]


@needs_native
def test_energy_keeps_what_sensors_say(model: Artifact, tmp_path: Path) -> None:
    native, python = both(model, ENERGY, tmp_path)
    assert shape(native.result["windows"]) == shape(python.result["windows"])
    assert {w["what"] for w in native.result["windows"]} == {"idle", "prefill", "decode"}
    at, texts = zip(*native.result["samples"], strict=True)
    assert len(at) > 2 and list(at) == sorted(at) and set(map(tuple, texts)) == {("Linux", None, "5 W", None, None)}
    assert at[0] <= native.result["windows"][0]["end_s"] < at[-1]


@needs_native
def test_ceilings(model: Artifact, tmp_path: Path) -> None:
    found = run(SHELL, model, {"task": "ceilings", "seconds": 0.05}, tmp_path).result
    rates = ("read_bytes_per_s", "copy_bytes_per_s", "flops_f32", "ops_int8")
    assert all(len(found[name]) >= 3 and min(found[name]) > 1e8 for name in rates)


@needs_native
@pytest.mark.parametrize(
    "task",
    [
        BENCH | {"prompt": []},
        BENCH | {"prompt": [tiny.VOCABULARY]},
        BENCH | {"new_tokens": 0},
        BENCH | {"prefill": [25]},
        BENCH | {"prefill": [0]},
        BENCH | {"prefill": [], "depths": []},
        BENCH | {"depths": [24], "context": 24},
        ENERGY | {"prompt": [-1]},
        {"task": "score", "windows": [[3] * 10], "score_from": 9},
        {"task": "score", "windows": [[tiny.VOCABULARY] * 10], "score_from": 5},
        {"task": "score", "windows": [], "score_from": 5},
        PROMPTS | {"prompts": [[]]},
        PROMPTS | {"context": 9},
        PROMPTS | {"sampling": {"temperature": 1, "top_p": 0}},
    ],
    ids=lambda task: task["task"],
)
def test_refusals_are_the_python_workers_own(model: Artifact, tmp_path: Path, task: dict[str, Any]) -> None:
    said = []
    for device in (SHELL, PYTHON):
        with pytest.raises(RuntimeFailure) as failure:
            run(device, model, task, tmp_path)
        said.append(str(failure.value).split(" failed: ")[1])
    assert said[0] == said[1]


@needs_native
def test_more_refusals(model: Artifact, tmp_path: Path) -> None:
    reference = tmp_path / "reference.npy"
    score = {"task": "score", "windows": [tiny.ids(10)], "score_from": 5, "reference_in": str(reference)}
    np.save(reference, np.zeros((3, tiny.VOCABULARY), np.float32))
    with pytest.raises(RuntimeFailure, match=r"holds float32 \[3, 96\], this model scores 4 tokens"):
        run(SHELL, model, score, tmp_path / "w")
    np.save(reference, np.zeros((4, tiny.VOCABULARY)))
    with pytest.raises(RuntimeFailure, match="something other than float32 rows"):
        run(SHELL, model, score, tmp_path / "w")
    reference.write_bytes(b"x")
    with pytest.raises(RuntimeFailure, match=r"missing or no \.npy file"):
        run(SHELL, model, score, tmp_path / "w")
    with pytest.raises(RuntimeFailure, match="does not do 'serve'"):
        run(SHELL, model, {"task": "serve"}, tmp_path / "w")
    with pytest.raises(RuntimeFailure, match=r"cannot keep to the CPUs \[4095\]"):
        run(SHELL, model, BENCH | {"cpus": [4095]}, tmp_path / "w")
    with pytest.raises(RuntimeFailure, match="the job is not one this worker understands"):
        run(SHELL, model, BENCH | {"prompt": "text"}, tmp_path / "w")
    damaged = tmp_path / "broken.gguf"
    damaged.write_bytes(model.path.read_bytes()[:1000])
    with pytest.raises(RuntimeFailure, match=r"llama.cpp cannot load broken.gguf: .+"):
        run(SHELL, tiny.artifact(damaged, "gguf"), BENCH, tmp_path / "w")


@needs_native
def test_it_leaves_when_its_stdin_closes(model: Artifact, tmp_path: Path) -> None:
    task = {**BENCH, "threads": 1, "context": 64, "repeats": 10**6}
    job = RUNTIMES["llama_native"].job(model.name, str(model.path), task, FACTS)
    (tmp_path / "job.json").write_text(json.dumps(job.spec))
    with subprocess.Popen(
        [job.worker, tmp_path / "job.json"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin and process.stdout
        assert b"progress" in process.stdout.readline()
        process.stdin.close()
        start = time.monotonic()
        assert process.wait(timeout=20) == 3 and time.monotonic() - start < 10
    assert {path.name for path in tmp_path.iterdir()} == {"job.json"}


@needs_native
def test_a_job_that_is_none(tmp_path: Path) -> None:
    for text in (None, "[1]", "{broken"):
        if text is not None:
            (tmp_path / "job.json").write_text(text)
        done = SHELL.run([str(build.program(FACTS)), str(tmp_path / "job.json")], 20)
        assert done.returncode == 1 and "missing or no JSON object" in json.loads(done.stdout_tail)["error"]


@pytest.mark.proof
@pytest.mark.parametrize("name", [target.name for target in build.TARGETS.values() if target.march])
def test_64_bit_arm_says_the_same(name: str, model: Artifact, tmp_path: Path) -> None:
    """Under emulation, on a core that has what the target needs and nothing more. Packages: qemu-user-static and those
    of the build, which takes some minutes."""
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    assert emulator, "qemu-aarch64 is missing; run: apt install qemu-user-static"
    core = {"aarch64": "cortex-a72", "aarch64-dotprod": "cortex-a76", "aarch64-i8mm": "max,sve=off,sme=off"}[name]
    program = build.tool(build.WORKER, name)
    tasks = {
        "generate": {**PROMPTS, **EXACT, "sampling": {"temperature": 0.9, "seed": 7}},
        "score": {"task": "score", "windows": [tiny.ids(64)], "score_from": 32, **EXACT},
        "bench": BENCH,
        "ceilings": {"task": "ceilings", "seconds": 0.01},
    }
    results = {}
    for task, asked in tasks.items():
        job = RUNTIMES["llama_cpp"].job(model.name, str(model.path), {"threads": 2, "context": 64, **asked})
        (tmp_path / task).mkdir()
        (tmp_path / task / "job.json").write_text(json.dumps(job.spec))
        done = SHELL.run([emulator, "-cpu", core, str(program), str(tmp_path / task / "job.json")], 300)
        assert done.returncode == 0, done.stdout_tail + done.stderr_tail
        results[task] = RUNTIMES["llama_native"].parse(json.loads((tmp_path / task / "result.json").read_text()), task)
    python = run(PYTHON, model, tasks["generate"], tmp_path / "python")
    assert [a["ids"] for a in results["generate"]["answers"]] == [a["ids"] for a in python.result["answers"]]
    python = run(PYTHON, model, tasks["score"], tmp_path / "python")
    np.testing.assert_allclose(np.load(tmp_path / "score" / "nll.npy"), np.load(python.arrays["nll"]), atol=1e-4)
    assert results["generate"]["engine"]["target"] == name
    features = set(results["generate"]["engine"]["features"])
    assert {"NEON"} <= features and ("DOTPROD" in features) == (name != "aarch64")
    assert ("MATMUL_INT8" in features) == (name == "aarch64-i8mm")
