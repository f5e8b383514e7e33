"""Chromium itself: the same ids as the Python workers, a bench of the same shape, nothing left behind, and the page for
people driven as a person would. Skipped where Chromium is missing or npm cannot fetch the pinned packages."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models as tiny
from driven_browser import Driven

from edgeslm.artifact import Artifact
from edgeslm.benchmark.run import bench
from edgeslm.benchmark.settings import Settings
from edgeslm.devices import browser, chromium
from edgeslm.devices.browser import BrowserDevice
from edgeslm.devices.browser_show import show
from edgeslm.devices.local import LocalDevice
from edgeslm.errors import DeviceError, RuntimeFailure
from edgeslm.evaluate.execute import EXACT, Outcome, execute
from edgeslm.runtimes import npm

LOCAL = LocalDevice(facts={"id": "here", "cores": 1})
KINDS = {"llama_cpp": "llama.cpp (wllama)", "onnxruntime": "onnxruntime-web"}


@pytest.fixture(scope="module")
def page() -> Path:
    """The page with its packages."""
    try:
        chromium.find()
        return npm.page_folder()
    except (DeviceError, RuntimeFailure) as error:
        pytest.skip(f"no test in a real browser: {error}")


@pytest.fixture(scope="module")
def device(page: Path) -> Iterator[BrowserDevice]:
    with BrowserDevice() as one:
        yield one
    assert not one.folder.exists()


def run(device: Any, artifact: Artifact, folder: Path, **task: Any) -> Outcome:
    whole = {"task": "generate", "max_new": 10, "threads": 1, "context": 64, **EXACT, **task}
    return execute(device, artifact, whole, folder, timeout_s=240)


@pytest.mark.parametrize("name", KINDS)
def test_greedy_ids_are_those_of_the_python_workers(name: str, device: BrowserDevice, tmp_path: Path) -> None:
    artifact, prompts = tiny.artifacts()[name], [tiny.ids(20, seed) for seed in range(3)] + [tiny.ids(1, 9)]
    here = run(LOCAL, artifact, tmp_path / "a", prompts=prompts).result["answers"]
    there = run(device, artifact, tmp_path / "b", prompts=prompts)
    assert [a["ids"] for a in there.result["answers"]] == [a["ids"] for a in here]
    assert there.result["engine"]["runtime"] == KINDS[name]
    stop = here[0]["ids"][4]
    ends = [
        run(d, artifact, tmp_path / "c", prompts=prompts[:1], stop=[stop]).result["answers"][0] for d in (LOCAL, device)
    ]
    for key in ("ids", "tokens", "ended", "stopped_by", "prompt_tokens"):
        assert ends[0][key] == ends[1][key], key
    assert {key for answer in here for key in answer} == {key for answer in there.result["answers"] for key in answer}


def test_a_bench_has_the_figures_of_any_device(device: BrowserDevice, tmp_path: Path) -> None:
    settings = Settings(
        prefill=(8, 32), depths=(0, 32), new_tokens=6, processes=1, warmups=1, most_warmups=1, repeats=2, threads=1
    )
    artifacts = [tiny.artifacts()[name] for name in KINDS]
    found, problems = bench(artifacts, tiny.ids(32), settings, device=device, workdir=tmp_path)
    assert problems == []
    for artifact in artifacts:
        own = {
            (m.metric, m.extra.get("prompt_tokens", m.extra.get("depth"))): m
            for m in found
            if m.where.artifact == artifact.name
        }
        asked = [("load", None), ("pss_peak", None), ("rss_anon_peak", None), ("swap_peak", None)]
        asked += [(metric, n) for metric in ("prefill", "time_to_first_token") for n in (8, 32)]
        asked += [(metric, n) for metric in ("decode", "token_latency") for n in (0, 32)]
        assert not set(asked) - set(own)
        assert own["decode", 32].n == 2 and own["token_latency", 0].n == 12 and own["prefill", 8].warmups
        assert own["pss_peak", None].median > 50e6  # of the whole browser, and what it took before the model
        assert own["pss_peak", None].extra["before_load_bytes"][0] > 50e6
        assert own["decode", 0].where.device["browser"].startswith("Chrom")
    cache = next(m for m in found if m.metric == "kv_cache")  # wllama tells it; 256 positions at least
    size = 2 * 2 * tiny.LAYERS * tiny.KV_HEADS * tiny.HIDDEN // tiny.HEADS * 256
    assert cache.median == pytest.approx(size, rel=0.05)  # llama.cpp tells hundredths of MiB


@pytest.mark.parametrize(
    ("name", "task", "sentence"),
    [
        ("llama_cpp", {"prompts": [[tiny.VOCABULARY]]}, "all below the vocabulary of 96"),
        ("llama_cpp", {"task": "score", "windows": []}, "a page cannot do the task 'score'; it does bench, generate"),
        ("llama_cpp", {"threads": 4096, "prompts": [[5]]}, "cores, the job wants 4096 threads"),
        ("onnxruntime", {"prompts": [[5] * 64]}, "64 prompt ids leave no room in the context of 64"),
        ("onnxruntime", {"prompts": [[5]], "context": 9999}, "was built for 256 positions, the job asks for 9999"),
    ],
)
def test_a_job_that_cannot_be_done(name: str, task: Any, sentence: str, device: BrowserDevice, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure) as failure:
        run(device, tiny.artifacts()[name], tmp_path, **task)
    assert sentence in str(failure.value) and "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("cut", "sentence"), [(300, "the file ends inside its header"), (-9000, "corrupted or incomplete")]
)
def test_a_damaged_file(cut: int, sentence: str, device: BrowserDevice, tmp_path: Path) -> None:
    whole = tiny.artifacts()["llama_cpp"].path.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:cut])
    with pytest.raises(RuntimeFailure, match=sentence):
        run(device, tiny.artifact(tmp_path / "cut.gguf", "gguf"), tmp_path / "w", prompts=[[5]])


@pytest.mark.parametrize(
    ("mark", "sentence"),
    [
        ("--type=renderer", "the page stopped answering: the browser's tab crashed"),
        ("--remote-debugging-pipe", "ended"),
    ],
)
def test_a_browser_that_dies_in_mid_run(
    mark: str, sentence: str, device: BrowserDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browser, "SILENCE_S", 8.0)
    killed: list[int] = []

    def kill(_: str) -> None:
        """Every process of this browser that is of the kind."""
        if killed:
            return
        found = [(int(p.parent.name), p.read_bytes()) for p in Path("/proc").glob("[0-9]*/cmdline")]
        ours = next(os.getsid(pid) for pid, words in found if f"--user-data-dir={device.folder}".encode() in words)
        for pid, words in found:
            if mark.encode() in words and os.getsid(pid) == ours:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    task = {"task": "generate", "max_new": 40, "threads": 1, "context": 64, "prompts": [tiny.ids(20)] * 400, **EXACT}
    with pytest.raises(RuntimeFailure, match=sentence):
        execute(device, tiny.artifacts()["llama_cpp"], task, tmp_path, timeout_s=120, on_line=kill)
    assert killed and not list(device.folder.glob("*/SingletonLock"))


def test_nothing_outlives_a_program_that_was_killed(page: Path, tmp_path: Path) -> None:
    """Chromium leaves by itself when the pipe it hangs on is closed by the kernel."""
    (tmp_path / "page").mkdir()
    (tmp_path / "page/worker.html").write_text("<p>waits</p>")
    (tmp_path / "job.json").write_text("{}")
    code = (
        "import sys, pathlib\nfrom edgeslm.devices import chromium\nfrom edgeslm.devices.browser import BrowserDevice\n"
        f"here = pathlib.Path({str(tmp_path)!r}); start = chromium.start\n"
        "def noted(*a):\n    process = start(*a); (here / 'pid').write_text(str(process.pid)); return process\n"
        "chromium.start = noted\none = BrowserDevice(); (here / 'folder').write_text(str(one.folder))\n"
        "one.run([one.push(here / 'page') + '/worker.html', one.push(here / 'job.json')], 300)\n"
    )
    program = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(tmp_path)})
    try:
        until(lambda: (tmp_path / "pid").exists() and members(int((tmp_path / "pid").read_text())) > 3)
    finally:
        program.kill()
        program.wait()
    until(lambda: members(int((tmp_path / "pid").read_text())) == 0)
    left = Path(
        (tmp_path / "folder").read_text()
    )  # nobody could remove it; the next start does, when it is a minute old
    os.utime(left, (0, 0))
    folder, lock = chromium.home()
    assert not left.exists()
    folder.rmdir()
    os.close(lock)


def members(session: int) -> int:
    """Living processes of a session."""
    count = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        count += int(fields[3]) == session and fields[0] not in "ZX"
    return count


def until(holds: Any) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "it did not happen within a minute"
        time.sleep(0.05)


# --- the page for people


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF of 96 characters for words, and an ONNX folder with a chat template."""
    from gguf import GGUFWriter

    folder, plain = tmp_path_factory.mktemp("models"), GGUFWriter.add_tokenizer_model

    def with_words(writer: Any, _: str) -> None:
        plain(writer, "rwkv")
        writer.add_token_list([chr(32 + i) if i < 95 else "~~" for i in range(tiny.VOCABULARY)])

    GGUFWriter.add_tokenizer_model = with_words
    try:
        tiny.write_gguf(tiny.model(), folder / "words.gguf")
    finally:
        GGUFWriter.add_tokenizer_model = plain
    shutil.copytree(tiny.artifacts()["onnxruntime"].path, folder / "talks")
    for name in ("tokenizer.json", "tokenizer_config.json"):  # w1 and w2 would be found inside w12 and w20
        text = (folder / "talks" / name).read_text().replace('"w1"', '"<s>"').replace('"w2"', '"</s>"')
        (folder / "talks" / name).write_text(text)
    template = "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}w9{% endif %}"
    (folder / "talks/chat_template.jinja").write_text(template)
    return folder


