"""The sub-command `report`: a run's report anew, deltas between two, a page for a fleet, and the shared record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from edgeslm.errors import DataError

RECORD = Path("benchmarks/results/devices.jsonl")
FLEET = Path("runs/fleet")


def report(
    paths: Sequence[Path], compare: bool, fleet: bool, add: bool, to: Path | None, out: Path | None, as_json: bool
) -> str:
    """What to print. At most one of `compare`, `fleet` and `add`; none renders run folders. Raises DataError."""
    wanted = [name for name, on in (("--compare", compare), ("--fleet", fleet), ("--add", add)) if on]
    if len(wanted) > 1:
        raise DataError(f"{' and '.join(wanted)} are different things to do; give one of them")
    if to is not None and not add:
        raise DataError("--to names the record that --add appends to; give it together with --add")
    if out is not None and not fleet:
        raise DataError("--out is the folder of a fleet's page; give it together with --fleet")
    if compare:
        return compared(paths, as_json)
    if fleet:
        return fleet_page(paths, out or FLEET, as_json)
    return added(paths, to, as_json) if add else rendered(paths, as_json)


def rendered(folders: Sequence[Path], as_json: bool = False) -> str:
    """report.html, report.md and results.json of each run folder, written anew."""
    from edgeslm.report import render

    made = [render(folder) for folder in folders]
    return _files([path for files in made for path in (files.html, files.markdown, files.json)], as_json)


def compared(paths: Sequence[Path], as_json: bool = False) -> str:
    """Deltas from the first to the second. Raises DataError, UnlikeRuns where nothing may be compared."""
    from edgeslm import fleet
    from edgeslm.report import fleet_deltas

    if len(paths) != 2:
        raise DataError(f"--compare takes two reports, run folders or bench documents, not {len(paths)}")
    found = fleet_deltas.compare(*(fleet.read(path) for path in paths))
    if not as_json:
        return fleet_deltas.text(found)
    document = {"schema": 1, "deltas": [d.to_json() for d in found.deltas], "not_compared": list(found.refused)}
    return json.dumps(document, indent=1, allow_nan=False)


def fleet_page(paths: Sequence[Path], out: Path, as_json: bool = False) -> str:
    """fleet.html, fleet.json and fleet.csv in `out`."""
    from edgeslm import fleet
    from edgeslm.report import fleet as page

    gathered = fleet.gather([source for path in paths for source in fleet.read(path)])
    if not gathered.rows and not gathered.stand_ins:
        raise DataError(
            f"no figure of any device in {', '.join(map(str, paths))}; give bench documents (`edgeslm bench --out`) "
            "or run folders with a finished benchmark"
        )
    files = page.render(gathered, out)
    return _files([files.html, files.json, files.csv], as_json)


def added(paths: Sequence[Path], to: Path | None, as_json: bool = False) -> str:
    """Check bench documents and append them to the record."""
    from edgeslm import device_record, privacy

    if to is None:
        if not RECORD.is_file():
            raise DataError(f"there is no {RECORD} here to add to; say with --to which record to append to")
        to = RECORD
    said = device_record.add(paths, to, privacy.names_here())
    return json.dumps(said, indent=1) if as_json else "\n".join(said)


def _files(paths: Sequence[Path], as_json: bool) -> str:
    names = [str(path) for path in paths]
    return json.dumps(names, indent=1) if as_json else "\n".join(names)
