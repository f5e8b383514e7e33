"""A browser as a device without one: a stand-in behaves as browsers do, well and badly."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stand_in_browser as stand_in
from test_browser_server import tree

from edgeslm.artifact import Artifact
from edgeslm.devices import browser, chromium
from edgeslm.devices.browser import BrowserDevice
from edgeslm.devices.browser_show import offer, show
from edgeslm.errors import DeviceError, RuntimeFailure
from edgeslm.evaluate.execute import execute
from edgeslm.runtimes import RUNTIMES, npm, wllama
from edgeslm.runtimes.base import Runtime


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], BrowserDevice]]:
    made: list[BrowserDevice] = []
    monkeypatch.setattr(chromium, "LEAVING_S", 0.5)

    def make(mode: str) -> BrowserDevice:
        made.append(BrowserDevice(str(stand_in.write(tmp_path, mode)), facts={"id": "test", "cores": 1}))
        return made[-1]

    yield make
    for one in made:
        one.close()
        assert not one.folder.exists()
    if (tmp_path / "notes.json").exists():
        assert stand_in.left_behind(tmp_path) == []


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """An artifact that the stand-in's page runs, whatever it is."""
    (tmp_path / "page").mkdir()
    (tmp_path / "page/worker.html").write_text("<p>")
    runtime = Runtime("stub", "a page", ("gguf",), host="page", program=lambda facts: tmp_path / "page/worker.html")
    monkeypatch.setitem(RUNTIMES, "wllama", runtime)
    (tmp_path / "model.gguf").write_bytes(b"x")
    return Artifact("model.gguf", tmp_path / "model.gguf", "gguf", "0", 1, 1, 1, "f32")


def run(device: BrowserDevice, artifact: Artifact, tmp_path: Path, timeout_s: float = 30, **more: Any) -> Any:
    task = {"task": "generate", "prompts": [[1]], "max_new": 1, "threads": 1, "context": 8}
    return execute(device, artifact, task, tmp_path / "work", timeout_s=timeout_s, **more)


def test_a_result_comes_back_with_what_the_processes_used(device: Any, page: Artifact, tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job/job.json").write_text(json.dumps({"rails": ["/etc/hostname"], "watch": {"khz": ["/sys/none"]}}))
    one, heard = device("done"), []
    spec = one.push(tmp_path / "job/job.json")
    done = one.run([f"{one.push(tmp_path / 'page')}/worker.html", spec], 30, heard.append)
    assert done.ok and [json.loads(line) for line in heard] == [
        {"progress": [1, 1]},
        {"ok": True, "result": "result.json"},
    ]
    one.pull(f"{spec.rpartition('/')[0]}/result.json", tmp_path / "result.json")
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["look"]["cpu_s"] > 0 and result["memory"]["rss_anon"] > 0
    assert result["look"]["sensors"] == {
        "khz": [None],
        "millicelsius": [],
        "rails": [],
    }  # a job cannot ask for any file
    notes = json.loads((tmp_path / "notes.json").read_text())
    assert notes["home"] == notes["profile"]  # whatever it writes goes with the profile
    assert "--remote-debugging-pipe" in notes["args"] and notes["args"][-1].startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        ("refuses", "failed: the model is too large; use a smaller one"),
        ("ends", "last words: the browser ended before the page was done; it crashed or was closed"),
        ("no sandbox", "last words: Chromium cannot make its sandbox here; let this user make user namespaces"),
        ("never opens", "last words: the page did not open: the browser's tab crashed or ran out of memory"),
        ("falls silent", "last words: the page stopped answering: the browser's tab crashed or ran out of memory"),
        ("goes on", "gave no result within 2 s and was stopped"),
        ("garbage", "the worker's result of 'generate' is malformed"),
    ],
)
def test_every_end_is_one_sentence_and_leaves_nothing(
    device: Any, page: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, sentence: str
) -> None:
    if mode in ("never opens", "falls silent"):
        monkeypatch.setattr(browser, "OPENING_S", 3.0)
        monkeypatch.setattr(browser, "SILENCE_S", 1.0)
    with pytest.raises(RuntimeFailure) as failure:
        run(device(mode), page, tmp_path, timeout_s=2 if mode == "goes on" else 30)
    said = str(failure.value)
    assert sentence in said and "\n" not in said and "murmur" not in said and str(tmp_path) not in said


