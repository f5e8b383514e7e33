"""Copies of a student as they were a while ago, on other machines or here (codistillation, arXiv:1804.03235): their
weights, or only what they predict.

Shape letters: B rows of a batch, R rows recorded, T tokens of a row, N = B (T - 1) predictions, V vocabulary, K
outcomes kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from edgeslm.compute import local, own_rows, release
from edgeslm.data.batch import Batch
from edgeslm.data.rows import Rows
from edgeslm.models.view import CAUSAL, View
from edgeslm.teachers.base import Need, Output, Signals, Teacher, dense
from edgeslm.teachers.ensemble import Ensemble
from edgeslm.teachers.live import LiveTeacher
from edgeslm.teachers.recorded import FIELDS, Whole
from edgeslm.teachers.targets import Kept, id_type, keep

PEERS = -1  # the first place of peers among the teachers of an objective, the next is -2: the recipe's own count from 0
CHUNK = 256  # predictions whose whole distribution is looked at together
# what a peer predicts for a batch, and for which of its predictions [N] it says anything
Peer = Callable[[Batch], tuple[Output, Tensor]]


class Shelf:
    """Modules that hold peers' weights, one for each state that is in use, however many groups use it."""

    def __init__(self, twin: Callable[[], nn.Module]):
        """`twin` makes another of such modules."""
        self.twin, self.spare = twin, list[nn.Module]()
        self.held: dict[str, nn.Module] = {}
        self.wanted: dict[int, set[str]] = {}  # group -> states it may use again

    def teacher(self, sha256: str, weights: Callable[[], dict[str, Tensor]]) -> Teacher:
        """The state of that digest; `weights` are read where it is not on the shelf."""
        if sha256 not in self.held:
            model = self.spare.pop() if self.spare else self.twin().requires_grad_(False)
            found = weights()
            release(model)
            with torch.no_grad():
                for name, value in model.named_parameters():
                    local(value.data).copy_(own_rows(found[name], value))
            self.held[sha256] = model
        return LiveTeacher(self.held[sha256])

    def keep(self, group: int, states: set[str]) -> None:
        """`group` may use these again; what no group wants gives its module to the next state that comes."""
        self.wanted[group] = states
        for sha256 in set(self.held) - set().union(*self.wanted.values()):
            self.spare.append(self.held.pop(sha256))


class Present:
    """Peers whose weights are here: the mean of what they predict, of every prediction."""

    def __init__(self, teachers: Sequence[Teacher], view: View = CAUSAL):
        self.view = view
        self.mean: Teacher = teachers[0] if len(teachers) == 1 else Ensemble(teachers, [1.0] * len(teachers))

    def __call__(self, batch: Batch) -> tuple[Output, Tensor]:
        output = self.mean(batch, Need()).output
        assert output is not None
        return output, torch.ones_like(self.view.truth(batch)[1])


class Predicted:
    """A peer of which only predictions are here, for some rows; of others it says nothing. `kept`: its tensors are
    [R, T - 1, ...]; `place` {index of a training row: its place among the R}."""

    def __init__(self, kept: Kept, place: Mapping[int, int]):
        self.kept, self.place = kept, place

    def __call__(self, batch: Batch) -> tuple[Output, Tensor]:
        assert batch.rows is not None, "nobody predicted text that was written on the spot"
        found = [self.place.get(int(row)) for row in batch.rows]
        device, length = batch.ids.device, self.kept.logs.shape[1]
        parts = [torch.stack([getattr(self.kept, name)[at or 0] for at in found]) for name in FIELDS]  # [B, T - 1, ..]
        known = torch.tensor([float(at is not None) for at in found]).repeat_interleave(length)
        return Whole(Kept(*(part.flatten(0, 1).to(device) for part in parts)), 0, 1.0), known.to(device)


class Beside:
    """Peers as teachers `PEERS`, `PEERS` - 1 and so on, beside the recipe's own teacher where that one teaches."""

    def __init__(self, outer: Teacher | None, peers: Sequence[Peer]):
        self.outer, self.peers = outer, peers

    def __call__(self, batch: Batch, need: Need) -> Signals:
        given = Signals(None) if self.outer is None else self.outer(batch, need)
        said = {PEERS - index: peer(batch) for index, peer in enumerate(self.peers)}
        return replace(given, foreign={**given.foreign, **said})


@torch.no_grad()
def predict(
    teacher: Teacher, rows: Rows, chosen: Sequence[int], micro_rows: int, k: int, device: torch.device
) -> dict[str, Tensor]:
    """What a teacher says of the `chosen` rows, as files and messages carry it: `rows` [R] int64 (their ids), `ids` and
    `logs` [R, T - 1, K], `rest` [R, T - 1] (see Kept)."""
    found: list[Kept] = []
    vocabulary = 0
    for at in range(0, len(chosen), micro_rows):
        some = torch.as_tensor(list(chosen[at : at + micro_rows]))
        batch = Batch(rows.ids[some].long().to(device), rows.mask[some].float().to(device), some)
        output, targets = teacher(batch, Need()).output, batch.ids[:, 1:].reshape(-1)
        assert output is not None
        for begin in range(0, len(targets), CHUNK):
            part = slice(begin, begin + CHUNK)
            logits = dense(output.rows(part, targets[part]))
            found.append(keep(logits, k, 0, 1.0, None))
            vocabulary = logits.shape[1]
    shape = len(chosen), rows.ids.shape[1] - 1
    tensors = {name: torch.cat([getattr(f, name) for f in found]).cpu() for name in FIELDS}
    tensors["ids"] = tensors["ids"].to(id_type(vocabulary))
    return {"rows": numbers(rows.row_ids(), chosen)} | {n: v.unflatten(0, shape) for n, v in tensors.items()}


def numbers(names: Sequence[str], chosen: Sequence[int]) -> Tensor:
    """Ids of rows, 16 hex digits, as int64 [R]."""
    found = [int(names[i], 16) for i in chosen]
    return torch.tensor([n - (1 << 64) if n >> 63 else n for n in found], dtype=torch.int64)


def wrong(tensors: Mapping[str, Tensor], asked: Tensor, length: int, k: int, vocabulary: int) -> str | None:
    """Why these are no predictions of the rows `asked` [R], `length` = T - 1 each; None where nothing is wrong."""
    count = min(k, vocabulary)
    shapes = {"rows": (len(asked),), "ids": (len(asked), length, count), "logs": (len(asked), length, count)}
    shapes["rest"] = shapes["rows"] + (length,)
    if {name: tuple(value.shape) for name, value in tensors.items()} != shapes:
        return "holds no such predictions as this recipe's"
    if tensors["rows"].tolist() != asked.tolist():
        return "holds predictions of other rows"
    if int(tensors["ids"].long().max()) >= vocabulary or int(tensors["ids"].long().min()) < 0:
        return "names outcomes that the vocabulary does not have"
    if any(torch.isnan(tensors[name]).any() or (tensors[name] > 0.01).any() for name in ("logs", "rest")):
        return "holds values that are no log-probabilities"
    return None
