"""A fleet's figures as flat rows: the CSV, and the core of the JSON. A line is a metric of a file on a device."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from edgeslm.fleet import Fleet, Row, at_of, disturbed
from edgeslm.measurement import Measurement, stand_in
from edgeslm.report.blocks import Table
from edgeslm.report.fleet_ceilings import bounds, predictions, room
from edgeslm.report.fleet_choices import axes, points
from edgeslm.report.fleet_deltas import Deltas, label
from edgeslm.report.fleet_tables import figure as said
from edgeslm.report.page import strict
from edgeslm.statistics import by_process, interval

SCHEMA = 1
COLUMNS = (
    "source", "device_id", "device", "stand_in", "artifact", "sha256", "runtime", "threads", "metric", "at", "unit",
    "median", "low", "high", "p10", "p90", "n", "processes", "kind", "covers", "better", "disturbed", "note",
)  # fmt: skip
Figure = dict[str, Any]


def figure(m: Measurement, source: str) -> Figure:
    """`low` and `high` are None where there is no interval; `values` are the raw ones (the CSV leaves them out)."""
    w, between = m.where, interval(m)
    return {
        "source": source,
        "device_id": str(w.device.get("id") or "unnamed"),
        "device": str(w.device.get("name") or w.device.get("id") or "unnamed"),
        "stand_in": stand_in(m),
        "artifact": w.artifact,
        "sha256": w.artifact_sha256,
        "runtime": f"{w.runtime} {w.runtime_version}".strip(),
        "threads": w.threads,
        "metric": m.metric,
        "at": at_of(m),
        "unit": m.unit,
        "median": m.median,
        "low": between.low if between else None,
        "high": between.high if between else None,
        "p10": m.p10,
        "p90": m.p90,
        "n": m.n,
        "processes": len(by_process(m)) or None,
        "kind": m.kind,
        "covers": m.covers,
        "better": m.better,
        "disturbed": disturbed(m),
        "note": m.note,
        "values": list(m.values),
    }


def of_rows(rows: Iterable[Row]) -> list[Figure]:
    return [figure(m, row.source) for row in rows for m in row.measurements]


def of_files(rows: Iterable[Row]) -> list[Figure]:
    """Quality, once a file: where it was judged is another device's business."""
    seen = {row.sha256: row for row in reversed(list(rows))}
    return [figure(m, row.source) for row in reversed(list(seen.values())) for m in row.quality.values()]


def of_devices(fleet: Fleet) -> list[Figure]:
    return [figure(m, "") for device in fleet.devices for m in fleet.ceilings.get(device, ())]


def document(fleet: Fleet, teachers: Sequence[Deltas], version: str) -> dict[str, Any]:
    """Everything the page shows, raw values included. Stand-ins have a list of their own and are in no other."""
    files = {row.sha256: {**row.file, "bits_per_weight": row.bits} for row in fleet.rows if row.file}
    names = fleet.names()
    found = {
        "schema": SCHEMA,
        "edgeslm": version,
        "sources": list(fleet.sources),
        "devices": [{"id": i, "name": names[i], "facts": facts} for i, facts in fleet.devices.items()],
        "files": list(files.values()),
        "figures": [*of_devices(fleet), *of_rows(fleet.rows)],
        "quality": of_files(fleet.rows),
        "choices": [p.to_json(axis) for axis in axes(fleet) for p in points(fleet, axis)],
        "teacher_beside_student": [d.to_json() for one in teachers for d in one.deltas],
        "not_compared": list(dict.fromkeys(s for one in teachers for s in one.refused)),
        "bounds": [b.to_json() for b in bounds(fleet)],
        "predictions": [b.to_json() for b in predictions(fleet)],
        "fits": [place for row in fleet.rows for place in room(row)],
        "missing": [
            {"device": row.device_id, "artifact": row.artifact, "why": row.why} for row in fleet.rows if row.why
        ],
        "stand_ins": of_rows(fleet.stand_ins),
        "problems": list(fleet.problems),
    }
    data: dict[str, Any] = strict(found)
    return data


def as_csv(figures: Sequence[Figure]) -> str:
    """RFC 4180 with a header; floats in full, an absent figure is an empty cell."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if f[k] is None else safe(f[k]) for k in COLUMNS} for f in figures)
    return out.getvalue()


def safe(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") and len(value) > 1 else value


def table(caption: str, figures: Sequence[Figure]) -> Table:
    """Every figure, as a person reads it."""
    lines = []
    for f in figures:
        between = "none" if f["low"] is None else f"{said(f['low'], f['unit'])} to {said(f['high'], f['unit'])}"
        shown = (said(f[k], f["unit"]) for k in ("median", "p10", "p90"))
        median, low, high = shown
        lines.append((
            f["artifact"], f["runtime"], f"{f['threads']}", label(f["metric"], f["at"]), median, between, low, high,
            f"{f['n']:,}", f"{f['processes'] or 'unknown'}", f["kind"], f["covers"],
        ))  # fmt: skip
    heads = ("File", "Runtime", "Threads", "Figure", "Median", "95 % interval", "p10", "p90", "Runs", "Processes",
             "Kind", "Covers")  # fmt: skip
    return Table(caption, heads, tuple(lines), frozenset({2, 4, 5, 6, 7, 8, 9}))
