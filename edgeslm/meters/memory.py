"""Peaks of a process's memory. A memory-mapped model's weights count as file pages until a runtime repacks them.

    rss_anon_peak   key/value cache, buffers, repacked weights, and the worker's interpreter
    rss_file_peak   mapped weights and libraries
    pss_peak        both, shared pages divided among their users
    vm_hwm          the kernel's own high-water mark of the resident set
    swap_peak       what was pushed out to swap; anything but 0 means that the resident figures are too small
    kv_cache        keys and values as the runtime says it allocated them, beside what the shape asks for

The worker samples all through its warm-ups and once after each timed run, so timing is never disturbed.
What fits into a device follows from the same figures: see `fits.py`.
"""

from __future__ import annotations

import math
from typing import Any

from edgeslm.meters.base import Meter, Reading

STATUS_FIELDS = {"RssAnon": "rss_anon", "RssFile": "rss_file", "VmHWM": "vm_hwm", "VmSwap": "vm_swap"}
METRICS = {
    "rss_anon": "rss_anon_peak",
    "rss_file": "rss_file_peak",
    "pss": "pss_peak",
    "vm_hwm": "vm_hwm",
    "vm_swap": "swap_peak",
}
SHAPE = ("layers", "kv_heads", "head_dim", "kv_element_bytes", "context")
SAME = 0.01  # seen and computed cache within this share


def parse_status(text: str) -> dict[str, int]:
    """/proc/PID/status -> bytes; fields the kernel does not give are left out."""
    return _kilobytes(text, STATUS_FIELDS)


def parse_smaps_rollup(text: str) -> dict[str, int]:
    """/proc/PID/smaps_rollup -> {"pss": bytes}."""
    return _kilobytes(text, {"Pss": "pss"})


def _kilobytes(text: str, fields: dict[str, str]) -> dict[str, int]:
    found = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        parts = value.split()
        if key in fields and len(parts) == 2 and parts[0].isdigit() and parts[1] == "kB":
            found[fields[key]] = int(parts[0]) * 1024
    return found


def ask(options: dict[str, Any]) -> dict[str, Any]:
    return {}


def read(results: list[dict[str, Any]], options: dict[str, Any]) -> list[Reading]:
    """One value a process. `extra` holds what the worker took before the model was loaded, and the peak of swap."""
    swap = peak(results, "vm_swap")
    swapped = max(swap, default=None)
    note = "" if not swapped else f"{swapped:.0f} bytes were in swap, so what is resident is not all there was"
    readings = []
    for field, metric in METRICS.items():
        if peaks := peak(results, field):
            extra: dict[str, Any] = {"before_load_bytes": [before_load(r, field) for r in results]}
            if field != "vm_swap":
                extra["swap_peak_bytes"] = swapped
            readings.append(Reading(metric, "bytes", tuple(peaks), extra=extra, note=note))
    return readings + _kv_cache(results)


def peak(results: list[dict[str, Any]], field: str) -> list[float]:
    """Of each process that has samples of it."""
    seen = ([s[field] for s in result["memory"].get("samples", []) if field in s] for result in results)
    return [float(max(values)) for values in seen if values]


def before_load(result: dict[str, Any], field: str) -> int | None:
    value: int | None = result["memory"].get("before_load", {}).get(field)
    return value


def _kv_cache(results: list[dict[str, Any]]) -> list[Reading]:
    """What the runtime says it allocated for keys and values; `extra` holds what the model's shape and the context
    ask for. A runtime that says nothing gives no reading."""
    seen = [float(result["kv_cache_bytes"]) for result in results if result.get("kv_cache_bytes")]
    if not seen:
        return []
    engine = results[0].get("engine", {})
    computed = computed_kv_bytes(engine)
    note = ""
    if computed and max(abs(value / computed - 1) for value in seen) > SAME:
        share = max(seen, key=lambda value: abs(value - computed)) / computed
        reason = "the runtime rounds the context up" if share > 1 else "the runtime keeps less than the whole context"
        note = f"{reason} of {engine['context']}: {share:.2f} of what its shape asks for"
    return [Reading("kv_cache", "bytes", tuple(seen), note=note, extra={"computed_bytes": computed})]


def computed_kv_bytes(engine: dict[str, Any]) -> int | None:
    """Keys and values of all layers for the whole context; None when the runtime does not tell its shape."""
    parts = [int(engine.get(key) or 0) for key in SHAPE]
    return 2 * math.prod(parts) or None


METER = Meter("memory", ask, read)
