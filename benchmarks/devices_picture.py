"""One picture for the README from the record of devices: teacher float32 beside student, everything a device feels."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

from benchmarks import record
from benchmarks.devices import FIGURES, newest_pair
from edgeslm import fleet
from edgeslm.report.fleet_deltas import Delta, label
from edgeslm.report.fleet_tables import figure
from edgeslm.statistics import Interval, interval

OUT = record.RESULTS / "devices.svg"
WIDTH, PANEL, BAR, LEFT, MARGIN = 900, 104, 16, 76, 24
SHOWN = 102  # pixels for the text after a bar
STYLE = (
    "text{font:13px system-ui,'Segoe UI',Roboto,sans-serif;fill:#222}.h{font-weight:600}.q{fill:#667;font-size:12px}"
    ".f{font-weight:600;fill:#0b7a75}.t{fill:#b6c2cf}.s{fill:#0b7a75}.track{fill:#8882;}.w{stroke:#222;stroke-width:1.4}"
    ".e{fill-opacity:.45;stroke:#555;stroke-dasharray:4 3}"
    "@media(prefers-color-scheme:dark){text{fill:#e6e6e6}.q{fill:#9aa}.f{fill:#4cc9bf}.t{fill:#5d6873}.s{fill:#3fb8af}"
    ".w{stroke:#eee}.e{stroke:#aaa}}"
)


def draw(records: list[dict[str, Any]]) -> str:
    """Raises SystemExit when no line has a teacher and a student."""
    newest = newest_pair(records)
    if newest is None:
        raise SystemExit("no line of the record has a teacher and a student: run python -m benchmarks.devices first")
    entry, found = newest
    rows = {row.artifact: row for row in fleet.gather([fleet.document(entry, "")]).rows}
    marks = []
    for place, (metric, name, _) in enumerate(FIGURES):
        x, y = MARGIN / 2 + (place % 2) * WIDTH / 2, 18 + (place // 2) * PANEL
        marks += _panel(found.get(metric), name, rows, x, y)
    marks += _about(next(iter(found.values())), rows, MARGIN / 2 + WIDTH / 2, 18 + (len(FIGURES) // 2) * PANEL)
    height = 18 + -(-(len(FIGURES) + 1) // 2) * PANEL - 6
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
        f"<title>{escape(_title(found))}</title><style>{STYLE}</style>{''.join(marks)}</svg>\n"
    )


def _title(found: dict[str, Delta]) -> str:
    first = next(iter(found.values()))
    said = "; ".join(f"{name}: {found[metric].words}" for metric, name, _ in FIGURES if metric in found)
    return f"{first.right} beside {first.left} on {first.device}. {said}"


def _panel(d: Delta | None, name: str, rows: dict[str, fleet.Row], x: float, y: float) -> list[str]:
    """Two bars from zero with their intervals, and what the student is."""
    if d is None:
        why = "not measured: no power sensor can be read here" if name.startswith("energy") else "not measured"
        return [_text(x, y + 12, name, "h"), _text(x, y + 34, why, "q")]
    title = name if d.at is None or isinstance(d.at, str) else label(d.metric, d.at).replace("time to ", "")
    mark = "" if d.kind == "measured" else f", {d.kind}"
    marks = [
        _text(x, y + 12, title + mark, "h"),
        _text(x + WIDTH / 2 - MARGIN, y + 12, d.words.removeprefix("undecided: "), "f", "end"),
    ]
    sides = ((d.left, d.left_value, "t"), (d.right, d.right_value, "s"))
    known = [_interval(rows, who, d) for who, *_ in sides]
    top = max([d.left_value, d.right_value, *(k.high for k in known if k)]) or 1.0
    full = WIDTH / 2 - MARGIN - LEFT - SHOWN
    for i, ((who, value, kind), between) in enumerate(zip(sides, known, strict=True)):
        at, start, long = y + 24 + i * (BAR + 10), x + LEFT, max(2.0, value / top * full)
        hatched = "" if d.kind == "measured" else " e"
        marks.append(_text(x, at + 12.5, who.partition("-")[0].removesuffix(".gguf"), "q"))
        marks += [_rect(start, at, full, "track"), _rect(start, at, long, kind + hatched)]
        if between:
            low, high = (start + v / top * full for v in (between.low, between.high))
            middle = at + BAR / 2
            marks.append(_line(low, middle, high, middle))
            marks += [_line(v, middle - 3, v, middle + 3) for v in (low, high)]
        marks.append(_text(start + full + 8, at + 12.5, figure(value, d.unit), "v"))
    return marks


def _interval(rows: dict[str, fleet.Row], who: str, d: Delta) -> Interval | None:
    m = rows[who].get(d.metric, d.at)
    return interval(m) if m is not None else None


def _about(d: Delta, rows: dict[str, fleet.Row], x: float, y: float) -> list[str]:
    """Where this was measured, in the last place."""
    row = rows[d.right]
    runs = row.get("decode")
    processes = runs.extra.get("processes") if runs else None
    lines = [
        (f"{d.left} beside {d.right}", "h"),
        (f"{d.device}, {d.threads} thread{'s' if d.threads > 1 else ''}", "q"),
        (d.runtime, "q"),
        (f"whiskers: 95 % intervals over {processes} fresh processes" if processes else "", "q"),
    ]
    return [_text(x, y + 12 + 20 * i, words, kind) for i, (words, kind) in enumerate(lines) if words]


def _rect(x: float, y: float, width: float, kind: str) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{BAR}" rx="3"/>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="w" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def main() -> None:
    OUT.write_text(draw(record.read("devices")), encoding="utf-8")


if __name__ == "__main__":
    main()
