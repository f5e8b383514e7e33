"""For machines that hold torch and transformers and nothing else: training in float needs two packages by name only.

pydantic's `Field` marks the bounds of a loss's options, gguf holds code books of formats; neither is called.
"""

from __future__ import annotations

import importlib.util
import sys
import types
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
