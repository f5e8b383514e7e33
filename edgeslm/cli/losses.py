"""What a recipe may name: `edgeslm losses` prints the table of losses and of schemes, made from the code itself."""

from __future__ import annotations

import inspect
import typing
from typing import Any


def loss_table() -> list[dict[str, Any]]:
    """One row a loss: what it reads, its options with their defaults, its default map of layers, its source."""
    from edgeslm.knowledge import LOSSES
    from edgeslm.knowledge.base import Feature
    from edgeslm.pipeline.check.losses import options_of

    rows = []
    for name, loss in LOSSES.items():
        parameters = inspect.signature(loss.fn).parameters
        rows.append(
            {
                "loss": name,
                "reads": list(loss.reads) if isinstance(loss, Feature) else ["output"],
                "teacher": isinstance(loss, Feature) or loss.needs_teacher,
                "options": {key: _plain(parameters[key].default) for key in options_of(loss.fn)},
                "layers": loss.layers if isinstance(loss, Feature) else None,
                "joint": isinstance(loss, Feature) and loss.joint,
                "weights": loss.init is not None,
                "recorded": not isinstance(loss, Feature) and (not loss.needs_teacher or loss.coarse),
                "source": loss.source,
                "what": (inspect.getdoc(loss.fn) or "").split("\n\n")[0].replace("\n", " "),
            }
        )
    return rows


def scheme_table() -> list[dict[str, Any]]:
    """One row a scheme: its options with their defaults, and what it does."""
    from edgeslm.recipe import distill

    rows = []
    for part in typing.get_args(typing.get_args(distill.Scheme)[0]):
        fields = dict(part.model_fields)
        kind = typing.get_args(fields.pop("kind").annotation)[0]
        options = {key: "required" if f.is_required() else _plain(f.default) for key, f in fields.items()}
        rows.append({"scheme": kind, "options": options, "what": " ".join((part.__doc__ or "").split())})
    return rows


def document() -> dict[str, Any]:
    return {"losses": loss_table(), "schemes": scheme_table()}


def lines() -> list[str]:
    """The tables as text: a line to name each, what it reads, and its options."""
    found = [f"{'loss':24} {'reads':18} {'layers':10} {'recorded':9} options"]
    for row in loss_table():
        marks = " ".join(filter(None, ("joint" if row["joint"] else "", "own weights" if row["weights"] else "")))
        options = ", ".join(f"{k}: {v}" for k, v in row["options"].items())
        reads = "output" if row["reads"] == ["output"] and row["teacher"] else "/".join(w[:9] for w in row["reads"])
        reads = "text" if not row["teacher"] else reads
        found.append(
            f"{row['loss']:24} {reads:18} {row['layers'] or '-':10} {'yes' if row['recorded'] else '-':9} "
            f"{options}{f'  ({marks})' if marks else ''}"
        )
    found += ["", f"{'scheme':12} options"]
    for row in scheme_table():
        options = ", ".join(f"{k}: {v}" for k, v in row["options"].items())
        found += [f"{row['scheme']:12} {options or '-'}", f"{'':12} {row['what']}"]
    return [
        *found,
        "",
        "In a recipe: distill.objective: [{loss: NAME, weight: 1.0, layers: MAP, OPTION: VALUE}, ...], "
        "distill.scheme: {kind: NAME, OPTION: VALUE}.",
        "recorded: works from targets recorded beforehand (distill.targets). "
        "layers: which layers are compared when the recipe does not say. "
        "Losses on the output or the text take learn: answers, to learn from what the assistant says alone.",
    ]


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value
