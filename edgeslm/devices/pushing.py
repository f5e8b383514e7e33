"""Bringing bytes into a device's store: what is there is not sent, what is half there goes on, all is checked there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from edgeslm import units
from edgeslm.devices.links import Answer, ConnectionLost, Link, ask
from edgeslm.devices.payload import Payload
from edgeslm.devices.scripts import CHANGED, DAMAGED, FULL, INCOMPLETE, LOOK, RECEIVE, filled
from edgeslm.errors import DeviceError

SMALL_BYTES = 1 << 20  # what is smaller is sent again rather than looked for
SPARE_BYTES = 16 << 20  # left free on the device for results
SLOWEST_HASH = 5e6  # bytes per second; a device that is silent for longer than that takes has gone
OnPush = Callable[[str, int, int], None]  # name, bytes sent, bytes in all


class Store:
    """The store of one session, below `root` on the device. `there` is what was pushed in it, by its path there."""

    def __init__(self, link: Link, root: str, on_push: OnPush | None):
        self.link, self.root, self.on_push = link, root, on_push
        self.there: dict[str, Path] = {}
        self.sent = 0  # bytes of the last push that left, those of an earlier try among them

    def push(self, payload: Payload) -> str:
        """-> its path there. Raises ConnectionLost when it may go on later, else DeviceError."""
        path = f"{self.root}/{payload.key}/{payload.name}"
        self.sent = 0
        small = payload.size <= SMALL_BYTES
        if not (path in self.there and payload.is_folder):
            start = None if path not in self.there and small else self._look(payload, trust=path in self.there)
            if small or start != payload.size:
                self._receive(payload, 0 if small else start or 0, small)
        self.there[path] = payload.path
        return path

    def _look(self, payload: Payload, trust: bool) -> int:
        """How much of it is there and right."""
        said = self._asked(LOOK, payload, trust=int(trust)).text.split()
        if said == ["have"]:
            return payload.size
        if len(said) == 3 and said[1].isdecimal() and int(said[1]) < payload.size:
            return int(said[1]) if payload.prefix_sha256(int(said[1])) == said[2] else 0
        return 0

    def _receive(self, payload: Payload, start: int, small: bool) -> None:
        need = payload.size - start + payload.extra_bytes + SPARE_BYTES
        values: dict[str, str | int] = {
            "size": payload.size,
            "sha": payload.sha256,
            "mode": payload.mode,
            "folder": int(payload.is_folder),
            "small": int(small),
            "need": -(-need // 1024),
        }
        for begin in (start, 0):  # once more from nothing when it arrived damaged
            answer = self._asked(RECEIVE, payload, self._told(payload, begin), **values, start=begin)
            if answer.code not in (DAMAGED, CHANGED):
                break
        if answer.code == INCOMPLETE:
            raise ConnectionLost(f"the connection to {self.link.name} was cut")
        if answer.code:
            raise DeviceError(_refused(self.link.name, payload, need, answer))

    def _told(self, payload: Payload, start: int) -> Iterable[bytes]:
        self.sent = start
        for chunk in payload.chunks(start):
            yield chunk
            self.sent += len(chunk)
            if self.on_push is not None:
                self.on_push(payload.name, self.sent, payload.size)

    def _asked(self, script: str, payload: Payload, feed: Iterable[bytes] = (), **values: str | int) -> Answer:
        text = filled(script, root=self.root, key=payload.key, name=payload.name, **values)
        return ask(self.link, text, feed, stall_s=60.0 + payload.size / SLOWEST_HASH)


def _refused(device: str, payload: Payload, need: int, answer: Answer) -> str:
    if answer.code == FULL and answer.text.strip().isdecimal():
        return (
            f"{device} has no room for {payload.name}: it needs {units.byte_count(need)}, "
            f"{units.byte_count(int(answer.text) * 1024)} are free; free some space there"
        )
    if "No space left" in answer.err:
        return f"{device} became full while {payload.name} was sent; free some space there"
    if answer.code == DAMAGED:
        return f"{payload.name} arrived on {device} damaged twice; its storage or its connection is bad"
    words = (answer.err.strip().splitlines() or ["no reason given"])[-1]
    return f"{payload.name} cannot be written on {device} ({words}); see to its storage"
