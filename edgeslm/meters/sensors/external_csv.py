"""A meter beside the device: a CSV with timestamps and watts, or volts and amperes.

The first line names the columns. Time is seconds since 1970 (UTC) or ISO 8601 with a time zone; watts may be called
`watts`, `power`, `power_w` or `w`, volts `volts`, `voltage` or `v`, amperes `amps`, `current`, `current_a` or `a`. The
meter's clock and the device's wall clock must agree, or `meter_ahead_s` says by how much the meter's is ahead.
"""

from __future__ import annotations

import csv
from datetime import datetime
from pathlib import Path

from edgeslm.errors import DataError
from edgeslm.meters.sensors.base import Sample, Sensor, Texts, number

NAMES = {
    "time": ("time", "timestamp", "time_s", "timestamp_s", "date"),
    "watts": ("watts", "watt", "power", "power_w", "w"),
    "volts": ("volts", "voltage", "voltage_v", "v"),
    "amps": ("amps", "current", "current_a", "a"),
}
COVERS = "whole device at its supply (external meter)"
MOST_W = 5000.0


def look(root: Path) -> tuple[list[Sensor], str]:
    return [], "an external meter is not found by itself; give its CSV"


def opened(
    path: Path, wall_minus_monotonic_s: float, *, meter_ahead_s: float = 0.0, covers: str = COVERS
) -> tuple[Sensor, list[list[object]]]:
    """-> (sensor, samples [[monotonic s of the device, [text ...]], ...]). Raises DataError for a file that is not such
    a CSV. Whether it covers the run is decided where the windows are known."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: the meter's CSV cannot be read ({error}); give a text file") from error
    delimiter = next((mark for mark in (";", "\t") if lines and mark in lines[0]), ",")
    try:
        rows = [row for row in csv.reader(lines, delimiter=delimiter) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{path.name}: the meter's CSV cannot be read ({error}); give a text file") from error
    columns = _columns(path.name, rows)
    shift = wall_minus_monotonic_s + meter_ahead_s
    samples: list[list[object]] = []
    for count, row in enumerate(rows[1:], 2):
        cells = [row[at].strip() if at < len(row) else "" for at in columns.values()]
        at_s = _seconds(path.name, count, cells[0]) - shift
        if samples and at_s <= samples[-1][0]:  # type: ignore[operator]
            raise DataError(f"{path.name}: row {count} is not later than the row before it; sort the rows by time")
        samples.append([at_s, cells[1:]])
    if len(samples) < 2:
        raise DataError(f"{path.name}: a meter's CSV needs at least two rows of readings")
    read = read_watts if "watts" in columns else read_volts_amps
    return Sensor("external_csv", covers, read, most_w=MOST_W, note="read from the meter's CSV"), samples


def _columns(name: str, rows: list[list[str]]) -> dict[str, int]:
    """What -> place, time first. Raises DataError unless there is a time and a power."""
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    places: dict[str, int] = {}
    for what, names in NAMES.items():
        found = [at for at, cell in enumerate(header) if cell in names]
        if len(found) > 1:
            raise DataError(f"{name}: {len(found)} columns could be the {what}; leave one of them")
        if found:
            places[what] = found[0]
    if "time" not in places or not ("watts" in places or {"volts", "amps"} <= set(places)):
        raise DataError(f"{name}: the first line must name a column 'timestamp' and 'watts', or 'volts' and 'amps'")
    wanted = ("time", "watts") if "watts" in places else ("time", "volts", "amps")
    return {what: places[what] for what in wanted}


def _seconds(name: str, row: int, cell: str) -> float:
    value = number(cell)
    if value is not None:
        return value
    try:
        moment = datetime.fromisoformat(cell)
    except ValueError:
        raise DataError(
            f"{name}: row {row} has the time '{cell}'; write seconds since 1970 or ISO 8601 with a time zone"
        ) from None
    if moment.tzinfo is None:
        raise DataError(f"{name}: row {row} has a time without a time zone ('{cell}'); end it with Z or an offset")
    return moment.timestamp()


def read_watts(texts: Texts) -> Sample | None:
    watts = number(texts[0])
    return None if watts is None else Sample(watts=watts, raw={"watts": texts[0] or ""})


def read_volts_amps(texts: Texts) -> Sample | None:
    volts, amps = number(texts[0]), number(texts[1])
    if volts is None or amps is None:
        return None
    return Sample(watts=volts * amps, volts=volts, amps=amps, raw={"volts": texts[0] or "", "amps": texts[1] or ""})
