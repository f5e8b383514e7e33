"""What every worker does around its task: read the job, guard stdout, leave when stdin closes, write atomically.

Protocol. argv[1] is a job file (JSON); results go beside it: `result.json` and .npy arrays, each written under another
name and then renamed. Stdout carries JSON lines only: `{"progress": [done, total]}` and, last, one document
`{"ok": true, ...}` or `{"ok": false, "error": "one sentence"}`. A worker ends when its stdin closes: whoever started
it is gone. Standard library and numpy only.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TEXT_FIELDS = {"RssAnon": "rss_anon", "RssFile": "rss_file", "VmHWM": "vm_hwm", "VmSwap": "vm_swap"}


class JobError(Exception):
    """A job that cannot be done; its message is the sentence the parent shows."""


class Desk:
    """A worker's desk: its job, its folder, its guarded stdout and its stdin lines."""

    def __init__(self, job_path: str):
        self.folder = Path(job_path).resolve().parent
        self.job = json.loads(Path(job_path).read_text(encoding="utf-8"))
        # Native libraries print to file descriptor 1 as they like: give them stderr, keep the pipe for ourselves.
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        self._said = 0.0

    def say(self, document: dict[str, Any]) -> None:
        self._out.write(json.dumps(document, allow_nan=False) + "\n")
        self._out.flush()

    def progress(self, done: int, total: int) -> None:
        """At most ten lines a second, and always the last one."""
        now = time.monotonic()
        if done == total or now - self._said > 0.1:
            self._said = now
            self.say({"progress": [done, total]})

    def leave_when_stdin_closes(self) -> None:
        """A thread that ends the process at once when the other end of stdin is gone."""

        def watch() -> None:
            while os.read(0, 4096):
                pass
            os._exit(3)

        threading.Thread(target=watch, daemon=True).start()

    def lines(self) -> Iterator[dict[str, Any]]:
        """The JSON lines of stdin until it closes."""
        for line in sys.stdin:
            if line.strip():
                yield json.loads(line)

    def save_array(self, name: str, array: Any) -> None:
        import numpy as np

        temporary = self.folder / (name + ".part")
        with temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        os.replace(temporary, self.folder / name)

    def save_result(self, result: dict[str, Any]) -> None:
        temporary = self.folder / "result.json.part"
        temporary.write_text(json.dumps(result, allow_nan=False), encoding="utf-8")
        os.replace(temporary, self.folder / "result.json")


def main(open_engine: Callable[[Desk], Any], tasks: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """Run `tasks[job["task"]](engine opener, desk)` and say how it ended. Exit 0, or 1 with one sentence."""
    desk = Desk(sys.argv[1])
    task = desk.job["task"]
    if task != "serve":
        desk.leave_when_stdin_closes()
    try:
        result = tasks[task](open_engine, desk)
        desk.save_result(result)
        desk.say({"ok": True, "result": "result.json"})
    except JobError as error:
        desk.say({"ok": False, "error": str(error)})
        code = 1
    except MemoryError:
        desk.say({"ok": False, "error": "ran out of memory; use a shorter context or a device with more memory"})
        code = 1
    except ImportError as error:
        desk.say({"ok": False, "error": f"needs a Python package that is not installed ({error})"})
        code = 1
    else:
        code = 0
    sys.stderr.flush()
    os._exit(code)  # native libraries may crash in their destructors; the result is already written


def memory(pid: str = "self") -> dict[str, int]:
    """Bytes of this process now: rss_anon, rss_file, vm_hwm, vm_swap, pss. Fields the kernel lacks are left out."""
    found: dict[str, int] = {}
    for name, fields in (("status", TEXT_FIELDS), ("smaps_rollup", {"Pss": "pss"})):
        try:
            text = Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8")
        except OSError:
            continue
        for line in text.splitlines():
            key, _, value = line.partition(":")
            if key in fields and value.split()[1:] == ["kB"]:
                found[fields[key]] = int(value.split()[0]) * 1024
    return found


class MemoryWatch:
    """Samples memory from a thread while a `with` block runs; used in warm-ups only, never beside a timed run."""

    def __init__(self, samples: list[dict[str, int]], interval_s: float = 0.02):
        self.samples = samples
        self.interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(self.interval_s):
            self.samples.append(memory())

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.samples.append(memory())


def read_counters(paths: list[str]) -> list[int | None]:
    """Integer counters of the device (an energy rail's microjoules), None for one that cannot be read."""
    values: list[int | None] = []
    for path in paths:
        try:
            values.append(int(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            values.append(None)
    return values
