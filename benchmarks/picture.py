"""One picture for the README from the last quickstart record: teacher and student, size, memory, speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from benchmarks import record
from benchmarks.quickstart import median

OUT = record.RESULTS / "quickstart.svg"
FILES = (
    ("teacher-f32.gguf", "teacher, float32"),
    ("teacher-f16.gguf", "teacher, float16"),
    ("student.gguf", "student, Q4_0"),
)
WIDTH, ROW, BAR, LEFT = 860, 26, 15, 150
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#333}.h{font-weight:600}.b{fill:#b6c2cf}.s{fill:#0b7a75}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.b{fill:#56626e}.s{fill:#3fb8af}}"
)


def panels(entry: dict[str, Any]) -> list[tuple[str, list[tuple[str, float, str]]]]:
    """(title, rows of label, value, text) for what was measured in llama.cpp; absent figures leave no bar."""
    sizes = {a["name"]: float(a["bytes"]) for a in entry["artifacts"]}

    def rows(find: Any, form: str, scale: float = 1.0) -> list[tuple[str, float, str]]:
        found = [(label, find(name)) for name, label in FILES]
        return [(label, value, form.format(value / scale)) for label, value in found if value is not None]

    return [
        ("file size", rows(sizes.get, "{:.0f} MB", 1e6)),
        ("memory while running (PSS peak)", rows(lambda n: median(entry, n, "pss_peak"), "{:.0f} MB", 1e6)),
        ("decode", rows(lambda n: median(entry, n, "decode"), "{:.0f} tokens/s")),
        ("time to first token", rows(lambda n: median(entry, n, "time_to_first_token"), "{:.2f} s")),
    ]


def draw(entry: dict[str, Any]) -> str:
    marks, half = [], WIDTH / 2
    for index, (title, rows) in enumerate(panels(entry)):
        x0, y0 = (index % 2) * half, (index // 2) * (ROW * 3 + 44) + 20
        marks.append(f'<text class="h" x="{x0 + 4:.0f}" y="{y0:.0f}">{escape(title)}</text>')
        top = max((value for _, value, _ in rows), default=1.0)
        for place, (label, value, words) in enumerate(rows):
            y = y0 + 10 + place * ROW
            length = max(2.0, value / top * (half - LEFT - 110))
            kind = "s" if label.startswith("student") else "b"
            marks.append(f'<text x="{x0 + 4:.0f}" y="{y + 12:.0f}">{escape(label)}</text>')
            box = f'x="{x0 + LEFT:.0f}" y="{y:.0f}" width="{length:.0f}" height="{BAR}"'
            marks.append(f'<rect class="{kind}" {box} rx="2"/>')
            marks.append(f'<text x="{x0 + LEFT + length + 6:.0f}" y="{y + 12:.0f}">{escape(words)}</text>')
    height = 2 * (ROW * 3 + 44) + 4
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
        f"<title>Teacher and student in llama.cpp on the same machine</title><style>{STYLE}</style>"
        f"{''.join(marks)}</svg>\n"
    )


def main() -> None:
    records = record.read("quickstart")
    if not records:
        raise SystemExit("nothing recorded yet: run python -m benchmarks.quickstart first")
    Path(OUT).write_text(draw(records[-1]), encoding="utf-8")


if __name__ == "__main__":
    main()
