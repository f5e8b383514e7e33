"""Trainings in processes of their own, also on machines that hold torch and transformers and nothing else: training in
float needs two packages by name only.

pydantic's `Field` marks the bounds of a loss's options, gguf holds code books of formats; neither is called.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

ONLY_NAMED: dict[str, dict[str, Any]] = {
    "pydantic": {"Field": lambda **_: None},
    "gguf": {"quants": types.SimpleNamespace()},
}


def stand_in() -> list[str]:
    """Puts empty modules in the place of those that are missing; their names."""
    missing = [name for name in ONLY_NAMED if name not in sys.modules and importlib.util.find_spec(name) is None]
    for name in missing:
        module = types.ModuleType(name)
        vars(module).update(ONLY_NAMED[name])
        sys.modules[name] = module
    return missing


def serve(make: Callable[[], Any], jobs: Any, results: Any) -> None:
    """The life of a worker: `make()` gives what trains; then jobs in, results out, None ends it."""
    try:
        bench = make()
        results.put(("ready", None, None))
    except Exception:
        results.put(("broken", None, traceback.format_exc()))
        return
    for job in iter(jobs.get, None):
        try:
            results.put(("done", job, bench.train(job)))
        except Exception:
            results.put(("failed", job, traceback.format_exc()))
