"""What a page is served from, and what the device tells it of its own processes."""

from __future__ import annotations

import http.client
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeslm.devices import browser_server
from edgeslm.devices.browser_server import HEADERS, PageServer, byte_range
from edgeslm.devices.processes import Processes

Ask = Callable[..., tuple[int, dict[str, str], bytes]]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[PageServer]:
    top = tmp_path / "page"
    (top / "npm").mkdir(parents=True)
    (top / "worker.html").write_text("<p>page</p>")
    (top / "npm/a.mjs").write_text("export {}")
    (top / "out").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "model.gguf").write_bytes(bytes(range(256)))
    shared = {"k1/page": top, "k2/model.gguf": tmp_path / "model.gguf"}
    with PageServer(shared, answers={"look": lambda: {"cpu_s": 1.5}}) as server:
        server.said, server.kept = [], []  # type: ignore[attr-defined]
        server.hear, server.keep = server.said.append, server.kept.append  # type: ignore[attr-defined]
        yield server


@pytest.fixture
def ask(site: PageServer) -> Ask:
    def send(path: str, method: str = "GET", body: bytes | None = None, token: str = "", **headers: str) -> Any:
        host, port = site.host.split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        connection.putrequest(method, f"/{token or site.token}/{path}", skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": site.host, **{k.replace("_", "-"): v for k, v in headers.items()}}.items():
            connection.putheader(name, value)
        if body is not None and "Content_Length" not in headers:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        got = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return got

    return send


def test_files_are_served_with_their_type_and_the_policy(ask: Ask) -> None:
    for path, kind in (("k1/page/worker.html", "text/html"), ("k1/page/npm/a.mjs", "text/javascript"), ("nothing", "")):
        status, headers, _ = ask(path)
        assert status == (200 if kind else 404) and headers["Content-Type"].startswith(kind)
        assert {name: headers[name] for name in HEADERS} == HEADERS
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "'unsafe-inline'" not in policy and "http" not in policy
    assert not {"*", "https:"} & set(re.split(r"[ ;]+", policy))  # nobody else is in any list
    assert HEADERS["Cross-Origin-Embedder-Policy"] == "require-corp"  # without it there are no threads


def test_strangers_get_nothing(site: PageServer, ask: Ask) -> None:
    assert len(site.token) >= 32 and site.host.startswith("127.0.0.1:")
    assert ask("k1/page/worker.html", token="x" * 32)[0] == 404
    assert ask("k1/page/worker.html", token=site.token[:-1])[0] == 404
    assert ask("k1/page/worker.html", Host="evil.example")[0] == 404  # a name that was made to point here
    assert ask("say", "POST", b"{}", token="x")[0] == 404 and not site.said  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "path",
    ["k1/page/../secret.txt", "k1/page/%2e%2e/secret.txt", "k1/page//etc/passwd", "k1/page/out", "k1/page/npm",
     "k1/page", "k1/page/worker.html%00.js", "k1/..", "../secret.txt", "k2/model.gguf/x", "k1/other", ""],
)  # fmt: skip
def test_nothing_outside_a_share_is_served(ask: Ask, path: str) -> None:
    assert ask(path)[0] == 404


@pytest.mark.parametrize(
    ("header", "found"),
    [("bytes=0-3", (0, 4)), ("bytes=250-", (250, 256)), ("bytes=-2", (254, 256)), ("bytes=0-999", (0, 256)),
     ("bytes=256-", None), ("bytes=9-3", None), ("bytes=-", None), ("bytes=0-1,3-4", None), ("items=0-1", None),
     ("bytes=-0", None), ("bytes=-999", (0, 256))],
)  # fmt: skip
def test_ranges(ask: Ask, header: str, found: tuple[int, int] | None) -> None:
    assert byte_range(header, 256) == found
    status, headers, body = ask("k2/model.gguf", Range=header)
    if found is None:
        assert (status, headers["Content-Range"], body) == (416, "bytes */256", b"")
    else:
        assert status == 206 and body == bytes(range(*found))
        assert headers["Content-Range"] == f"bytes {found[0]}-{found[1] - 1}/256"


def test_head_says_the_length_and_sends_nothing(ask: Ask) -> None:
    status, headers, body = ask("k2/model.gguf", "HEAD")
    assert (status, headers["Content-Length"], headers["Accept-Ranges"], body) == (200, "256", "bytes", b"")


def test_a_page_speaks_and_asks(site: PageServer, ask: Ask) -> None:
    assert ask("say", "POST", b'{"alive":true}\n{"ok":true}\n')[0] == 204
    assert ask("result", "POST", b"{}")[0] == 204
    assert site.said == ['{"alive":true}', '{"ok":true}'] and site.kept == ["{}"]  # type: ignore[attr-defined]
    assert json.loads(ask("look")[2]) == {"cpu_s": 1.5}
    assert ask("look", "POST", b"{}")[0] == 404 and ask("memory")[0] == 404
    too_long = str(browser_server.LARGEST_POST_BYTES + 1)
    assert ask("result", "POST", b"{}", Content_Length=too_long)[0] == 404 and len(site.kept) == 1  # type: ignore[attr-defined]


# --- what its processes use


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def stat_line(pid: int, session: int, ticks: int) -> str:
    return f"{pid} (a (b) c) S 1 {session} {session} 0 -1 0 0 0 0 0 {ticks} {ticks} 0 0 20 0 1 0\n"


def test_processes_of_the_session_are_summed(tmp_path: Path) -> None:
    status, rollup = "VmRSS:\t 9 kB\nRssAnon:\t 4 kB\nVmSwap:\t 0 kB\n", "Rss: 9 kB\nPss:   {} kB\nPss_Dirty: 1 kB\n"
    files = {f"proc/{pid}/stat": stat_line(pid, 7 if pid < 20 else 8, 50) for pid in (7, 11, 20)}
    files |= {f"proc/{pid}/status": status for pid in (7, 11, 20)}
    files |= {f"proc/{pid}/smaps_rollup": rollup.format(pid) for pid in (7, 11, 20)}
    files |= {"proc/stat": "cpu  10 0 10 900 5 0 0 0 0 0\n", "temp": "41000\n"}
    own = Processes({"millicelsius": [str(tmp_path / "temp"), str(tmp_path / "gone")]}, tree(tmp_path, files))
    own.session = 7
    found = own.look()
    assert found["cpu_s"] == pytest.approx(200 / os.sysconf("SC_CLK_TCK"))
    assert found["busy_s"] == pytest.approx(20 / os.sysconf("SC_CLK_TCK"))
    assert found["sensors"] == {"millicelsius": [41000, None]}
    assert own.memory() == {"rss_anon": 8192, "vm_swap": 0, "pss": 18 * 1024}
    (tmp_path / "proc/11/smaps_rollup").unlink()  # a process that does not show it: a sum without it would be a lie
    assert own.memory() == {"rss_anon": 8192, "vm_swap": 0}
    own.session = 99
    assert own.look()["cpu_s"] is None and own.memory() == {}
