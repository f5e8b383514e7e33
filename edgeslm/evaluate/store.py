"""Answers a file has already given, so that a stopped evaluation goes on and a repeated one costs nothing.

One SQLite file for each artifact, named by its sha256: another file never finds them. A key is the sha256 of what was
asked together with the runtime, its version and its options, so an answer of other conditions is never taken for this
one. Values are JSON.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgeslm.errors import DataError


def default_folder() -> Path:
    from edgeslm.models.pypi import cache_folder

    return cache_folder().with_name("answers")


def key_of(*parts: Any) -> str:
    """sha256 of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Store:
    """`get` many, `put` one or many. `folder` None keeps nothing beyond this process."""

    def __init__(self, folder: Path | None, sha256: str):
        self.path = None if folder is None else folder / f"{sha256[:32]}.sqlite"
        try:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(self.path or ":memory:", timeout=30.0, isolation_level=None)
            self._base.execute("PRAGMA journal_mode=WAL")  # a killed process leaves whole rows
            self._base.execute("PRAGMA synchronous=NORMAL")
            self._base.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        except sqlite3.Error as error:
            raise DataError(f"{self.path}: is no usable store of answers ({error}); delete it and run again") from error

    def get(self, keys: Iterable[str]) -> dict[str, Any]:
        """{key: value} of those that are there and whole; a value that is not JSON counts as absent."""
        found: dict[str, Any] = {}
        for key in keys:
            try:
                row = self._base.execute("SELECT value FROM answers WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    found[key] = json.loads(row[0])
            except (sqlite3.Error, ValueError):
                continue
        return found

    def put(self, values: Mapping[str, Any]) -> None:
        rows = [(key, json.dumps(value)) for key, value in values.items()]
        try:
            self._base.execute("BEGIN")
            self._base.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)
            self._base.execute("COMMIT")
        except sqlite3.Error as error:
            raise DataError(f"{self.path}: cannot keep answers ({error}); free disk space or delete it") from error

    def close(self) -> None:
        self._base.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
