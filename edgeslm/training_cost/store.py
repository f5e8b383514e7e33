"""What was measured, one process a line, so that a stopped plan goes on where it was: lines are only ever added."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

MEASURED, NO_MEMORY, FAILED = "measured", "out of memory", "failed"


def key_of(*parts: Any) -> str:
    """Of all that decides a figure: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class Store:
    """`results(key)` are those of earlier processes, in order. A line cut off by a stop is passed over."""

    def __init__(self, path: Path):
        self.path = path
        self.found: dict[str, list[dict[str, Any]]] = {}
        if not path.exists():
            return
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                self.found.setdefault(entry["key"], []).append(entry["result"])
            except (json.JSONDecodeError, KeyError, TypeError):
                continue

    def results(self, key: str) -> list[dict[str, Any]]:
        """What failed is tried again by the next command; what did not fit is not."""
        return [r for r in self.found.get(key, []) if r["state"] != FAILED]

    def add(self, key: str, point: dict[str, Any], result: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = not self.path.exists() or self.path.read_bytes()[-1:] in (b"", b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            line = json.dumps({"key": key, "point": point, "result": result}, ensure_ascii=False)
            file.write(("" if whole else "\n") + line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.found.setdefault(key, []).append(result)
