"""What is left of a teacher's skill on tasks, and how sure the files are: from an evaluation's document."""

from __future__ import annotations

from typing import Any

from edgeslm.report import charts
from edgeslm.report.blocks import Block, Chart, Note, Section, Table, percent

Document = dict[str, Any]


def retention(document: Document, students: list[str]) -> Section | None:
    kept = {name: document.get("retention", {}).get(name) for name in students}
    kept = {name: value for name, value in kept.items() if value}
    if not kept:
        return None
    rows, marks = [], set()
    groups: dict[str, list[charts.Bar]] = {}
    for name, value in kept.items():
        for r in value["tasks"]:
            share = r["why"] or f"{r['value']:.3f} ± {r['standard_error']:.3f}"
            verdict = "none" if r["difference"] == "none" else f"{r['difference']} (p {r['p']:.2g})"
            rows.append((r["task"], name, f"{r['items']:,}", f"{r['teacher']:.3f}", f"{r['student']:.3f}",
                         f"{r['chance']:.3f}", share, f"{r['only_student']} / {r['only_teacher']}",
                         verdict))  # fmt: skip
            bars = groups.setdefault(
                r["task"],
                [charts.Bar("teacher", (r["teacher"],), "teacher", percent(r["teacher"]), r["chance"] or None)],
            )
            bars.append(charts.Bar(name, (r["student"],), "student", percent(r["student"]), r["chance"] or None))
        if value["mean"] is not None:
            marks.add(len(rows))
            shown = f"{value['mean']:.3f} ± {value['standard_error']:.3f}"
            rows.append(("mean", name, "", "", "", "", shown, "", ""))
    columns = ("Task", "File", "Items", "Teacher", "Student", "Chance", "Retention", "Only student / teacher right",
               "Difference")  # fmt: skip
    table = Table("Retention by task", columns, tuple(rows), frozenset(range(2, 8)), frozenset(marks))
    drawn = charts.bars("retention-tasks", "Score by task", "1", list(groups.items()))
    short = Table("Score by task", ("Task", "File", "Score"), tuple(
        (task, bar.label, bar.shown) for task, bars in groups.items() for bar in bars), frozenset({2}))  # fmt: skip
    legend = (("student", "student"), ("teacher", "teacher"), ("bound", "chance"))
    blocks: list[Block] = [table, Chart("Score by task", drawn, short, legend, "higher is better; the line is chance")]
    cut = [(name, s["task"], s["cut"]) for name, scores in document["tasks"].items() for s in scores if s["cut"]]
    sources = [f"{s['task']} from {s['source']}, {s['shots']} shots, {s['metric']}"
               for s in next(iter(document["tasks"].values()))]  # fmt: skip
    blocks.append(Note("; ".join(sources) + "."))
    blocks += [Note(f"{task}: {count} contexts were cut on the left to fit {name}.") for name, task, count in cut]
    lead = (
        "Retention is the student's score above chance ÷ the teacher's, on the same items, ± one standard error over "
        "paired items. A difference is named where McNemar's exact test finds one (p below 0.05, each row by itself: "
        "of twenty equal pairs about one is named too)."
    )
    return Section("retention", "Retention", blocks, lead)


def calibration(document: Document, students: list[str]) -> Section | None:
    rows = []
    for name in (document["teacher"]["name"], *students):
        for task, found in document.get("calibration", {}).get(name, {}).items():
            rows.append((name, task, f"{found['n']:,}", f"{found['error']:.3f}"))
        token = document.get("tokens", {}).get(name, {}).get("calibration")
        if token:
            rows.append((name, "next token of the text", f"{token['n']:,}", f"{token['error']:.3f}"))
    if not rows:
        return None
    table = Table("Expected calibration error", ("File", "Of", "Answers", "Error"), tuple(rows), frozenset({2, 3}))
    lead = "How far confidence lies from being right, on average over ten bins of confidence; 0 is calibrated."
    return Section("calibration", "Calibration", [table], lead)
