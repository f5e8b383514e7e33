"""One file's figures beside another's, with intervals: teacher beside student, or two reports. Unlike runs give none.

A factor above 1 says that the second of the two is better. `statistics.ratio` decides what may be set side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgeslm.errors import DataError
from edgeslm.fleet import NO_FILE, QUALITY, Fleet, Row, Source, at_of, disturbed, gather
from edgeslm.measurement import Measurement, UnlikeRuns, unlike
from edgeslm.report.blocks import TIMES, percent, role, times
from edgeslm.report.compare import COMPARED, threads
from edgeslm.report.fleet_tables import figure
from edgeslm.statistics import BAND, Ratio, ratio, ratio_of_means

# metric -> what a person calls it, the word where the second is better, and where it is worse
WORDS = COMPARED | {
    "size": ("size", "smaller", "larger"),
    "kl": ("KL from the teacher", "closer", "farther"),
    "perplexity": ("perplexity", "lower", "higher"),
    "top1_agreement": ("top-1 agreement", "higher", "lower"),
    "token_latency": ("time of a token", "sooner", "later"),
    "sustained_decode": ("sustained decode", "faster", "slower"),
    "rss_anon_peak": ("memory (RssAnon peak)", "less memory", "more memory"),
    "rss_file_peak": ("memory (RssFile peak)", "less memory", "more memory"),
    "swap_peak": ("swap peak", "less swap", "more swap"),
    "kv_cache": ("KV cache", "less memory", "more memory"),
    "energy_per_answer": ("energy per answer", "less energy", "more energy"),
    "tokens_per_joule": ("tokens per joule", "more tokens", "fewer tokens"),
    "battery_per_hour": ("battery per hour", "less battery", "more battery"),
}
HEADLINES = ("load", "time_to_first_token", "prefill", "decode", "pss_peak", "vm_hwm", "energy_per_token")


@dataclass(frozen=True)
class Delta:
    """`factor` is None where there is none (a value that is not positive); its interval where a side has too few
    processes is None. `disturbed`: one of the runs was."""

    metric: str
    at: int | str | None
    left: str
    right: str
    device: str
    runtime: str
    threads: int
    unit: str
    left_value: float
    right_value: float
    factor: Ratio | None
    kind: str
    covers: str
    disturbed: bool

    @property
    def label(self) -> str:
        return label(self.metric, self.at)

    @property
    def verdict(self) -> str:
        """ "better", "worse", "no difference" or "undecided"."""
        f = self.factor
        if f is None or self.metric == "size":  # nothing was sampled that could be unsure
            if self.left_value == self.right_value:
                return "no difference"
            return "undecided" if f is None else "better" if f.estimate > 1 else "worse"
        return {"higher": "better", "lower": "worse"}.get(f.verdict, f.verdict)

    @property
    def words(self) -> str:
        """`1.27x faster (1.20x to 1.35x)`, or that there is no difference, or why nothing can be said."""
        f = self.factor
        if f is None:
            return self.verdict if self.verdict == "no difference" else "undecided: a value that is not positive"
        _, better, worse = words_of(self.metric)
        shown = f.estimate if f.estimate >= 1 else 1 / f.estimate
        said = "the same" if shown == 1 else f"{times(shown)} {better if f.estimate >= 1 else worse}"
        if self.metric == "size":  # counted, not sampled
            return said
        if f.low is None or f.high is None:
            return f"undecided: {said} (no interval)"
        turned = f if f.estimate >= 1 else f.inverse()
        assert turned.low is not None and turned.high is not None
        between = f"{turned.low:.2f}{TIMES} to {turned.high:.2f}{TIMES}"
        if self.verdict == "no difference":
            return f"no difference (within {percent(BAND, 0)})" if f.equal else f"no difference ({between})"
        return f"{times(shown)} {better if self.verdict == 'better' else worse} ({between})"

    def to_json(self) -> dict[str, Any]:
        f = self.factor
        return {
            "metric": self.metric,
            "at": self.at,
            "left": self.left,
            "right": self.right,
            "device": self.device,
            "runtime": self.runtime,
            "threads": self.threads,
            "unit": self.unit,
            "left_value": self.left_value,
            "right_value": self.right_value,
            "factor": f.estimate if f else None,
            "low": f.low if f else None,
            "high": f.high if f else None,
            "processes": list(f.processes) if f else [],
            "paired": f.paired if f else False,
            "verdict": self.verdict,
            "kind": self.kind,
            "covers": self.covers,
            "disturbed": self.disturbed,
        }


@dataclass(frozen=True)
class Deltas:
    """`refused` are sentences: what was not compared, and why; `reasons` are the whys alone."""

    deltas: tuple[Delta, ...]
    refused: tuple[str, ...]
    reasons: tuple[str, ...] = ()


def label(metric: str, at: int | str | None = None) -> str:
    """`prefill of 128`, `decode at 512`, `energy per token (decode)`."""
    name = words_of(metric)[0]
    if at is None:
        return name
    if isinstance(at, str):
        return f"{name} ({at})"
    return f"{name} {'of' if metric in ('prefill', 'time_to_first_token', 'predicted_prefill') else 'at'} {at}"


def words_of(metric: str) -> tuple[str, str, str]:
    return WORDS.get(metric, (metric.replace("_", " "), "better", "worse"))


def teachers(fleet: Fleet) -> list[tuple[Row, Row]]:
    """(teacher, student) of one device, runtime and number of threads; those of one source first, never a stand-in."""
    found = [
        (t, s)
        for s in fleet.rows
        for t in fleet.rows
        if role(s.artifact) == "student" and role(t.artifact) == "teacher" and s.measurements and t.measurements
        and (s.device_id, s.runtime, s.threads) == (t.device_id, t.runtime, t.threads)
    ]  # fmt: skip
    return sorted(found, key=lambda pair: pair[0].source != pair[1].source)


def beside(left: Row, right: Row, metrics: Iterable[str] = (), paired: bool = False) -> Deltas:
    """All figures that both have (those of `metrics` where named), each with the one that is most like it. `paired`
    where both ran in the same rounds of one benchmark."""
    wanted = set(metrics)
    size = _size(left, right) if not wanted or "size" in wanted else None
    pairs = []
    for m in left.measurements:
        others = [o for o in right.measurements if (o.metric, at_of(o)) == (m.metric, at_of(m))]
        if others and (not wanted or m.metric in wanted):
            pairs.append((m, min(others, key=lambda o: len(unlike(m, o)))))
    found = _judged(pairs, paired)
    return replace(found, deltas=(size, *found.deltas)) if size else found


def _judged(pairs: Iterable[tuple[Measurement, Measurement]], paired: bool = False) -> Deltas:
    """Those that are alike as deltas, the others by what they are unlike in."""
    deltas: list[Delta] = []
    refused: dict[tuple[str, str], list[str]] = {}
    for m, other in pairs:
        if m.kind == other.kind == "modelled":  # it follows from ceilings and sizes; nothing was sampled
            continue
        if wrong := "; ".join(unlike(m, other)):
            names = dict.fromkeys((m.where.artifact, other.where.artifact))
            refused.setdefault((" and ".join(names), wrong), []).append(label(m.metric, at_of(m)))
        else:
            deltas.append(_delta(m, other, paired))
    sentences = (f"{names}, because of {why}: {', '.join(figures)}" for (names, why), figures in refused.items())
    return Deltas(tuple(deltas), tuple(sentences), tuple(dict.fromkeys(why for _, why in refused)))


def _delta(left: Measurement, right: Measurement, paired: bool) -> Delta:
    w, one, other = right.where, *((right, left) if left.better == "higher" else (left, right))
    factor = ratio_of_means(one, other) if left.metric in QUALITY else ratio(one, other, paired)
    return Delta(
        metric=left.metric,
        at=at_of(left),
        left=left.where.artifact,
        right=w.artifact,
        device=str(w.device.get("name") or w.device.get("id") or "unnamed"),
        runtime=f"{w.runtime} {w.runtime_version}".strip(),
        threads=w.threads,
        unit=left.unit,
        left_value=left.median,
        right_value=right.median,
        factor=factor,
        kind=left.kind,
        covers=left.covers,
        disturbed=disturbed(left) or disturbed(right),
    )


def _size(left: Row, right: Row) -> Delta | None:
    sizes = left.file.get("bytes"), right.file.get("bytes")
    if not sizes[0] or not sizes[1]:
        return None
    exact = sizes[0] / sizes[1]
    name = str(right.device.get("name") or right.device_id)
    return Delta("size", None, left.artifact, right.artifact, name, right.runtime, right.threads, "bytes",
                 float(sizes[0]), float(sizes[1]), Ratio(exact, exact, exact, (0, 0), False), "measured", "file",
                 False)  # fmt: skip


def compare(a: Sequence[Source], b: Sequence[Source]) -> Deltas:
    """Every file of `a` beside its namesake of `b` (a single file beside a single file whatever their names). Raises
    DataError where the two have no file in common, UnlikeRuns where nothing of what they have may be compared."""
    sides = [_rows(gather(side)) for side in (a, b)]
    pairs = _paired(*sides)
    judged = _quality(a, b)
    if not pairs and not judged:
        names = [dict.fromkeys(m.where.artifact for s in side for m in s.measurements) for side in (a, b)]
        one, other = (", ".join(name for name in side if name != NO_FILE) or "none" for side in names)
        raise DataError(f"the two have no figure of one file in common (files of the first: {one}; of the second: "
                        f"{other}); give two reports, or two benchmarks, of the same files")  # fmt: skip
    found = [*(beside(left, right) for left, right in pairs), _judged(judged)]
    deltas = tuple(d for one in found for d in one.deltas)
    if not any(d.metric != "size" for d in deltas):
        reasons = dict.fromkeys(why for one in found for why in one.reasons)
        raise UnlikeRuns(f"nothing can be compared because of {' | '.join(reasons) or 'no figure in common'}; measure "
                         "both with one job, runtime and device")  # fmt: skip
    left_over = [
        f"{row.artifact}: only in the {which}"
        for which, rows, place in (("first", sides[0], 0), ("second", sides[1], 1))
        for row in rows
        if all(row is not pair[place] for pair in pairs)
    ]
    refused = [sentence for one in found for sentence in one.refused]
    return Deltas(deltas, tuple(dict.fromkeys([*refused, *left_over])))


def _quality(a: Sequence[Source], b: Sequence[Source]) -> list[tuple[Measurement, Measurement]]:
    """How good a file of either is, by its name."""
    sides = [
        {(m.where.artifact, m.metric): m for source in side for m in source.measurements if m.metric in QUALITY}
        for side in (a, b)
    ]
    return [(m, sides[1][key]) for key, m in sides[0].items() if key in sides[1]]


def _rows(fleet: Fleet) -> list[Row]:
    return [row for row in (*fleet.rows, *fleet.stand_ins) if row.measurements]


def _paired(left: list[Row], right: list[Row]) -> list[tuple[Row, Row]]:
    """Each row with the one of the same name that is most like it in device, runtime and threads, no row twice."""
    single = len(left) == len(right) == 1
    free, pairs = list(right), []
    for row in left:
        able = [o for o in free if single or o.artifact == row.artifact]
        if able:
            other = max(able, key=lambda o: (o.device_id == row.device_id, o.runtime == row.runtime,
                                             o.threads == row.threads))  # fmt: skip
            free.remove(other)
            pairs.append((row, other))
    return pairs


def text(found: Deltas) -> str:
    """One block a file, one line a figure, then what could not be compared."""
    lines: list[str] = []
    heading = ""
    for d in found.deltas:
        names = d.left if d.left == d.right else f"{d.left} -> {d.right}"
        if (now := f"{names} on {d.device}, {d.runtime}, {threads(d.threads)}") != heading:
            lines += [*([""] if lines else []), now]
            heading = now
        kind = "" if d.kind == "measured" else f"  [{d.kind}]"
        mark = "  (a run was disturbed)" if d.disturbed else ""
        values = f"{figure(d.left_value, d.unit):>16} -> {figure(d.right_value, d.unit):16}"
        lines.append(f"  {d.label:32}{values} {d.words}{kind}{mark}".rstrip())
    return "\n".join([*lines, *([""] if found.refused else []), *(f"not compared: {s}" for s in found.refused)])
