"""Rows of text with what is known of them, from tables, plain sentences, and spans made on the spot."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeslm.errors import DataError

UNKNOWN = -1
BREAK = re.compile(r"(?<=[.!?。！？])[\"'”’」』]*\s*(?=[\s\"'“‘「『A-Z\u4e00-\u9fff])")
NAME = re.compile(r"(?<![.!?\"'“‘-] )(?<!^)\b([A-Z][a-z]{2,}(?: [A-Z][a-z]{2,})?)\b")
BLANK = "what"  # stands for the name in a question; a word of every vocabulary
CONTEXT_SENTENCES = 2
QUOTES, MARKS = " \"'”’」』「『“‘", ".!?;,-。！？；，"


@dataclass(frozen=True)
class Item:
    """`text` and, of a pair, `pair` (the second text; of a span, the context). `label` UNKNOWN where there is none.
    `span`: first and last character of the answer in `pair`, end exclusive."""

    text: str
    pair: str | None = None
    label: int = UNKNOWN
    span: tuple[int, int] | None = None


def table(source: Any, paths: Sequence[Path]) -> list[Item]:
    """Raises DataError for a row that is none."""
    found = []
    for path in paths:
        for number, row in enumerate(_lines(path), start=1):
            found.append(_item(row, source.columns, f"{path.name}, row {number}"))
    end = None if source.rows is None else source.first + source.rows
    return found[source.first : end]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".arrow":
        yield from _arrow(path)
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path.name}, line {number}: is no JSON ({error}); write one object a line") from error
            if not isinstance(row, dict):
                raise DataError(f'{path.name}, line {number}: is no object such as {{"text": ..., "label": ...}}')
            yield row


def _arrow(path: Path) -> Iterator[dict[str, Any]]:
    """The streams that `datasets` writes, and Arrow files."""
    try:
        import pyarrow as arrow
    except ImportError as error:
        raise DataError(f"{path.name}: Arrow files need pyarrow; install it, or give JSON lines") from error
    with arrow.memory_map(str(path)) as file:
        try:
            read = arrow.ipc.open_stream(file).read_all()
        except arrow.ArrowInvalid:
            try:
                read = arrow.ipc.open_file(file).read_all()
            except arrow.ArrowInvalid as error:
                raise DataError(f"{path.name}: is no Arrow file ({error}); fetch it again") from error
        yield from read.to_pylist()


def _item(row: dict[str, Any], columns: dict[str, str], where: str) -> Item:
    get = {own: row[name] for own in _ALL if (name := columns.get(own, own)) in row}
    try:
        label = UNKNOWN if get.get("label") is None else int(get["label"])
        if "question" in get:
            span = (int(get["start"]), int(get["end"]))
            if not 0 <= span[0] < span[1] <= len(str(get["context"])):
                raise DataError(f"{where}: the answer {span} does not lie in the context")
            return Item(str(get["question"]), str(get["context"]), span=span)
        if "text_a" in get:
            return Item(str(get["text_a"]), str(get["text_b"]), label)
        return Item(str(get["text"]), label=label)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: holds {', '.join(map(str, row)) or 'nothing'}, and {error} cannot be read from it; "
            "give text and label, text_a and text_b, or question, context, start and end (see `columns`)"
        ) from error


_ALL = ("text", "label", "text_a", "text_b", "question", "context", "start", "end")


def split(text: str) -> list[str]:
    """Sentences, white space made plain. Headings and lines of their own are paragraphs."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        plain = " ".join(paragraph.split())
        found += [s for s in BREAK.split(plain) if s]
    return found


def _share(sentences: list[str], part: tuple[float, float]) -> list[str]:
    return sentences[round(part[0] * len(sentences)) : round(part[1] * len(sentences))]


def _spread(items: list[Item], rows: int, where: str) -> list[Item]:
    """`rows` of the items, evenly spaced. Raises DataError where there are fewer."""
    if len(items) < rows:
        raise DataError(f"{where}: {rows} rows are asked for, the text gives {len(items)}; ask for fewer")
    return [items[i * len(items) // rows] for i in range(rows)]


def sentences(source: Any, paths: Sequence[Path]) -> list[Item]:
    """Every file gives the same number of rows when files are classes, else as many as its text allows."""
    low, high = source.characters
    by_file = []
    for at, path in enumerate(paths):
        label = source.labels[at] if source.labels else UNKNOWN
        kept = [s for s in _share(split(_read(path)), source.part) if low <= len(s) <= high]
        by_file.append([Item(s, label=label) for s in dict.fromkeys(kept)])
    where = f"sentences of {', '.join(p.name for p in paths)}"
    if not source.labels:
        return _spread([i for items in by_file for i in items], source.rows, where)
    each = source.rows // len(paths)
    return [item for items in by_file for item in _spread(items, each, where)]


def questions(source: Any, paths: Sequence[Path]) -> list[Item]:
    """Sentences without their last mark: label 1 where it was a question mark, 0 where not, as many of each."""
    low, high = source.characters
    by_label: tuple[list[Item], list[Item]] = ([], [])
    for path in paths:
        for sentence in _share(split(_read(path)), source.part):
            bare = sentence.strip(QUOTES)
            text, label = bare.rstrip(MARKS), int(bare.endswith(("?", "？")))
            if low <= len(text) <= high and not set("?？") & set(text):
                by_label[label].append(Item(text, label=label))
    where = f"questions of {', '.join(p.name for p in paths)}"
    found = [_spread(list(dict.fromkeys(items)), source.rows // 2, where) for items in by_label]
    return [item for pair in zip(*found, strict=True) for item in pair]


def cloze(source: Any, paths: Sequence[Path]) -> list[Item]:
    """A name that stands in a sentence and again in a neighbour; in the sentence it is blanked."""
    found: list[Item] = []
    for path in paths:
        told = _share(split(_read(path)), source.part)
        small = {word for s in told for word in re.findall(r"\b[a-z]+\b", s)}  # "The" is no name: "the" is a word
        counts = Counter(m[1] for s in told for m in NAME.finditer(s))
        common = {n for n, c in counts.items() if c > 1 and not {w.lower() for w in n.split()} & small}
        for at in range(CONTEXT_SENTENCES, len(told) - CONTEXT_SENTENCES):
            found += _blanked(told, at, common)
    return _spread(found, source.rows, f"clozes of {', '.join(p.name for p in paths)}")


def _blanked(told: list[str], at: int, common: set[str]) -> Iterator[Item]:
    """The names of the sentence `at` that stand in one place around it, each as the answer of an item."""
    sentence = told[at]
    around = " ".join([*told[at - CONTEXT_SENTENCES : at], *told[at + 1 : at + 1 + CONTEXT_SENTENCES]])
    if not (20 <= len(sentence) <= 200 and len(around) <= 450):
        return
    for name in dict.fromkeys(m[1] for m in NAME.finditer(sentence)):
        places = [m.start() for m in re.finditer(rf"\b{re.escape(name)}\b", around)]
        if name in common and len(places) == 1:
            question = re.sub(rf"\b{re.escape(name)}\b", BLANK, sentence)
            yield Item(question, around, span=(places[0], places[0] + len(name)))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}: is no UTF-8 text ({error}); convert it") from error
