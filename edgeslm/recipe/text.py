"""Recipes as people type them: overrides on the command line, and mistakes as sentences."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from edgeslm.errors import RecipeError, instead


def override(data: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError([f"'{text}' is no override; write dotted.key=value, as in distill.train.steps=200"])
    *path, last = key.split(".")
    node: Any = data
    for part in path:
        node = _child(node, part, text)
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(
            [f"override '{text}': the value is not valid YAML ({' '.join(str(error).split())})"]
        ) from error
    if isinstance(node, list):
        node[_index(node, last, text)] = parsed
    elif isinstance(node, dict):
        node[last] = parsed
    else:
        raise RecipeError([f"override '{text}': the recipe holds a plain value above '{last}'"])


def _child(node: Any, part: str, text: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, part, text)]
    if isinstance(node, dict):
        if node.get(part) is None:
            node[part] = {}
        return node[part]
    raise RecipeError([f"override '{text}': the recipe holds a plain value above '{part}'"])


def _index(node: list[Any], part: str, text: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise RecipeError([f"override '{text}': '{part}' is no position in a list of {len(node)} (counted from 0)"])
    return int(part)


def sentence(error: Any, path: Path, root: Any) -> str:
    """One pydantic error as a sentence with the key, and the nearest known name for an unknown one."""
    where = ".".join(map(str, _keys(error["loc"], root)))
    if error["type"] == "extra_forbidden":
        known = _fields_at(error["loc"][:-1], root)
        hint = instead(str(error["loc"][-1]), known, f"known keys here: {', '.join(sorted(known))}", cutoff=0.5)
        return f"{path.name}: unknown key '{where}'; {hint}"
    message = error["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list").replace("Tuple", "List")
    given = "" if error["type"] in ("missing", "value_error") else f" (given: {error['input']!r:.80})"
    return f"{path.name}: {where or 'recipe'}: {message}{given}"


def _fields_at(loc: Sequence[Any], root: Any) -> list[str]:
    """Field names of the recipe part at a pydantic error location."""
    return list(_walk(loc, root)[1].model_fields)


def _keys(loc: Sequence[Any], root: Any) -> list[Any]:
    """A pydantic error location as keys of the file: without the kinds of parts that it names on the way."""
    return _walk(loc, root)[0]


def _walk(loc: Sequence[Any], root: Any) -> tuple[list[Any], Any]:
    """(keys, the recipe part that the last of them is in or is)"""
    part: Any = root
    candidates, keys = list[Any](), list[Any]()
    for step in loc:
        models = _models(part.model_fields[step].annotation) if step in getattr(part, "model_fields", {}) else []
        tagged = [m for m in candidates if _tag(m) == step] if isinstance(step, str) and not models else []
        if tagged:
            part, candidates = tagged[0], []
            continue
        keys.append(step)
        if models:
            part, candidates = models[0], models
    return keys, part


def _tag(model: Any) -> str | None:
    kind = model.model_fields.get("kind")
    return None if kind is None else typing.get_args(kind.annotation)[0]


def _models(annotation: Any) -> list[Any]:
    """All recipe parts inside a type such as `tuple[Annotated[A | B, ...], ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in typing.get_args(annotation) for m in _models(a)]
