"""The first page: the headline, its tiles, what went wrong, the table of comparisons, and what the models answer."""

from __future__ import annotations

from edgeslm.measurement import Measurement
from edgeslm.report.blocks import (
    ABSENT,
    Answer,
    Block,
    Dialogue,
    Note,
    Section,
    Table,
    Tile,
    Tiles,
    missing,
    percent,
    role,
    times,
)
from edgeslm.report.compare import Comparison, Pair, of, pairs
from edgeslm.report.folder import Run
from edgeslm.units import number

MEMORY = ("pss_peak", "vm_hwm")
# label of the tile, metrics that may fill it, stage whose absence explains a missing one
TILES = (
    ("Size", ("size",), "export"),
    ("Decode", ("decode",), "benchmark"),
    ("Prefill", ("prefill",), "benchmark"),
    ("First token", ("time_to_first_token",), "benchmark"),
    ("Memory", MEMORY, "benchmark"),
)
CLOSENESS = (("kl", "KL from the teacher"), ("top1_agreement", "Top-1 agreement"), ("perplexity", "Perplexity"))


def headline(run: Run) -> Section:
    """Compares within the first pair (float32 teacher and GGUF first); other pairs follow in the table."""
    every = pairs(run)
    if not every:
        why = "no teacher file of the same container was exported" if run.artifacts else run.why_not("export")
        blocks: list[Block] = [missing("Student beside teacher", why), *_closeness_alone(run)]
        return Section("headline", run.name, blocks, "What was made could not be compared with its teacher.")
    pair = every[0]
    tiles, lines = [], []
    for label, metrics, stage in TILES:
        c = pair.get(*metrics)
        if c:
            tiles.append(_tile(label, c))
        else:
            lines.append(missing(label, run.why_not(stage)))
    for metric, label in CLOSENESS:
        tile = _closeness(run, pair, metric, label)
        if tile:
            tiles.append(tile)
        else:
            lines.append(missing(label, run.why_not("evaluate")))
    lines += [Note(f"Not compared: {sentence}", "missing") for sentence in dict.fromkeys(pair.refused)]
    return Section("headline", run.name, [Tiles(tuple(tiles)), *lines], sentence(pair), closeness(run, pair))


def _tile(label: str, c: Comparison) -> Tile:
    top = max(c.student_value, c.teacher_value)
    return Tile(
        label,
        times(c.shown),
        c.word if c.kind == "measured" else f"{c.word} ({c.kind})",
        c.values,
        (c.student_value / top, c.teacher_value / top),
    )


def _closeness(run: Run, pair: Pair, metric: str, label: str) -> Tile | None:
    ours = of(run.quality, metric, pair.student.name)
    if not ours:
        return None
    m = ours[0]
    if metric == "kl":
        return Tile(label, f"{m.median:.3g}", "nats per token", f"mean over {_tokens(m)}")
    if metric == "top1_agreement":
        return Tile(label, percent(m.median), "of next tokens", "the student's first choice is the teacher's")
    theirs = [t for t in of(run.quality, metric, pair.teacher.name) if t.where.job == m.where.job]
    beside = f"the teacher's is {number(theirs[0].median, '1')}" if theirs else "the teacher's was not measured alike"
    return Tile(label, number(m.median, "1"), "lower is better", beside)


def _tokens(m: Measurement) -> str:
    n = m.extra.get("tokens")
    return f"{n:,} tokens" if isinstance(n, int) else "the held-out text"


def _closeness_alone(run: Run) -> list[Note]:
    return [missing(label, run.why_not("evaluate")) for metric, label in CLOSENESS if not of(run.quality, metric)]


def sentence(pair: Pair) -> str:
    """The headline from what there is; a figure that is absent leaves its clause out."""
    size, decode, memory = pair.get("size"), pair.get("decode"), pair.get(*MEMORY)
    does = [f"is {times(size.shown)} {size.word}"] if size and size.factor != 1 else []
    if decode:
        does.append(f"decodes {times(decode.shown)} {decode.word}" if decode.factor != 1 else "decodes no faster")
    if memory:
        does.append(f"needs {times(memory.shown)} {memory.word}" if memory.factor != 1 else "needs no less memory")
    return (
        f"{pair.student.name} {_joined(does)} than {pair.baseline}." if does else f"{pair.student.name} was exported."
    )


