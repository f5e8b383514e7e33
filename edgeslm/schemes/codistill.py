"""Codistillation: copies that train on their own text and learn from each other's stale predictions (Anil et al.,
arXiv:1804.03235, algorithm 1). Between them there is a folder or a bucket, of weights or of predictions, and nothing
else; or, in place of peers' models, a server that runs them.

One process trains one group, or all of them in turn; either way a group sees of its peers only what they wrote. Nothing
a peer does stops a group: one that is late, dead or started anew teaches as it last was, what is damaged, not finite or
of another recipe is passed over, and a place or server that cannot be reached is tried again at the next exchange.
Only `scheduled`, which makes the outcome a function of the recipe alone, waits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from edgeslm.compute import local, own_rows
from edgeslm.errors import DataError
from edgeslm.schemes import exchange
from edgeslm.schemes.exchange import Mark, Unusable
from edgeslm.schemes.exchange_asking import Asking
from edgeslm.schemes.exchange_log import ExchangeLog, Line
from edgeslm.schemes.loop import Loop, Turn, on_grid, turns
from edgeslm.schemes.objective import Objective, Term
from edgeslm.schemes.sharing import SHARING
from edgeslm.schemes.step import Step, StepLog
from edgeslm.teachers.base import Teacher
from edgeslm.teachers.peer import PEERS, Beside, Shelf

LOSS = {"kl": "forward_kl", "cross_entropy": "soft_cross_entropy"}
POLL_S = 0.2
MOST_REST_S = 60.0


def run(steps: Sequence[Step], teacher: Teacher | None, loop: Loop, part: Any) -> None:
    assert loop.exchange is not None
    log, shelf = ExchangeLog(loop.folder, loop.ranks), Shelf(partial(steps[0].engine.twin, steps[0].model))
    made = zip(loop.exchange.here, steps, loop.exchange.orders, strict=True)
    groups = [Group(me, step, replace(loop, order=order), part, log, shelf) for me, step, order in made]
    first = True
    for turn in turns(loop, steps):
        if first:
            for group in groups:
                group.begin(turn.index)
            first = False
        problems = meet(groups, turn.index, part, loop) if turn.index else []
        logs = [group.update(turn, teacher) for group in groups]
        for problem in (problems := problems + [p for group in groups for p in group.problems]):
            loop.progress.say(f"  codistill: {problem}")
        turn.log = logs[0]
        turn.notes = {
            "peer_weight": peer_weight(part, turn.index, loop.train.steps),
            "used": [used for group in groups for used in group.taught],
            **({"group_losses": [log.loss for log in logs]} if len(logs) > 1 else {}),
            **({"exchange_problems": problems} if problems else {}),
        }
    finish(groups, part, loop)


def peer_weight(part: Any, done: int, steps: int) -> float:
    """Of the distillation term in the update after `done` of `steps`: nothing in the burn-in, then a ramp."""
    start, ramp = round(part.burn_in * steps), round(part.ramp * steps)
    return 0.0 if done < start else float(part.weight * min(1.0, (done - start + 1) / max(1, ramp)))


def takes(part: Any, done: int, steps: int) -> bool:
    """Whether groups look for their peers' checkpoints after `done` updates: with every exchange from the end of the
    burn-in on, and then at once."""
    start = round(part.burn_in * steps)
    return done > 0 and done >= start and (done % part.exchange_every == 0 or done == start)


def scheduled_step(part: Any, done: int) -> int:
    """The checkpoint that a group learns from after `done` updates when exchange is scheduled; 0 for none yet."""
    return max(0, (done - part.lag) // part.exchange_every * part.exchange_every)


def meet(groups: Sequence[Group], done: int, part: Any, loop: Loop) -> list[str]:
    """All write before any takes: in one process as between many. Returns what went wrong."""
    problems = list[str]()
    if done % part.exchange_every == 0:
        problems += [p for group in groups for p in (*group.clear(), *group.write(done))]
    if part.share.kind != "served" and takes(part, done, loop.train.steps):
        problems += [p for group in groups for p in group.take(done, group.peers)]
    return problems


def finish(groups: Sequence[Group], part: Any, loop: Loop) -> None:
    """The last checkpoints are written; with `after: average` the first group here becomes the mean of all."""
    done = loop.train.steps
    if not done:
        return
    problems = [p for group in groups for p in group.write(done)]
    if part.after == "average":
        problems += groups[0].take(done, groups[0].others)
        groups[0].become_mean()
        if loop.ranks.first or loop.cut:
            loop.measure(done)
    for problem in problems:
        loop.progress.say(f"  codistill: {problem}")


class Group:
    """One copy: its step, what it reads, and what it has of its peers."""

    def __init__(self, me: int, step: Step, loop: Loop, part: Any, log: ExchangeLog, shelf: Shelf):
        assert loop.exchange is not None
        self.me, self.step, self.loop, self.part, self.log, self.shelf = me, step, loop, part, log, shelf
        self.exchange = loop.exchange
        self.others = [(me + i) % part.groups for i in range(1, part.groups)]
        self.peers = self.others if part.learn_from == "all" else self.others[: part.learn_from]
        self.sharing: Any = SHARING[part.share.kind](me, step, loop, part, log, shelf)
        self.asking = Asking(me, self.peers, loop, part, log, self.sharing) if part.share.kind == "served" else None
        self.used: dict[int, Line] = {}  # peer -> line of the log
        self.taught: list[dict[str, int]] = []  # who taught the last update
        self.problems: list[str] = []  # of asking in it
        self.left = False  # whether files of an earlier training may still be there

    def begin(self, done: int) -> None:
        """Picks up what was in use when the run stopped; a run that starts at 0 removes what an earlier one wrote."""
        self.left = done == 0 and self.loop.ranks.first
        for problem in self.clear():
            self.loop.progress.say(f"  codistill: {problem}")
        if self.asking is not None:
            return self.asking.begin(done)
        self.used = {peer: line for peer, line in self.log.in_use(self.me, done).items() if peer in self.peers}

    def clear(self) -> list[str]:
        """Where they could not be removed, before each exchange once more."""
        if not self.left:
            return []
        try:
            exchange.start_anew(self.exchange.folder, self.me)
        except OSError as error:
            if self.part.exchange == "scheduled":
                raise
            return [f"group {self.me} could not remove what it left before ({error.strerror or error})"]
        self.left = False
        return []

    def write(self, done: int) -> list[str]:
        first = self.loop.ranks.first
        offered = self.sharing.offer() if first or self.loop.cut else {}
        if not first:
            return []
        mark = Mark(self.me, done, done * self.loop.batch_rows, self.exchange.recipe, "")
        try:
            exchange.publish(self.exchange.folder, mark, offered, self._kept())
        except OSError as error:
            if self.part.exchange == "scheduled":
                raise
            return [f"group {self.me} could not write step {done} ({error.strerror or error})"]
        return []

    def _kept(self) -> int:
        """How many of its checkpoints stay: those that a scheduled peer may still ask for at the least."""
        asked = 2 * self.part.lag // self.part.exchange_every + 3
        return max(self.part.keep, asked) if self.part.exchange == "scheduled" else int(self.part.keep)

    def take(self, done: int, peers: Sequence[int]) -> list[str]:
        """Puts peers' checkpoints in use, the same once more where the log says what was taken at this step."""
        before, problems = self.log.taken(self.me, done), list[str]()
        for peer in peers:
            line = before.get(peer) or self._look(peer, done)
            problems += line["passed_over"]
            if line["peer_step"] is not None:
                self.used[peer] = line
        self.log.forget(done - done % self.loop.train.checkpoint_every)
        return problems

    def _look(self, peer: int, done: int) -> Line:
        """The first rank looks, all of them learn what it found."""
        ranks = self.loop.ranks
        mark, passed_over = ranks.told(self._found(peer, done) if ranks.first else None)
        return self.log.add(self.me, done, peer, mark, passed_over)

    def _found(self, peer: int, done: int) -> tuple[Mark | None, list[str]]:
        if self.part.exchange == "scheduled":
            return self._wait_for(peer, scheduled_step(self.part, done), done), []
        held, passed_over = self.used.get(peer), list[str]()
        try:
            for step in self.exchange.folder.steps(peer):
                if held is not None and step <= held["peer_step"]:
                    break
                try:
                    return self._fetch(peer, step, done), passed_over
                except Unusable as error:
                    passed_over.append(str(error))
        except OSError as error:  # the place is out of reach, or a file was removed under our eyes
            passed_over.append(f"group {peer}: its checkpoints cannot be read ({error.strerror or error})")
        if held is None:
            return None, passed_over
        return Mark(peer, held["peer_step"], held["position"], self.exchange.recipe, held["sha256"]), passed_over

    def _fetch(self, peer: int, step: int, done: int) -> Mark:
        place, recipe = self.exchange.folder, self.exchange.recipe
        ours = partial(self.sharing.wrong, done=done)
        return self.log.take_in(peer, lambda into: exchange.fetch(place, peer, step, recipe, into, ours))

    def _wait_for(self, peer: int, step: int, done: int) -> Mark | None:
        """Raises DataError for a peer that does not come, or whose checkpoint of that step is gone or of no use: on a
        mounted bucket a file may be seen before all of it is there."""
        if step == 0:
            return None
        end, unlike, rest_s = time.monotonic() + self.part.patience_s, "", self.exchange.folder.rest_s
        while True:
            there = self.exchange.folder.steps(peer)
            try:
                if step in there:
                    return self._fetch(peer, step, done)
            except FileNotFoundError:  # removed under our eyes
                pass
            except Unusable as error:
                unlike, rest_s = str(error), min(MOST_REST_S, 2 * rest_s)  # what was read for nothing is paid for too
            later = [s for s in there if s > step]
            if time.monotonic() > end or len(later) >= self._kept():
                what = "has removed" if later else f"has not written in {self.part.patience_s:g} s"
                if unlike:
                    raise DataError(f"{unlike}; start all groups anew with one recipe, or use exchange: newest")
                raise DataError(
                    f"group {self.me} waits for step {step} of group {peer}, which that one {what}; start all groups, "
                    "or use exchange: newest"
                )
            time.sleep(max(POLL_S, rest_s))

    def update(self, turn: Turn, teacher: Teacher | None) -> StepLog:
        batch, objective = self.loop.batch(turn.index), self.step.objective
        weight = peer_weight(self.part, turn.index, self.loop.train.steps)
        lines = self._teaching(turn.index) if weight > 0 else []
        peers = self.sharing.peers(lines, batch)
        self.taught = [_entry(line, turn.index) for line in lines] if peers else []
        if not peers:
            return self.step(batch, teacher, **turn.how)
        loss, each = LOSS[self.part.term], weight / len(peers)
        terms = [Term(loss, each, {}, teacher=PEERS - index) for index in range(len(peers))]
        both = Objective((*objective.terms, *terms))
        return self.step(batch, Beside(teacher, peers), **turn.how, objective=both)

    def _teaching(self, done: int) -> list[Line]:
        """What teaches in the update after `done`: what is in use, or what servers say now, and not too old."""
        found = self.used
        if self.asking is not None:
            steps = self.loop.train.steps
            found = self.asking.answers(done, done + 1 < steps and peer_weight(self.part, done + 1, steps) > 0)
            self.problems = [problem for line in found.values() for problem in line["passed_over"]]
        known = [line for _, line in sorted(found.items()) if line["peer_step"] is not None]
        oldest = self.part.max_age
        return [line for line in known if oldest is None or done - line["peer_step"] <= oldest]

    @torch.no_grad()
    def become_mean(self) -> None:
        """The mean of what all groups wrote last, as far as this one could read it."""
        found = {peer: self.log.tensors(line) for peer, line in self.used.items()}
        for master in self.step.masters.items:
            value, weight = local(master.value.data), master.weight.data
            each = {self.me: local(weight)} | {peer: own_rows(w[master.name], weight) for peer, w in found.items()}
            value.copy_(torch.stack([each[group].to(value) for group in sorted(each)]).mean(0))
        self.step.masters.set_weights(grid=on_grid(self.loop, self.loop.train.steps - 1), refit=False)


def _entry(line: Line, done: int) -> dict[str, int]:
    """For the log; `age`: how many updates that peer was behind this group."""
    return {"group": line["group"], "peer": line["peer"], "step": line["peer_step"], "age": done - line["peer_step"]}
