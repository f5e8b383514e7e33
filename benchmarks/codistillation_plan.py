"""The arms of `benchmarks.codistillation` and which trainings they need, in the order of their worth."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.codistillation_worker import Job

Results = Mapping[str, dict[str, Any]]  # name of a job -> what it gave
TUNED = ("single", "double", "disjoint", "same", "offline")  # arms with a learning-rate sweep, all over one grid
ENSEMBLES = ((0, 1), (2, 3), (4, 5))  # seeds of the singles that make each
# fields of edgeslm.recipe.distill.CodistillScheme; a test holds them to it
SCHEME: dict[str, Any] = {
    "groups": 2, "group": None, "folder": None, "exchange": "scheduled", "lag": 0, "patience_s": 600.0,
    "max_age": None, "learn_from": "all", "burn_in": 0.1, "ramp": 0.1, "term": "kl", "weight": 1.0,
    "data": "disjoint", "after": "pick", "keep": 4, "share": {"kind": "weights"},
}  # fmt: skip


@dataclass(frozen=True)
class Design:
    """Everything that is decided before the first training, and written into the record."""

    steps: int
    lrs: tuple[float, ...]
    seeds: int
    exchange_every: int
    staleness: tuple[int, ...]  # other values of exchange_every
    burn_ins: tuple[float, ...]  # other values of burn_in
    weight: float = 1.0

    @property
    def singles(self) -> int:
        """Seeds of the single model: two for each ensemble."""
        return 2 * self.seeds

    @property
    def units(self) -> float:
        """Cost of all trainings, in trainings of a single model; a forward of a teacher costs a third."""
        sweep = len(self.lrs) - 1
        pair = 2 * (1 + 1 / 3)
        tuned = 2.0 * (self.seeds + sweep) + 2 * pair * (self.seeds + sweep) + (1 + 2 / 3) * (self.seeds + sweep)
        swept = pair * (len(self.staleness) + len(self.burn_ins))
        return self.singles + sweep + tuned + swept + 4 * (1 + 3 / 3)


def scheme(design: Design, **how: Any) -> dict[str, Any]:
    return {**SCHEME, "exchange_every": design.exchange_every, "weight": design.weight, **how}


def training(design: Design, arm: str, seed: int, lr: float, what: str = "") -> list[Job]:
    """The jobs of one training: one for each copy."""
    name = f"{arm}{what}-s{seed}-lr{lr:g}"
    plain = Job("", arm, seed, 0, lr, {}, design.steps)
    if arm in ("single", "double"):
        return [replace(plain, name=f"{name}/0", batches=2 if arm == "double" else 1)]
    if arm == "offline":
        raise ValueError("offline jobs need the names of their teachers: see ready")
    groups = 4 if arm == "four" else 2
    how: dict[str, Any] = {"groups": groups, "data": "same" if arm == "same" else "disjoint"}
    if arm == "staleness":
        how["exchange_every"] = int(what)
    if arm == "burn-in":
        how |= {"burn_in": float(what), "ramp": 0.0 if float(what) == 0 else SCHEME["ramp"]}
    rows = "same" if arm == "same" else "shard"
    made = scheme(design, **how)
    return [replace(plain, name=f"{name}/{g}", group=g, scheme=made, rows=rows) for g in range(groups)]


def offline(design: Design, pair: tuple[int, int], seed: int, lr: float, single_lr: float) -> list[Job]:
    teachers = tuple(f"single-s{s}-lr{single_lr:g}/0" for s in pair)
    return [Job(f"offline-s{seed}-lr{lr:g}/0", "offline", seed, 0, lr, {}, design.steps, teachers)]


def ready(design: Design, done: Results) -> list[Job]:
    """All jobs that can be started when `done` are finished, the most wanted first; finished ones included."""
    jobs = [j for arm in TUNED[:-1] for lr in design.lrs for j in training(design, arm, 0, lr)]
    best = {arm: best_lr(design, arm, done) for arm in TUNED}
    single = best["single"]
    if single is not None:
        jobs += [j for seed in range(1, design.singles) for j in training(design, "single", seed, single)]
        ensembles = [p for p in ENSEMBLES[: design.seeds] if all(f"single-s{s}-lr{single:g}/0" in done for s in p)]
        if ensembles and ensembles[0] == ENSEMBLES[0]:
            jobs += [j for lr in design.lrs for j in offline(design, ENSEMBLES[0], 0, lr, single)]
    for arm in ("disjoint", "same", "double"):
        if (lr := best[arm]) is not None:
            jobs += [j for seed in range(1, design.seeds) for j in training(design, arm, seed, lr)]
    if single is not None and best["offline"] is not None:
        for seed, pair in enumerate(ENSEMBLES[: design.seeds]):
            if seed and pair in ensembles:
                jobs += offline(design, pair, seed, best["offline"], single)
    if (lr := best["disjoint"]) is not None:
        jobs += training(design, "four", 0, lr)
        jobs += [j for every in design.staleness for j in training(design, "staleness", 0, lr, str(every))]
        jobs += [j for burn in design.burn_ins for j in training(design, "burn-in", 0, lr, f"{burn:g}")]
    return jobs


def best_lr(design: Design, arm: str, done: Results) -> float | None:
    """Of least loss on the text to tune by, averaged over copies and the last looks; None until the sweep is done."""
    found = {}
    for lr in design.lrs:
        curves = [r["curve"] for n, r in done.items() if n.startswith(f"{arm}-s0-lr{lr:g}/")]
        if len(curves) < (2 if arm in ("disjoint", "same") else 1):
            return None
        found[lr] = statistics.fmean(row[2] for curve in curves for row in curve[-3:])
    return min(found, key=found.__getitem__)


def chosen(design: Design, done: Results) -> dict[str, list[str]]:
    """{arm or "arm value": names of trainings at its learning rate, by seed}, of those all of whose copies are done."""
    copies: dict[str, int] = {}
    for name in done:
        copies[name.rsplit("/", 1)[0]] = copies.get(name.rsplit("/", 1)[0], 0) + 1
    found: dict[str, list[str]] = {}

    def take(label: str, arm: str, lr: float | None, count: int, seeds: Sequence[int], what: str = "") -> None:
        names = [f"{arm}{what}-s{seed}-lr{lr:g}" for seed in seeds] if lr is not None else []
        if whole := [n for n in names if copies.get(n, 0) >= count]:
            found[label] = whole

    best = {arm: best_lr(design, arm, done) for arm in TUNED}
    for arm in TUNED:
        seeds = range(design.singles if arm == "single" else design.seeds)
        take(arm, arm, best[arm], 2 if arm in ("disjoint", "same") else 1, seeds)
    take("four", "four", best["disjoint"], 4, [0])
    for every in design.staleness:
        take(f"staleness {every}", "staleness", best["disjoint"], 2, [0], str(every))
    for burn in design.burn_ins:
        take(f"burn-in {burn:g}", "burn-in", best["disjoint"], 2, [0], f"{burn:g}")
    return found