def closeness(run: Run, pair: Pair) -> str:
    """How close the student stays, and what ran it."""
    agreed, kl = (of(run.quality, metric, pair.student.name) for metric in ("top1_agreement", "kl"))
    said = [f"its first choice of token is the teacher's {percent(agreed[0].median)} of the time"] if agreed else []
    said += [f"its KL from the teacher is {kl[0].median:.3g} nats per token"] if kl else []
    close = f"{_joined(said)}." if said else ""
    timed = pair.get("decode", "prefill", *MEMORY)
    ran = f" Timed in {timed.runtime}, {timed.where}." if timed else ""
    return (close[:1].upper() + close[1:] + ran).strip()


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def problems(run: Run) -> Section | None:
    """Everything that went wrong or could not be read; None when nothing did."""
    lines = [Note(f"{p.stage}: {p.artifact + ': ' if p.artifact else ''}{p.what}", "problem") for p in run.problems]
    lines += [Note(f"{s}: the stage has not finished (no done.json); its figures may be partial", "problem")
              for s in run.unfinished]  # fmt: skip
    for row in run.exact:
        if row["exact"] != row["tensors"]:
            where = f"; the first is {row['first_mismatch']}" if row.get("first_mismatch") else ""
            wrong = row["tensors"] - row["exact"]
            lines.append(
                Note(f"export: {row['artifact']}: {wrong} of {row['tensors']} tensors are not bitwise exact{where}",
                     "problem")
            )  # fmt: skip
    if not lines:
        return None
    return Section("problems", "What went wrong", lines, "The run went on without the figures concerned.")


def comparisons(run: Run) -> Section:
    """One table per student file: its median, and each teacher's with the ratio."""
    every = pairs(run)
    if not every:
        why = "no student and teacher file of one container" if run.artifacts else run.why_not("export")
        return Section("comparisons", "Student beside teacher", [missing("Ratios", why)])
    lead = "Ratios of medians, each within one runtime, job, machine and thread count. Unlike runs are not compared."
    students = dict.fromkeys(p.student.name for p in every)
    blocks: list[Block] = [_ratios([p for p in every if p.student.name == name]) for name in students]
    blocks += [Note(f"Not compared: {s}", "missing") for s in dict.fromkeys(s for p in every for s in p.refused)]
    return Section("comparisons", "Student beside teacher", blocks, lead)


def _ratios(every: list[Pair]) -> Table:
    """Rows are figures (per runtime and job where there are several), columns the teachers."""
    found: dict[tuple[str, str, str], dict[str, Comparison]] = {}
    for pair in every:
        for c in pair.comparisons:
            found.setdefault((c.label, c.runtime, c.conditions), {})[c.teacher] = c
    several = len({conditions for _, _, conditions in found if conditions}) > 1
    runtimes = list(dict.fromkeys(runtime for _, runtime, _ in found if runtime))
    teachers = [p.teacher.name for p in every]
    rows = []
    for (label, runtime, conditions), by_teacher in found.items():
        one = next(iter(by_teacher.values()))
        cells = [label, number(one.student_value, one.unit)]
        for teacher in teachers:
            if teacher in by_teacher:
                c = by_teacher[teacher]
                kind = "" if c.kind == "measured" else f" ({c.kind})"
                cells += [number(c.teacher_value, c.unit), f"{times(c.shown)} {c.word}{kind}"]
            else:
                cells += [ABSENT, ABSENT]
        cells += [runtime or "on disk"] if len(runtimes) > 1 else []
        rows.append(tuple([*cells, conditions] if several else cells))
    student = every[0].student.name
    columns = ["Figure", student, *(name for t in teachers for name in (t, "student is"))]
    columns += ["Runtime"] if len(runtimes) > 1 else []
    numeric = frozenset({1, *(2 + 2 * i for i in range(len(teachers)))})
    caption = f"{student} in {runtimes[0]}" if len(runtimes) == 1 else student
    return Table(caption, tuple([*columns, "Conditions"] if several else columns), tuple(rows), numeric)


def answers(run: Run) -> Section:
    blocks: list[Block] = []
    for entry in run.answers:
        given = tuple(Answer(a["artifact"], role(a["artifact"]), a["text"], a.get("tokens")) for a in entry["answers"])
        blocks.append(Dialogue(entry["prompt"], tuple(sorted(given, key=lambda a: a.role != "teacher"))))
    if not blocks:
        blocks = [missing("Answers", run.why_not("evaluate"))]
    return Section("answers", "What they answer", blocks, "The same prompt to each of the shipped files.")
