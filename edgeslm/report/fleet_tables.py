"""A fleet's per-device tables: speed, memory, energy. A cell is a median with its interval; one that no sensor gave
says so, a run that was disturbed has a dagger."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal

from edgeslm.fleet import Fleet, Row, at_of, usual
from edgeslm.measurement import Measurement, percentile
from edgeslm.meters.integrate import ABOVE_IDLE
from edgeslm.report.blocks import ABSENT, Block, Note, Table, missing, role
from edgeslm.report.compare import threads
from edgeslm.report.performance import KINDS_OF_MEMORY
from edgeslm.report.svg import unit_scale
from edgeslm.statistics import interval
from edgeslm.units import byte_count, number

DAGGER = "\u2020"
SPEEDS = (
    ("decode", "Decode at", "tokens/s"),
    ("prefill", "Prefill of", "tokens/s"),
    ("time_to_first_token", "First token of", ""),
)
MEMORY = (
    ("rss_anon_peak", "RssAnon"),
    ("rss_file_peak", "RssFile"),
    ("pss_peak", "PSS"),
    ("vm_hwm", "VmHWM"),
    ("swap_peak", "Swap"),
    ("kv_cache", "KV cache, seen"),
)
ENERGY = (
    ("energy_per_token", "A token"),
    ("energy_per_answer", "An answer"),
    ("tokens_per_joule", "Tokens per joule"),
    ("idle_power", "Waiting"),
    ("battery_per_hour", "Battery"),
)
HEADS = {
    ("energy_per_token", "decode"): "A decoded token",
    ("energy_per_token", "prefill"): "A prompt token",
    ("tokens_per_joule", "decode"): "Tokens per joule",
}
FAR = 0.3  # an interval that reaches further from its middle is shown by its ends
NEAR = 0.0005  # one that reaches less far is not shown
QUANTILES = (("Median", 50), ("p90", 90), ("p99", 99), ("Slowest", 100))
Column = tuple[str, Callable[[Row], str]]


def shown(m: Measurement | None, unit: bool = True) -> str:
    """A median and how far its interval reaches, `61.2 tokens/s +- 1.9 %`; both ends where that is far. `unit` is False
    where the column's head says it."""
    if m is None:
        return ABSENT
    said, between = figure(m.median, m.unit), interval(m)
    said = said if unit else said.removesuffix(f" {m.unit}")
    if between is not None and between.estimate > 0:
        reach = max(between.high / between.estimate - 1, 1 - between.low / between.estimate)
        ends = f"{figure(between.low, m.unit)} to {figure(between.high, m.unit)}"
        if reach >= FAR:
            said += f" ({ends})"
        elif reach >= NEAR:
            said += f" \u00b1 {100 * reach:.1f} %"
    return marked(said, m)


def figure(value: float, unit: str) -> str:
    """As a person reads it, with the units that devices need besides."""
    if unit == "bytes/s":
        return f"{byte_count(value)}/s"
    if unit == "J/token":
        scale, name = unit_scale(abs(value), unit)
        return number(value / scale, name)
    return f"{value / 1e9:.3g} G{unit}" if unit.endswith("/s") and value >= 1e8 else number(value, unit)


def marked(said: str, m: Measurement) -> str:
    return said if m.kind == "measured" else f"{said} ({m.kind})"


def named(row: Row, rows: Iterable[Row] = ()) -> str:
    """The file, with its source where the same one is there twice, and a dagger where its run was disturbed."""
    twice = [r for r in rows if (r.artifact, r.runtime, r.threads) == (row.artifact, row.runtime, row.threads)]
    name = f"{row.artifact} ({row.source})" if len(twice) > 1 else row.artifact
    return f"{name} {DAGGER}" if row.doubts else name


def ran(row: Row) -> str:
    return f"{row.runtime}, {threads(row.threads)}" if row.runtime else ABSENT


def table(caption: str, rows: Sequence[Row], columns: Sequence[Column]) -> Table:
    """One line a row: its file, what ran it (in the caption where that is the same for all), and the columns."""
    runs = dict.fromkeys(ran(row) for row in rows if row.runtime)
    several = len(runs) > 1
    lines = tuple(
        (named(row, rows), *((ran(row),) if several else ()), *(cell(row) for _, cell in columns)) for row in rows
    )
    roles = {role(row.artifact) for row in rows}
    mark = frozenset(i for i, row in enumerate(rows) if len(roles) > 1 and role(row.artifact) == "student")
    heads = ("File", *(("Runtime",) if several else ()), *(head for head, _ in columns))
    caption = f"{caption} ({next(iter(runs))})" if len(runs) == 1 else caption
    return Table(caption, heads, lines, frozenset(range(1 + several, len(heads))), mark)


def lengths(rows: Iterable[Row], metric: str) -> list[int]:
    return sorted({at for row in rows for m in row.all(metric) if isinstance(at := at_of(m), int)})


def speed(fleet: Fleet) -> list[Block]:
    blocks: list[Block] = []
    for device, name in fleet.names().items():
        rows = fleet.of(device)
        columns: list[Column] = []
        for metric, head, unit in SPEEDS:
            columns += [(", ".join(part for part in (f"{head} {at}", unit) if part), _figure(metric, at, not unit))
                        for at in lengths(rows, metric)]  # fmt: skip
        columns.append(("Load", _figure("load")))
        blocks += [table(f"Speed on {name}", rows, columns), *why_not(rows), *doubts(rows, name)]
    return blocks


