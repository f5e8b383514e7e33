"""The report of an encoder's run: figures on judged rows, files, speed, and the recipe."""

from __future__ import annotations

from typing import Any

from edgeslm import units
from edgeslm.report.blocks import Block, Note, Section, Table
from edgeslm.report.folder import Run
from edgeslm.report.making import recipe


def build(run: Run) -> list[Section]:
    judged = run.judged
    sections = [Section("headline", f"Run {run.name}", [_headline(run, judged)]), _figures(judged), _files(run)]
    return [*sections, *filter(None, [recipe(run)])]


def _headline(run: Run, judged: dict[str, Any]) -> Block:
    if not judged:
        return Note(f"nothing was judged: {run.why_not('evaluate')}", "missing")
    return Note(
        f"Shipped files through onnxruntime on {judged['rows']} rows that nothing was trained on; the student takes "
        f"1/{judged['speed_over_teacher']:.2f} of its float32 teacher's time for one row."
    )


def _figures(judged: dict[str, Any]) -> Section:
    rows = [
        (name, key, f"{value:.4f}") for name, found in judged.get("figures", {}).items() for key, value in found.items()
    ]
    rows += [
        (name, "largest difference to torch", f"{d:.1e}") for name, d in judged.get("torch_difference", {}).items()
    ]
    return Section("figures", "Judged rows", [Table("", ("model", "figure", "value"), tuple(rows), frozenset({2}))])


def _files(run: Run) -> Section:
    exact = {e["artifact"]: f"{e['exact']} of {e['tensors']}" for e in run.exact}
    speed = {m.where.artifact: f"{1000 * m.median:.2f} ms" for m in run.quality}
    rows = [
        (a.name, units.byte_count(a.bytes), f"{a.bits_per_weight:.2f}", exact.get(a.name, ""), speed.get(a.name, ""))
        for a in run.artifacts
    ]
    columns = ("file", "size", "bits a weight", "tensors exact", "one row")
    return Section("artifacts", "Files", [Table("", columns, tuple(rows), frozenset({1, 2, 3, 4}))])
