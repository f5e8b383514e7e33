"""What groups took from their peers, and when: `exchange.jsonl`, one line for each group, peer and exchange, beside
copies of the files that a resumed run would need again. A run that was killed takes the same once more.

    {"step": 200, "group": 0, "peer": 1, "peer_step": 150, "position": 4800, "sha256": "...", "passed_over": []}

`peer_step` null: the peer had given nothing that could be used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from edgeslm.artifact import write_whole
from edgeslm.parallel import ALONE, Ranks
from edgeslm.schemes import checkpoint
from edgeslm.schemes.exchange import Mark, Unusable, read

NAME = "exchange.jsonl"
COPIES = f"{checkpoint.NAME}.of-"  # removed with the checkpoint when the stage is done
Line = dict[str, Any]


class ExchangeLog:
    """The ranks of a group share the folder and what is in use; the first of them looks for peers and writes."""

    def __init__(self, folder: Path, ranks: Ranks = ALONE):
        self.folder, self.path, self.ranks = folder, folder / NAME, ranks
        before = ranks.told(_whole_lines(self.path) if ranks.first else None)
        self.lines: dict[tuple[int, int], dict[int, Line]] = {}  # (group, step) -> {peer: line}
        for line in before:
            self._put(line)
        if ranks.first:
            write_whole(self.path, "".join(json.dumps(line) + "\n" for line in before).encode())

    def taken(self, group: int, step: int) -> dict[int, Line]:
        """{peer: line} of an exchange that was made before the run was stopped, as far as its files are still whole."""
        found = self.lines.get((group, step), {})
        return self._usable(found)

    def in_use(self, group: int, step: int) -> dict[int, Line]:
        """{peer: line} of what the group had in use just before `step`."""
        return self._usable(self.last(group, step, lambda line: line["peer_step"] is not None))

    def last(self, group: int, step: int, wanted: Callable[[Line], bool] = lambda line: True) -> dict[int, Line]:
        """{peer: its last line before `step`} of those `wanted`."""
        found: dict[int, Line] = {}
        for (of, at), lines in self.lines.items():
            for peer, line in lines.items() if of == group and at < step else ():
                if wanted(line) and at >= found.get(peer, line)["step"]:
                    found[peer] = line
        return found

    def add(self, group: int, step: int, peer: int, mark: Mark | None, passed_over: list[str]) -> Line:
        known = (mark.step, mark.position, mark.sha256) if mark else (None, None, None)
        line = {
            "step": step, "group": group, "peer": peer,
            **dict(zip(("peer_step", "position", "sha256"), known, strict=True)), "passed_over": passed_over,
        }  # fmt: skip
        self._put(line)
        if not self.ranks.first:
            return line
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
        return line

    def _put(self, line: Line) -> None:
        self.lines.setdefault((line["group"], line["step"]), {})[line["peer"]] = line

    def take_in(self, peer: int, fetch: Callable[[Path], Mark]) -> Mark:
        """Keeps a copy of what `fetch(path)` brings."""
        new = self.folder / f"{COPIES}{peer}"
        mark = fetch(new)
        os.replace(new, self.copy(peer, mark.step, mark.sha256))
        return mark

    def tensors(self, line: Line) -> dict[str, Tensor]:
        """Raises Unusable, and OSError where the copy is gone."""
        return read(self._copy_of(line))[1]

    def copy(self, peer: int, step: int, sha256: str) -> Path:
        return self.folder / f"{COPIES}{peer}-{step:08}-{sha256[:12]}"

    def _copy_of(self, line: Line) -> Path:
        return self.copy(line["peer"], line["peer_step"], line["sha256"])

    def _usable(self, found: dict[int, Line]) -> dict[int, Line]:
        """Without lines whose files are gone or not whole, in the eyes of the first rank."""
        if not found:
            return {}
        whole = [peer for peer, line in found.items() if line["peer_step"] is None or self._whole(line)]
        return {peer: found[peer] for peer in self.ranks.told(whole)}

    def _whole(self, line: Line) -> bool:
        """Whether the copy can be used again: a machine that lost its power may have the line and not all the bytes."""
        try:
            return read(self._copy_of(line))[0].sha256 == line["sha256"]
        except (Unusable, OSError):
            return False

    def forget(self, done: int) -> None:
        """Removes copies that a run going on from its checkpoint of `done` updates would not ask for."""
        if not self.ranks.first:
            return
        held = [line for lines in self.lines.values() for line in lines.values() if line["peer_step"] is not None]
        needed = [line for line in held if line["step"] >= done]
        for group in {line["group"] for line in held}:
            needed += self.last(group, done + 1, lambda line: line["peer_step"] is not None).values()
        names = {self._copy_of(line).name for line in needed}
        for path in self.folder.glob(f"{COPIES}*"):
            if path.name not in names:
                path.unlink(missing_ok=True)


def _whole_lines(path: Path) -> list[Line]:
    found: list[Line] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:  # half a line, written while being killed
            break
    return found
