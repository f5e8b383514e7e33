"""The ceilings of a device: published ones of a profile (edgeslm.profiles), or measured ones out of a document that
`edgeslm bench --json` left. Where files were timed too, the share of its bound that a runtime reached is known."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeslm.cost import Ceilings, Efficiency
from edgeslm.errors import DataError

MEASURED = {
    "memory_bandwidth": "read_bytes_per_s",
    "compute": "flops_f32_per_s",
    "compute_int8": "ops_int8_per_s",
}  # metric of a bench document -> field of Ceilings


@dataclass(frozen=True)
class Known:
    """`grounds`: rate -> what its ceiling stands on, in words."""

    title: str
    ceilings: Ceilings
    grounds: dict[str, str]
    shares: dict[str, Efficiency] = field(default_factory=dict)


def look_up(name: str) -> Known:
    """A profile's name, or a bench document. Raises DataError."""
    path = Path(name)
    if path.suffix == ".json" or path.is_file():
        return _measured(path)
    from edgeslm.profiles.load import load

    profile = load(name)
    return Known(profile.title, profile.ceilings(), profile.grounds())


def _measured(path: Path) -> Known:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["measurements"]
        facts: dict[str, Any] = next((row["where"]["device"] for row in rows), {})
        values = {row["metric"]: max(row["values"]) for row in rows if row["metric"] in MEASURED and row["values"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is no document of 'edgeslm bench --json' ({type(error).__name__})") from error
    if not values:
        raise DataError(f"{path}: holds no measured ceilings; run 'edgeslm bench' of any file on that device again")
    found = {MEASURED[metric]: float(value) for metric, value in values.items()}
    title = str(facts.get("name") or facts.get("id") or path.stem)
    grounds = dict.fromkeys(found, f"measured on {title} ({path.name})")
    return Known(title, Ceilings(**found), grounds, _shares(rows, path.name))


def _shares(rows: list[Mapping[str, Any]], source: str) -> dict[str, Efficiency]:
    """What part of its own bound each timed file reached, the median of all."""
    shares: dict[str, Efficiency] = {}
    for metric in ("decode", "prefill"):
        bounds = {_key(row): statistics.median(row["values"]) for row in rows if row["metric"] == f"{metric}_bound"}
        reached = [
            statistics.median(row["values"]) / bounds[_key(row)]
            for row in rows
            if row["metric"] == metric and bounds.get(_key(row))
        ]
        if reached:
            shares[metric] = Efficiency(statistics.median(reached), f"{len(reached)} timings of {source}")
    return shares


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    extra = row.get("extra") or {}
    return row["where"]["artifact"], extra.get("depth"), extra.get("prompt_tokens")
