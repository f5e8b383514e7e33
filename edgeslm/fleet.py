"""Several devices' benchmarks as one thing: documents in, rows of one file on one device out. Plain data, no drawing.

A source is a bench document (schema 2), a record of several (one a line, `.jsonl`), a run folder or the results.json
that its report leaves. Quality belongs to a file, wherever it was judged: it is found by the file's sha256.
Figures of stand-ins (`where.device.stand_in`) are kept apart from the first step on and reach no choice and no ratio.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeslm.errors import DataError
from edgeslm.measurement import Measurement, stand_in

BENCH_SCHEMA, REPORT_SCHEMA = 2, 1
QUALITY = ("kl", "perplexity", "top1_agreement")
TIMED = ("decode", "prefill", "time_to_first_token", "sustained_decode", "token_latency")  # their notes are doubts
NO_FILE = "-"  # the artifact of a figure about the device itself
Facts = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """One document. `problems` are {"artifact": ..., "what": ...}, with "device" where the document says which."""

    name: str
    measurements: tuple[Measurement, ...]
    artifacts: tuple[Facts, ...]
    problems: tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Row:
    """One file in one runtime with so many threads on one device, out of one source. `file` is what is known of the
    artifact (bytes, weight_bytes, parameters, grid), {} where no source tells. `why` is not empty for a file of which
    there is no figure."""

    source: str
    device: Facts
    artifact: str
    sha256: str
    runtime: str
    threads: int
    measurements: tuple[Measurement, ...] = ()
    file: Facts = field(default_factory=dict)
    quality: dict[str, Measurement] = field(default_factory=dict)
    why: str = ""

    @property
    def device_id(self) -> str:
        return str(self.device.get("id") or "unnamed")

    def get(self, metric: str, at: int | str | None = None) -> Measurement | None:
        """The first one of that metric, taken at that length, depth or phase where one is given."""
        return next((m for m in self.all(metric) if at is None or at_of(m) == at), None)

    def all(self, metric: str) -> list[Measurement]:
        return [m for m in self.measurements if m.metric == metric]

    @property
    def doubts(self) -> list[str]:
        """What disturbed the run, as its timed figures say."""
        return list(dict.fromkeys(m.note for m in self.measurements if disturbed(m)))

    @property
    def bits(self) -> float | None:
        """Per weight, as everywhere: 8 x bytes of the tensors / parameters."""
        known = self.file.get("weight_bytes"), self.file.get("parameters")
        return 8 * known[0] / known[1] if known[0] and known[1] else None


@dataclass(frozen=True)
class Fleet:
    """`devices`: id -> facts, in order of appearance. `ceilings`: id -> figures of the device itself."""

    rows: tuple[Row, ...]
    stand_ins: tuple[Row, ...]
    devices: dict[str, Facts]
    ceilings: dict[str, tuple[Measurement, ...]]
    problems: tuple[str, ...]
    sources: tuple[str, ...]

    def of(self, device: str) -> list[Row]:
        return [row for row in self.rows if row.device_id == device]

    def names(self) -> dict[str, str]:
        """Device id -> what to call it; two devices of one name get their ids' beginnings."""
        every = {i: str(f.get("name") or i) for i, f in self.devices.items()}
        count = Counter(every.values())
        return {i: name if count[name] == 1 else f"{name} ({i[:4]})" for i, name in every.items()}


def at_of(m: Measurement) -> int | str | None:
    """At which prompt length, depth or phase a figure was taken; None where there is but one."""
    return next((m.extra[key] for key in ("prompt_tokens", "depth", "phase") if key in m.extra), None)


def disturbed(m: Measurement) -> bool:
    return m.metric in TIMED and m.kind == "measured" and bool(m.note)


def read(path: Path) -> list[Source]:
    """Raises DataError for what is none of the kinds of source, or damaged."""
    if path.is_dir():
        return [_folder(path)]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "no UTF-8 text"
        raise DataError(f"{path}: cannot be read ({why}); give a bench document, a record or a run folder") from error
    if path.suffix != ".jsonl":
        return [document(parsed(text, str(path)), path.name)]
    lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    return [document(parsed(line, f"{path}, line {i}"), f"{path.name}:{i}") for i, line in lines]


