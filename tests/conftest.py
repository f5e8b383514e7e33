"""Several workers of pytest (`-n`) share the cores out: each keeps to its own, and so does what it starts."""

from __future__ import annotations

import os


def pytest_configure() -> None:
    """Before anything imports torch, which counts the cores it may use once."""
    name, count = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if name is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[int(name.removeprefix("gw")) % len(cores) :: count])
