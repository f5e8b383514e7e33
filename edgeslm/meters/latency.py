"""Load, first token, prefill, decode and every single token's latency, from the worker's monotonic clock."""

from __future__ import annotations

from typing import Any

from edgeslm.meters.base import Meter, Reading


def ask(options: dict[str, Any]) -> dict[str, Any]:
    return {}


def read(results: list[dict[str, Any]], options: dict[str, Any]) -> list[Reading]:
    """One value a timed run, over all processes in order; `load` one a process, of a file the page cache may hold."""

    def speeds(kind: str, count: str, seconds: str) -> tuple[float, ...]:
        return tuple(result[count] / run[seconds] for result in results for run in result[kind])

    def times(kind: str) -> tuple[float, ...]:
        return tuple(run["time_to_first_token_s"] for result in results for run in result[kind])

    def latencies(kind: str) -> tuple[float, ...]:
        return tuple(s for result in results for run in result[kind] for s in run["token_latency_s"])

    first = results[0]
    prompt, new = first["prompt_tokens"], first["new_tokens"]
    return [
        Reading("load", "s", tuple(r["load_s"] for r in results), note="fresh process; the file may be in page cache"),
        Reading("time_to_first_token", "s", times("runs"), times("warmups"), extra={"prompt_tokens": prompt}),
        Reading(
            "prefill",
            "tokens/s",
            speeds("runs", "prompt_tokens", "prefill_s"),
            speeds("warmups", "prompt_tokens", "prefill_s"),
            better="higher",
            extra={"prompt_tokens": prompt},
        ),
        Reading(
            "decode",
            "tokens/s",
            speeds("runs", "new_tokens", "decode_s"),
            speeds("warmups", "new_tokens", "decode_s"),
            better="higher",
            extra={"new_tokens": new, "prompt_tokens": prompt},
        ),
        Reading("token_latency", "s", latencies("runs"), latencies("warmups")),
    ]


METER = Meter("latency", ask, read)
