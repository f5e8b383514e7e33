"""A plan from beginning to end: which points, in which order, what each gave, what is recommended."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeslm import cost, statistics, units
from edgeslm.devices.facts import busy_cores
from edgeslm.errors import RuntimeFailure
from edgeslm.training_cost import figures, launch
from edgeslm.training_cost.choose import Candidate, choose, sentence
from edgeslm.training_cost.grid import Point
from edgeslm.training_cost.prices import Price
from edgeslm.training_cost.store import MEASURED, Store, key_of

LEAST_REPEATS = 3  # fresh processes a point: fewer give an interval that says nothing
START_S, COMPILE_S = 15.0, 45.0  # of a process before its first step, and of compilation: for the time that is told
BUSY = 0.75  # of the cores at work before anything is measured
REFUSED, TOO_LARGE = "cannot run here", "does not fit (an estimate)"
Run = Callable[[Mapping[str, Any], int], dict[str, Any]]


@dataclass(frozen=True)
class How:
    """`steps` are timed in each of `repeats` processes, after `warmups`. `seed` decides the order of points."""

    steps: int = 5
    warmups: int = 2
    repeats: int = LEAST_REPEATS
    seed: int = 0


@dataclass
class Row:
    """A point and what became of it. `state` is MEASURED, or says why there is no figure."""

    point: Point
    state: str = ""
    why: str = ""
    results: list[dict[str, Any]] = field(default_factory=list)
    needs_bytes: float | None = None  # of a rank, an estimate

    def take(self, result: dict[str, Any]) -> None:
        """One measured process is enough to be measured; what fails afterwards is a problem of that process."""
        if result["state"] == MEASURED:
            self.results.append(result)
            self.state, self.why = MEASURED, ""
        elif self.state != MEASURED:
            self.state, self.why = result["state"], result["why"]


def rows_of(prepared: Any, points: Sequence[Point]) -> list[Row]:
    """Points with what is known of them before anything is run."""
    from edgeslm.training_cost.prepare import refusal

    found = []
    for point in points:
        row, needs = Row(point), prepared.needs(point)
        row.needs_bytes, there = needs.per_rank_bytes, prepared.here.memory_bytes
        if why := refusal(prepared.context.recipe, point, prepared.here):
            row.state, row.why = REFUSED, why
        elif not needs.fits(there):
            row.state = TOO_LARGE
            row.why = f"{units.byte_count(needs.on_one_device)} of {units.byte_count(there)}"
        found.append(row)
    return found


def expected_s(prepared: Any, points: Sequence[Point], how: How) -> float:
    """An estimate of what measuring takes, from one matrix product and a typical share of it."""
    tokens = prepared.context.recipe.distill.train.batch_tokens * (how.steps + how.warmups)
    steps = tokens / (prepared.bound_tokens_per_s * cost.TYPICAL_SHARE)
    return how.repeats * sum(START_S + COMPILE_S * point.compile + steps for point in points)


def study(
    prepared: Any, points: Sequence[Point], how: How, store: Store, progress: Any, run: Run = launch.run
) -> list[Row]:
    """Measures what is missing: rounds over all points, each round in an order of its own, so that a drift of the
    machine falls on all of them. Raises RuntimeFailure when no point gave a figure."""
    rows = rows_of(prepared, points)
    identity = prepared.identity(how.steps, how.warmups)
    keys = {row.point: key_of(identity, row.point.to_json()) for row in rows}
    for row in rows:
        for result in store.results(keys[row.point])[: how.repeats] if not row.state else []:
            row.take(result)
    left = [r for r in rows if r.state in ("", MEASURED)]
    missing = sum(how.repeats - len(row.results) for row in left)
    if missing:
        seconds = expected_s(prepared, [r.point for r in left], how) * missing / (how.repeats * len(left))
        progress.say(
            f"measuring {len(left)} ways to train, {missing} processes of {how.warmups} + {how.steps} steps are left: "
            f"about {max(1, round(seconds / 60))} minutes (an estimate)"
        )
        if (busy := busy_cores()) is not None and busy > BUSY * prepared.here.cores:
            progress.say(f"other programs keep {busy:.1f} cores busy: it takes longer, and differences may drown")
    with progress.task("measure", missing, "processes") as bar:
        for number in range(how.repeats):
            for row in shuffled(left, how.seed, number):
                if len(row.results) > number or row.state not in ("", MEASURED):
                    continue
                result = run(prepared.job(row.point, how.steps, how.warmups), row.point.ranks)
                store.add(keys[row.point], row.point.to_json(), result)
                row.take(result)
                bar.advance(1, row.point.label)
    if not any(row.results for row in rows):
        said = "; ".join(f"{row.point.label}: {row.state}, {row.why}" for row in rows)
        raise RuntimeFailure(f"no way to train gave a figure: {said}")
    return rows


def shuffled(rows: Sequence[Row], seed: int, number: int) -> list[Row]:
    return random.Random(f"{seed}-{number}").sample(list(rows), len(rows))


def document(prepared: Any, rows: Sequence[Row], how: How, price: Price | None, priced_why: str) -> dict[str, Any]:
    """All of it as plain data. `priced_why`: why there is no price, where there is none."""
    from edgeslm.training_cost.prepare import command, offered, overrides

    recipe, here, own = prepared.context.recipe, prepared.here, prepared.own
    train = recipe.distill.train
    told = [_told(row, prepared, price) for row in rows]
    candidates = [
        Candidate(row.point, figures.duration(row.point.label, row.results, here, train.steps),
                  max(figures.peaks(row.results), default=None))
        for row in rows if row.results and offered(recipe, row.point, here.backend)
    ]  # fmt: skip
    choice = choose(candidates, own)
    recommended = None
    if choice is not None:
        own_row = next(row for row in rows if row.point == own)
        recommended = {
            "point": choice.point.to_json(),
            "label": choice.point.label,
            "sentence": sentence(choice, own, f"{own_row.state}: {own_row.why}"),
            "overrides": overrides(recipe, choice.point, own),
            "command": command(recipe, choice.point, own),
            "no_difference": [point.label for point in choice.level],
        }
    return {
        "schema": 1,
        "recipe": recipe.name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "name": here.name, "id": here.id, "device": here.device, "dtype": here.dtype, "cores": here.cores,
            "memory_bytes": here.memory_bytes, "versions": here.versions,
        },
        "training": {"steps": train.steps, "batch_tokens": train.batch_tokens, "tokens": recipe.tokens,
                     "sequence": recipe.data.sequence},
        "measured": {"steps": how.steps, "warmups": how.warmups, "repeats": how.repeats},
        "bound_tokens_per_s": prepared.bound_tokens_per_s,
        "price": price.to_json() if price else None,
        "price_missing": "" if price else priced_why,
        "points": told,
        "recommendation": recommended,
    }  # fmt: skip


def _told(row: Row, prepared: Any, price: Price | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "point": row.point.to_json(),
        "label": row.point.label,
        "own": row.point == prepared.own,
        "state": row.state,
        "why": row.why,
        "estimated_bytes": row.needs_bytes,
    }
    if not row.results:
        return found
    speed = figures.speed(row.point.label, row.results, prepared.here)
    whole = figures.duration(row.point.label, row.results, prepared.here, prepared.context.recipe.distill.train.steps)
    found |= {
        "tokens_per_s": _spread(speed),
        "training_s": _spread(whole),
        "peak_memory_bytes": figures.peaks(row.results),
        "kernel": row.results[0]["kernel"],
        "raw": row.results,
    }
    if price is not None:
        found["cost"] = price.cost(found["training_s"]["estimate"])
        found["tokens_per_unit"] = price.tokens_per_unit(found["tokens_per_s"]["estimate"])
    return found


def _spread(m: Any) -> dict[str, Any]:
    """Estimate and interval over processes; the median alone where there is one process."""
    found = statistics.interval(m)
    if found is None:
        return {"estimate": m.median, "low": None, "high": None, "values": list(m.values)}
    return {"estimate": found.estimate, "low": found.low, "high": found.high, "values": list(m.values)}
