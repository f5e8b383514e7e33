"""Bars of all devices on one scale: speed with its bounds, memory by kind."""

from __future__ import annotations

from edgeslm.fleet import Fleet, Row, at_of, usual
from edgeslm.report.blocks import Chart, Table, role
from edgeslm.report.charts import Bar, Stack, bars, stacks
from edgeslm.report.fleet_deltas import label
from edgeslm.report.fleet_tables import figure, named, ran

PARTS = (("anon", "rss_anon_peak", "RssAnon"), ("file", "rss_file_peak", "RssFile"))


def speed_charts(fleet: Fleet) -> list[Chart]:
    """Bars of all devices on one scale: raw runs as dots, whiskers from the 10th to the 90th percentile."""
    drawn = []
    for metric in ("decode", "prefill", "time_to_first_token", "load"):
        at = usual(fleet.rows, metric)
        groups, lines = [], []
        for device, name in fleet.names().items():
            found = [(row, m) for row in fleet.of(device) if (m := row.get(metric, at)) is not None]
            here = []
            for row, m in found:
                bound = row.get(f"{metric}_bound", at)
                kind = role(row.artifact) + ("" if m.kind == "measured" else " estimated")
                here.append(Bar(named(row, fleet.of(device)), m.values, kind, figure(m.median, m.unit),
                                bound.median if bound else None))  # fmt: skip
                lines.append((named(row, fleet.of(device)), name, ran(row), figure(m.median, m.unit), m.kind))
            groups += [(name, here)] if here else []
        if not groups:
            continue
        unit, better = next((m.unit, m.better) for row in fleet.rows for m in row.all(metric))
        title = label(metric, at)
        title = title[:1].upper() + title[1:]
        legend = [("student", "student"), ("teacher", "teacher")]
        legend += [("bound", "bound, modelled")] if any(b.bound for _, here in groups for b in here) else []
        table = Table(title, ("File", "Device", "Runtime", "Median", "Kind"), tuple(lines), frozenset({3}))
        drawn.append(Chart(title, bars(f"fleet-{metric}", title, unit, groups), table, tuple(legend),
                           f"{better} is better"))  # fmt: skip
    return drawn


def memory_charts(fleet: Fleet) -> list[Chart]:
    """What a process holds of its own, and what of the file is mapped; the fairest sum of both is marked."""
    groups, lines = [], []
    for device, name in fleet.names().items():
        here = []
        for row in (r for r in fleet.of(device) if r.get("rss_anon_peak") and r.get("rss_file_peak")):
            here.append(_stack(row, named(row, fleet.of(device))))
            lines.append((named(row, fleet.of(device)), name, here[-1].shown))
        groups += [(name, here)] if here else []
    if not groups:
        return []
    title = "Peak memory"
    legend = (("anon", "RssAnon"), ("file", "RssFile"), ("mark", "peak of PSS, no part of the sum"))
    table = Table(title, ("File", "Device", "Peak"), tuple(lines), frozenset({2}))
    return [Chart(title, stacks("fleet-memory", title, "bytes", groups), table, legend, "lower is better")]


def _stack(row: Row, name: str) -> Stack:
    found = [(kind, m.median, f"{word} {figure(m.median, 'bytes')}") for kind, metric, word in PARTS
             if (m := row.get(metric)) is not None]  # fmt: skip
    pss = row.get("pss_peak")
    shown = f"PSS {figure(pss.median, 'bytes')}" if pss else " + ".join(words for *_, words in found)
    return Stack(name, found, shown, pss.median if pss else None)


def energy_charts(fleet: Fleet) -> list[Chart]:
    """Of a decoded and of a prompt token; a group is one device and one coverage, hatched where no sensor gave it."""
    drawn = []
    for phase, title in (("decode", "Energy of a decoded token"), ("prefill", "Energy of a prompt token")):
        groups: dict[str, list[Bar]] = {}
        lines = []
        for device, name in fleet.names().items():
            for row in fleet.of(device):
                for m in (m for m in row.all("energy_per_token") if at_of(m) == phase):
                    kind = role(row.artifact) + ("" if m.kind == "measured" else " estimated")
                    kinds = "" if m.kind == "measured" else f", {m.kind}"
                    bar = Bar(named(row, fleet.of(device)), m.values, kind, figure(m.median, m.unit))
                    groups.setdefault(f"{name.partition(',')[0]}: {m.covers}{kinds}", []).append(bar)
                    lines.append((bar.label, name, m.covers, bar.shown, m.kind))
        if not groups:
            continue
        legend = [("student", "student"), ("teacher", "teacher")]
        legend += [("estimated", "estimated or modelled")] if any(line[-1] != "measured" for line in lines) else []
        table = Table(title, ("File", "Device", "Covers", "Median", "Kind"), tuple(lines), frozenset({3}))
        svg = bars(f"fleet-energy-{phase}", title, "J/token", list(groups.items()))
        drawn.append(Chart(title, svg, table, tuple(legend), "lower is better, within one group"))
    return drawn
