"""One evaluation as pages: all students beside their teacher, and a page for each. A pure function of the document."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgeslm.measurement import Measurement
from edgeslm.report import charts, markdown, quality
from edgeslm.report.blocks import (
    ABSENT,
    Answer,
    Block,
    Chart,
    Dialogue,
    Note,
    Section,
    Table,
    Tile,
    Tiles,
    facts,
    percent,
)
from edgeslm.report.page import html, strict
from edgeslm.report.retention import calibration, retention
from edgeslm.units import byte_count

Document = dict[str, Any]
WORST_TOGETHER, WORST_ALONE = 8, 20  # worst tokens shown of a student among others, and on its own page


def render(document: Document, folder: Path) -> list[Path]:
    """Writes evaluation.json, report.md, report.html and, of several students, a page for each."""
    from edgeslm import __version__

    folder.mkdir(parents=True, exist_ok=True)
    names = [s["name"] for s in document["students"]]
    said = {"edgeslm": __version__, "source": "from evaluation.json alone."}
    alone = {f"{i}-{_slug(name)}": [name] for i, name in enumerate(names, start=1)} if len(names) > 1 else {}
    pages = {"report": names} | alone
    text = json.dumps(strict(document), indent=1, ensure_ascii=False, allow_nan=False)
    written = [folder / "report.html", folder / "report.md", folder / "evaluation.json"]
    written[2].write_text(text + "\n", encoding="utf-8")
    written[1].write_text(markdown.document(build(document, names)), encoding="utf-8")
    for page, students in pages.items():
        path = folder / f"{page}.html"
        path.write_text(html("evaluation", said, build(document, students)), encoding="utf-8")
        if path not in written:
            written.append(path)
    return written


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "student"


def build(document: Document, students: Sequence[str]) -> list[Section]:
    """Sections in the order of SECTIONS; a part that was not asked for has none."""
    made = (section(document, list(students)) for section in SECTIONS)
    return [section for section in made if section is not None]


def headline(document: Document, students: list[str]) -> Section:
    teacher = document["teacher"]["name"]
    tiles: list[Tile] = []
    for student in students:
        figures = _figures(document, student)
        kept = document.get("retention", {}).get(student, {})
        about = next(s for s in document["students"] if s["name"] == student)
        size = f"{byte_count(about['bytes'])}, {about['bits_per_weight']:.2f} bits a weight"
        if kept.get("mean") is not None:
            shown = (
                f"mean of {sum(r['value'] is not None for r in kept['tasks'])} tasks, ± {kept['standard_error']:.3f}"
            )
            tiles.append(Tile(f"{student}: retention", percent(kept["mean"]), "of the teacher's skill", shown))
        if "kl" in figures:
            error = figures["kl"].extra["standard_error"]
            tiles.append(
                Tile(f"{student}: KL", f"{figures['kl'].median:.3g}", "nats a token", f"± {error:.2g}; {size}")
            )
        if "top1_agreement" in figures:
            agreement = figures["top1_agreement"]
            tiles.append(Tile(f"{student}: first choice", percent(agreement.median), "as the teacher's", size))
    lead = f"{', '.join(students)} beside {teacher}"
    return Section("headline", "Evaluation", [Tiles(tuple(tiles))] if tiles else [], lead)


def problems(document: Document, students: list[str]) -> Section | None:
    wrong = [Note(f"{p['part']}: {p['artifact']}: {p['what']}", "problem") for p in document["problems"]]
    broken = [Note(f"Gate: {sentence}", "problem") for sentence in document.get("gate", {}).get("broken", [])]
    return Section("problems", "Problems", [*broken, *wrong]) if wrong or broken else None


def closeness(document: Document, students: list[str]) -> Section | None:
    measurements = [Measurement.from_json(m) for m in document.get("measurements", [])]
    wanted = [m for m in measurements if m.where.artifact in (document["teacher"]["name"], *students)]
    if not wanted:
        return None
    rows = []
    for name in (document["teacher"]["name"], *students):
        by = {m.metric: m for m in wanted if m.where.artifact == name}
        if not by:
            continue
        p = by["kl"].extra["percentiles"] if "kl" in by else {}
        rows.append((
            name, f"{by['perplexity'].median:.4g}", _value(by.get("perplexity_ratio")),
            _value(by.get("kl"), "standard_error"), *(f"{p[q]:.3g}" if p else "-" for q in ("50", "90", "99", "99.9")),
            _share(by.get("top1_agreement")), _share(by.get("top5_agreement")), _share(by.get("rms_delta_p")),
        ))  # fmt: skip
    columns = ("File", "Perplexity", "Ratio", "KL, nats/token", "Median", "p90", "p99", "p99.9", "Top-1", "Top-5",
               "RMS Δp")  # fmt: skip
    blocks: list[Block] = [Table("Closeness by file", columns, tuple(rows), frozenset(range(1, 11)))]
    blocks.append(Note(f"Text: {', '.join(document['judged'].get('files', []))}; {facts(document['judged'])}; "
                       f"{wanted[0].extra['tokens']:,} tokens, {wanted[0].extra['rule']}."))  # fmt: skip
    for number, student in enumerate(students):
        found = next((m for m in wanted if m.where.artifact == student and m.metric == "kl"), None)
        if found is not None and (drawn := quality.kl_histogram(found, number)) is not None:
            blocks.append(drawn)
        blocks += _places(document.get("tokens", {}).get(student, {}), student, number)
    return Section(
        "closeness",
        "Closeness",
        blocks,
        "Scored by the runtime that will run the file. ± is one "
        "standard error, tokens taken as independent, so a lower bound.",
    )


def _places(described: dict[str, Any], student: str, number: int) -> list[Block]:
    blocks: list[Block] = []
    if rows := described.get("by_position"):
        values = [(f"{r['from']}", r["kl"], "student", f"positions {r['from']} to {r['to']}: {r['kl']:.3g} nats")
                  for r in rows]  # fmt: skip
        title = f"KL by position, {student}"
        table = Table(title, ("Positions", "Tokens", "KL", "Top-1"), tuple(
            (f"{r['from']} to {r['to']}", f"{r['tokens']:,}", f"{r['kl']:.3g} ± {r['standard_error']:.2g}",
             percent(r["top1_agreement"])) for r in rows), frozenset({1, 2, 3}))  # fmt: skip
        drawn = charts.columns(f"position-{number}", title, values, "position in the window", "KL, nats/token")
        blocks.append(Chart(title, drawn, table, (), "lower is better"))
    if rows := described.get("by_class"):
        blocks.append(Table(f"KL by class of token, {student}", ("Class", "Tokens", "KL", "Top-1"), tuple(
            (r["class"], f"{r['tokens']:,}", f"{r['kl']:.3g} ± {r['standard_error']:.2g}", percent(r["top1_agreement"]))
            for r in rows), frozenset({1, 2, 3}), half=True))  # fmt: skip
    return blocks


def worst(document: Document, students: list[str]) -> Section | None:
    count = WORST_ALONE if len(students) == 1 else WORST_TOGETHER
    blocks: list[Block] = []
    for student in students:
        found = document.get("tokens", {}).get(student, {}).get("worst", [])[:count]
        rows = tuple(
            (f"{w['kl']:.2f}", *(_visible(w[k]) for k in ("context", "token", "teacher", "student")),
             f"{100 * w['delta_p']:+.1f} %") for w in found
        )  # fmt: skip
        if rows:
            columns = ("KL, nats", "What led to it", "What followed", "Teacher's choice", "Student's choice", "Δp")
            blocks.append(Table(f"Worst tokens, {student}", columns, rows, frozenset({0, 5})))
    lead = (
        "Where the student's distribution lies furthest from the teacher's. Δp: of what followed, student less teacher."
    )
    return Section("worst", "Worst tokens", blocks, lead) if blocks else None


def _visible(text: str) -> str:
    return text.replace("\n", "⏎").replace("\t", "⇥") or "(nothing)"


def answers(document: Document, students: list[str]) -> Section | None:
    totals = document.get("generation", {})
    shown = [document["teacher"]["name"], *students]
    rows = [(name, *_generation(totals[name])) for name in shown if name in totals]
    if not rows:
        return None
    columns = ("File", "Tokens", "Stopped", "Repetition", "Loops", "Clean", "Prompts followed", "Instructions",
               "Win / tie / loss")  # fmt: skip
    table = Table("Answers in figures", columns, tuple(rows), frozenset(range(1, 9)))
    blocks: list[Block] = [table]
    for row in document["answers"]:
        said = []
        for a in row["answers"]:
            if a["artifact"] in shown:
                marks = [f"ended: {a['ended']}"] + [f"leaked {', '.join(a['leaked'])}"] * bool(a["leaked"])
                if a["followed"]:
                    checks = [
                        f"{'✓' if f else '✗'} {c['check']}" for f, c in zip(a["followed"], row["checks"], strict=True)
                    ]
                    marks += checks
                kind = "teacher" if a["artifact"] == shown[0] else "student"
                said.append(Answer(f"{a['artifact']} ({', '.join(marks)})", kind, a["text"], a["tokens"]))  # type: ignore[arg-type]
        blocks.append(Dialogue(row["prompt"], tuple(said)))
    lead = (
        "Greedy. Clean: no role mark or other special token stands in the answer. Instructions are judged by programs. "
        "Win, tie and loss are by the teacher's own likelihood a token of either answer: a win is what the teacher "
        "finds more probable."
    )
    return Section("answers", "Answers", blocks, lead)


def _generation(t: dict[str, Any]) -> tuple[str, ...]:
    follow = [ABSENT if t[k] is None else percent(t[k]) for k in ("prompts_followed", "instructions_followed")]
    duel = f"{t['wins']} / {t['ties']} / {t['losses']}" if "wins" in t else "-"
    shares = (percent(t[k]) for k in ("stopped", "repetition", "loops", "clean"))
    return (f"{t['mean_tokens']:.0f}", *shares, *follow, duel)


def churn(document: Document, students: list[str]) -> Section | None:
    rows = []
    for row in document.get("churn", []):
        if not {row["one"], row["other"]} <= {document["teacher"]["name"], *students}:
            continue
        text = row.get("text", {})
        tasks = [f"{t['task']} {percent(_changes(t))}" for t in row.get("tasks", [])]
        words = [percent(text[k]) for k in ("top1_changes", "mean_absolute_delta_p")] if text else [ABSENT, ABSENT]
        kl = f"{text['kl']:.3g}" if text else ABSENT
        rows.append((f"{row['one']} – {row['other']}", *words, kl, ", ".join(tasks) or ABSENT))
    if not rows:
        return None
    columns = ("Files", "First choice changes", "Mean |Δp|", "KL, nats/token", "Answers to items change")
    table = Table("Churn", columns, tuple(rows), frozenset({1, 2, 3}))
    return Section("churn", "Churn", [table], "How often two files disagree, right or wrong.")


def _changes(task: dict[str, Any]) -> float:
    """Of the choice where there is one, else of the score."""
    return float(task["score_changes"] if task["choice_changes"] is None else task["choice_changes"])


def _figures(document: Document, student: str) -> dict[str, Measurement]:
    found = (Measurement.from_json(m) for m in document.get("measurements", []))
    return {m.metric: m for m in found if m.where.artifact == student}


def _value(m: Measurement | None, error: str = "") -> str:
    if m is None:
        return "-"
    return f"{m.median:.4g}" + (f" ± {m.extra[error]:.2g}" if error else "")


def _share(m: Measurement | None) -> str:
    return "-" if m is None else percent(m.median)


SECTIONS: tuple[Callable[[Document, list[str]], Section | None], ...] = (
    headline, problems, retention, closeness, worst, answers, calibration, churn,
)  # fmt: skip
