"""The shipped files and how close the student stays to its teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgeslm.measurement import Measurement
from edgeslm.report import charts
from edgeslm.report.blocks import ABSENT, TIMES, Block, Chart, Note, Section, Table, facts, missing, percent, role
from edgeslm.report.compare import of
from edgeslm.report.folder import Run
from edgeslm.units import byte_count, count, number


def artifacts(run: Run) -> Section:
    lead = (
        f"Bits per weight = 8 {TIMES} bytes of the tensors ÷ parameters, embedding included. "
        "Exact tensors decode to the trained values bit for bit."
    )
    if not run.artifacts:
        return Section("artifacts", "The files", [missing("Files", run.why_not("export"))])
    exact = {row["artifact"]: row for row in run.exact}
    rows, unchecked = [], []
    for a in run.artifacts:
        row = exact.get(a.name)
        cell = f"{row['exact']}/{row['tensors']} bitwise" if row else ABSENT
        on_grid = f"{row.get('planned_exact', '?')}/{row['planned']}" if row and row.get("planned") else "none"
        if not row:
            unchecked.append(a.name)
        rows.append((a.name, a.format, a.grid, byte_count(a.bytes), f"{a.bits_per_weight:.2f}", count(a.parameters),
                     cell, on_grid if row else ABSENT, a.sha256[:12]))  # fmt: skip
    columns = (
        "File",
        "Container",
        "Grid",
        "Size",
        "Bits/weight",
        "Parameters",
        "Exact tensors",
        "On the grid",
        "sha256",
    )
    mark = frozenset(i for i, a in enumerate(run.artifacts) if role(a.name) == "student")
    blocks: list[Block] = [Table("Shipped files", columns, tuple(rows), frozenset({3, 4, 5}), mark)]
    blocks += [Note(f"{a.name}: {a.note}") for a in run.artifacts if a.note]
    if unchecked:
        why = "no record of the check" if run.exact else "exact.json is missing or empty"
        blocks.append(missing(f"Exact tensors of {', '.join(unchecked)}", why))
    return Section("artifacts", "The files", blocks, lead)


def quality(run: Run) -> Section:
    lead = "Scored by the runtime that will run the file, on the recipe's held-out text."
    if not any(of(run.quality, metric) for metric in ("perplexity", "kl", "top1_agreement")):
        return Section("quality", "Quality", [missing("Quality", run.why_not("evaluate"))])
    blocks: list[Block] = [_table(run.quality)]
    jobs = {facts(m.where.job) for m in run.quality}
    if len(jobs) == 1 and (job := jobs.pop()):
        blocks.append(Note(f"All on {job}. KL and top-1 set a student beside its teacher; a teacher has none."))
    for metric, label in (("perplexity", "Perplexity"), ("kl", "KL"), ("top1_agreement", "Top-1 agreement")):
        scored = {m.where.artifact for m in of(run.quality, metric)}
        students = [a.name for a in run.artifacts if role(a.name) == "student" and a.name not in scored]
        expected = [a.name for a in run.artifacts if a.name not in scored] if metric == "perplexity" else students
        if expected:
            blocks.append(missing(f"{label} of {', '.join(expected)}", run.why_not("evaluate")))
    blocks += [c for c in [_size_chart(run), *(kl_histogram(m, i) for i, m in enumerate(of(run.quality, "kl")))] if c]
    blocks += [Note(f"{m.metric} of {m.where.artifact}: {m.note}") for m in run.quality if m.note]
    return Section("quality", "Quality", blocks, lead)


def _table(measurements: Sequence[Measurement]) -> Table:
    """One row per file, runtime and job; the job gets a column only where jobs differ."""
    found: dict[tuple[str, str, str], dict[str, Measurement]] = {}
    for m in measurements:
        place = (m.where.artifact, f"{m.where.runtime} {m.where.runtime_version}".strip(), facts(m.where.job))
        found.setdefault(place, {})[m.metric] = m
    several = len({job for _, _, job in found}) > 1
    rows = [(artifact, runtime, *_scores(artifact, by), *((job,) if several else ()))
            for (artifact, runtime, job), by in found.items()]  # fmt: skip
    columns: tuple[str, ...] = (
        "File",
        "Runtime",
        "Perplexity",
        "KL, nats/token",
        "KL median",
        "p90",
        "p99",
        "p99.9",
        "Top-1",
        "Tokens",
    )
    columns += ("Text and job",) if several else ()
    mark = frozenset(i for i, row in enumerate(rows) if role(row[0]) == "student")
    return Table("Quality by file", columns, tuple(rows), frozenset(range(2, 10)), mark)


def _scores(artifact: str, by: dict[str, Measurement]) -> list[str]:
    """Cells from perplexity to tokens. A teacher without KL is what the students are compared with."""
    perplexity, kl, top1 = by.get("perplexity"), by.get("kl"), by.get("top1_agreement")
    points = kl.extra.get("percentiles") or {} if kl else {}
    error = kl.extra.get("standard_error") if kl else None
    spread = f" ± {error:.2g}" if isinstance(error, int | float) else ""
    none = "-" if role(artifact) == "teacher" else ABSENT
    tokens = next((m.extra["tokens"] for m in by.values() if isinstance(m.extra.get("tokens"), int)), None)
    return [
        number(perplexity.median, "1") if perplexity else ABSENT,
        f"{kl.median:.3g}{spread}" if kl else none,
        *(f"{points[q]:.3g}" if q in points else none for q in ("50", "90", "99", "99.9")),
        percent(top1.median) if top1 else none,
        f"{tokens:,}" if tokens is not None else ABSENT,
    ]


def _size_chart(run: Run) -> Chart | None:
    """Perplexity against bytes: the trade in one picture. Only perplexities of one job share it."""
    found: list[tuple[str, Measurement, int]] = []
    for m in of(run.quality, "perplexity"):
        artifact = run.artifact(m.where.artifact)
        if artifact and (not found or m.where.job == found[0][1].where.job):
            found.append((m.where.artifact, m, artifact.bytes))
    if len(found) < 2:
        return None
    rows = tuple((name, byte_count(size), number(m.median, "1")) for name, m, size in found)
    points = [(n, s / 1e6, m.median, role(n), f"{n}: {byte_count(s)}, perplexity {number(m.median, '1')}")
              for n, m, s in found]  # fmt: skip
    drawn = charts.scatter("quality-size", "Perplexity against size on disk", points, "size, MB", "perplexity")
    table = Table("Perplexity against size", ("File", "Size", "Perplexity"), rows, frozenset({1, 2}))
    return Chart("Perplexity against size", drawn, table, (("student", "student"), ("teacher", "teacher")),
                 "lower and further left is better")  # fmt: skip


def kl_histogram(m: Measurement, index: int) -> Chart | Note | None:
    h = m.extra.get("histogram")
    if not isinstance(h, dict):
        return missing(f"KL histogram of {m.where.artifact}", "the result holds none")
    edges, counts = [float(e) for e in h.get("edges", [])], [float(c) for c in h.get("counts", [])]
    sound = len(edges) == len(counts) + 1 >= 2 and all(math.isfinite(c) and c >= 0 for c in counts) and sum(counts) > 0
    if not sound or any(math.isnan(e) for e in edges) or edges != sorted(edges):
        return missing(f"KL histogram of {m.where.artifact}", "its edges and counts do not fit each other")
    shares = [c / sum(counts) for c in counts]
    points = m.extra.get("percentiles", {})
    marked = [(float(points[q]), word) for q, word in (("50", "median"), ("99", "p99")) if q in points]
    title = f"KL per token, {m.where.artifact}"
    drawn = charts.histogram(f"kl-{index}", title, edges, shares, "KL, nats per token", marked)
    rows = tuple(
        (f"{edges[i]:.3g} to {edges[i + 1]:.3g}", f"{counts[i]:,.0f}", percent(s)) for i, s in enumerate(shares)
    )
    table = Table(title, ("KL, nats per token", "Tokens", "Share"), rows, frozenset({1, 2}))
    return Chart(title, drawn, table, (), "further left is better")
