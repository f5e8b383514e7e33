"""What several artifacts say to the same prompts, side by side; and a conversation with one of them."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgeslm.artifact import Artifact
from edgeslm.devices.base import Device
from edgeslm.errors import EdgeSLMError, RuntimeFailure
from edgeslm.evaluate.execute import execute, parse_line, scratch

GREEDY: dict[str, Any] = {"temperature": 0.0}


def answers(
    artifacts: list[Artifact],
    prompts: list[tuple[str, list[int]]],
    decode: Callable[[list[int]], str],
    *,
    stop: list[int],
    max_new: int,
    threads: int,
    device: Device,
    workdir: Path,
    sampling: dict[str, Any] | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
    timeout_s: float = 1800.0,
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """`prompts` are (text a person reads, ids with the chat template already applied).

    Returns ([{"prompt", "answers": [{"artifact", "text", "tokens"}]}], problems), greedy unless `sampling` says else.
    """
    rows: list[dict[str, Any]] = [{"prompt": text, "answers": []} for text, _ in prompts]
    problems: list[dict[str, str]] = []
    if not prompts:
        return rows, problems
    task = {
        "task": "generate",
        "prompts": [ids for _, ids in prompts],
        "max_new": max_new,
        "stop": stop,
        "sampling": sampling or GREEDY,
        "threads": threads,
        "context": max(len(ids) for _, ids in prompts) + max_new,
    }
    for artifact in artifacts:
        progress = None if on_progress is None else (lambda d, t, name=artifact.name: on_progress(name, d, t))
        try:
            with scratch(workdir) as folder:
                outcome = execute(device, artifact, task, folder, timeout_s=timeout_s, on_progress=progress)
            given = outcome.result["answers"]
            if len(given) != len(rows):
                raise RuntimeFailure(f"{artifact.name} gave {len(given)} answers to {len(rows)} prompts")
        except EdgeSLMError as error:
            problems.append({"artifact": artifact.name, "what": str(error)})
            continue
        for row, answer in zip(rows, given, strict=True):
            row["answers"].append(
                {"artifact": artifact.name, "text": decode(answer["ids"]), "tokens": len(answer["ids"])}
            )
    return rows, problems


class Conversation:
    """A worker that stays: `say(ids, ...)` yields ids as they come; `timings` then holds the turn's numbers.

    Use as a context manager. Raises RuntimeFailure when the worker does not start or ends in the middle of an answer.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        device: Device,
        workdir: Path,
        threads: int,
        context: int,
        timeout_s: float = 24 * 3600.0,
    ):
        self.artifact = artifact
        self.timings: dict[str, Any] = {}
        self._turn = 0
        self._asked: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._heard: queue.SimpleQueue[dict[str, Any] | EdgeSLMError] = queue.SimpleQueue()
        task = {"task": "serve", "threads": threads, "context": context}

        def work() -> None:
            try:
                with scratch(workdir) as folder:
                    execute(
                        device,
                        artifact,
                        task,
                        folder,
                        timeout_s=timeout_s,
                        on_line=lambda line: self._heard.put(parse_line(line)),
                        stdin=iter(self._asked.get, None),
                    )
            except EdgeSLMError as error:
                self._heard.put(error)
            except Exception as error:  # the thread must not die silently: whoever waits would wait for ever
                self._heard.put(RuntimeFailure(f"{artifact.name}: the conversation broke off ({error!r})"))
            else:
                self._heard.put(RuntimeFailure(f"{artifact.name}: the worker has ended"))

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()
        self.engine: dict[str, Any] = self._next("ready")["engine"]

    def _next(self, *wanted: str) -> dict[str, Any]:
        """The next document that has one of the wanted keys. Raises what the worker's thread raised."""
        while True:
            document = self._heard.get()
            if isinstance(document, EdgeSLMError):
                self._heard.put(document)  # whoever asks again hears it again
                raise document
            if any(key in document for key in wanted):
                return document

    def say(
        self, ids: list[int], *, max_new: int, stop: list[int], sampling: dict[str, Any] | None = None
    ) -> Iterator[int]:
        """The whole conversation's ids so far; the part that the worker already holds is not computed again."""
        self._turn += 1
        request = {"ids": ids, "max_new": max_new, "stop": stop, "sampling": sampling or GREEDY, "turn": self._turn}
        self._asked.put(json.dumps(request))
        while True:
            document = self._next("id", "done")
            if document.get("turn") != self._turn:  # the rest of an answer nobody listened to
                continue
            if "id" in document:
                yield int(document["id"])
                continue
            if document.get("error"):
                raise RuntimeFailure(f"{self.artifact.name}: {document['error']}")
            self.timings = {key: value for key, value in document.items() if key not in ("done", "turn")}
            return

    def close(self) -> None:
        self._asked.put(None)
        self._thread.join(timeout=10.0)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
