"""What a page is served from: a server on 127.0.0.1, a random port, everything below a secret first folder.

    GET  /TOKEN/KEY/NAME      a file that was shared as KEY/NAME, or one inside such a folder, never outside it;
                              byte ranges are served
    GET  /TOKEN/VERB          JSON: what `answers` has under VERB; what a page cannot find out by itself
    POST /TOKEN/say           JSON lines that the page says; handed to `hear`
    POST /TOKEN/result        the result document, as text; handed to `keep`

The headers isolate the page (threads need that), and its policy lets it talk to this server only: nothing a page is
given can leave the machine.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json; charset=utf-8",
    ".wasm": "application/wasm",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self' blob: 'wasm-unsafe-eval'; worker-src 'self' blob:; "
    "connect-src 'self' blob: data:; style-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'"
)
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
CHUNK_BYTES = 1 << 20
LARGEST_POST_BYTES = 64 << 20
RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class PageServer:
    """Serves `shared` ("KEY/NAME" -> file or folder) until closed. Use it in a `with` block."""

    def __init__(
        self,
        shared: dict[str, Path],
        hear: Callable[[str], None] = lambda line: None,
        keep: Callable[[str], None] = lambda text: None,
        answers: Mapping[str, Callable[[], Any]] | None = None,
    ):
        self.shared, self.hear, self.keep, self.answers = shared, hear, keep, dict(answers or {})
        self.token = secrets.token_urlsafe(24)
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def url(self, path: str = "") -> str:
        return f"http://{self.host}/{self.token}/{path}"

    def __enter__(self) -> PageServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def file(self, path: str) -> Path | None:
        """The file that `KEY/NAME/rest` names; None for what is not shared, is no file or lies outside its share."""
        key, name, rest = [*path.split("/", 2), "", ""][:3]
        target = self.shared.get(f"{key}/{name}")
        if target is None or "\x00" in rest:
            return None
        top = target.resolve()
        found = (top / rest).resolve() if rest else top
        return found if found.is_file() and found.is_relative_to(top) else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that was ended leaves connections in the middle: nothing to report."""


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """`bytes=first-last` of one range -> (first, past the last); None when it cannot be satisfied."""
    match = RANGE.fullmatch(header.strip())
    if not match or match[1] == match[2] == "":
        return None
    if not match[1]:  # the last so many bytes
        first, end = max(0, size - int(match[2])), size
    else:
        first, end = int(match[1]), min(size, int(match[2]) + 1) if match[2] else size
    return (first, end) if first < end else None


def _handler(site: PageServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are not logged: they carry the token."""

        def do_GET(self) -> None:
            path = self._inside()
            if path is None:
                self._answer(HTTPStatus.NOT_FOUND)
            elif ask := site.answers.get(path):
                self._answer(HTTPStatus.OK, json.dumps(ask()).encode(), ".json")
            elif (found := site.file(path)) is None:
                self._answer(HTTPStatus.NOT_FOUND)
            else:
                self._send_file(found)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            path = self._inside()
            length = self.headers.get("Content-Length", "")
            if path not in ("say", "result") or not length.isdigit() or int(length) > LARGEST_POST_BYTES:
                self.close_connection = True  # the body is not read
                return self._answer(HTTPStatus.NOT_FOUND)
            text = self.rfile.read(int(length)).decode("utf-8", "replace")
            if path == "result":
                site.keep(text)
            else:
                for line in text.splitlines():
                    site.hear(line)
            return self._answer(HTTPStatus.NO_CONTENT)

        def _inside(self) -> str | None:
            """The path below the token; None for a stranger: another host name, another token."""
            if self.headers.get("Host") != site.host:
                return None
            _, token, *rest = [*unquote(urlsplit(self.path).path).split("/", 2), ""]
            return rest[0] if secrets.compare_digest(token.encode(), site.token.encode()) else None

        def _answer(
            self, status: HTTPStatus, body: bytes = b"", kind: str = "", extra: dict[str, str] | None = None
        ) -> None:
            self.send_response(status)
            self._headers(len(body), kind, extra or {})
            if self.command != "HEAD":
                self.wfile.write(body)

        def _headers(self, length: int, kind: str, extra: dict[str, str]) -> None:
            headers = {"Content-Type": TYPES.get(kind, "application/octet-stream"), **HEADERS, **extra}
            for name, value in {"Content-Length": str(length), **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def _send_file(self, path: Path) -> None:
            size = path.stat().st_size
            first, end, status, extra = 0, size, HTTPStatus.OK, {"Accept-Ranges": "bytes"}
            if asked := self.headers.get("Range"):
                part = byte_range(asked, size)
                if part is None:
                    unfit = {"Content-Range": f"bytes */{size}"}
                    return self._answer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, extra=unfit)
                (first, end), status = part, HTTPStatus.PARTIAL_CONTENT
                extra["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
            self.send_response(status)
            self._headers(end - first, path.suffix.lower(), extra)
            if self.command == "HEAD":
                return None
            with contextlib.suppress(ConnectionError), path.open("rb") as file:  # a reader may leave early
                file.seek(first)
                while first < end and (chunk := file.read(min(CHUNK_BYTES, end - first))):
                    self.wfile.write(chunk)
                    first += len(chunk)
            return None

    return Handler
