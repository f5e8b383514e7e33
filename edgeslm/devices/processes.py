"""What the processes of one session use, read from /proc: a page cannot see its own CPU time, memory or sensors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

TICK_S = 1 / (os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100)
STATUS = {"RssAnon": "rss_anon", "VmSwap": "vm_swap"}  # file pages are shared: summing them counts them many times
ROLLUP = {"Pss": "pss"}


class Processes:
    """Those whose session is `session`; `sensors` are integer files to be read along, by kind."""

    def __init__(self, sensors: dict[str, list[str]], root: Path = Path("/")):
        self.session = 0
        self.sensors, self.root = sensors, root

    def look(self) -> dict[str, Any]:
        """{"cpu_s", "busy_s": of all cores, "sensors": {kind: [int or null]}}; null for what the kernel does not
        tell."""
        own = self._own()
        return {
            "cpu_s": sum(own.values()) if own else None,
            "busy_s": self._busy_s(),
            "sensors": {kind: [_integer(path) for path in paths] for kind, paths in self.sensors.items()},
        }

    def memory(self) -> dict[str, int]:
        """Bytes of all the processes together: rss_anon, vm_swap, and pss, which counts shared pages once. A figure
        that cannot be read of every one of them is left out: a sandboxed process shows its pss to root only."""
        own = self._own()
        found: dict[str, int] = {}
        for name, fields in (("status", STATUS), ("smaps_rollup", ROLLUP)):
            texts = [self._text(pid, name) for pid in own]
            if None not in texts:
                for key, field in fields.items():
                    if values := [kilobytes for text in texts for kilobytes in _kilobytes(text or "", key)]:
                        found[field] = 1024 * sum(values)
        return found

    def _own(self) -> dict[int, float]:
        """pid -> CPU seconds of it and of its ended children."""
        found = {}
        for stat in self.root.glob("proc/[0-9]*/stat"):
            try:
                fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            if len(fields) > 14 and int(fields[3]) == self.session:
                found[int(stat.parent.name)] = sum(map(int, fields[11:15])) * TICK_S
        return found

    def _text(self, pid: int, name: str) -> str | None:
        """Empty when the process ended meanwhile, None when it may not be read."""
        folder = self.root / f"proc/{pid}"
        try:
            return (folder / name).read_text(encoding="utf-8", errors="replace")
        except ProcessLookupError:  # it ended, and nobody has waited for it yet
            return ""
        except OSError:
            return None if folder.exists() else ""

    def _busy_s(self) -> float | None:
        try:
            parts = (self.root / "proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
        except OSError:
            return None
        ticks = [int(part) for part in parts]
        return (sum(ticks) - ticks[3] - ticks[4]) * TICK_S if len(ticks) == 8 else None


def _kilobytes(text: str, key: str) -> list[int]:
    lines = (line.partition(":") for line in text.splitlines())
    return [int(value.split()[0]) for name, _, value in lines if name == key and value.split()[1:] == ["kB"]]


def _integer(path: str) -> int | None:
    try:
        return int(Path(path).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
