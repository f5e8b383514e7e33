"""A codistillation's groups in a recipe: which of them this process trains, what each reads, where they meet."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeslm.errors import DataError, RecipeError
from edgeslm.pipeline.stage import Context, digest
from edgeslm.recipe import Recipe
from edgeslm.recipe.codistill import is_address

if TYPE_CHECKING:
    from edgeslm.schemes.exchange_places import Bucket, Folder, Place

VARIABLE = "EDGESLM_GROUP"
SERVERS = "EDGESLM_PEERS"


def own_group(recipe: Any) -> Any:
    """The recipe of the group that it, or the environment, names: with a name, and so a run folder, of its own. Other
    recipes are as they were. Raises RecipeError."""
    if not isinstance(recipe, Recipe) or recipe.distill.scheme.kind != "codistill":
        return recipe
    scheme, told = recipe.distill.scheme, os.environ.get(VARIABLE)
    group = scheme.group
    if group is None and told:
        if not told.isdigit() or int(told) >= scheme.groups:
            raise RecipeError([f"{VARIABLE}={told}: is none of {scheme.groups} groups, which are counted from 0"])
        group = int(told)
    if group is None:
        return recipe
    distill = recipe.distill.model_copy(update={"scheme": scheme.model_copy(update={"group": group})})
    return recipe.model_copy(update={"distill": distill, "name": f"{recipe.name}-group{group}"})


def here(context: Context) -> tuple[int, ...]:
    """The groups that this process trains; none where the scheme knows no groups."""
    scheme = context.recipe.distill.scheme
    if scheme.kind != "codistill":
        return ()
    return (scheme.group,) if scheme.group is not None else tuple(range(scheme.groups))


def starts_apart(recipe: Recipe) -> bool:
    """Whether copies begin with weights of their own, as the paper's do: those that are drawn and not a teacher's."""
    part: Any = recipe.student
    return recipe.distill.scheme.kind == "codistill" and part.kind == "scratch" and part.init.kind != "teacher"


def own_start(context: Context, student: Any, group: int) -> Any:
    """The student, with weights of its group's own where copies start apart; the first group has the stage's."""
    if group and starts_apart(context.recipe):
        from edgeslm.students import mup

        init: Any = context.recipe.student.init  # type: ignore[union-attr]
        mup.initialise(student, getattr(init, "base_width", None), init.std, context.recipe.seed + group)
    return student


def orders(context: Context, rows: Any) -> list[Any]:
    """Indices of rows in the order that each group here reads them. Raises DataError where a group would get none."""
    from edgeslm.data.order import order, shard

    recipe = context.recipe
    shares, count = [s.share for s in recipe.data.sources], recipe.distill.train.steps * recipe.batch_rows
    scheme = recipe.distill.scheme
    if scheme.kind != "codistill":
        return [order(rows, shares, count, recipe.seed)]
    if scheme.data == "same":
        return [order(rows, shares, count, recipe.seed + group) for group in here(context)]
    everyones = shared(context, rows)
    parts = [shard(rows, group, scheme.groups, everyones) for group in here(context)]
    for part in parts:
        empty = [name for i, name in enumerate(rows.sources) if not (part.source == i).any()]
        if empty:
            raise DataError(f"data.sources: {empty[0]} has fewer rows than there are groups ({scheme.groups})")
    return [order(part, shares, count, recipe.seed) for part in parts]


def shared(context: Context, rows: Any) -> list[int]:
    """Indices of the rows on which groups exchange predictions. Raises DataError where there are fewer."""
    from edgeslm.data.order import first_by_id

    share: Any = context.recipe.distill.scheme.share  # type: ignore[union-attr]
    return first_by_id(rows, share.rows) if share.kind == "predictions" else []


def exchange(context: Context, rows: Any, stage: Path) -> Any:
    """Where this process's groups meet the others; None where the scheme knows no groups."""
    from edgeslm.schemes.exchange import Exchange

    scheme = context.recipe.distill.scheme
    if scheme.kind != "codistill":
        return None
    place, common = meeting(context, stage), common_hash(context, rows)
    return Exchange(place, common, here(context), orders(context, rows), shared(context, rows), servers(context.recipe))


