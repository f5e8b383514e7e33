"""`render`: a pure function of the run folder. The same folder gives the same bytes, wherever it lies."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from edgeslm.report import encoder, making, markdown, peers, performance, planning, quality, retention, summary
from edgeslm.report.blocks import Note, Section
from edgeslm.report.compare import pairs
from edgeslm.report.folder import Run, read

SCHEMA = 1
# In the order a reader wants them.
SECTIONS: dict[str, Callable[[Run], Section | None]] = {
    "headline": summary.headline,
    "problems": summary.problems,
    "artifacts": quality.artifacts,
    "comparisons": summary.comparisons,
    "quality": quality.quality,
    "retention": lambda run: retention.retention(run.tasks, [s["name"] for s in run.tasks.get("students", [])]),
    "speed": performance.speed,
    "memory": performance.memory,
    "energy": performance.energy,
    "answers": summary.answers,
    "formats": planning.formats,
    "making": making.making,
    "peers": peers.peers,
    "machine": making.machine,
    "recipe": making.recipe,
}


@dataclass(frozen=True)
class ReportFiles:
    html: Path
    markdown: Path
    json: Path


def render(run: Path) -> ReportFiles:
    """Writes report.html, report.md and results.json into the run folder and returns their paths.

    What the folder lacks becomes a "not measured: why" line. Raises DataError when `run` is no folder.
    """
    content = read(run)
    sections = encoder.build(content) if content.facts.get("family") == "encoder" else build(content)
    out = ReportFiles(run / "report.html", run / "report.md", run / "results.json")
    facts = {k: str(content.facts.get(k) or "") for k in ("recipe_hash", "edgeslm")}
    facts["started"] = moment(content.facts.get("started"))
    facts["source"] = "from the run folder alone. Raw values: results.json."
    out.html.write_text(html(f"run {content.name}", facts, sections), encoding="utf-8")
    out.markdown.write_text(markdown.document(sections), encoding="utf-8")
    text = json.dumps(results(content), indent=1, ensure_ascii=False, allow_nan=False)
    out.json.write_text(text + "\n", encoding="utf-8")
    return out


def build(run: Run) -> list[Section]:
    """All sections. A section that damaged data breaks says so in its place; the others stand."""
    built = []
    for key, section in SECTIONS.items():
        try:
            made = section(run)
        # The data come from files that a crash or a hand may have damaged in any way; a report of the rest is owed.
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
            said = f"this part cannot be shown: its figures are damaged ({type(error).__name__}: {error!s:.80})"
            made = Section(key, run.name if key == "headline" else key.capitalize(), [Note(said, "problem")])
        if made:
            built.append(made)
    return built


def html(name: str, facts: dict[str, str], sections: list[Section]) -> str:
    """One self-contained page: no script, no request (a content policy forbids them), every string escaped. `facts`:
    edgeslm (version), source, started and recipe_hash where there are any."""
    folder = files("edgeslm.report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.tests["block"] = lambda block, name: type(block).__name__ == name
    template = environment.from_string((folder / "template.html.jinja").read_text(encoding="utf-8"))
    style = (folder / "style.css").read_text(encoding="utf-8")
    facts = {"recipe_hash": "", "started": ""} | facts
    return template.render(name=name, facts=facts, sections=sections, style=Markup(style))


def moment(started: Any) -> str:
    """`2025-11-21T18:30:00Z` (or seconds since 1970) -> `21 November 2025, 18:30 UTC`; anything else as it is."""
    try:
        seconds = isinstance(started, int | float)
        when = datetime.fromtimestamp(started, UTC) if seconds else datetime.fromisoformat(str(started)).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return str(started or "")
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def results(run: Run) -> dict[str, Any]:
    """Everything behind the report as strict JSON, raw values included."""
    every = pairs(run)
    data = {
        "schema": SCHEMA,
        "run": {**run.facts, "name": run.name},
        "comparisons": [c.to_json() for p in every for c in p.comparisons],
        "not_compared": [s for p in every for s in p.refused],
        "artifacts": [{**a.to_json(), "bits_per_weight": a.bits_per_weight} for a in run.artifacts],
        "exact": list(run.exact),
        "measurements": [m.to_json() for m in (*run.quality, *run.speed)],
        "importance": run.importance,
        "sft": run.sft,
        "plan": run.plan,
        "equalised": run.equalised,
        "training": run.training,
        "answers": list(run.answers),
        "tasks": run.tasks,
        "problems": [{"stage": p.stage, "artifact": p.artifact, "what": p.what} for p in run.problems],
        "unfinished": list(run.unfinished),
    }
    return strict(data)


def strict(value: Any) -> Any:
    """JSON knows no NaN and no infinity: a figure that is none becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    return value
