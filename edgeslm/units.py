"""SI inside; formatting only where a person reads. Plain data, no imports beyond the standard library."""

import re

SECOND_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
BYTE_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
COUNT_UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def _scaled(value: float, table: tuple[tuple[float, str], ...], digits: int) -> str:
    scale, unit = next(((s, u) for s, u in table if abs(value) >= s), table[-1])
    return f"{value / scale:.{digits}f} {unit}".strip()


def seconds(value: float) -> str:
    """`0.0123` -> `12.3 ms`, `1.1234` -> `1.12 s`; above two minutes `3 min 20 s`, above two hours `40 h 2 min`."""
    if value == 0:
        return "0 s"
    if value >= 7200:
        return f"{int(value // 3600)} h {int(value % 3600 // 60)} min"
    if value >= 120:
        return f"{int(value // 60)} min {int(value % 60)} s"
    scale = next((s for s, _ in SECOND_UNITS if abs(value) >= s), SECOND_UNITS[-1][0])
    return _scaled(value, SECOND_UNITS, max(0, 3 - len(str(int(abs(value) / scale)))))


def byte_count(value: float) -> str:
    """Decimal units as storage vendors and model hubs use them: `98_123_456` -> `98.1 MB`."""
    return _scaled(value, BYTE_UNITS, 1)


def count(value: float) -> str:
    """Parameters and tokens: `134_515_008` -> `134.5 M`."""
    return _scaled(value, COUNT_UNITS, 1 if value >= 1e3 else 0)


def number(value: float, unit: str) -> str:
    """A measurement's value as a person reads it: by unit, three significant digits where no rule applies."""
    if unit == "s":
        return seconds(value)
    if unit == "bytes":
        return byte_count(value)
    if abs(value) >= 1000:
        return f"{value:,.0f} {unit if unit != '1' else ''}".strip()
    return f"{value:.3g} {unit}".strip() if unit != "1" else f"{value:.4g}"


def parse_bytes(text: str | int | None) -> int | None:
    """`60MB`, `1.5 GB` or a plain number -> bytes, decimal units; None stays None. Raises ValueError."""
    if text is None or (isinstance(text, int) and not isinstance(text, bool) and text > 0):
        return text
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(GB|MB|kB|B)?\s*", str(text))
    if found is None or float(found[1]) <= 0:
        raise ValueError("a size is a number with a unit, such as 60MB or 1.5GB")
    scale = next(s for s, unit in BYTE_UNITS if unit == (found[2] or "B"))
    return round(float(found[1]) * scale)