@pytest.fixture
def driven(page: Path, models: Path) -> Iterator[Driven]:
    said: list[str] = []
    over = threading.Event()
    listed = [models / "talks", models / "words.gguf"]
    serving = threading.Thread(target=show, args=(page, listed, False, said.append, over.wait))
    serving.start()
    try:
        until(lambda: said)
        with Driven() as one:
            one.open(said[0])
            one.until("!document.getElementById('prompt').disabled")
            yield one
            origin = said[0].split("/page/")[0].rpartition("/")[0]
            assert one.addresses() and one.complaints() == []
            assert all(a.removeprefix("blob:").startswith((origin, "data:")) for a in one.addresses()), one.addresses()
    finally:
        over.set()
        serving.join()


ASK = "(text) => {{ const f = document.getElementById('prompt'); f.value = text; f.dispatchEvent(new Event('input'));"
ASK += " document.getElementById('send').click(); }}"


def ask(driven: Driven, text: str, turns: int) -> str:
    """Send it, wait for the answer's last line -> the answer."""
    driven.of(f"({ASK.replace('{{', '{').replace('}}', '}')})({json.dumps(text)})")
    driven.until(f"document.querySelectorAll('.told').length === {turns}")
    return str(driven.of("[...document.querySelectorAll('.model > p:first-child')].at(-1).textContent"))


