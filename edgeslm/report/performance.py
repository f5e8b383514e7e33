"""Speed, memory and energy of every shipped file, grouped by what ran it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from edgeslm.measurement import Measurement, percentile
from edgeslm.report import charts
from edgeslm.report.blocks import Block, Chart, Note, Section, Table, facts, missing, percent, role
from edgeslm.report.compare import of, threads
from edgeslm.report.folder import Run
from edgeslm.units import number

SPEEDS = (
    ("decode", "Decode"),
    ("prefill", "Prefill"),
    ("time_to_first_token", "Time to first token"),
    ("load", "Load"),
)
MEMORY = (("rss_anon_peak", "RssAnon"), ("rss_file_peak", "RssFile"), ("pss_peak", "PSS"), ("vm_hwm", "VmHWM"))
KINDS_OF_MEMORY = (
    "RssAnon is memory of the process's own: caches, buffers, weights that the runtime copied or repacked.",
    "RssFile is the model file as it is mapped: the system may drop these pages and read them again.",
    "PSS counts each page once, shared ones by their share: the fairest single figure.",
    "VmHWM is the highest resident size that the system itself noted.",
)
Groups = list[tuple[str, list[Measurement]]]


def speed(run: Run) -> Section:
    lead = "Bars are medians, dots the raw repeats, whiskers the 10th to 90th percentile. Warm-ups are left out."
    blocks: list[Block] = []
    for metric, label in SPEEDS:
        found = of(run.speed, metric)
        blocks.append(_speed_chart(run, metric, label, found) if found else missing(label, run.why_not("benchmark")))
        blocks += _absent(run, label, found)
    latency = of(run.speed, "token_latency")
    if latency:
        blocks.append(_latency(latency))
    blocks += _notes(run, [m for metric, _ in SPEEDS for m in of(run.speed, metric)])
    bandwidth = of(run.speed, "memory_bandwidth")
    if bandwidth:
        said = " and ".join(f"{number(m.median / 1e9, 'GB/s')} ({threads(m.where.threads)})" for m in bandwidth)
        blocks.append(Note(f"Memory bandwidth, measured: {said}. The decode bound is modelled: bandwidth ÷ the bytes "
                           "that each token must read."))  # fmt: skip
    elif of(run.speed, "decode"):
        blocks.append(missing("Memory bandwidth and the share of its bound", run.why_not("benchmark")))
    return Section("speed", "Speed", blocks, lead)


def groups(measurements: Sequence[Measurement]) -> Groups:
    """By runtime, threads, job and device, in order of appearance, students first; headings name what differs."""
    out: dict[tuple[str, str, int, str, str], list[Measurement]] = {}
    for m in measurements:
        w = m.where
        job = json.dumps(w.job, sort_keys=True)
        out.setdefault((w.runtime, w.runtime_version, w.threads, job, str(w.device.get("id"))), []).append(m)
    jobs, devices = {k[3] for k in out}, {k[4] for k in out}
    named: Groups = []
    for (runtime, version, n, _, _), members in out.items():
        heading = f"{runtime} {version}, {threads(n)}"
        if len(jobs) > 1:
            heading += _differing(members[0], measurements)
        if len(devices) > 1:
            heading += f", {members[0].where.device.get('name') or members[0].where.device.get('id')}"
        named.append((heading, sorted(members, key=lambda m: role(m.where.artifact) != "student")))
    return named


def _differing(one: Measurement, every: Sequence[Measurement]) -> str:
    """The parts of a job in which the jobs on one chart differ."""
    differ = {k: v for k, v in one.where.job.items() if any(m.where.job.get(k) != v for m in every)}
    said = facts(differ)
    return f", {said}" if said else ""


def bound_of(run: Run, m: Measurement) -> float | None:
    """The modelled ceiling of this very run: same file, runtime, threads and device."""
    for b in of(run.speed, "decode_bound", m.where.artifact) if m.metric == "decode" else []:
        same = (b.where.runtime, b.where.threads, b.where.device.get("id")) == (
            m.where.runtime, m.where.threads, m.where.device.get("id"),
        )  # fmt: skip
        if same and b.median > 0:
            return b.median
    return None


def _speed_chart(run: Run, metric: str, label: str, found: Sequence[Measurement]) -> Chart:
    drawn: list[tuple[str, list[charts.Bar]]] = []
    rows: list[tuple[str, ...]] = []
    mark: set[int] = set()
    bounded = any(bound_of(run, m) for m in found)
    for heading, members in groups(found):
        line = []
        for m in members:
            bound = bound_of(run, m)
            shown = number(m.median, m.unit)
            share = percent(m.median / bound, 0) if bound else "no bound"
            line.append(charts.Bar(m.where.artifact, m.values, kind_of(m),
                                   f"{shown}, {share} of bound" if bound else shown, bound))  # fmt: skip
            if role(m.where.artifact) == "student":
                mark.add(len(rows))
            rows.append(_row(m, heading) + ((number(bound, m.unit) if bound else "no bound", share) if bounded else ()))
        drawn.append((heading, line))
    columns: tuple[str, ...] = ("File", "Runtime", "Median", "p10", "p90", "Repeats", "Kind")
    columns += ("Bound", "Share of bound") if bounded else ()
    legend = [("student", "student"), ("teacher", "teacher")]
    legend += [("bound", "bound by memory bandwidth, modelled")] if bounded else []
    legend += [("estimated", "estimated or modelled")] if any(m.kind != "measured" for m in found) else []
    svg = charts.bars(metric.replace("_", "-"), label, found[0].unit, drawn)
    table = Table(label, columns, tuple(rows), frozenset({2, 3, 4, 5, 7, 8}), frozenset(mark))
    return Chart(label, svg, table, tuple(legend), f"{found[0].better} is better")


def _row(m: Measurement, heading: str) -> tuple[str, ...]:
    values = (number(v, m.unit) for v in (m.median, m.p10, m.p90))
    return (m.where.artifact, heading, *values, str(m.n), m.kind)


def kind_of(m: Measurement) -> str:
    """CSS classes of a bar: whose it is, and hatched when no sensor gave it."""
    return role(m.where.artifact) + ("" if m.kind == "measured" else " estimated")


def _absent(run: Run, label: str, found: Sequence[Measurement]) -> list[Note]:
    """A line for each file without this figure; none at all is said once, by the caller."""
    names = [a.name for a in run.artifacts if found and a.name not in {m.where.artifact for m in found}]
    failed = {p.artifact: p.what for p in run.problems if p.stage == "benchmark"}
    return [missing(f"{label} of {n}", failed.get(n, run.why_not("benchmark"))) for n in names]


def _latency(found: Sequence[Measurement]) -> Table:
    rows = [
        (m.where.artifact, heading, *(number(percentile(m.values, q), m.unit) for q in (50, 90, 99, 100)), f"{m.n:,}")
        for heading, members in groups(found)
        for m in members
    ]
    mark = frozenset(i for i, row in enumerate(rows) if role(row[0]) == "student")
    columns = ("File", "Runtime", "Median", "p90", "p99", "Slowest", "Tokens")
    return Table("Latency of each token", columns, tuple(rows), frozenset(range(2, 7)), mark)


def _notes(run: Run, measurements: Sequence[Measurement]) -> list[Note]:
    said = dict.fromkeys(
        f"{m.metric.replace('_', ' ')} of {m.where.artifact}: {m.note}" for m in measurements if m.note
    )
    return [Note(line) for line in said]


def memory(run: Run) -> Section:
    lead = "Peaks of the process that runs the model. Each kind peaks in its own time: a whole bar is an upper bound."
    every = [m for metric, _ in MEMORY for m in of(run.speed, metric)]
    if not every:
        return Section("memory", "Memory", [missing("Memory", run.why_not("benchmark"))], lead)
    drawn: list[tuple[str, list[charts.Stack]]] = []
    rows: list[tuple[str, ...]] = []
    mark: set[int] = set()
    for heading, members in groups(every):
        line = []
        for artifact in dict.fromkeys(m.where.artifact for m in members):
            found = {m.metric: m for m in members if m.where.artifact == artifact}
            parts = [(kind, found[metric].median, f"{name} {number(found[metric].median, 'bytes')}")
                     for kind, (metric, name) in zip(("anon", "file"), MEMORY[:2], strict=True)
                     if metric in found]  # fmt: skip
            pss = found.get("pss_peak")
            shown = f"PSS {number(pss.median, 'bytes')}" if pss else " + ".join(words for _, _, words in parts)
            line.append(charts.Stack(artifact, parts, shown, pss.median if pss else None))
            if role(artifact) == "student":
                mark.add(len(rows))
            cells = (number(found[k].median, "bytes") if k in found else "not measured" for k, _ in MEMORY)
            rows.append((artifact, heading, *cells))
        drawn.append((heading, line))
    svg = charts.stacks("memory-peaks", "Peak memory", "bytes", drawn)
    table = Table("Peak memory", ("File", "Runtime", *(n for _, n in MEMORY)), tuple(rows), frozenset(range(2, 6)),
                  frozenset(mark))  # fmt: skip
    legend = (("anon", "RssAnon"), ("file", "RssFile"), ("mark", "peak of PSS, no part of the sum"))
    blocks: list[Block] = [Chart("Peak memory", svg, table, legend, "lower is better")]
    blocks += [Note(line) for line in KINDS_OF_MEMORY]
    blocks += _absent(run, "Memory", every) + _notes(run, every)
    return Section("memory", "Memory", blocks, lead)


def energy(run: Run) -> Section:
    found = of(run.speed, "energy_per_token")
    if not found:
        said = [p.what for p in run.problems if any(w in p.what.lower() for w in ("energy", "meter", "rapl"))]
        timed = "the device has no power sensor that edgeslm can read, and an estimate was not asked for"
        why = said[0] if said else timed if run.speed else run.why_not("benchmark")
        return Section("energy", "Energy", [Note(f"No meter: {why}. There is no figure.", "missing")])
    chart = _speed_chart(run, "energy_per_token", "Energy per token", found)
    covers = " and ".join(dict.fromkeys(m.covers for m in found))
    blocks: list[Block] = [chart, Note(f"The figure covers: {covers}.")]
    notes: dict[tuple[str, str], list[str]] = {}
    for m in found:
        notes.setdefault((m.kind, m.note), []).append(m.where.artifact)
    for (kind, note), names in notes.items():
        if kind != "measured":
            formula = note or "its formula is not recorded"
            blocks.append(Note(f"{kind.capitalize()}, not measured: {formula} ({', '.join(names)}).", "estimate"))
        elif note:
            blocks.append(Note(f"{note} ({', '.join(names)})."))
    return Section("energy", "Energy", [*blocks, *_absent(run, "Energy", found)])
