"""Load, first token, prefill by prompt length, decode by depth, every single token's latency, from the worker's
monotonic clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgeslm.meters.base import Meter, Reading

Result = dict[str, Any]


def ask(options: dict[str, Any]) -> dict[str, Any]:
    return {}


def read(results: list[Result], options: dict[str, Any]) -> list[Reading]:
    """One value a timed run, over all processes in order; `load` one a process, of a file the page cache may hold."""
    loads = tuple(result["load_s"] for result in results)
    found = [Reading("load", "s", loads, note="fresh process; the file may be in page cache")]
    for number, phase in enumerate(results[0]["phases"]):
        same = [result["phases"][number] for result in results]
        found += (_prefill if phase["kind"] == "prefill" else _decode)(phase, same)
    return found + _sustained(results)


def _prefill(phase: Result, same: list[Result]) -> list[Reading]:
    extra = {"prompt_tokens": phase["tokens"]}
    return [
        Reading("time_to_first_token", "s", *_both(same, lambda run: run["first_s"]), extra=extra),
        Reading("prefill", "tokens/s", *_speeds(phase, same), better="higher", extra=extra),
    ]


def _decode(phase: Result, same: list[Result]) -> list[Reading]:
    extra = {"new_tokens": phase["tokens"], "depth": phase["depth"]}
    runs, warmups = (tuple(s for one in same for run in one[key] for s in run["token_latency_s"]) for key in KEYS)
    return [
        Reading("decode", "tokens/s", *_speeds(phase, same), better="higher", extra=extra),
        Reading("token_latency", "s", runs, warmups, extra={"depth": phase["depth"]}),
    ]


KEYS = ("runs", "warmups")


def _both(same: list[Result], value: Callable[[Result], float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    runs, warmups = (tuple(value(run) for one in same for run in one[key]) for key in KEYS)
    return runs, warmups


def _speeds(phase: Result, same: list[Result]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return _both(same, lambda run: phase["tokens"] / run["seconds"])


def _sustained(results: list[Result]) -> list[Reading]:
    """The curve of each process in order: seconds since it began, and the temperatures beside it."""
    curve = [point for result in results for point in result.get("sustained", [])]
    if not curve:
        return []
    heat = [_warmest(point) for point in curve]
    extra = {"at_s": [point["at_s"] for point in curve], "celsius": heat}
    speeds = tuple(point["tokens"] / point["seconds"] for point in curve)
    return [Reading("sustained_decode", "tokens/s", speeds, better="higher", extra=extra)]


def _warmest(point: Result) -> float | None:
    after = point.get("watch", {}).get("millicelsius", [[], []])[1]
    return max((value / 1000 for value in after if value is not None), default=None)


METER = Meter("latency", ask, read)