def test_a_listener_that_fails_leaves_nothing(device: Any, page: Artifact, tmp_path: Path) -> None:
    def fail(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(device("falls silent"), page, tmp_path, on_line=fail)


def test_a_closed_stdin_is_the_order_to_leave(device: Any, page: Artifact, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure):
        run(device("goes on"), page, tmp_path, stdin=iter(["a line"]))


def test_what_cannot_be_done_is_refused(device: Any, page: Artifact, tmp_path: Path) -> None:
    one = device("done")
    with pytest.raises(DeviceError, match="does not exist"):
        one.push(tmp_path / "nothing")
    for argv in (
        ["worker.html"],
        ["k/page/worker.html", "k/job.json"],
        [f"{one.push(tmp_path / 'page')}/none.html", "j"],
    ):
        with pytest.raises(DeviceError, match="push both first"):
            one.run(argv, 1)
    for path in ("k/result.json", "../notes.json", "/etc/hostname"):
        with pytest.raises(DeviceError, match="not on the device"):
            one.pull(path, tmp_path / "here")


def test_a_browser_that_is_missing_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="no-such-browser is not installed"):
        BrowserDevice("no-such-browser")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="Chromium is not installed, so nothing can run in a browser here; install"):
        BrowserDevice()
    with pytest.raises(DeviceError, match="says no version"):
        chromium.version("/bin/true")


def test_folders_of_programs_that_were_killed_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chromium, "LONGEST_TMP", 999)
    monkeypatch.setattr(chromium, "SETTLED_S", -1.0)
    left = tmp_path / f"{chromium.PREFIX}left/profile"
    left.mkdir(parents=True)
    (tmp_path / "other").mkdir()
    one, lock = chromium.home(str(tmp_path))
    other, second = chromium.home(str(tmp_path))  # the first is in use, so it stays
    assert {p.name for p in tmp_path.iterdir()} == {"other", one.name, other.name}
    os.close(lock)
    os.close(second)
    monkeypatch.setattr(chromium, "LONGEST_TMP", 3)
    far, third = chromium.home(str(tmp_path))  # Chromium's socket has to fit into a path of 107 bytes
    assert far.parent == Path("/tmp")
    far.rmdir()
    os.close(third)


def test_the_browser_is_part_of_what_the_device_is(device: Any, tmp_path: Path) -> None:
    one = BrowserDevice(str(stand_in.write(tmp_path, "done")))
    with one:
        facts = one.facts
    assert facts["browser"] == "Substitute 1.2.3" and facts["name"].startswith("Substitute 1.2.3 on ")
    assert "id" in facts and not one.folder.exists()


def test_the_page_is_the_same_for_every_browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(wllama, "page_folder", lambda: tmp_path)
    for name, kind in (("wllama", "gguf"), ("onnxruntime_web", "onnx")):
        job = RUNTIMES[name].job("m", "k/m", {"task": "bench"}, {})
        assert RUNTIMES[name].formats == (kind,) and job.worker == tmp_path / "worker.html" and job.folder == tmp_path


# --- the page for people


def test_models_are_offered_and_strange_files_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"1234")
    tree(tmp_path, {"onnx/genai_config.json": "{}", "onnx/model.onnx": "12", "notes.txt": ""})
    assert offer(tmp_path / "m.gguf", "k") == {"name": "m.gguf", "path": "k/m.gguf", "format": "gguf", "bytes": 4}
    assert offer(tmp_path / "onnx", "k") == {"name": "onnx", "path": "k/onnx", "format": "onnx", "bytes": 4}
    for path in (tmp_path / "notes.txt", tmp_path / "none.gguf", tmp_path):
        with pytest.raises(DeviceError, match=r"neither a \.gguf file nor a folder"):
            offer(path, "k")


def test_the_page_is_served_until_it_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"1234")
    said: list[str] = []
    found: list[Any] = []

    def look() -> None:
        host, path = said[0].removeprefix("http://").split("/", 1)
        for part in ("page/page/page.html", "models", "model-0/m.gguf"):
            connection = http.client.HTTPConnection(host, timeout=10)
            connection.request("GET", f"/{path.split('/')[0]}/{part}")
            found.append(connection.getresponse().read())
            connection.close()
        raise KeyboardInterrupt

    show(npm.PAGES, [tmp_path / "m.gguf"], open_browser=False, say=said.append, until=look)
    assert b"<title>EdgeSLM" in found[0] and found[2] == b"1234"
    assert json.loads(found[1]) == [{"name": "m.gguf", "path": "model-0/m.gguf", "format": "gguf", "bytes": 4}]
