"""Peaks of a process's memory. A memory-mapped model's weights count as file pages until a runtime repacks them.

    rss_anon_peak   key/value cache, buffers, repacked weights, and the worker's interpreter
    rss_file_peak   mapped weights and libraries
    pss_peak        both, shared pages divided among their users
    vm_hwm          the kernel's own high-water mark of the resident set

The worker samples all through its warm-ups and once after each timed run, so timing is never disturbed.
"""

from __future__ import annotations

from typing import Any

from edgeslm.meters.base import Meter, Reading

STATUS_FIELDS = {"RssAnon": "rss_anon", "RssFile": "rss_file", "VmHWM": "vm_hwm", "VmSwap": "vm_swap"}
METRICS = {"rss_anon": "rss_anon_peak", "rss_file": "rss_file_peak", "pss": "pss_peak", "vm_hwm": "vm_hwm"}


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
    readings = []
    for field, metric in METRICS.items():
        peaks, before, swap = [], [], []
        for result in results:
            samples = result["memory"].get("samples", [])
            seen = [s[field] for s in samples if field in s]
            if seen:
                peaks.append(float(max(seen)))
                before.append(result["memory"].get("before_load", {}).get(field))
                swap += [s["vm_swap"] for s in samples if "vm_swap" in s]
        if peaks:
            extra = {"before_load_bytes": before, "swap_peak_bytes": max(swap, default=None)}
            readings.append(Reading(metric, "bytes", tuple(peaks), extra=extra))
    return readings


METER = Meter("memory", ask, read)
