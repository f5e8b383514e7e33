"""The part of `check` that looks at the objective: losses that exist, options they take, values that mean something."""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from edgeslm.recipe import Recipe

STRICT = ConfigDict(strict=True, allow_inf_nan=False)  # true is no number, and "2" neither


def losses(recipe: Recipe, found: Any) -> None:
    from edgeslm.knowledge import LOSSES

    for index, term in enumerate(recipe.distill.objective):
        where = f"distill.objective.{index}"
        if term.loss not in LOSSES:
            near = difflib.get_close_matches(term.loss, LOSSES, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(LOSSES)}"
            found.problems.append(f"{where}: unknown loss '{term.loss}'; {hint}")
            continue
        options = options_of(LOSSES[term.loss].fn)
        for key, value in (term.model_extra or {}).items():
            if key not in options:
                found.problems.append(
                    f"{where}: '{term.loss}' has no option '{key}'; it takes {', '.join(options) or 'none'}"
                )
            elif wrong := mistake(value, options[key]):
                found.problems.append(f"{where}.{key}: {value!r} does not do: {wrong}")


def options_of(fn: Callable[..., Any]) -> dict[str, Any]:
    """{keyword argument: its annotation}, bounds included where it is `Annotated`."""
    hints = typing.get_type_hints(fn, include_extras=True)
    accepted = inspect.signature(fn).parameters.values()
    return {p.name: hints[p.name] for p in accepted if p.kind is inspect.Parameter.KEYWORD_ONLY}


def mistake(value: Any, annotation: Any) -> str | None:
    """What is wrong with a value for an option of this type and these bounds."""
    try:
        TypeAdapter(annotation, config=STRICT).validate_python(value)
    except ValidationError as error:
        return "; ".join(str(e["msg"]) for e in error.errors())
    return None
