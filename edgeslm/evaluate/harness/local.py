"""Task data of this machine for lm-eval's task definitions: `DIR/<task>.jsonl`, one JSON object a line.

A row may have the fields of the data set that the task names, or the form of in-context-learning files (llm-foundry):
`{"query", "choices", "gold"}`, `{"context", "continuation"}`, `{"context_options", "continuation", "gold"}`; those are
written back into the task's own fields, so that its own template makes the prompt. One reader a task, one line in
READERS. A row that fits neither is refused with its line.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeslm.errors import DataError

OWN = Path(__file__).parents[2] / "assets" / "tasks"  # definitions and items that ship with edgeslm
Row = dict[str, Any]
LABELS = "ABCDEFGHIJ"
ALIASES = {"openbookqa": ("openbook_qa",), "lambada_openai": ("lambada",)}
TRAIN = ".train.jsonl"  # examples for few-shot prompts, beside the items that are judged


def _choices(row: Row) -> list[str]:
    choices = row["choices"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise ValueError("'choices' must be two or more texts")
    return choices


def _gold(row: Row, options: int) -> int:
    gold = row["gold"]
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < options:
        raise ValueError(f"'gold' must be the number of a choice, 0 to {options - 1}, not {gold!r}")
    return gold


def _text(row: Row, key: str) -> str:
    if not isinstance(row[key], str) or not row[key].strip():
        raise ValueError(f"'{key}' must be a text")
    return row[key]


def _question(row: Row) -> str:
    return _text(row, "query").removeprefix("Question:").strip()


def arc(row: Row) -> Row:
    choices = _choices(row)
    labels = list(LABELS[: len(choices)])
    return {
        "question": _question(row),
        "choices": {"text": choices, "label": labels},
        "answerKey": labels[_gold(row, len(choices))],
    }


def openbookqa(row: Row) -> Row:
    made = arc(row)
    return {"question_stem": _text(row, "query"), "choices": made["choices"], "answerKey": made["answerKey"]}


def piqa(row: Row) -> Row:
    first, second = _choices(row)
    return {"goal": _question(row), "sol1": first, "sol2": second, "label": _gold(row, 2)}


def winogrande(row: Row) -> Row:
    """Two beginnings that differ in their last words -> a sentence with a blank and two ways to fill it."""
    options = row["context_options"]
    if not isinstance(options, list) or len(options) != 2 or not all(isinstance(o, str) for o in options):
        raise ValueError("'context_options' must be two texts")
    shared = os.path.commonprefix(options)  # noqa: RUF071 (characters are meant; words follow below)
    shared = shared[: shared.rfind(" ") + 1]  # whole words: "pen" begins "pencil" too
    first, second = (option[len(shared) :] for option in options)
    if "_" in shared or not first or not second or first == second:
        raise ValueError("the two 'context_options' must differ at their ends, and hold no blank")
    sentence = f"{shared}_ {_text(row, 'continuation').strip()}"
    return {"sentence": sentence, "option1": first, "option2": second, "answer": str(_gold(row, 2) + 1)}


def lambada(row: Row) -> Row:
    return {"text": f"{_text(row, 'context')} {_text(row, 'continuation').strip()}"}


# task -> (its own fields, the reader of other rows)
READERS: dict[str, tuple[tuple[str, ...], Callable[[Row], Row]]] = {
    "arc_easy": (("question", "choices", "answerKey"), arc),
    "arc_challenge": (("question", "choices", "answerKey"), arc),
    "openbookqa": (("question_stem", "choices", "answerKey"), openbookqa),
    "piqa": (("goal", "sol1", "sol2", "label"), piqa),
    "winogrande": (("sentence", "option1", "option2", "answer"), winogrande),
    "lambada_openai": (("text",), lambada),
}


def file_of(task: str, folder: Path | None) -> Path | None:
    """The task's file in the user's folder, else one that ships with edgeslm; None when there is none (the hub is asked
    then)."""
    names = (task, *ALIASES.get(task, ()))
    places = [place / f"{name}.jsonl" for place in (folder, OWN) if place is not None for name in names]
    return next((path for path in places if path.is_file()), None)


def rows_of(task: str, path: Path) -> list[Row]:
    """The rows as the task's definition wants them. Raises DataError with file and line."""
    from edgeslm.data.chat import json_lines

    found = json_lines(path)
    if not found:
        raise DataError(f"{path}: holds no row; a task needs at least one item")
    rows = [_as_wanted(task, row, f"{path}: item {number}") for number, row in enumerate(found, start=1)]
    for number, row in enumerate(rows, start=1):
        gone = [key for key, value in rows[0].items() if value is not None and row.get(key) is None]
        if gone:
            raise DataError(f"{path}: item {number} has no '{gone[0]}', which item 1 has")
    return rows


def _as_wanted(task: str, row: Row, where: str) -> Row:
    own, reader = READERS.get(task, ((), None))
    if reader is None or all(field in row for field in own):
        return row
    try:
        return reader(row)
    except KeyError as error:
        wanted = ", ".join(own)
        raise DataError(f"{where}: has no {error}; {task} wants {wanted}, or an in-context-learning row") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: {error}") from error
