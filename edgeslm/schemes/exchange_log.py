"""What groups took from their peers, and when: `exchange.jsonl`, one line for each group, peer and exchange, beside
copies of the files that a resumed run would need again. A run that was killed takes the same once more.

    {"step": 200, "group": 0, "peer": 1, "peer_step": 150, "position": 4800, "sha256": "...", "passed_over": []}

`peer_step` null: the peer had written nothing that could be used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from edgeslm.parallel import ALONE, Ranks
from edgeslm.schemes import checkpoint
from edgeslm.schemes.exchange import Mark, read

NAME = "exchange.jsonl"
COPIES = f"{checkpoint.NAME}.of-"  # removed with the checkpoint when the stage is done


class ExchangeLog:
    """The ranks of a group share the folder and what is in use; the first of them looks for peers and writes."""

    def __init__(self, folder: Path, ranks: Ranks = ALONE):
        self.folder, self.path, self.ranks = folder, folder / NAME, ranks
        self.lines: list[dict[str, Any]] = ranks.told(_whole_lines(self.path) if ranks.first else None)
        if ranks.first:
            self.path.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")

    def taken(self, group: int, step: int) -> dict[int, dict[str, Any]]:
        """{peer: line} of an exchange that was made before the run was stopped."""
        found = [x for x in self.lines if (x["group"], x["step"]) == (group, step)]
        return {line["peer"]: line for line in found if line["peer_step"] is None or self._there(line)}

    def in_use(self, group: int, step: int) -> dict[int, dict[str, Any]]:
        """{peer: line} of what the group had in use just before `step`."""
        found = [x for x in self.lines if x["group"] == group and x["step"] < step and x["peer_step"] is not None]
        return {line["peer"]: line for line in found if self._there(line)}  # the last of each peer

    def add(self, group: int, step: int, peer: int, mark: Mark | None, passed_over: list[str]) -> dict[str, Any]:
        known = (mark.step, mark.position, mark.sha256) if mark else (None, None, None)
        line = {
            "step": step, "group": group, "peer": peer,
            **dict(zip(("peer_step", "position", "sha256"), known, strict=True)), "passed_over": passed_over,
        }  # fmt: skip
        self.lines.append(line)
        if not self.ranks.first:
            return line
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
        return line

    def take_in(self, peer: int, fetch: Callable[[Path], Mark]) -> Mark:
        """Keeps a copy of what `fetch(path)` brings."""
        new = self.folder / f"{COPIES}{peer}"
        mark = fetch(new)
        os.replace(new, self.copy(peer, mark.step, mark.sha256))
        return mark

    def weights(self, line: dict[str, Any]) -> dict[str, Tensor]:
        """Raises Unusable, and OSError where the copy is gone."""
        return read(self.copy(line["peer"], line["peer_step"], line["sha256"]))[1]

    def copy(self, peer: int, step: int, sha256: str) -> Path:
        return self.folder / f"{COPIES}{peer}-{step:08}-{sha256[:12]}"

    def _there(self, line: dict[str, Any]) -> bool:
        return self.copy(line["peer"], line["peer_step"], line["sha256"]).exists()

    def forget(self, done: int) -> None:
        """Removes copies that a run going on from its checkpoint of `done` updates would not ask for."""
        if not self.ranks.first:
            return
        groups = {line["group"] for line in self.lines}
        needed = [line for line in self.lines if line["step"] >= done and line["peer_step"] is not None]
        needed += [line for group in groups for line in self.in_use(group, done + 1).values()]
        names = {self.copy(x["peer"], x["peer_step"], x["sha256"]).name for x in needed}
        for path in self.folder.glob(f"{COPIES}*"):
            if path.name not in names:
                path.unlink(missing_ok=True)


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:  # half a line, written while being killed
            break
    return found
