"""What may have disturbed a run: others' load, a clock or a temperature that moved, a clock that was set.

A doubt is a sentence. A run with one is marked; `strict` benchmarks refuse it. Where a device does not say, there is
no doubt and no certainty either: nothing is guessed.
"""

from __future__ import annotations

from typing import Any

BUSY_CORES = 0.3  # of everybody else, during a run or just before it
CLOCK_SHARE = 0.05  # of the highest clock seen
WARMER_C = 10.0  # within one process
STEP_S = 0.5  # of the wall clock against the monotonic one

Result = dict[str, Any]


def of_results(results: list[Result]) -> list[str]:
    """Every doubt about the processes of one artifact, worst figure named."""
    runs = [run for result in results for phase in result["phases"] for run in phase["runs"]]
    return [said for look in (_others, _clock, _steady) if (said := look(results, runs))] + _per_process(results)


def background(busy: list[float | None], threads: int) -> str:
    """A doubt when others kept the machine busy before a run, looked at while no worker of ours ran."""
    worst = max((b for b in busy if b is not None), default=0.0)
    if worst < BUSY_CORES:
        return ""
    return f"others kept {worst:.1f} cores busy just before a run; {threads} threads shared the machine with them"


def _others(results: list[Result], runs: list[Result]) -> str:
    disturbed = [run["others_cores"] for run in runs if (run.get("others_cores") or 0.0) > BUSY_CORES]
    if not disturbed:
        return ""
    return f"others kept up to {max(disturbed):.1f} cores busy during {len(disturbed)} of {len(runs)} runs"


def _clock(results: list[Result], runs: list[Result]) -> str:
    seen = [khz for run in runs for side in run.get("watch", {}).get("khz", []) for khz in side if khz]
    if not seen or min(seen) >= (1 - CLOCK_SHARE) * max(seen):
        return ""
    return f"the clock moved between {min(seen) / 1e6:.2f} and {max(seen) / 1e6:.2f} GHz"


def _steady(results: list[Result], runs: list[Result]) -> str:
    loose = sum(not result["stable"] for result in results)
    return f"{loose} of {len(results)} processes were not steady when their warm-up ended" if loose else ""


def _per_process(results: list[Result]) -> list[str]:
    found = []
    for result in results:
        runs = [run for phase in result["phases"] for run in phase["runs"]]
        heat = [t / 1000 for run in runs for side in run.get("watch", {}).get("millicelsius", []) for t in side if t]
        if heat and max(heat) - min(heat) > WARMER_C:
            found.append(f"the device went from {min(heat):.0f} to {max(heat):.0f} degrees Celsius within one process")
        before, after = result.get("steps", {}).get("wall_minus_monotonic_s", (0.0, 0.0))
        if abs(after - before) > STEP_S:
            found.append(f"the clock was set by {after - before:+.1f} s during a process; times are monotonic")
    return list(dict.fromkeys(found))
