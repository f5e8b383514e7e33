"""Sections as GitHub-flavoured Markdown. Charts become their tables; untrusted text cannot become markup."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgeslm.report.blocks import Block, Chart, Code, Dialogue, Note, Section, Table, Tiles

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#!$@])")


def document(sections: Sequence[Section]) -> str:
    parts = []
    for index, section in enumerate(sections):
        parts.append(f"{'#' if index == 0 else '##'} {inline(section.title)}")
        if section.lead:
            parts.append(f"**{inline(section.lead)}**" if index == 0 else inline(section.lead))
        if section.more:
            parts.append(inline(section.more))
        parts += [_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def inline(text: str) -> str:
    """Plain words on one line: everything that Markdown or HTML could take for markup is escaped."""
    escaped = _SPECIAL.sub(r"\\\1", " ".join(text.split())).replace("&", "&amp;")
    return escaped.replace("\\<", "&lt;").replace("\\>", "&gt;")


def fenced(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any run of backticks within."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(t: Table) -> str:
    rules = ["---:" if i in t.numeric else "---" for i in range(len(t.columns))]
    lines = [t.columns, *t.rows]
    cells = [f"| {' | '.join(inline(c) for c in row)} |" for row in lines]
    return "\n".join([cells[0], f"| {' | '.join(rules)} |", *cells[1:]])


def _block(block: Block) -> str:
    match block:
        case Table():
            return f"### {inline(block.caption)}\n\n{table(block)}"
        case Chart():
            hint = f" ({inline(block.hint)})" if block.hint else ""
            return f"### {inline(block.title)}{hint}\n\n{table(block.table)}"
        case Note(text=text, kind=kind):
            return {"plain": "", "missing": "> ", "estimate": "> ", "problem": "- "}[kind] + inline(text)
        case Tiles():
            rows = tuple((t.label, t.value, t.word, t.detail) for t in block.tiles)
            return table(Table("", ("", "Figure", "", "Detail"), rows, frozenset({1})))
        case Dialogue():
            parts = [f"### Prompt\n\n{fenced(block.prompt, 'text')}"]
            parts += [f"**{inline(a.name)}**\n\n{fenced(a.text, 'text')}" for a in block.answers]
            return "\n\n".join(parts)
        case Code():
            return fenced(block.text, block.language)