def kinds_of_memory() -> Table:
    lines = tuple((words.split(" ")[0], words.partition(" ")[2].removeprefix("is ")) for words in KINDS_OF_MEMORY)
    return Table("What is what", ("Kind", "What it is"), lines, half=True)


def _figure(metric: str, at: int | str | None = None, unit: bool = True) -> Callable[[Row], str]:
    return lambda row: shown(row.get(metric, at), unit)


def doubts(rows: Sequence[Row], device: str) -> list[Note]:
    """What disturbed runs, each once with the files it happened to."""
    said: dict[str, list[str]] = {}
    for row in rows:
        for doubt in row.doubts:
            said.setdefault(doubt, []).append(named(row, rows).removesuffix(f" {DAGGER}"))
    return [Note(f"{DAGGER} on {device}: {doubt} ({', '.join(files)}).", "estimate") for doubt, files in said.items()]


def why_not(rows: Iterable[Row]) -> list[Note]:
    """A file that could not be measured says why where its figures would be."""
    return [missing(row.artifact, row.why) for row in rows if row.why]


def latency(fleet: Fleet) -> list[Block]:
    """How evenly tokens come at the usual depth: a reader waits for the slow ones."""
    blocks: list[Block] = []
    at = usual(fleet.rows, "token_latency")
    for device, name in fleet.names().items():
        rows = [row for row in fleet.of(device) if row.get("token_latency", at)]
        columns = [(head, _quantile(at, q)) for head, q in QUANTILES]
        if rows:
            title = f"Time of each token at {at} on {name}"
            blocks.append(table(title, rows, [*columns, ("Tokens", lambda row: f"{_latency(row, at).n:,}")]))
    return blocks


def _latency(row: Row, at: int | str | None) -> Measurement:
    return next(m for m in row.all("token_latency") if at_of(m) == at)


def _quantile(at: int | str | None, q: float) -> Callable[[Row], str]:
    return lambda row: number(percentile(_latency(row, at).values, q), _latency(row, at).unit)


def memory(fleet: Fleet) -> list[Block]:
    blocks: list[Block] = []
    for device, name in fleet.names().items():
        rows = [row for row in fleet.of(device) if any(row.get(metric) for metric, _ in MEMORY)]
        if not rows:
            blocks.append(missing(f"Memory on {name}", "the system there does not tell a process's memory"))
            continue
        columns: list[Column] = [(head, _figure(metric)) for metric, head in MEMORY]
        blocks.append(table(f"Peak memory on {name}", rows, [*columns, ("KV cache, modelled", computed_cache)]))
        blocks += [
            Note(f"{row.artifact} on {name}: {m.note}.") for row in rows for metric, _ in MEMORY
            for m in row.all(metric) if m.note
        ]  # fmt: skip
    return blocks


def computed_cache(row: Row) -> str:
    m = row.get("kv_cache")
    return number(m.extra["computed_bytes"], "bytes") if m and m.extra.get("computed_bytes") else ABSENT


def energy(fleet: Fleet) -> list[Block]:
    """A table for what a figure covers and how it came about: a rail's joules and a whole phone's are no alternatives,
    nor are measured and estimated ones."""
    blocks: list[Block] = []
    for device, name in fleet.names().items():
        rows = fleet.of(device)
        found = {m.metric: m for row in rows for m in row.measurements if m.metric in dict(ENERGY)}
        if not found:
            blocks.append(missing(f"Energy on {name}", "no sensor was read and no estimate asked for"))
        for covers, kind in dict.fromkeys(_source(m) for row in rows for m in row.measurements if m.metric in found):
            only = [replace(row, measurements=tuple(m for m in row.measurements if _source(m) == (covers, kind)))
                    for row in rows]  # fmt: skip
            blocks += _energy_of(f"Energy on {name}: {covers}, {kind}", [row for row in only if row.measurements])
    return blocks


def _source(m: Measurement) -> tuple[str, str]:
    return m.covers.removesuffix(ABOVE_IDLE), m.kind


def _energy_of(title: str, rows: Sequence[Row]) -> list[Block]:
    names = dict(ENERGY)
    every = [m for metric in names for row in rows for m in row.all(metric)]
    columns: list[Column] = []
    for metric, at, covers in dict.fromkeys((m.metric, at_of(m), m.covers) for m in every):
        head = names[metric] if at is None else HEADS.get((metric, str(at)), f"{names[metric]} ({at})")
        columns.append((head + (ABOVE_IDLE if covers.endswith(ABOVE_IDLE) else ""), _energy(metric, at, covers)))
    notes: dict[str, dict[str, None]] = {}
    for m in every:
        if m.note:
            notes.setdefault(f"{m.kind.capitalize()}: {m.note}", {})[m.where.artifact] = None
    style: Literal["plain", "estimate"] = "plain" if every[0].kind == "measured" else "estimate"
    said = [Note(f"{note} ({', '.join(files)}).", style) for note, files in notes.items()]
    return [table(title, rows, columns), *said]


def _energy(metric: str, at: int | str | None, covers: str) -> Callable[[Row], str]:
    """The caption says how all of a table came about, so its cells do not."""

    def cell(row: Row) -> str:
        found = [m for m in row.all(metric) if (at_of(m), m.covers) == (at, covers)]
        return shown(found[0]).removesuffix(f" ({found[0].kind})") if found else ABSENT

    return cell
