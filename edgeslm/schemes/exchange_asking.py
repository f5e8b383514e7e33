"""A group that asks servers for its peers' predictions instead of running its peers: one question for each update, on
its way while the update before is computed.

A server that is dead, cut off, slow, or serves another recipe costs `timeout_s` at most; the update is done without it,
the log says why, and it is asked again from the next exchange on. A resumed run uses the answers it had, which lie
beside its checkpoint, and none where it had none; what it had not asked yet it asks of the servers as they then are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeslm.schemes.exchange import Mark, Unusable, accept
from edgeslm.schemes.exchange_log import ExchangeLog, Line
from edgeslm.schemes.exchange_wire import Answer, Question
from edgeslm.schemes.loop import Loop
from edgeslm.schemes.sharing import Served, vocabulary_of
from edgeslm.teachers.targets import bytes_per_token

HEADER_BYTES = 1 << 16  # of an answer, at most


class Asking:
    def __init__(self, me: int, peers: Sequence[int], loop: Loop, part: Any, log: ExchangeLog, served: Served):
        assert loop.exchange is not None
        self.me, self.peers, self.loop, self.part, self.log, self.served = me, peers, loop, part, log, served
        self.exchange, self.share = loop.exchange, part.share
        self.asked: dict[int, dict[int, Question | None]] = {}  # update -> {peer: question}
        self.until: dict[int, int] = {}  # peer -> first update in which its server is asked again

    def begin(self, done: int) -> None:
        """Servers that had failed when the run stopped are left alone as long as they would have been."""
        for line in self.log.last(self.me, done).values():
            self._heed(line)

    def answers(self, done: int, then: bool) -> dict[int, Line]:
        """{peer: line of the log} for the update after `done`; `then`: whether the next update will ask too."""
        before, found = self.log.taken(self.me, done), {}
        self._ask(done, before)
        questions = self.asked.pop(done, {})
        end = time.monotonic() + self.share.timeout_s
        for peer in self.peers:
            line = before.get(peer)
            if line is None and peer in questions:
                line = self._taken(peer, done, questions[peer], end)
            if line is not None:
                found[peer] = line
                self._heed(line)
        if then:
            self._ask(done + 1, self.log.taken(self.me, done + 1))
        if done % self.loop.train.checkpoint_every == 0:
            self.log.forget(done)
        return found

    def _ask(self, done: int, before: dict[int, Line]) -> None:
        """Of each peer whose answer is not known, once; only the first rank asks, but all know what is asked."""
        open_ = self.asked.setdefault(done, {})
        for peer in self.peers:
            if peer not in open_ and peer not in before and done >= self.until.get(peer, 0):
                open_[peer] = self._question(peer, done) if self.loop.ranks.first else None

    def _question(self, peer: int, done: int) -> Question:
        rows = [self.served.names[row] for row in self.served.rows(done)]
        question = {"recipe": self.exchange.recipe, "group": self.me, "peer": peer, "rows": rows}
        each = bytes_per_token(self.share.k, 0, vocabulary_of(self.served.step))
        most = len(rows) * (self.loop.rows.ids.shape[1] * each + 8) + HEADER_BYTES
        return Question(self.exchange.servers[peer], question, self.share.timeout_s, most)

    def _taken(self, peer: int, done: int, question: Question | None, end: float) -> Line:
        ranks, told = self.loop.ranks, None
        if question is not None:
            answer = question.answer(end - time.monotonic())
            told = self._kept(peer, done, answer)
        mark, problems = ranks.told(told)
        return self.log.add(self.me, done, peer, mark, problems)

    def _kept(self, peer: int, done: int, answer: Answer) -> tuple[Mark | None, list[str]]:
        if answer.problem is not None:
            return None, [answer.problem]

        def come(into: Path) -> Mark:
            recipe = self.exchange.recipe
            return accept(
                lambda part: part.write_bytes(answer.data), peer, None, recipe, into,
                lambda tensors: self.served.wrong(tensors, done),
            )  # fmt: skip

        try:
            mark = self.log.take_in(peer, come)
        except (Unusable, OSError) as error:
            return None, [str(error)]
        return mark, []

    def _heed(self, line: Line) -> None:
        """Who did not answer is asked again from the next exchange on."""
        if line["peer_step"] is None:
            every = self.part.exchange_every
            self.until[line["peer"]] = (line["step"] // every + 1) * every
