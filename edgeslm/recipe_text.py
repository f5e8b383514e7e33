"""Recipes as people type them: overrides on the command line, and mistakes as sentences."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from edgeslm.errors import RecipeError


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
    where = ".".join(str(p) for p in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _fields_at(error["loc"][:-1], root)
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys here: {', '.join(sorted(known))}"
        return f"{path.name}: unknown key '{where}'; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    given = "" if error["type"] in ("missing", "value_error") else f" (given: {error['input']!r:.80})"
    return f"{path.name}: {where or 'recipe'}: {message}{given}"


def _fields_at(loc: Sequence[Any], root: Any) -> list[str]:
    """Field names of the recipe part at a pydantic error location."""
    part: Any = root
    for step in loc:
        models = _models(part.model_fields[step].annotation) if step in getattr(part, "model_fields", {}) else []
        if models:
            candidates = models
            part = models[0]
        elif isinstance(step, str) and (tagged := [m for m in candidates if _tag(m) == step]):
            part = tagged[0]
    return list(part.model_fields)


def _tag(model: Any) -> str | None:
    kind = model.model_fields.get("kind")
    return None if kind is None else typing.get_args(kind.annotation)[0]


def _models(annotation: Any) -> list[Any]:
    """All recipe parts inside a type such as `tuple[Annotated[A | B, ...], ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in typing.get_args(annotation) for m in _models(a)]
