"""A process that runs groups' newest checkpoints for others: it reads them from the place where groups write, and
answers with what they predict. It never writes there, and a group needs nothing of it but its answers.
"""

from __future__ import annotations

import copy
import json
import socketserver
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeslm.data.rows import Rows
from edgeslm.errors import RuntimeFailure
from edgeslm.schemes import exchange
from edgeslm.schemes.exchange import Mark, Unusable
from edgeslm.schemes.exchange_places import Place
from edgeslm.schemes.exchange_wire import LARGEST_QUESTION_BYTES, Answer, receive_json, send
from edgeslm.teachers.live import LiveTeacher
from edgeslm.teachers.peer import predict

LOOK_S = 0.5  # between looks at the place, or more where it asks for more
AGAIN = 30  # rests, until what was passed over in a bucket is read once more
PATIENCE_S = 30.0  # for who connects and then says nothing


class Desk:
    """The newest usable checkpoint of each group, each in a module of its own, and what they say of rows."""

    def __init__(
        self, folder: Place, recipe: str, like: nn.Module, rows: Rows, groups: int, k: int, micro_rows: int, most: int
    ):
        """`like`: a module that their weights fit; `most`: rows of one question."""
        self.folder, self.recipe, self.like, self.rows, self.groups = folder, recipe, like, rows, groups
        self.k, self.micro_rows, self.most = k, micro_rows, most
        self.device = next(like.parameters()).device
        self.place = {name: index for index, name in enumerate(rows.row_ids())}
        self.models: dict[int, nn.Module] = {}
        self.marks: dict[int, Mark] = {}
        self.passed_over: dict[int, list[str]] = {}
        self.unlike: dict[tuple[int, int], tuple[float, str]] = {}  # (group, step) -> until when, and why, it is left
        self.lock = threading.Lock()  # around modules: they are read by many threads

    def look(self) -> list[str]:
        """Takes what is newer; says what it took and what it passed over, once."""
        return [what for group in range(self.groups) for what in self._look(group)]

    def _look(self, group: int) -> list[str]:
        held, before = self.marks.get(group), self.passed_over.get(group, [])
        problems: list[str] = []
        said: list[str] = []
        try:
            there = self.folder.steps(group)
            self.unlike = {at: why for at, why in self.unlike.items() if at[0] != group or at[1] in there}
            for step in there:
                if held is not None and step <= held.step:
                    break
                until, why = self.unlike.get((group, step), (0.0, ""))
                if time.monotonic() < until:
                    problems.append(why)
                    continue
                try:
                    self._take(group, step)
                    said.append(f"group {group}: step {step}")
                    break
                except Unusable as error:
                    problems.append(str(error))
                    self.unlike[group, step] = time.monotonic() + AGAIN * self.folder.rest_s, str(error)
        except OSError as error:  # out of reach, or removed under our eyes: looked for again soon
            problems.append(f"group {group}: its checkpoints cannot be read ({error.strerror or error})")
        self.passed_over[group] = problems
        return said + [f"passed over: {what}" for what in problems if what not in before]

    def _take(self, group: int, step: int) -> None:
        fits = partial(exchange.other_weights, like=dict(self.like.named_parameters()))
        with tempfile.TemporaryDirectory(prefix="edgeslm-peers-") as scratch:
            path = Path(scratch) / "copy"
            self.folder.copy(group, step, path)
            mark, tensors = exchange.read_ours(path, group, step, self.recipe, fits, f"group {group}, step {step}")
            model = self.models.get(group) or copy.deepcopy(self.like).requires_grad_(False)
            with self.lock, torch.no_grad():
                for name, value in model.named_parameters():
                    value.copy_(tensors[name])
                self.models[group], self.marks[group] = model, mark

    def answer(self, question: dict[str, Any]) -> Answer:
        """Whatever is asked, there is an answer."""
        if question.get("recipe") != self.recipe:
            return _none(f"serves another recipe or other text ({self.recipe}), not {question.get('recipe')}")
        peer, asked = question.get("peer"), question.get("rows")
        if not isinstance(asked, list) or not 0 < len(asked) <= self.most:
            return _none(f"answers for 1 to {self.most} rows at a time")
        chosen = [self.place.get(name) if isinstance(name, str) else None for name in asked]
        if None in chosen:
            return _none(f"knows no row {asked[chosen.index(None)]}")
        if not isinstance(peer, int):
            return _none(f"knows no group {peer}")
        with self.lock:
            if peer not in self.models:
                why = "; ".join(self.passed_over.get(peer, ()))
                return _none(f"has no checkpoint of group {peer} that can be used{f' ({why})' if why else ''}")
            mark = self.marks[peer]
            tensors = predict(
                LiveTeacher(self.models[peer]), self.rows, [i for i in chosen if i is not None], self.micro_rows,
                self.k, self.device,
            )  # fmt: skip
        return Answer(None, exchange.packed(mark, tensors))


def _none(what: str) -> Answer:
    return Answer(what, b"")


class PeerServer(socketserver.ThreadingTCPServer):
    """Answers at (host, port) until closed; port 0 takes a free one. Use it in a `with` block."""

    allow_reuse_address, daemon_threads = True, True

    def __init__(self, address: tuple[str, int], desk: Desk, say: Callable[[str], None] = lambda what: None):
        self.desk, self.say, self.closed = desk, say, threading.Event()
        super().__init__(address, _Handler, bind_and_activate=False)
        try:
            self.server_bind()
            self.server_activate()
        except OSError as error:
            self.server_close()
            host, port = address
            raise RuntimeFailure(
                f"{host}:{port} cannot be had ({error.strerror or error}); give another --port, or end what uses it"
            ) from error

    def __enter__(self) -> PeerServer:
        for run in (lambda: self.serve_forever(0.1), self._watch):
            threading.Thread(target=run, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self.shutdown()
        self.server_close()

    def _watch(self) -> None:
        while not self.closed.is_set():
            try:
                said = self.desk.look()
            except RuntimeError as error:  # no memory on the card for another model, say; older ones stay
                said = [f"newer checkpoints could not be taken: {str(error).splitlines()[0]}"]
            for what in said:
                self.say(what)
            self.closed.wait(max(LOOK_S, self.desk.folder.rest_s))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asked has gone or speaks something else, or this question could not be computed: the next one can."""
        self.say(f"a question from {client_address[0]} was not answered: {sys.exception()}")


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, PeerServer)
        self.request.settimeout(PATIENCE_S)
        answer = self.server.desk.answer(receive_json(self.request, LARGEST_QUESTION_BYTES))
        send(self.request, json.dumps({"problem": answer.problem}).encode(), answer.data)
