"""The four findings of "Computational Bottlenecks of Training Small-scale Large Language Models" (arXiv:2410.19456), as
questions to rows of `benchmarks.training_cost`. Each is a function of rows and says: holds, does not hold, or cannot be
tested here, and why. A difference inside the spread of processes decides nothing.

A row: shape, parameters, machine, memory_bytes, per_hour and currency (None without a price), rows and length of a
batch, the point's attention, micro_rows, compile, ranks, parallel and backend, state, kernel, tokens_per_s (one value a
process, the i-th of round i) and peak_memory_bytes (by rank).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from edgeslm import statistics
from edgeslm.measurement import Measurement, Where
from edgeslm.statistics import BAND, Interval
from edgeslm.training_cost.store import MEASURED, NO_MEMORY
from edgeslm.training_cost.study import TOO_LARGE

Row = Mapping[str, Any]
Verdict = Literal["holds", "does not hold", "cannot be tested here"]
FULL = 0.8  # of the memory there is, from which on it counts as full
LEAST = 2  # processes of either side
FUSED = ("flash", "sdpa")
BATCH = ("machine", "rows", "length")
OTHERS = (*BATCH, "shape", "compile", "ranks", "parallel", "backend")


@dataclass(frozen=True)
class Finding:
    verdict: Verdict
    why: str
    figures: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def untested(why: str, **figures: Any) -> Finding:
    return Finding("cannot be tested here", why, figures)


def attention_matters_more_for_small_models(rows: Sequence[Row]) -> Finding:
    """How many times as fast fused attention is as eager: more for the smallest shape than for the largest?"""
    gains = []
    for fused in FUSED:
        gains = _gains(rows, fused)
        if len({g["parameters"] for g in gains}) > 1:
            break
    else:
        return untested("it needs fused and eager attention at one micro-batch in two sizes at least")
    small, large = min(gains, key=lambda g: g["parameters"]), max(gains, key=lambda g: g["parameters"])
    found = interval([a / b for a, b in zip(small["gain"], large["gain"], strict=False)])
    said = f"{fused} over eager: {_mean(small['gain']):.2f} times at {small['shape']}, {_mean(large['gain']):.2f} at "
    said += f"{large['shape']} ({small['micro_rows']} rows of {small['length']} at once)"
    return _more_than_one(found, said, {"small_over_large": _told(found)})


def _gains(rows: Sequence[Row], fused: str) -> list[dict[str, Any]]:
    """Of each size: tokens/s of fused attention over eager, round by round, at the largest micro-batch all have."""
    alone = [r for r in rows if r["state"] == MEASURED and r["ranks"] == 1 and not r["compile"]]
    pairs = [
        {**_some(a, *BATCH, "shape", "parameters", "micro_rows"), "gain": _rounds(a, b)}
        for a in alone
        if a["attention"] == fused and a["kernel"] != "math"
        for b in alone
        if b["attention"] == "eager" and _same(a, b, *BATCH, "shape", "micro_rows")
    ]
    pairs = [p for p in pairs if len(p["gain"]) >= LEAST]
    groups: dict[Any, list[dict[str, Any]]] = {}
    for pair in pairs:
        groups.setdefault((*(pair[k] for k in BATCH), pair["micro_rows"]), []).append(pair)
    return max(groups.values(), key=lambda g: (len({p["shape"] for p in g}), g[0]["micro_rows"]), default=[])


def dearest_device_is_not_cheapest_per_token(rows: Sequence[Row]) -> Finding:
    """Tokens for a unit of currency on the device of the highest price an hour, beside the others."""
    priced = [r for r in rows if r["state"] == MEASURED and r["per_hour"] and len(r["tokens_per_s"]) >= LEAST]
    if len({r["machine"] for r in priced}) < 2:
        return untested("it needs two kinds of devices with a price an hour (--prices FILE); the record has "
                        f"{len({r['machine'] for r in priced})}")  # fmt: skip
    if len({r["currency"] for r in priced}) > 1:
        return untested("prices are in several currencies, which are not compared")
    shapes = [s for s in {r["shape"] for r in priced} if len({r["machine"] for r in priced if r["shape"] == s}) > 1]
    if not shapes:
        return untested("no shape was trained on two of the devices that have a price")
    shape = max(shapes, key=lambda s: next(r["parameters"] for r in priced if r["shape"] == s))
    best: dict[str, list[float]] = {}
    for row in (r for r in priced if r["shape"] == shape):
        each = [3600 * v / row["per_hour"] for v in row["tokens_per_s"]]
        best[row["machine"]] = max(each, best.get(row["machine"], [0.0]), key=_mean)
    hourly = {r["machine"]: r["per_hour"] for r in priced if r["shape"] == shape}
    dearest = max(best, key=lambda m: hourly[m])
    others = [m for m in best if hourly[m] < hourly[dearest]]
    if not others:
        return untested("all devices have the same price an hour")
    ratios = {m: _over(best[m], best[dearest]) for m in others}
    said = ", ".join(f"{m}: {ratios[m].estimate:.2f} times the tokens for the same money" for m in others)
    said = f"beside {dearest}, the dearest, at {shape}: {said}"
    figures = {m: _told(r) for m, r in ratios.items()}
    if any(r.low > 1 and r.high > 1 + BAND for r in ratios.values()):
        return Finding("holds", said, figures)
    if all(r.high <= 1 + BAND for r in ratios.values()):
        return Finding("does not hold", said, figures)
    return untested(f"{said}; the difference lies inside the spread", **figures)


def data_parallel_suffices(rows: Sequence[Row]) -> Finding:
    """Ranks that each hold the whole student (ddp) are no slower than ranks that share it out (fsdp2), and fit."""
    many = [r for r in rows if r["ranks"] > 1]
    keys = tuple(k for k in OTHERS if k != "parallel")
    pairs = [
        (a, b)
        for a in many
        if a["parallel"] == "ddp"
        for b in many
        if b["parallel"] == "fsdp2" and _same(a, b, *keys, "attention", "micro_rows")
    ]
    against, equal, opened = list[str](), list[str](), list[str]()
    figures: dict[str, Any] = {}
    for whole, shared in pairs:
        name = f"{whole['shape']}, {whole['ranks']} ranks, {whole['backend']}"
        if whole["state"] in (NO_MEMORY, TOO_LARGE) and shared["state"] == MEASURED:
            against.append(f"{name}: only fsdp2 fits")
            continue
        found = interval(_rounds(whole, shared))
        if found is None:
            continue
        figures[name] = _told(found)
        said = f"{name}: ddp is {found.estimate:.2f} times as fast as fsdp2"
        sure = found.low >= 1 / (1 + BAND), found.high < 1 / (1 + BAND)
        (equal if sure[0] else against if sure[1] else opened).append(said)
    if not (against or equal or opened):
        return untested("it needs rows of ddp and of fsdp2 that are alike in all else, of two processes at least")
    return _over_groups(equal, against, opened, figures)


def full_memory_is_not_the_cost_optimum(rows: Sequence[Row]) -> Finding:
    """On one machine cost follows time: is a smaller micro-batch as fast as the one that fills the memory?"""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in (*OTHERS, "attention")), []).append(row)
    as_fast, against, opened = list[str](), list[str](), list[str]()
    figures: dict[str, Any] = {}
    fullest = 0.0
    for group in groups.values():
        fit = sorted((r for r in group if r["state"] == MEASURED), key=lambda r: r["micro_rows"])
        if len(fit) < 2:
            continue
        full = fit[-1]
        fullest = max(fullest, _filled(full))
        beyond = [r for r in group if r["micro_rows"] > full["micro_rows"] and r["state"] in (NO_MEMORY, TOO_LARGE)]
        if _filled(full) < FULL and not beyond:
            continue
        name = f"{full['shape']}, {full['attention']}"
        smaller = [(r, found) for r in fit[:-1] if (found := interval(_rounds(r, full))) is not None]
        if not smaller:
            continue
        best, found = max(smaller, key=lambda pair: pair[1].estimate)
        figures[name] = _told(found)
        said = f"{name}: {best['micro_rows']} rows at once are {found.estimate:.2f} times as fast as "
        said += f"{full['micro_rows']}, which fill {100 * _filled(full):.0f} % of the memory"
        sure = found.low >= 1 / (1 + BAND), found.high < 1
        (as_fast if sure[0] else against if sure[1] else opened).append(said)
    if not (as_fast or against or opened):
        return untested(f"no micro-batch fills the memory: the fullest takes {100 * fullest:.0f} % of it, and none was "
                        "too large")  # fmt: skip
    return _over_groups(as_fast, against, opened, figures)


FINDINGS: dict[str, Callable[[Sequence[Row]], Finding]] = {
    "attention_matters_more_for_small_models": attention_matters_more_for_small_models,
    "dearest_device_is_not_cheapest_per_token": dearest_device_is_not_cheapest_per_token,
    "data_parallel_suffices": data_parallel_suffices,
    "full_memory_is_not_the_cost_optimum": full_memory_is_not_the_cost_optimum,
}


def _over_groups(good: list[str], bad: list[str], opened: list[str], figures: dict[str, Any]) -> Finding:
    """A finding is about all: one group against it is enough, one undecided leaves it open."""
    if bad:
        return Finding("does not hold", "; ".join(bad + good), figures)
    if opened:
        return untested("inside the spread: " + "; ".join(opened), **figures)
    return Finding("holds", "; ".join(good), figures)


def _more_than_one(found: Interval | None, said: str, figures: dict[str, Any]) -> Finding:
    if found is None:
        return untested(f"{said}; one process says nothing of the spread", **figures)
    if found.low > 1 and found.high > 1 + BAND:
        return Finding("holds", said, figures)
    if found.high <= 1 + BAND:
        return Finding("does not hold", said, figures)
    return untested(f"{said}; the difference lies inside the spread", **figures)


def interval(ratios: Sequence[float]) -> Interval | None:
    """Of ratios of one round each; None for fewer than two."""
    return statistics.interval(_measured(ratios)) if len(ratios) >= LEAST else None


def _over(one: Sequence[float], other: Sequence[float]) -> Any:
    """One device over another: no rounds are shared."""
    return statistics.ratio(_measured(one), _measured(other))


def _measured(values: Sequence[float]) -> Measurement:
    where = Where({"id": "-", "name": "-"}, "torch", "-", "-", "-", "torch", {}, 1)
    return Measurement("training", "1", tuple(values), where, extra={"processes": len(values)})


def _rounds(a: Row, b: Row) -> list[float]:
    """tokens/s of `a` over `b` in each round that both have."""
    return [x / y for x, y in zip(a["tokens_per_s"], b["tokens_per_s"], strict=False)]


def _filled(row: Row) -> float:
    """The share of the memory that the ranks on one device take."""
    peaks, there = row["peak_memory_bytes"], row["memory_bytes"]
    if not peaks or not there:
        return 0.0
    return float(max(peaks) if row["own_memory"] else sum(peaks)) / float(there)


def _same(a: Row, b: Row, *keys: str) -> bool:
    return all(a[key] == b[key] for key in keys)


def _some(row: Row, *keys: str) -> dict[str, Any]:
    return {key: row[key] for key in keys}


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _told(found: Any) -> list[float] | None:
    """[estimate, low, high]"""
    return None if found is None else [found.estimate, found.low, found.high]
