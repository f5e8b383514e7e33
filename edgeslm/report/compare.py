"""Student beside teacher: every ratio goes through `measurement.ratio`, which refuses unlike runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from edgeslm.artifact import Artifact
from edgeslm.measurement import Measurement, UnlikeRuns, ratio
from edgeslm.report.blocks import facts, role
from edgeslm.report.folder import Run
from edgeslm.units import number

# metric -> (what a person calls it, word when the student wins, word when it loses)
COMPARED = {
    "decode": ("decode", "faster", "slower"),
    "prefill": ("prefill", "faster", "slower"),
    "time_to_first_token": ("time to first token", "sooner", "later"),
    "load": ("load", "faster", "slower"),
    "pss_peak": ("memory (PSS peak)", "less memory", "more memory"),
    "vm_hwm": ("memory (VmHWM)", "less memory", "more memory"),
    "energy_per_token": ("energy per token", "less energy", "more energy"),
}
FLOATS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Comparison:
    """`factor` is > 1 where the student is better; the two values are medians in SI units."""

    metric: str
    label: str
    student: str
    teacher: str
    runtime: str  # "" for the size on disk
    factor: float
    better: str
    worse: str
    unit: str
    student_value: float
    teacher_value: float
    kind: str = "measured"
    conditions: str = ""  # the job
    where: str = ""  # threads and machine

    @property
    def word(self) -> str:
        return "the same" if self.factor == 1 else self.better if self.factor > 1 else self.worse

    @property
    def shown(self) -> float:
        """The factor that belongs to `word`: never below one."""
        return self.factor if self.factor >= 1 else 1 / self.factor

    @property
    def values(self) -> str:
        return f"{number(self.student_value, self.unit)} instead of {number(self.teacher_value, self.unit)}"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "word": self.word}


@dataclass(frozen=True)
class Pair:
    """One student file, the teacher's file of the same container, and all that can be compared between them."""

    student: Artifact
    teacher: Artifact
    comparisons: tuple[Comparison, ...]
    refused: tuple[str, ...]  # sentences of UnlikeRuns

    def get(self, *metrics: str) -> Comparison | None:
        """The first comparison of the first of `metrics` that there is."""
        return next((c for m in metrics for c in self.comparisons if c.metric == m), None)

    @property
    def baseline(self) -> str:
        """`the float32 teacher`: what the student is compared with, in words."""
        return f"the {FLOATS.get(self.teacher.grid, self.teacher.grid)} teacher"


def pairs(run: Run) -> list[Pair]:
    """Every student file beside every teacher file of the same container; widest teacher and GGUF come first."""
    order = {"f32": 0, "f16": 1, "bf16": 2}
    both = [
        (s, t)
        for s in run.artifacts
        for t in run.artifacts
        if role(s.name) == "student" and role(t.name) == "teacher" and s.format == t.format
    ]
    both.sort(key=lambda p: (order.get(p[1].grid, 3), p[0].format != "gguf"))
    return [_pair(run, s, t) for s, t in both]


def of(measurements: Iterable[Measurement], metric: str, artifact: str | None = None) -> list[Measurement]:
    return [m for m in measurements if m.metric == metric and artifact in (None, m.where.artifact)]


def _pair(run: Run, student: Artifact, teacher: Artifact) -> Pair:
    size = Comparison(
        "size", "size", student.name, teacher.name, "", teacher.bytes / student.bytes, "smaller", "larger",
        "bytes", student.bytes, teacher.bytes,
    )  # fmt: skip
    found, refused = [size], []
    for metric in COMPARED:
        ours, theirs = of(run.speed, metric, student.name), of(run.speed, metric, teacher.name)
        made = [c for s in ours for t in theirs if (c := _compare(s, t)) is not None]
        found += made
        if ours and theirs and not made:
            try:
                ratio(ours[0], theirs[0])
            except UnlikeRuns as error:
                refused.append(f"{COMPARED[metric][0]}: {error}")
    return Pair(student, teacher, tuple(found), tuple(refused))


def _compare(student: Measurement, teacher: Measurement) -> Comparison | None:
    label, better, worse = COMPARED[student.metric]
    if student.median <= 0 or teacher.median <= 0:
        return None
    try:
        factor = ratio(student, teacher) if student.better == "higher" else ratio(teacher, student)
    except UnlikeRuns:
        return None
    w = student.where
    return Comparison(
        student.metric, label, w.artifact, teacher.where.artifact, f"{w.runtime} {w.runtime_version}".strip(), factor,
        better, worse, student.unit, student.median, teacher.median, student.kind,
        ", ".join(x for x in (threads(w.threads), facts(w.job)) if x),
        " on ".join(x for x in (threads(w.threads), str(w.device.get("name") or "")) if x),
    )  # fmt: skip


def threads(n: int) -> str:
    return f"{n} thread" if n == 1 else f"{n} threads"
