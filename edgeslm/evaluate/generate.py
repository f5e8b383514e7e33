"""Text that a shipped file writes, with stop texts, kept as it comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from edgeslm.artifact import Artifact
from edgeslm.devices.base import Device
from edgeslm.errors import RuntimeFailure
from edgeslm.evaluate.execute import EXACT, execute_keeping, parse_line
from edgeslm.evaluate.likelihood import conditions
from edgeslm.evaluate.store import Store, key_of
from edgeslm.models.stop import stop_ids

GREEDY: dict[str, Any] = {"temperature": 0.0}


@dataclass(frozen=True)
class Request:
    """Ids to continue by at most `new` ids, up to the first of the texts `until`."""

    ids: Sequence[int]
    new: int
    until: tuple[str, ...] = ()
    sampling: dict[str, Any] = field(default_factory=lambda: dict(GREEDY))


@dataclass(frozen=True)
class Written:
    """`text` ends before the stop text. `ended` is "stop" or "length". `ids` leave the id that ended it out."""

    ids: list[int]
    text: str
    ended: str


def generate(
    artifact: Artifact,
    tokenizer: Any,
    requests: Sequence[Request],
    *,
    threads: int,
    device: Device,
    workdir: Path,
    store: Store,
    on_progress: Callable[[int, int], None] | None = None,
    timeout_s: float = 24 * 3600.0,
) -> list[Written]:
    """One answer a request, in order; requests of like settings share a worker. Raises RuntimeFailure, DeviceError;
    answers that came before are in the store."""
    where = conditions(artifact)
    keys = [key_of("generate", where, list(r.ids), r.new, r.until, r.sampling, stop_ids(tokenizer)) for r in requests]
    known = {key: value for key, value in store.get(set(keys)).items() if _sound(value)}
    alike: dict[str, list[tuple[str, Request]]] = {}
    for key, request in dict(zip(keys, requests, strict=True)).items():
        if key not in known:
            alike.setdefault(key_of(request.new, request.until, request.sampling), []).append((key, request))
    total, done = sum(map(len, alike.values())), 0
    for group in alike.values():
        before = done

        def count(here: int, _: int, before: int = before) -> None:
            if on_progress is not None:
                on_progress(before + here, total)

        known |= _ask(artifact, tokenizer, group, threads, device, workdir, store, count, timeout_s)
        done += len(group)
    return [_written(tokenizer, known[key], request) for key, request in zip(keys, requests, strict=True)]


def _sound(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("ids"), list) and value.get("ended") in ("stop", "length")


def _ask(
    artifact: Artifact,
    tokenizer: Any,
    group: list[tuple[str, Request]],
    threads: int,
    device: Device,
    workdir: Path,
    store: Store,
    on_progress: Callable[[int, int], None],
    timeout_s: float,
) -> dict[str, Any]:
    first = group[0][1]
    stops = set(stop_ids(tokenizer)) | set(ids_holding(tokenizer, first.until))
    task = {
        "task": "generate",
        "prompts": [list(request.ids) for _, request in group],
        "max_new": first.new,
        "stop": sorted(stops),
        "sampling": first.sampling,
        "threads": threads,
        "context": max(len(request.ids) for _, request in group) + first.new,
        **EXACT,
    }
    found: dict[str, Any] = {}

    def hear(line: str) -> None:
        said = parse_line(line)
        number, answer = said.get("answered"), said.get("answer")
        if isinstance(number, int) and 0 <= number < len(group) and isinstance(answer, dict) and _sound(answer):
            kept = {name: answer.get(name) for name in ("ids", "ended", "stopped_by")}
            store.put({group[number][0]: kept})
            found[group[number][0]] = kept

    total = len(group)
    execute_keeping(
        device, artifact, task, workdir, found, total, timeout_s=timeout_s, on_progress=on_progress, on_line=hear
    )
    if len(found) != len(group):
        raise RuntimeFailure(f"{artifact.name}: {len(group) - len(found)} answers never came; run the same again")
    return found


def _written(tokenizer: Any, answer: dict[str, Any], request: Request) -> Written:
    """Decoded whole, the id that ended it included where it carries text, then cut before the first stop text."""
    ids = list(answer["ids"])
    last = answer.get("stopped_by")
    whole = [*ids, last] if last is not None and last not in stop_ids(tokenizer) else ids
    text = tokenizer.decode(whole, skip_special_tokens=True)
    cut = min((at for stop in request.until if stop and (at := text.find(stop)) >= 0), default=None)
    return Written(ids, text if cut is None else text[:cut], "stop" if cut is not None else answer["ended"])


@lru_cache(maxsize=64)
def ids_holding(tokenizer: Any, texts: tuple[str, ...]) -> tuple[int, ...]:
    """Ids whose own text holds one of `texts`: writing one of them ends an answer for sure. A stop text that is spread
    over several ids is found only when the answer is cut, at the cost of writing on."""
    wanted = [text for text in texts if text]
    if not wanted:
        return ()
    every = sorted(set(tokenizer.get_vocab().values()))
    pieces = tokenizer.batch_decode([[i] for i in every])
    return tuple(i for i, piece in zip(every, pieces, strict=True) if any(text in piece for text in wanted))
