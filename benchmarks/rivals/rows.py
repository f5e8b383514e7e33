"""All rivals of one float student: made, scored through the runtime that runs them, recorded, deleted, one by one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.rivals import RIVALS
from benchmarks.rivals.base import Candidate, Options, Rival, Student, artifact, described
from benchmarks.rivals.lattice import inherited
from edgeslm.artifact import Artifact
from edgeslm.devices.local import LocalDevice
from edgeslm.errors import EdgeSLMError
from edgeslm.evaluate.closeness import evaluate
from edgeslm.evaluate.execute import without_paths
from edgeslm.measurement import Measurement

Row = dict[str, Any]


def chosen(
    plain: list[Candidate], budgets: Collection[float], reach: float, by_default: bool = True
) -> list[Candidate]:
    """Those worth making: whose weight is not known beforehand, which stand as the tool makes them by default (where
    `by_default` says so; else none that uses its source's grid), or which weigh at most a budget and at least that
    less `reach` bits. Of equal files (same types, same importance) the first; of what is refused the plain form, for
    its sentence."""
    kept: list[Candidate] = []
    seen: set[Any] = set()
    for candidate in plain:
        settings = candidate.settings
        if "bits" not in settings:
            kept.append(candidate)
            continue
        default = settings["embedding"] is None and not settings["types"] and not settings["pure"]
        bits = settings["bits"]
        near = bits is not None and any(b - reach <= bits <= b for b in budgets)
        near = near and (by_default or not settings.get("own_grid"))
        key = (settings["weighted"], settings["identity"]) if bits is not None else candidate.name
        if key not in seen and (near or (by_default and default)):
            seen.add(key)
            kept.append(candidate)
    return kept


def rival_rows(
    student: Student,
    windows: list[list[int]],
    workdir: Path,
    options: Options,
    save: Callable[[Row], None],
    *,
    rivals: Mapping[str, Rival] = RIVALS,
    budgets: Collection[float] = (5.6, 4.6, 3.5, 2.7),
    reach: float = 0.4,
    by_default: bool = True,
    match: str = "",
    done: Collection[str] = (),
    bos_id: int | None = None,
) -> list[Row]:
    """Every rival file as a row with `kl`, `top1_agreement` and `perplexity` to the float student, or with `error`.

    `save(row)` is called as soon as a row is there; rows named in `done` ("rival: name") are not made again,
    nor those whose name the regular expression `match` does not find. One file
    lies in `workdir` at a time, beside what a rival keeps for its next file, which goes when that rival is through.
    """
    rows: list[Row] = []
    open_rows: dict[str, tuple[Row, Path]] = {}

    def close(row: Row) -> None:
        if "error" in row:  # another tool's words may name places of this machine
            row["error"] = without_paths(row["error"])
        rows.append(row)
        save(row)

    def files() -> Iterator[Artifact]:
        for rival in rivals.values():
            folder = workdir / rival.name
            folder.mkdir(parents=True, exist_ok=True)
            for candidate in _listed(rival, student, options, budgets, reach, by_default, match, close, done):
                out = folder / ("file" if rival.name == "onnxruntime-genai" else "file.gguf")
                try:
                    made = rival.make(candidate, student, out, options)
                    row = described(candidate, made, student)
                    if row["container"] == "gguf":
                        row["inherits_source_grid"] = inherited(made.path, student)
                except EdgeSLMError as error:
                    close({"rival": rival.name, "name": candidate.name, "error": str(error)})
                    _remove(out)
                    continue
                open_rows[candidate.name] = row, out
                yield artifact(candidate, made, student)
            shutil.rmtree(folder, ignore_errors=True)

    def scored(shipped: Artifact, found: list[Measurement], wrong: str) -> None:
        if shipped.name not in open_rows:  # the float student itself
            if wrong:
                raise SystemExit(f"the float student could not be scored: {wrong}")
            return
        row, path = open_rows.pop(shipped.name)
        if wrong:
            row["error"] = wrong
        for m in found:
            row[m.metric], row["tokens"] = m.mean, m.extra["tokens"]
            if m.metric == "kl":
                row["standard_error"] = m.extra["standard_error"]
        _remove(path)
        close(row)

    workdir.mkdir(parents=True, exist_ok=True)
    evaluate(
        float_artifact(student),
        files(),
        windows,
        bos_id=bos_id,
        threads=options.threads,
        device=LocalDevice(),
        workdir=workdir,
        on_scored=scored,
        timeout_s=options.timeout_s,
    )
    return rows


def _listed(
    rival: Rival,
    student: Student,
    options: Options,
    budgets: Collection[float],
    reach: float,
    by_default: bool,
    match: str,
    close: Callable[[Row], None],
    done: Collection[str],
) -> list[Candidate]:
    try:
        found = chosen(rival.candidates(student, options), budgets, reach, by_default)
    except EdgeSLMError as error:
        close({"rival": rival.name, "name": "all", "error": str(error)})
        return []
    return [c for c in found if re.search(match, c.name) and f"{rival.name}: {c.name}" not in done]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def float_artifact(student: Student) -> Artifact:
    from edgeslm.artifact import file_sha256

    nbytes = student.gguf.stat().st_size
    return Artifact(
        name=f"{student.name}-f32",
        path=student.gguf,
        format="gguf",
        sha256=file_sha256(student.gguf),
        bytes=nbytes,
        weight_bytes=4 * student.parameters,
        parameters=student.parameters,
        grid="f32",
    )


def counts(row: Row, inheriting: bool = True) -> bool:
    """Whether a row may stand for its rival: scored, and no tensor of the type that its teacher's file had (DESIGN,
    section 6). `inheriting=False` also leaves out files whose grids hold the source's grid, see lattice.py."""
    return "kl" in row and not row.get("uses_source_grid") and (inheriting or not row.get("inherits_source_grid"))


def best_rival(rows: list[Row], bits: float, inheriting: bool = True) -> Row | None:
    """The row of least KL that weighs at most `bits`, or None when no rival has such a file."""
    fitting = [r for r in rows if counts(r, inheriting) and r["bits"] <= bits]
    return min(fitting, key=lambda r: r["kl"], default=None)
