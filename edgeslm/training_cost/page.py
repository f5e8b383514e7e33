"""A training plan as a page and as lines for a terminal: pure functions of the document of `study`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeslm import units
from edgeslm.report import charts, markdown
from edgeslm.report.blocks import Block, Chart, Note, Section, Table, Tile, Tiles
from edgeslm.report.page import html, moment, strict
from edgeslm.training_cost.store import MEASURED

Document = Mapping[str, Any]
NAME = "plan-training"
NONE = "-"


def render(document: Document, folder: Path) -> list[Path]:
    """Writes plan-training.html, .md and .json."""
    from edgeslm import __version__

    folder.mkdir(parents=True, exist_ok=True)
    page, text, data = (folder / f"{NAME}.{ending}" for ending in ("html", "md", "json"))
    sections = build(document)
    facts = {"edgeslm": __version__, "source": f"from {data.name} alone.", "started": moment(document["date"])}
    page.write_text(html(f"training plan of {document['recipe']}", facts, sections), encoding="utf-8")
    text.write_text(markdown.document(sections), encoding="utf-8")
    data.write_text(json.dumps(strict(document), ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    return [page, text, data]


def build(document: Document) -> list[Section]:
    blocks: list[Block] = [speeds(document), memory(document)]
    figures = Section("figures", "Ways to train", [*blocks, *left_out(document)])
    return [headline(document), figures, method(document)]


def measured(document: Document) -> list[Any]:
    """Points with figures, the fastest first."""
    found = [p for p in document["points"] if p["state"] == MEASURED]
    return sorted(found, key=lambda p: -p["tokens_per_s"]["estimate"])


def headline(document: Document) -> Section:
    told = document["recommendation"]
    training = document["training"]
    tiles = []
    for point in measured(document):
        if told is None or point["label"] not in (told["label"], own(document)["label"]):
            continue
        word = "recommended" if point["label"] == told["label"] else "the recipe as it is"
        detail = f"{point['label']}: {units.seconds(point['training_s']['estimate'])} for the recipe's training"
        detail += f", {money(document, point)}" if document["price"] else ""
        tiles.append(Tile(word, f"{point['tokens_per_s']['estimate']:,.0f}", "tokens/s", detail))
    said = told["sentence"] if told else "Nothing that a recipe can ask for was measured."
    lead, _, rest = said.partition(". ")
    more = f"{rest} " if rest else ""
    more += (
        f"{training['tokens']:,} tokens in {training['steps']:,} steps of {training['batch_tokens']:,}, on "
        f"{document['machine']['name']}. Times of the whole training are estimates from a few steps."
    )
    blocks: list[Block] = [Tiles(tuple(tiles))] if tiles else []
    if told and told["command"]:
        blocks.append(Note(f"Start it so, or write what follows RECIPE into it: {told['command']}"))
    return Section("headline", f"How to train {document['recipe']}", blocks, lead.rstrip(".") + ".", more)


def own(document: Document) -> Any:
    return next(p for p in document["points"] if p["own"])


def kind_of(document: Document, point: Any) -> str:
    told = document["recommendation"]
    return "student" if told and point["label"] == told["label"] else "teacher"


def speeds(document: Document) -> Chart:
    title, rows = "Tokens per second", measured(document)
    drawn = [
        charts.Bar(p["label"], p["tokens_per_s"]["values"], kind_of(document, p), spread(p["tokens_per_s"], "{:,.0f}"))
        for p in rows
    ]
    legend = (("student", "recommended"), ("teacher", "other ways"))
    svg = charts.bars("plan-speed", title, "tokens/s", [("", drawn)])
    return Chart(title, svg, table(document), legend, "higher is better")


def memory(document: Document) -> Chart | Note:
    there = document["machine"]["memory_bytes"]
    rows = [p for p in measured(document) if p["peak_memory_bytes"]]
    if not rows:
        return Note("Memory: not measured: this device does not tell a process's peak", "missing")
    title = "Peak memory of a process"
    drawn = []
    for p in rows:
        peaks = p["peak_memory_bytes"]
        shown = units.byte_count(max(peaks)) + (f" in each of {len(peaks)}" if len(peaks) > 1 else "")
        drawn.append(charts.Bar(p["label"], [float(b) for b in peaks], kind_of(document, p), shown))
    cells = tuple((p["label"], units.byte_count(max(p["peak_memory_bytes"])), units.byte_count(p["estimated_bytes"]))
                  for p in rows)  # fmt: skip
    listed = Table(title, ("Way to train", "Peak, measured", "Estimate before"), cells, frozenset({1, 2}))
    hint = f"of {units.byte_count(there)}" if there else ""
    return Chart(title, charts.bars("plan-memory", title, "bytes", [("", drawn)]), listed, (), hint)


def table(document: Document) -> Table:
    priced = document["price"] is not None
    columns = ["Way to train", "Tokens/s", "Peak memory", "Whole training (an estimate)"]
    if priced:
        currency = document["price"]["currency"]
        columns += [f"{currency} for all of it", f"Tokens for one {currency}"]
    rows = measured(document)
    marked = frozenset(i for i, p in enumerate(rows) if kind_of(document, p) == "student")
    cells = tuple(tuple(line(document, p)) for p in rows)
    return Table("Ways to train, measured", tuple(columns), cells, frozenset(range(1, len(columns))), marked)


def line(document: Document, point: Any) -> list[str]:
    peaks = point["peak_memory_bytes"]
    cells = [
        point["label"] + (" (the recipe as it is)" if point["own"] else ""),
        spread(point["tokens_per_s"], "{:,.0f}"),
        units.byte_count(max(peaks)) if peaks else NONE,
        units.seconds(point["training_s"]["estimate"]),
    ]
    if document["price"] is not None:
        cells += [money(document, point).rpartition(" ")[0], units.count(point["tokens_per_unit"])]
    return cells


def money(document: Document, point: Any) -> str:
    return f"{point['cost']:.3g} {document['price']['currency']}"


def spread(found: Mapping[str, Any], form: str) -> str:
    said = form.format(found["estimate"])
    return said if found["low"] is None else f"{said} ({form.format(found['low'])} to {form.format(found['high'])})"


def left_out(document: Document) -> list[Block]:
    rows = tuple((p["label"], p["state"], p["why"]) for p in document["points"] if p["state"] != MEASURED)
    return [Table("Not measured", ("Way to train", "What became of it", "Why"), rows)] if rows else []


def method(document: Document) -> Section:
    m, machine = document["measured"], document["machine"]
    blocks: list[Block] = [
        Note(
            f"Each way was trained in {m['repeats']} fresh processes, {m['steps']} timed steps in each after "
            f"{m['warmups']} that do not count, in rounds over all ways, each round in an order of its own. Figures "
            "are means over processes with 95 % intervals (Student's t); what differs by less is called no difference."
        ),
        Note(
            "Judging, checkpoints and scales that are fitted now and then are left out. The first steps, into which "
            "compilation falls, are counted into the time of the whole training as they were."
        ),
        Note(f"{machine['name']}, {machine['dtype']}, torch {machine['versions']['torch']}."),
    ]
    if document["price"]:
        price = document["price"]
        blocks.append(Note(f"{price['per_hour']:g} {price['currency']} an hour, as the given file says."))
    else:
        blocks.append(Note(f"Cost: not given: {document['price_missing']}", "missing"))
    return Section("method", "How it was measured", blocks)


def lines(document: Document) -> list[str]:
    """For a terminal: the table, what was left out, the recommendation."""
    listed = table(document)
    out = aligned([listed.columns, *listed.rows])
    out += [f"{p['label']}: {p['state']}: {p['why']}" for p in document["points"] if p["state"] != MEASURED]
    if document["price"] is None:
        out.append(f"cost: {document['price_missing']}")
    told = document["recommendation"]
    out += ["", told["sentence"] if told else "Nothing that a recipe can ask for was measured."]
    if told and told["command"]:
        out.append("  " + told["command"])
    return out


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip() for row in rows]