def shown(driven: Driven, place: str) -> str:
    return str(driven.of(f"document.getElementById('{place}').textContent"))


def test_an_onnx_folder_answers_in_a_conversation(driven: Driven, models: Path, tmp_path: Path) -> None:
    driven.of(
        "const t = document.getElementById('temperature'); t.value = 0; document.getElementById('most').value = 64"
    )
    artifact = tiny.artifacts()["onnxruntime"]

    def wanted(ids: list[int]) -> list[int]:
        task = {"prompts": [ids], "max_new": 64, "context": 256, "stop": [2]}
        found: list[int] = run(LOCAL, artifact, tmp_path / "w", **task).result["answers"][0]["ids"]
        return found

    first, ids = ask(driven, "w5 w6 w7", 1).split(), wanted([5, 6, 7, 9])
    kept = [i for i in ids if i != 1]  # special ids are not shown
    assert first == [f"w{i}" for i in kept] and len(first) > 1
    assert float(shown(driven, "speed")) > 0 and shown(driven, "tokens") == str(len(ids))
    assert shown(driven, "first").endswith("s") and shown(driven, "load").endswith("s")
    driven.until("document.getElementById('memory').textContent.endsWith('MB')")
    second = ask(driven, "w8", 2).split()  # the template writes all turns
    assert second == [f"w{i}" for i in wanted([5, 6, 7, *kept, 8, 9]) if i != 1]
    driven.of("document.getElementById('anew').click()")
    assert driven.of("document.querySelectorAll('.turn').length") == 0 and shown(driven, "speed") == "–"


def test_a_gguf_file_of_this_machine_continues_a_text_and_can_be_stopped(driven: Driven, models: Path) -> None:
    field = driven.call("Runtime.evaluate", expression="document.getElementById('file')")["result"]["objectId"]
    driven.call("DOM.setFileInputFiles", files=[str(models / "words.gguf")], objectId=field)
    driven.until("document.getElementById('about').textContent.includes('continues your text')")
    driven.of("document.getElementById('most').value = 1024; document.getElementById('context').value = 1024")
    driven.of(
        "new MutationObserver(() => { if (document.querySelector('.goes')?.textContent.length > 9)"
        " document.getElementById('stop').click(); }).observe(document.getElementById('talk'),"
        " {childList: true, subtree: true})"
    )
    answer = ask(driven, "once", 1)
    assert answer.startswith("once") and len(answer) > 9
    assert driven.of("document.querySelector('.told').textContent").endswith("stopped")
    assert driven.of("document.getElementById('send').hidden") is False


def test_a_file_that_is_no_model_is_told_to_people(driven: Driven, tmp_path: Path) -> None:
    (tmp_path / "junk.gguf").write_bytes(b"no model" * 100)
    field = driven.call("Runtime.evaluate", expression="document.getElementById('file')")["result"]["objectId"]
    driven.call("DOM.setFileInputFiles", files=[str(tmp_path / "junk.gguf")], objectId=field)
    driven.until("!document.getElementById('alert').hidden")
    assert "junk.gguf cannot be opened: " in shown(driven, "alert")
    assert driven.of("document.getElementById('prompt').disabled") is True
