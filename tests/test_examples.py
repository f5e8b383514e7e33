"""The examples that embed a bundle run as they stand and say what `edgeslm chat` says."""

from __future__ import annotations

import contextlib
import functools
import http.server
import importlib.util
import os
import queue
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from jvm import small_bundle
from test_android import GREEDY, by_python

from android_demo.tools import fetch
from edgeslm.devices import chromium
from edgeslm.errors import EdgeSLMError, RuntimeFailure
from edgeslm.runtimes import npm

EXAMPLES = Path(__file__).parent.parent / "examples"
QUESTION = "the fox in the north"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve letters: wllama breaks off at bytes that make no character, and each kernel rounds in its own way."""
    return small_bundle(tmp_path_factory.mktemp("made"), max_new=12, letters=True)


@pytest.fixture(scope="module")
def wanted(made: Path) -> str:
    messages = [{"role": "user", "content": QUESTION}]
    said = str(by_python(made, messages, GREEDY, 12, threads=1, context=256)[1])
    assert len(said) >= 12 and said.isalpha()
    return said


def test_every_example_is_run_here():
    names = {p.name for p in EXAMPLES.iterdir() if p.suffix != ".md"}
    assert names == {"embed.py", "embed.cpp", "embed.html", "embed_onnx.html"}


def test_a_python_program(made: Path, wanted: str):
    command = [sys.executable, str(EXAMPLES / "embed.py"), str(made), QUESTION]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == wanted + "\n"


def test_a_c_plus_plus_program(made: Path, wanted: str, tmp_path: Path):
    compiler = shutil.which("c++")
    spec = importlib.util.find_spec("llama_cpp")
    if compiler is None or spec is None or spec.origin is None:
        pytest.skip("a C++ compiler and llama-cpp-python's headers and library are needed")
    package = Path(spec.origin).parent
    try:
        archive = npm.tarball(fetch.LLAMA_RN, fetch.cache())
    except RuntimeFailure as error:
        pytest.skip(str(error))
    (tmp_path / "nlohmann").mkdir()
    with tarfile.open(archive) as tar:
        for name in ("json.hpp", "json_fwd.hpp"):
            member = tar.extractfile(f"package/cpp/nlohmann/{name}")
            assert member is not None
            (tmp_path / "nlohmann" / name).write_bytes(member.read())
    program, libraries = tmp_path / "embed", package / "lib"
    command = [compiler, "-std=c++17", "-O0", f"-I{tmp_path}", f"-I{package.parent / 'include'}"]
    command += [str(EXAMPLES / "embed.cpp"), str(libraries / "libllama.so"), f"-Wl,-rpath,{libraries}"]
    subprocess.run([*command, f"-Wl,-rpath-link,{libraries}", "-o", str(program)], check=True)
    done = subprocess.run([str(program), str(made), QUESTION], capture_output=True, check=False)
    assert done.returncode == 0 and done.stdout.decode("utf-8", "replace") == wanted + "\n", done.stderr
    assert subprocess.run([str(program), str(made / "nothing"), "x"], capture_output=True, check=False).returncode != 0


WATCH = """<iframe id="page" src="{}?ask={}"></iframe><script>
setInterval(() => {{
  const answer = document.getElementById("page").contentDocument?.getElementById("answer");
  if (answer?.dataset.done) fetch("/done", {{method: "POST", body: answer.textContent}});
}}, 100);
</script>"""


class Served(http.server.SimpleHTTPRequestHandler):
    """The folder; what is posted is what the page said."""

    said: queue.SimpleQueue[str]

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.said.put(self.rfile.read(int(self.headers["Content-Length"])).decode("utf-8"))
        self.send_response(204)
        self.end_headers()


def said_by(page: str, bundle: Path, packages: tuple[str, ...], folder: Path) -> str:
    """What a page says in a real browser, from a folder that holds it, its packages and the bundle."""
    cache = fetch.cache_root() / "npm"
    cache.mkdir(parents=True, exist_ok=True)
    try:
        chromium.find()
        for name in packages:
            npm.unpack(npm.tarball(npm.PACKAGES[name], cache), npm.PACKAGES[name], folder / name)
    except EdgeSLMError as error:
        pytest.skip(str(error))
    shutil.copyfile(EXAMPLES / page, folder / page)
    (folder / "watch.html").write_text(WATCH.format(page, quote(QUESTION)), encoding="utf-8")
    shutil.copytree(bundle, folder / "bundle")
    return posted(folder)


def posted(folder: Path, timeout_s: float = 60) -> str:
    """What the folder's watch.html posts when a real browser opens it."""
    Served.said = queue.SimpleQueue()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Served, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [chromium.find(), *chromium.FLAGS, "--no-sandbox", f"--user-data-dir={folder / 'profile'}"]
    url = f"http://127.0.0.1:{server.server_port}/watch.html"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*command, url], start_new_session=True, **quiet)  # type: ignore[call-overload]
    try:
        return Served.said.get(timeout=timeout_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        server.shutdown()
        server.server_close()


def test_a_page(made: Path, wanted: str, tmp_path: Path):
    said = said_by("embed.html", made, ("wllama",), tmp_path)
    assert said[:6] == wanted[:6], "the same beginning; kernels of wasm round otherwise"


def test_a_page_of_an_onnx_bundle(wanted: str, tmp_path: Path):
    """The same weights as ONNX, so the same words."""
    bundle = small_bundle(tmp_path / "made", max_new=12, letters=True, kind="onnx")
    (tmp_path / "page").mkdir()
    said = said_by("embed_onnx.html", bundle, ("onnxruntime-web", "tokenizers"), tmp_path / "page")
    assert said[:6] == wanted[:6], "the same beginning; kernels of wasm round otherwise"