def servers(recipe: Recipe) -> list[tuple[str, int]]:
    """(host, port) of what answers for each group; none where groups ask nobody. Raises RecipeError."""
    scheme: Any = recipe.distill.scheme
    if scheme.kind != "codistill" or scheme.share.kind != "served":
        return []
    told = os.environ.get(SERVERS)
    where = SERVERS if told else "distill.scheme.share.address"
    named = told.split(",") if told else scheme.share.address
    if named is None:
        raise RecipeError(
            [f"distill.scheme.share: no server is named; give it an address: HOST:PORT, or set {SERVERS}"]
        )
    listed = [named] if isinstance(named, str) else list(named)
    if len(listed) not in (1, scheme.groups):
        raise RecipeError([f"{where}: {len(listed)} addresses for {scheme.groups} groups; give one, or one for each"])
    found = [_address(text, where) for text in listed]
    return found * scheme.groups if len(found) == 1 else found


def _address(text: str, where: str) -> tuple[str, int]:
    host, _, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise RecipeError([f"{where}: '{text}' is no HOST:PORT, such as 10.0.0.1:7310"])
    return host, int(port)


def served(recipe: Recipe, base: Path, runs: Path) -> Recipe:
    """The recipe of a process that serves peers: in a run folder of its own, with the exchange folder of the groups.
    Raises RecipeError for groups that ask nobody."""
    scheme: Any = recipe.distill.scheme if isinstance(recipe, Recipe) else None
    if getattr(scheme, "kind", "") != "codistill" or scheme.share.kind != "served":
        raise RecipeError(
            ["distill.scheme: nobody would ask; serve-peers is for {kind: codistill, share: {kind: served}}"]
        )
    place = scheme.folder or str((runs / f"{recipe.name}-exchange").absolute())
    if not is_address(place):
        place = str((base / Path(place).expanduser()).absolute())
    asked = scheme.share.model_copy(update={"address": scheme.share.address or "localhost:7310"})  # it asks nobody
    part = scheme.model_copy(update={"group": None, "folder": place, "share": asked})
    distill = recipe.distill.model_copy(update={"scheme": part})
    return recipe.model_copy(update={"distill": distill, "name": f"{recipe.name}-server"})


def named(where: str, base: Path) -> Folder | Bucket:
    """The place that a recipe in folder `base` names. Raises DataError for a bucket that nothing here can reach."""
    from edgeslm.schemes.exchange_places import Bucket, Folder

    return Bucket(where) if is_address(where) else Folder(base / Path(where).expanduser())


def meeting(context: Context, stage: Path) -> Place:
    """As the recipe says; else inside the stage where one process trains all, and beside the run folders where each
    group has its own. Groups on a schedule wait for their bucket."""
    from edgeslm.schemes.exchange_places import Bucket, Folder, Patient

    scheme: Any = context.recipe.distill.scheme
    if scheme.folder is not None:
        place = named(scheme.folder, context.base)
        waits = isinstance(place, Bucket) and scheme.exchange == "scheduled"
        return Patient(place, scheme.patience_s, context.progress.say) if waits else place
    if scheme.group is None:
        return Folder(stage / "exchange")
    shared = context.recipe.name.removesuffix(f"-group{scheme.group}")
    return Folder(context.root.parent / f"{shared}-exchange")


def common_hash(context: Context, rows: Any) -> str:
    """Of what all groups must have in common: recipe, teacher and training rows. What things are called and where they
    lie is each machine's own, and so is how long it waits for a server."""
    import yaml

    told = yaml.safe_load(context.recipe.training_yaml())
    own: list[tuple[Any, tuple[str, ...]]] = [(told, ("name", "device")), (told["teacher"], ("model", "tokenizer"))]
    own += [(told["distill"]["scheme"], ("group", "folder"))]
    own += [(told["distill"]["scheme"].get("share", {}), ("address", "timeout_s"))]
    tuned = told.get("sft") or {}
    own += [(source, ("paths", "seeds")) for source in (*told["data"]["sources"], *(tuned.get("sources") or ()))]
    own += [(tuned, ("judge",))]
    for part, keys in own:
        for key in keys:
            part.pop(key, None)
    text = hashlib.sha256(rows.ids.numpy().tobytes()).hexdigest()
    return digest(told, context.source.sha256, text)
