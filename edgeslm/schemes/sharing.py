"""What a group gives at an exchange, what it takes, and what its peers then say of a batch: one class for each `share`
of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from edgeslm.data.batch import Batch
from edgeslm.schemes.exchange import other_weights
from edgeslm.schemes.exchange_log import ExchangeLog, Line
from edgeslm.schemes.loop import Loop
from edgeslm.schemes.step import Step
from edgeslm.teachers.live import LiveTeacher
from edgeslm.teachers.peer import FIELDS, Peer, Predicted, Present, Shelf, numbers, predict, wrong
from edgeslm.teachers.targets import Kept


class Sharing(Protocol):
    def offer(self) -> dict[str, Tensor]:
        """What the group writes, on the first rank at the least. Where each rank holds a part, all call."""

    def wrong(self, tensors: Mapping[str, Tensor], done: int) -> str | None:
        """Why what came from a peer for the update after `done` cannot be learned from."""

    def peers(self, lines: Sequence[Line], batch: Batch) -> list[Peer]:
        """Who teaches the batch, for lines of the log that say what is in use; each is a term of its own."""


class Weights:
    """Peers' models run here. The mean of their probabilities is one teacher."""

    def __init__(self, me: int, step: Step, loop: Loop, part: Any, log: ExchangeLog, shelf: Shelf):
        self.me, self.step, self.log, self.shelf = me, step, log, shelf

    def offer(self) -> dict[str, Tensor]:
        return self.step.engine.weights(self.step.model)

    def wrong(self, tensors: Mapping[str, Tensor], done: int) -> str | None:
        return other_weights(tensors, {m.name: m.weight for m in self.step.masters.items})

    def peers(self, lines: Sequence[Line], batch: Batch) -> list[Peer]:
        self.shelf.keep(self.me, {line["sha256"] for line in lines})
        teachers = [self.shelf.teacher(x["sha256"], lambda x=x: self.log.tensors(x)) for x in lines]  # type: ignore[misc]
        return [Present(teachers, self.step.view)] if teachers else []


class Predictions:
    """Peers' predictions on rows that all groups read. Means of buckets that differ would be none, so each peer is a
    teacher of its own; the gradient is that of the mean."""

    def __init__(self, me: int, step: Step, loop: Loop, part: Any, log: ExchangeLog, shelf: Shelf):
        assert loop.exchange is not None
        self.step, self.loop, self.log, self.k = step, loop, log, part.share.k
        self.shared = list(loop.exchange.shared)
        self.rows = numbers(loop.rows.row_ids(), self.shared)
        self.place = {row: at for at, row in enumerate(self.shared)}
        self.held: dict[str, Peer] = {}  # digest -> what that peer says

    def offer(self) -> dict[str, Tensor]:
        live, micro = LiveTeacher(self.step.model, self.step.view), self.step.settings.micro_rows
        return predict(live, self.loop.rows, self.shared, micro, self.k, self.loop.device)

    def wrong(self, tensors: Mapping[str, Tensor], done: int) -> str | None:
        return wrong(tensors, self.rows, self.loop.rows.ids.shape[1] - 1, self.k, vocabulary_of(self.step))

    def peers(self, lines: Sequence[Line], batch: Batch) -> list[Peer]:
        assert batch.rows is not None
        if not any(int(row) in self.place for row in batch.rows):
            return []
        self.held = {x["sha256"]: self.held.get(x["sha256"]) or self._peer(x) for x in lines}
        return [self.held[line["sha256"]] for line in lines]

    def _peer(self, line: Line) -> Peer:
        tensors = self.log.tensors(line)
        return Predicted(Kept(*(tensors[name] for name in FIELDS)), self.place)


class Served:
    """Peers' predictions on the rows of a batch, as a server gave them; checkpoints are written for the server."""

    def __init__(self, me: int, step: Step, loop: Loop, part: Any, log: ExchangeLog, shelf: Shelf):
        self.step, self.loop, self.log, self.k = step, loop, log, part.share.k
        self.names = loop.rows.row_ids()

    def offer(self) -> dict[str, Tensor]:
        return self.step.engine.weights(self.step.model)

    def rows(self, done: int) -> list[int]:
        """What a server is asked for: the rows of an update, each once."""
        size = self.loop.batch_rows
        return sorted({int(row) for row in self.loop.order[done * size : (done + 1) * size]})

    def wrong(self, tensors: Mapping[str, Tensor], done: int) -> str | None:
        rows = numbers(self.names, self.rows(done))
        return wrong(tensors, rows, self.loop.rows.ids.shape[1] - 1, self.k, vocabulary_of(self.step))

    def peers(self, lines: Sequence[Line], batch: Batch) -> list[Peer]:
        assert batch.rows is not None
        place = {row: at for at, row in enumerate(sorted({int(row) for row in batch.rows}))}
        found = [self.log.tensors(line) for line in lines]
        return [Predicted(Kept(*(tensors[name] for name in FIELDS)), place) for tensors in found]


def vocabulary_of(step: Step) -> int:
    return step.view.head(step.model).shape[0]


SHARING: dict[str, Any] = {"weights": Weights, "predictions": Predictions, "served": Served}
