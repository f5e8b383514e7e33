"""What was cut from the teacher, and what it cost before and after training: choices of layers, and fewer tokens."""

from __future__ import annotations

import math
from typing import Any

from edgeslm.report import charts
from edgeslm.report.blocks import Block, Chart, Table, percent
from edgeslm.report.folder import Run
from edgeslm.units import count

CHOICES = "Loss before any training, by choice of layers"
ROWS = (
    ("The whole teacher", "whole_teacher"),
    ("The teacher in the student's tokens", "teacher"),
    ("The student, before training", "student"),
)


def cutting(run: Run) -> list[Block]:
    return [
        *_choices(run.importance.get("choices")),
        *_vocabulary(run.importance.get("vocabulary"), run.training.get("bits")),
    ]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _choices(given: Any) -> list[Block]:
    rows = given if isinstance(given, list) else []
    rows = [r for r in rows if isinstance(r, dict) and _number(r.get("loss")) and _number(r.get("kl"))]
    if not rows:
        return []
    bars = [
        (
            str(r["choice"]),
            r["kl"],
            "kept" if r["choice"] == "chosen" else "dropped",
            f"{r['choice']}: KL {r['kl']:.4g}",
        )
        for r in rows
    ]
    drawn = charts.columns("choices", CHOICES, bars, "choice", "KL, nats per token")
    cells = tuple((str(r["choice"]), _layers(r.get("kept")), f"{r['loss']:.4g}", f"{r['kl']:.4g}") for r in rows)
    table = Table(CHOICES, ("Choice", "Layers kept", "Loss", "KL to the teacher"), cells, frozenset({2, 3}))
    return [Chart(CHOICES, drawn, table, (("kept", "chosen"), ("dropped", "rival")), "nats per token, lower is better")]


def _layers(kept: Any) -> str:
    return ", ".join(map(str, kept)) if isinstance(kept, list) else ""


def _vocabulary(told: Any, bits: Any) -> list[Block]:
    if not isinstance(told, dict) or not all(_number(told.get(key)) for key in ("kept", "of")):
        return []
    rows = [("Tokens that stay", f"{count(told['kept'])} of {count(told['of'])}")]
    if _number(told.get("share_spelled_anew")):
        rows.append(("Of the text that decided, spelled anew", percent(told["share_spelled_anew"])))
    measured = [(label, told.get(key)) for label, key in ROWS] + [("The student, as trained", bits)]
    for label, found in measured:
        if isinstance(found, dict) and _number(found.get("bits_per_byte")) and _number(found.get("tokens_per_byte")):
            rows.append((label, f"{found['bits_per_byte']:.4f} bits/byte, {found['tokens_per_byte']:.4f} tokens/byte"))
    return [Table("Vocabulary", ("Fact", "Value"), tuple(rows), frozenset({1}), half=True)]
