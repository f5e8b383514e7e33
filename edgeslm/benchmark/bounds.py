"""What a device could do at most, measured there, and what follows for each model: bounds and predictions.

A bound is memory's or arithmetic's alone. A prediction is a bound times the share of its bound that *another* file of
the same runtime reached in this run, so that no figure predicts itself; with a single file it is the bound. Both are
modelled, never measured, and stand beside what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeslm import cost
from edgeslm.artifact import Artifact
from edgeslm.devices.base import Device
from edgeslm.errors import EdgeSLMError
from edgeslm.evaluate.execute import Outcome, execute, scratch
from edgeslm.measurement import Measurement, Where

SECONDS = 1.0  # of each kind of work
TIMEOUT_S = 120.0
FLOATS = ("f32", "f16", "bf16")
RATES = {  # of the task's result: (metric, unit, field of `Ceilings`, what it counts)
    "read_bytes_per_s": ("memory_bandwidth", "bytes/s", "read_bytes_per_s", "bytes read, far beyond the caches"),
    "copy_bytes_per_s": ("copy_bandwidth", "bytes/s", "", "bytes read plus bytes written"),
    "flops_f32": ("compute", "operations/s", "flops_f32_per_s", "float32, a multiply-add counts two"),
    "ops_int8": ("compute_int8", "operations/s", "ops_int8_per_s", "8-bit integers, a multiply-add counts two"),
}


@dataclass(frozen=True)
class Known:
    """What the small program found on the device; empty where it could not run."""

    rates: dict[str, list[float]] = field(default_factory=dict)
    threads: int = 0
    task: dict[str, Any] = field(default_factory=dict)

    @property
    def ceilings(self) -> cost.Ceilings:
        best = {RATES[key][2]: max(values) for key, values in self.rates.items() if RATES[key][2]}
        return cost.Ceilings(**best)

    def measurements(self, device: Device) -> list[Measurement]:
        where = Where(dict(device.facts), "-", "-", "-", "-", "-", self.task, self.threads)
        return [
            Measurement(metric, unit, tuple(self.rates[key]), where, covers="device", better="higher", note=note)
            for key, (metric, unit, _, note) in RATES.items()
            if self.rates.get(key)
        ]


def ceilings(device: Device, artifacts: list[Artifact], bench: dict[str, Any], workdir: Path | None) -> Known:
    """With the threads and CPUs of the benchmark, by the first runtime that can; a page cannot, and knows nothing."""
    task = {"task": "ceilings", "threads": bench["threads"], "cpus": bench["cpus"], "seconds": SECONDS}
    for artifact in artifacts:
        try:
            with scratch(workdir) as folder:
                found = execute(device, artifact, task, folder, timeout_s=TIMEOUT_S).result
        except EdgeSLMError:  # another artifact may belong to another runtime
            continue
        rates = {key: [float(value) for value in found[key]] for key in RATES if found.get(key)}
        return Known(rates, int(found["threads"]), task)
    return Known()


def bounds(
    artifacts: list[Artifact],
    measured: list[Measurement],
    outcomes: dict[str, list[Outcome]],
    known: Known,
    new_tokens: int,
) -> list[Measurement]:
    """Of every artifact: `decode_bound` at each depth, `prefill_bound` of each length, and predictions. A decode at a
    depth grows by `new_tokens` while it is measured, so half of them count as depth."""
    half = new_tokens // 2
    loads = {a.name: load_of(a, outcomes[a.name][0].result["engine"]) for a in artifacts}
    found: list[Measurement] = []
    for artifact in artifacts:
        own = [(_place(m), m) for m in measured if m.where.artifact == artifact.name]
        mine = {place: m for place, m in own if place is not None}
        load = loads[artifact.name]
        if not mine or load is None:
            continue
        where = next(iter(mine.values())).where
        others = [m for m in measured if m.where.runtime == where.runtime and m.where.artifact != artifact.name]
        depths = [at + half for metric, at in mine if metric == "decode"]
        lengths = [at for metric, at in mine if metric == "prefill"]
        shares = {k: s for k in ("decode", "prefill") if (s := _reached(others, k, loads, known, half)) is not None}
        for one in cost.predict(known.ceilings, load, depths=depths, lengths=lengths):
            found.append(_measurement(one, one.metric.removeprefix("predicted_") + "_bound", where, mine, half))
        for one in cost.predict(known.ceilings, load, depths=depths, lengths=lengths, efficiencies=shares):
            if one.metric.removeprefix("predicted_") in shares:
                found.append(_measurement(one, one.metric, where, mine, half))
    return found


def load_of(artifact: Artifact, engine: dict[str, Any]) -> cost.Load | None:
    """What a token costs with this file; None where its shape is not known."""
    if not artifact.shape:
        return None
    return cost.Load(
        {**artifact.shape, "tie_word_embeddings": artifact.unread_bytes == 0},
        artifact.weight_bytes,
        artifact.unread_bytes,
        float(engine.get("kv_element_bytes") or 2),
        int8=artifact.grid not in FLOATS,
    )


def _place(m: Measurement) -> tuple[str, int] | None:
    """(metric, depth or length) of what is bounded."""
    if m.metric == "decode":
        return "decode", int(m.extra["depth"])
    return ("prefill", int(m.extra["prompt_tokens"])) if m.metric == "prefill" else None


def _reached(
    others: list[Measurement], metric: str, loads: dict[str, cost.Load | None], known: Known, half: int
) -> cost.Efficiency | None:
    """The share of its bound that the first other file reached."""
    for m in others:
        load, place = loads.get(m.where.artifact), _place(m)
        if place is not None and place[0] == metric and load is not None:
            at = place[1] + (half if metric == "decode" else 0)
            share = cost.efficiency(m.median, known.ceilings, load, metric, at, m.where.artifact)
            if share is not None:
                return share
    return None


def _measurement(
    one: cost.Prediction, metric: str, where: Where, mine: dict[tuple[str, int], Measurement], half: int
) -> Measurement:
    what = metric.removeprefix("predicted_").removesuffix("_bound")
    measured = mine[what, one.at - (half if what == "decode" else 0)]
    place: dict[str, Any] = {key: measured.extra[key] for key in ("depth", "prompt_tokens") if key in measured.extra}
    extra: dict[str, Any] = {**place, "limited_by": one.limited_by, "measured": measured.median}
    note = one.formula
    if metric.endswith("_bound") and max(measured.values) > one.value:
        note += "; the fastest run exceeded it: caches helped, or other programs ran while the ceiling was measured"
    return Measurement(
        metric, one.unit, (one.value,), where, kind="modelled", covers="device", better="higher", note=note, extra=extra
    )
