"""The tasks a worker can do, written once for every runtime. An engine (one for each worker) offers:

    load_s        seconds from the call to a model that can run, interpreter start and imports apart
    vocabulary    V
    info          plain data: runtime, version, threads, cache type, layers, ...
    score(ids, first)  yields float [m, V] logits of positions first .. len(ids) - 1 of a fresh sequence
    follow(groups)     yields logits of continuations after their prefixes, see likelihood.py
    feed(ids)     appends ids to the sequence -> float [V] logits of the last position
    keep(n)       cuts the sequence back to its first n ids

Times are taken with a monotonic clock on the device. Standard library and numpy only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from common import Desk, JobError
from likelihood import likelihood
from sampling import ceilings, energy
from scoring import score
from timing import bench

Open = Callable[[Desk], Any]


def sampler(spec: dict[str, Any]) -> Callable[[np.ndarray], int]:
    """temperature 0 is greedy; otherwise top_k (0 = all), then top_p, then a draw from PCG64(seed): the same ids for
    the same logits in every runtime."""
    temperature = float(spec.get("temperature", 0.0))
    top_k, top_p = int(spec.get("top_k", 0)), float(spec.get("top_p", 1.0))
    if temperature < 0 or not 0 < top_p <= 1 or top_k < 0:
        raise JobError("sampling needs temperature >= 0, top_k >= 0 and 0 < top_p <= 1")
    if temperature == 0:
        return lambda logits: int(np.argmax(logits))
    generator = np.random.Generator(np.random.PCG64(int(spec.get("seed", 0))))

    def draw(logits: np.ndarray) -> int:
        scaled = logits.astype(np.float64) / temperature
        order = np.argsort(-scaled, kind="stable")[: top_k or None]
        kept = np.exp(scaled[order] - scaled[order[0]])
        kept /= kept.sum()
        enough = int(np.searchsorted(np.cumsum(kept), top_p)) + 1 if top_p < 1 else len(kept)
        cumulative = np.cumsum(kept[:enough])
        at = int(np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right"))
        return int(order[min(at, len(cumulative) - 1)])

    return draw


def stream(
    engine: Any, held: list[int], ids: list[int], request: dict[str, Any], on_id: Callable[[int], None]
) -> dict[str, Any]:
    """Continue `ids`; `held` is what the engine's sequence holds and is brought up to date, its common prefix reused.

    The stop id is counted as generated but not handed on.
    """
    if not ids or min(ids) < 0 or max(ids) >= engine.vocabulary:
        raise JobError(f"a prompt must hold at least one id, all below the vocabulary of {engine.vocabulary}")
    pick = sampler(request.get("sampling", {}))
    stop = set(request.get("stop", []))
    room = engine.context - len(ids)
    if room < 1:
        raise JobError(f"{len(ids)} prompt ids leave no room in the context of {engine.context}")
    limit = min(int(request["max_new"]), room)
    shared = common_prefix(held, ids[:-1])  # at least one id is fed, for its logits
    start = time.perf_counter()
    engine.keep(shared)
    logits = engine.feed(ids[shared:])
    held[:] = ids
    prefill_s = time.perf_counter() - start
    count, ended, stopped_by = 0, "length", None
    first_s = None
    while count < limit:
        token = pick(logits)
        count += 1
        first_s = first_s if first_s is not None else time.perf_counter() - start
        if token in stop:
            ended, stopped_by = "stop", token
            break
        on_id(token)
        if count < limit:
            logits = engine.feed([token])
            held.append(token)
    total_s = time.perf_counter() - start
    return {
        "tokens": count,
        "ended": ended,
        "stopped_by": stopped_by,
        "prompt_tokens": len(ids),
        "reused_tokens": shared,
        "prefill_s": prefill_s,
        "time_to_first_token_s": first_s,
        "decode_s": total_s - prefill_s,
    }


def common_prefix(a: list[int], b: list[int]) -> int:
    """Length of the longest shared beginning."""
    length = 0
    for left, right in zip(a, b, strict=False):
        if left != right:
            break
        length += 1
    return length


def generate(open_engine: Open, desk: Desk) -> dict[str, Any]:
    """The task `generate`: continue each of `prompts`; every prompt starts the sampler anew from its seed.

    As soon as an answer is done a line `{"answered": i, "answer": {...}}` is said, for whoever keeps them."""
    engine = open_engine(desk)
    answers: list[dict[str, Any]] = []
    held: list[int] = []
    for prompt in desk.job["prompts"]:
        ids: list[int] = []
        timings = stream(engine, held, prompt, desk.job, ids.append)
        answers.append({"ids": ids, **timings})
        desk.say({"answered": len(answers) - 1, "answer": answers[-1]})
        desk.progress(len(answers), len(desk.job["prompts"]))
    return {"engine": engine.info, "answers": answers}


def serve(open_engine: Open, desk: Desk) -> dict[str, Any]:
    """The task `serve`: requests as stdin lines `{"ids", "max_new", "sampling", "stop", "turn"}`.

    For each token, as it comes, a line `{"id", "turn"}`; then `{"done": true, "turn", ...timings}`, or
    `{"done": true, "turn", "error"}` for a request that cannot be done. `turn` is the asker's own number, so that the
    rest of an answer it gave up can be told from the next.
    """
    engine = open_engine(desk)
    desk.say({"ready": True, "load_s": engine.load_s, "engine": engine.info})
    held: list[int] = []
    turns = 0
    for request in requests(desk):
        mark = {"turn": request.get("turn", 0)}

        def hand_on(token: int, mark: dict[str, Any] = mark) -> None:
            desk.say({"id": token, **mark})

        try:
            timings = stream(engine, held, request["ids"], request, hand_on)
        except JobError as error:
            desk.say({"done": True, **mark, "error": str(error)})
            continue
        turns += 1
        desk.say({"done": True, **mark, **timings})
    return {"engine": engine.info, "turns": turns}


def requests(desk: Desk) -> Iterator[dict[str, Any]]:
    for line in desk.lines():
        if not isinstance(line, dict) or not isinstance(line.get("ids"), list) or "max_new" not in line:
            desk.say({"done": True, "error": 'a request is a JSON object with "ids" and "max_new"'})
            continue
        yield line


TASKS: dict[str, Callable[[Open, Desk], dict[str, Any]]] = {
    "score": score,
    "likelihood": likelihood,
    "bench": bench,
    "energy": energy,
    "ceilings": ceilings,
    "generate": generate,
    "serve": serve,
}
