"""What a trained file says of its origin: the recipe that made it and the teacher's name, no paths of a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeslm.pipeline.stage import Context
from edgeslm.recipe.codistill import is_address


def metadata(context: Context) -> dict[str, str]:
    """What goes into the file: the parts of the recipe that made the weights, which later stages cannot change."""
    recipe = context.recipe
    return {"recipe": shared_recipe(context), "recipe_hash": recipe.training_hash, "base_model": base_model(context)}


def shared_recipe(context: Context) -> str:
    """The parts of the recipe that made the weights, for a file that travels: what lies on this machine by its name."""
    import yaml

    told = yaml.safe_load(context.recipe.training_yaml())
    told["teacher"]["model"] = base_model(context)
    scheme = told["distill"]["scheme"]
    if is_address(scheme.get("folder") or ""):  # of a bucket, which is nobody else's either
        scheme["folder"] = Path(scheme["folder"]).name
    return str(yaml.safe_dump(_without_folders(told), sort_keys=False, allow_unicode=True))


def _without_folders(value: Any) -> Any:
    """Absolute paths become names."""
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    local = isinstance(value, str) and (value.startswith("~") or Path(value).is_absolute())
    return Path(value).name if local else value


def base_model(context: Context) -> str:
    """The teacher's spec; of files and folders on this machine their names only."""
    spec = context.recipe.teacher.model

    def named(part: str) -> str:
        here = not part.startswith("pypi:") and (context.base / Path(part).expanduser()).exists()
        return Path(part).name if here else part

    over = "+" in spec and context.source.kind == "adapter" and named(spec) == spec  # BASE+ADAPTER
    return "+".join(map(named, spec.rpartition("+")[::2])) if over else named(spec)
