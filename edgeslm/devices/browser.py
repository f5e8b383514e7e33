"""A browser as a device: a page runs the model, headless Chromium runs the page.

What is pushed is shared on a local server under `KEY/NAME`, KEY being a hash; that is also its path on the device.
`run([page, job])` opens the page with the job's address; what the page says are the lines of stdout, its result is
kept as `result.json` beside the job. Each run has a browser and a profile of its own; both are gone afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from edgeslm.devices import chromium
from edgeslm.devices import facts as machine
from edgeslm.devices.base import TAIL_CHARS, Completed
from edgeslm.devices.browser_server import PageServer
from edgeslm.devices.processes import Processes
from edgeslm.errors import DeviceError

OPENING_S = 60.0  # until the page must have said its first word
NO_SANDBOX = "Chromium cannot make its sandbox here; let this user make user namespaces, as the system's manual says"
SILENCE_S = 60.0  # a page says every second that it is alive; one that does not has crashed


class BrowserDevice:
    """Chromium on this machine. `browser` is a path or a name on PATH, by default the first of chromium.BROWSERS."""

    name = "browser"
    python = ""
    hosts = ("page",)
    root = Path("/")

    def __init__(self, browser: str = "", facts: dict[str, Any] | None = None):
        self.program = chromium.find(browser)
        self.folder, self._lock = chromium.home()
        self.shared: dict[str, Path] = {}
        self._given_facts = facts

    def __enter__(self) -> BrowserDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing of ours is left."""
        self.shared.clear()
        if self._lock >= 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Those of the machine, with the browser's version; the same machine without it is another device."""
        if self._given_facts is not None:
            return self._given_facts
        found = machine.facts(self.root)
        found["browser"] = chromium.version(self.program)
        found["name"] = f"{found['browser']} on {found['name']}"
        found["id"] = hashlib.sha256(f"{found['id']} {found['browser']}".encode()).hexdigest()[:12]
        return found

    def push(self, path: Path) -> str:
        """Share a file or folder; a page (.html) is shared with its folder."""
        path = Path(path)
        if not path.exists():
            raise DeviceError(f"{path} does not exist; export it again or correct the path")
        path = path.resolve()
        top = path.parent if path.suffix == ".html" else path
        about = top.stat()
        key = hashlib.sha256(f"{top}\n{about.st_mtime_ns}\n{about.st_size}".encode()).hexdigest()[:16]
        self.shared[f"{key}/{top.name}"] = top
        return f"{key}/{top.name}" if top == path else f"{key}/{top.name}/{path.name}"

    def pull(self, remote: str, local: Path) -> None:
        """A result of a run. Nothing else is there that was not here before."""
        source = (self.folder / remote).resolve()
        if not source.is_relative_to(self.folder.resolve()) or not source.is_file():
            raise DeviceError(f"{remote} is not on the device; the command that should have written it did not finish")
        shutil.copyfile(source, local)

    def run(
        self,
        argv: list[str],
        timeout_s: float,
        on_line: Callable[[str], None] | None = None,
        stdin: Iterable[str] | None = None,
    ) -> Completed:
        """argv: a pushed page and a pushed job. A `stdin` that ends closes the browser: a page reads no lines."""
        page, job = self._both(argv)
        start = time.monotonic()
        result = self.folder / job.rpartition("/")[0] / "result.json"
        result.unlink(missing_ok=True)
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        processes = Processes(_sensors(self.shared[job]))
        with (
            tempfile.TemporaryDirectory(prefix="", dir=self.folder, ignore_cleanup_errors=True) as profile,
            PageServer(
                self.shared,
                lines.put,
                lambda text: _write(result, text),
                {"look": processes.look, "memory": processes.memory},
            ) as server,
        ):
            address = f"{server.url(quote(page))}?job={quote(job, safe='')}"
            process = chromium.start(self.program, Path(profile), address)
            processes.session = process.pid
            stderr: list[str] = []
            reader = threading.Thread(target=_drain, args=(process, stderr, lines), daemon=True)
            reader.start()
            if stdin is not None:
                threading.Thread(target=_close_after, args=(stdin, lines), daemon=True).start()
            try:
                ended = _listen(lines, on_line, start + timeout_s)
            finally:
                chromium.end(process)
            reader.join(timeout=5.0)
        return ended.completed("".join(stderr)[-TAIL_CHARS:], time.monotonic() - start)

    def _both(self, argv: list[str]) -> tuple[str, str]:
        page, job = argv if len(argv) == 2 else ("", "")
        folder, _, index = page.rpartition("/")
        if folder not in self.shared or not (self.shared[folder] / index).is_file() or job not in self.shared:
            raise DeviceError(
                f"a browser runs a pushed page with a pushed job, not '{' '.join(argv)}'; push both first"
            )
        return page, job


class Ended:
    """How a page ended: its last lines and why nothing more is to come."""

    def __init__(self, tail: str, why: str = "", timed_out: bool = False):
        self.tail, self.why, self.timed_out = tail, why, timed_out

    def completed(self, stderr: str, wall_s: float) -> Completed:
        said = _parsed(self.tail.splitlines()[-1]) if self.tail else {}
        code = 0 if said.get("ok") is True else 1
        why = NO_SANDBOX if "No usable sandbox" in stderr else self.why
        words = f"{stderr}\n{why}" if why else ""  # Chromium's own murmur explains nothing by itself
        return Completed(code, self.tail, words, wall_s, timed_out=self.timed_out)


def _listen(lines: queue.SimpleQueue[str | None], on_line: Callable[[str], None] | None, deadline: float) -> Ended:
    """Hand each line on until the page says how it ended, falls silent or the time is over."""
    tail, patience = "", OPENING_S
    heard = time.monotonic()
    while True:
        left = min(deadline, heard + patience) - time.monotonic()
        try:
            line = lines.get(timeout=max(0.0, left))
        except queue.Empty:
            if time.monotonic() >= deadline:
                return Ended(tail, timed_out=True)
            what = "did not open" if patience == OPENING_S and not tail else "stopped answering"
            return Ended(tail, f"the page {what}: the browser's tab crashed or ran out of memory; use a smaller model")
        if line is None:
            return Ended(tail, "the browser ended before the page was done; it crashed or was closed")
        heard, patience = time.monotonic(), SILENCE_S
        said = _parsed(line)
        if said == {"alive": True}:
            continue
        tail = (tail + line + "\n")[-TAIL_CHARS:]
        if on_line is not None:
            on_line(line)
        if "ok" in said:
            return Ended(tail)


def _parsed(line: str) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _sensors(job: Path) -> dict[str, list[str]]:
    """The counters a job asks to be watched. A page cannot read them: the device reads those below /sys for it."""
    said = _parsed(job.read_text(encoding="utf-8"))
    watch = said.get("watch") or {}
    asked = {"khz": watch.get("khz"), "millicelsius": watch.get("millicelsius"), "rails": said.get("rails")}
    return {kind: [path for path in paths or [] if str(path).startswith("/sys/")] for kind, paths in asked.items()}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".json.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _drain(process: subprocess.Popen[str], kept: list[str], lines: queue.SimpleQueue[str | None]) -> None:
    """Read stderr so that the browser never blocks on it; its end is the browser's end."""
    pipe: IO[str] | None = process.stderr
    for line in pipe or ():
        kept.append(line)
        del kept[:-200]
    lines.put(None)


def _close_after(stdin: Iterable[str], lines: queue.SimpleQueue[str | None]) -> None:
    for _ in stdin:
        pass
    lines.put(None)
