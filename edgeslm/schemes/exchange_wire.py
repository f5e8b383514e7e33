"""How a group asks for its peers' predictions over TCP, one question a connection. The two sides speak frames:

    u64 length, big-endian | bytes

    question   1. JSON {"recipe": hash, "group": who asks, "peer": whose predictions, "rows": [16 hex digits, ...]}
    answer     1. JSON {"problem": null, or a sentence}
               2. a file of predictions (see teachers.peer.predict) of the peer's newest step, empty beside a problem

Nothing that arrives is more than data: the answer is checked like a file that a peer wrote.
"""

from __future__ import annotations

import json
import queue
import socket
import struct
import threading
from dataclasses import dataclass
from typing import Any

LENGTH = struct.Struct(">Q")
LARGEST_QUESTION_BYTES = 1 << 20
LARGEST_HEAD_BYTES = 1 << 20


class Broken(OSError):
    """The other side left, or says what no side of this protocol says."""


def send(connection: socket.socket, *frames: bytes) -> None:
    for frame in frames:
        connection.sendall(LENGTH.pack(len(frame)))
        connection.sendall(frame)


def receive(connection: socket.socket, most: int) -> bytes:
    """The next frame. Raises Broken, and OSError."""
    (length,) = LENGTH.unpack(_exactly(connection, LENGTH.size))
    if length > most:
        raise Broken(f"a frame of {length} bytes, more than {most}")
    return _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        some = connection.recv(min(1 << 20, count - len(found)))
        if not some:
            raise Broken(f"the connection ended after {len(found)} of {count} bytes")
        found += some
    return bytes(found)


def receive_json(connection: socket.socket, most: int) -> dict[str, Any]:
    try:
        found = json.loads(receive(connection, most))
    except ValueError as error:
        raise Broken(f"no JSON ({error})") from error
    if not isinstance(found, dict):
        raise Broken("no JSON object")
    return found


@dataclass(frozen=True)
class Answer:
    """`problem`: why there are no predictions in `data`."""

    problem: str | None
    data: bytes


class Question:
    """One question on its way. A thread waits for the answer, so that no name server, connection or slow sender can
    hold whoever asked longer than it wants to wait."""

    def __init__(self, address: tuple[str, int], question: dict[str, Any], timeout_s: float, most_bytes: int):
        """`most_bytes`: a larger answer is none."""
        self.address, self.question, self.timeout_s, self.most_bytes = address, question, timeout_s, most_bytes
        self.box: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        threading.Thread(target=self._ask, daemon=True).start()

    def answer(self, wait_s: float) -> Answer:
        """After `wait_s` at most."""
        try:
            return self.box.get(timeout=max(0.0, wait_s))
        except queue.Empty:
            return self._none(f"has not answered in {self.timeout_s:g} s")

    def _ask(self) -> None:
        try:
            with socket.create_connection(self.address, self.timeout_s) as connection:
                send(connection, json.dumps(self.question).encode())
                head = receive_json(connection, LARGEST_HEAD_BYTES)
                data = receive(connection, self.most_bytes)
            problem = head.get("problem")
            self.box.put(Answer(None, data) if problem is None else self._none(str(problem)))
        except OSError as error:
            self.box.put(self._none(f"cannot be asked ({error.strerror or error})"))

    def _none(self, what: str) -> Answer:
        host, port = self.address
        return Answer(f"the server of group {self.question['peer']} at {host}:{port} {what}", b"")