def parsed(text: str, where: str) -> Any:
    """JSON without NaN and infinities. Raises DataError."""

    def refuse(name: str) -> Any:
        raise ValueError(f"it holds {name}")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is no sound JSON ({error}); measure again or ask for the file once more") from error


def document(data: Any, name: str) -> Source:
    """A bench document or a report's results.json. Raises DataError."""
    if not isinstance(data, dict) or not isinstance(data.get("measurements"), list):
        raise DataError(
            f"{name}: holds no measurements; give what `edgeslm bench --out` or `edgeslm report` wrote, or a run folder"
        )
    if data.get("schema") not in (BENCH_SCHEMA, REPORT_SCHEMA):
        raise DataError(
            f"{name}: is of schema {data.get('schema')!r}, this edgeslm knows {REPORT_SCHEMA} (reports) and "
            f"{BENCH_SCHEMA} (benchmarks); update edgeslm, or measure again with this version"
        )
    found = []
    for i, row in enumerate(data["measurements"]):
        try:
            found.append(sound(Measurement.from_json(row)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{name}: measurement {i} is damaged ({error!s:.120}); measure again") from error
    artifacts = tuple(a for a in data.get("artifacts") or [] if isinstance(a, dict) and "name" in a)
    problems = tuple(
        {k: str(p[k]) for k in ("artifact", "what", "device") if p.get(k)}
        for p in data.get("problems") or [] if isinstance(p, dict)
    )  # fmt: skip
    return Source(name, tuple(found), artifacts, problems)


def sound(m: Measurement) -> Measurement:
    """Raises ValueError for what no benchmark writes."""
    texts = (m.metric, m.unit, m.covers, m.note, m.where.artifact, m.where.artifact_sha256, m.where.runtime)
    if not all(isinstance(t, str) for t in (*texts, m.where.runtime_version)):
        raise ValueError(f"a name in '{m.metric}' is no text")
    if not all(isinstance(d, dict) for d in (m.where.device, m.where.job, m.extra)):
        raise ValueError(f"device, job or extra of '{m.metric}' are no objects")
    if isinstance(m.where.threads, bool) or not isinstance(m.where.threads, int):
        raise ValueError(f"threads of '{m.metric}' are no number")
    if m.kind not in ("measured", "modelled", "estimated") or m.better not in ("higher", "lower"):
        raise ValueError(f"'{m.metric}' is of no known kind")
    if not all(math.isfinite(v) for v in (*m.values, *m.warmups)):
        raise ValueError(f"'{m.metric}' is not a finite number")
    return m


def _folder(path: Path) -> Source:
    from edgeslm.report.folder import read as read_run

    run = read_run(path)
    problems = tuple({"artifact": p.artifact, "what": f"{p.stage}: {p.what}"} for p in run.problems)
    artifacts = tuple({k: v for k, v in a.to_json().items() if k != "path"} for a in run.artifacts)
    return Source(run.name, (*run.quality, *run.speed), artifacts, problems)


def gather(sources: Sequence[Source]) -> Fleet:
    """Rows of all sources. A source given twice counts once, and is named."""
    once: list[Source] = []
    said: list[str] = []
    for source in sources:
        if any(one.measurements == source.measurements and source.measurements for one in once):
            said.append(f"{source.name}: holds the same figures as a source before it and counts once")
        else:  # of two documents of one name the second gets a number: rows of one source share their rounds
            same = sum(one.name.partition(" #")[0] == source.name for one in once)
            once.append(replace(source, name=f"{source.name} #{same + 1}") if same else source)
    files = {str(a["sha256"]): a for source in once for a in source.artifacts if a.get("sha256")}
    quality: dict[str, dict[str, Measurement]] = {}
    for m in (m for source in once for m in source.measurements if m.metric in QUALITY and not stand_in(m)):
        quality.setdefault(m.where.artifact_sha256, {}).setdefault(m.metric, m)
    rows: list[Row] = []
    ceilings: dict[str, list[Measurement]] = {}
    for source in once:
        timed = [m for m in source.measurements if m.metric not in QUALITY]
        for m in timed:
            if m.where.artifact == NO_FILE and not stand_in(m):
                ceilings.setdefault(str(m.where.device.get("id") or "unnamed"), []).append(m)
        rows += [_row(source, members, files, quality) for members in _grouped(timed)]
        missing, lines = _missing(source, rows, files, quality)
        rows += missing
        said += lines
    real = tuple(row for row in rows if not row.device.get("stand_in"))
    return Fleet(
        rows=real,
        stand_ins=tuple(row for row in rows if row.device.get("stand_in")),
        devices=_devices(real),
        ceilings={device: tuple(found) for device, found in ceilings.items()},
        problems=tuple(dict.fromkeys(said)),
        sources=tuple(source.name for source in once),
    )


def _devices(rows: Iterable[Row]) -> dict[str, Facts]:
    found: dict[str, Facts] = {}
    for row in rows:
        found.setdefault(row.device_id, row.device)
    return found


def _grouped(measurements: Iterable[Measurement]) -> list[list[Measurement]]:
    """By device, file, runtime and threads."""
    found: dict[tuple[Any, ...], list[Measurement]] = {}
    for m in measurements:
        w = m.where
        if w.artifact != NO_FILE:
            key = (w.device.get("id"), w.artifact, w.artifact_sha256, w.runtime, w.runtime_version, w.threads)
            found.setdefault(key, []).append(m)
    return list(found.values())


def _row(
    source: Source, members: Sequence[Measurement], files: dict[str, Facts], quality: dict[str, dict[str, Measurement]]
) -> Row:
    w = members[0].where
    return Row(
        source=source.name,
        device=w.device,
        artifact=w.artifact,
        sha256=w.artifact_sha256,
        runtime=f"{w.runtime} {w.runtime_version}".strip(),
        threads=w.threads,
        measurements=tuple(members),
        file=files.get(w.artifact_sha256, {}),
        quality=quality.get(w.artifact_sha256, {}),
    )


def _missing(
    source: Source, rows: Sequence[Row], files: dict[str, Facts], quality: dict[str, dict[str, Measurement]]
) -> tuple[list[Row], list[str]]:
    """A problem of a file without a figure is a row that says why; the others are lines."""
    devices = _devices(row for row in rows if row.source == source.name)
    there = {(row.artifact, row.device_id) for row in rows if row.source == source.name}
    named = {str(a["name"]): str(a.get("sha256") or "") for a in source.artifacts}
    found, lines = [], []
    for problem in source.problems:
        name, what = problem.get("artifact", ""), problem.get("what", "")
        given = problem.get("device", "")
        on = [d for d in devices if not given or given in (d, devices[d].get("name"))]
        if name in named and len(on) == 1 and (name, on[0]) not in there:
            sha = named[name]
            found.append(Row(source.name, devices[on[0]], name, sha, "", 0, (), files.get(sha, {}),
                             quality.get(sha, {}), what))  # fmt: skip
        lines.append(": ".join(part for part in (source.name, given, name, what) if part))
    return found, lines


def front(points: Sequence[tuple[float, float]], higher: tuple[bool, bool] = (False, False)) -> set[int]:
    """Indices of the Pareto front: of the points that no other equals in one and beats in the other, or beats in both.
    `higher` says of which coordinate more is better. Equal points stand or fall together."""
    signed = [tuple(-v if up else v for v, up in zip(p, higher, strict=True)) for p in points]
    best, found = math.inf, set()
    by_first: dict[float, float] = {}
    for x, y in signed:
        by_first[x] = min(y, by_first.get(x, math.inf))
    for x in sorted(by_first):
        if by_first[x] < best:
            best = by_first[x]
            found |= {i for i, p in enumerate(signed) if p == (x, best)}
    return found


def usual(rows: Iterable[Row], metric: str) -> int | str | None:
    """The length or depth at which most rows have this metric, the largest of several; None where none has it."""
    count = Counter(at for row in rows for at in {at_of(m) for m in row.all(metric)} if at is not None)
    return max(count, key=lambda at: (count[at], at if isinstance(at, int) else 0), default=None)
