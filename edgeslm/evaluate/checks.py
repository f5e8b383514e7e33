"""Instructions whose following a program can see, after IFEval (arXiv:2311.07911): one function each, no judge.

A prompt names them: `{"prompt": "...", "checks": [{"check": "bullets", "count": 3}]}`; the other keys are the
function's keyword arguments.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from typing import Any

from edgeslm.errors import DataError
from edgeslm.evaluate.tokens import CJK


def _words(text: str) -> int:
    """Words of spaced scripts, characters of Chinese."""
    return len(CJK.findall(text)) + len(re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+", CJK.sub(" ", text)))


def at_most_words(text: str, *, count: int) -> bool:
    return 0 < _words(text) <= count


def at_least_words(text: str, *, count: int) -> bool:
    return _words(text) >= count


def sentences(text: str, *, count: int) -> bool:
    return len([s for s in re.split(r"[.!?。！？]+(?:\s|$|(?=[\u3400-\u9fff]))", text) if s.strip()]) == count


def bullets(text: str, *, count: int) -> bool:
    return len(re.findall(r"^[ \t]*(?:(?:[-*•]|\d+[.)])[ \t]+|\d+、[ \t]*)\S", text, re.MULTILINE)) == count


def paragraphs(text: str, *, count: int) -> bool:
    return len([p for p in re.split(r"\n\s*\n", text.strip()) if p.strip()]) == count


def lower_case(text: str) -> bool:
    return any(c.isalpha() for c in text) and text == text.lower()


def upper_case(text: str) -> bool:
    return any(c.isalpha() for c in text) and text == text.upper()


def no_commas(text: str) -> bool:
    return bool(text.strip()) and not re.search("[,，、]", text)


def contains(text: str, *, words: list[str]) -> bool:
    return all(word.lower() in text.lower() for word in words)


def excludes(text: str, *, words: list[str]) -> bool:
    """Whole words of spaced scripts: "yellow" is not in "yellowish"; any place in Chinese."""
    found = (re.escape(w) if CJK.search(w) else rf"\b{re.escape(w)}\b" for w in words)
    return bool(text.strip()) and not any(re.search(pattern, text, re.IGNORECASE) for pattern in found)


def begins_with(text: str, *, words: str) -> bool:
    return text.strip().lower().startswith(words.lower())


def ends_with(text: str, *, words: str) -> bool:
    return text.strip().lower().endswith(words.lower())


def one_of(text: str, *, words: list[str]) -> bool:
    """The answer is one of these and nothing else, but for a full stop or quotation marks."""
    return text.strip().strip("\"'.。！!“”").lower() in [word.lower() for word in words]


def is_json(text: str) -> bool:
    """A JSON document and nothing else; a code fence around it is allowed."""
    inside = re.fullmatch(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", text, re.DOTALL)
    try:
        json.loads(inside[1] if inside else text)
    except (ValueError, RecursionError):  # a looping student may open brackets for ever
        return False
    return True


def in_chinese(text: str) -> bool:
    letters = [c for c in text if c.isalpha()]
    return bool(letters) and sum(bool(CJK.match(c)) for c in letters) > 0.7 * len(letters)


CHECKS: dict[str, Callable[..., bool]] = {
    "at_most_words": at_most_words,
    "at_least_words": at_least_words,
    "sentences": sentences,
    "bullets": bullets,
    "paragraphs": paragraphs,
    "lower_case": lower_case,
    "upper_case": upper_case,
    "no_commas": no_commas,
    "contains": contains,
    "excludes": excludes,
    "begins_with": begins_with,
    "ends_with": ends_with,
    "one_of": one_of,
    "is_json": is_json,
    "in_chinese": in_chinese,
}


def followed(text: str, wanted: list[dict[str, Any]]) -> list[bool]:
    """Whether each instruction was followed. `wanted` has been through `checked`."""
    return [CHECKS[w["check"]](text, **{k: v for k, v in w.items() if k != "check"}) for w in wanted]


def checked(wanted: Any, where: str) -> list[dict[str, Any]]:
    """Raises DataError for a check that does not exist or whose arguments do not fit, before anything is written."""
    if not isinstance(wanted, list) or not all(isinstance(w, dict) and isinstance(w.get("check"), str) for w in wanted):
        raise DataError(f'{where}: \'checks\' is a list such as [{{"check": "bullets", "count": 3}}]')
    for given in wanted:
        name = given["check"]
        if name not in CHECKS:
            raise DataError(f"{where}: no check is called '{name}'; known are {', '.join(CHECKS)}")
        parameters = [p for p in inspect.signature(CHECKS[name]).parameters if p != "text"]
        if sorted(parameters) != sorted(k for k in given if k != "check"):
            needed = ", ".join(parameters) or "no further keys"
            raise DataError(f"{where}: the check '{name}' takes {needed}")
        types = {"count": int, "words": list if name in ("contains", "excludes", "one_of") else str}
        for key in parameters:
            if not isinstance(given[key], types[key]) or isinstance(given[key], bool):
                raise DataError(f"{where}: '{key}' of the check '{name}' must be a {types[key].__name__}")
            if isinstance(given[key], list) and not (given[key] and all(isinstance(w, str) for w in given[key])):
                raise DataError(f"{where}: '{key}' of the check '{name}' must hold words, such as [\"lamp\"]")
    return wanted
