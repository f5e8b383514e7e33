"""Our rows of the quality ladder: a recipe's student, distilled on its grid, exported, verified and scored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from benchmarks.rivals.base import Student, matrix_types
from benchmarks.rivals.rows import float_artifact
from edgeslm.errors import EdgeSLMError

Row = dict[str, Any]


def our_rows(
    rungs: dict[str, Path],
    seeds: Collection[int],
    overrides: list[str],
    student: Student,
    windows: list[list[int]],
    runs: Path,
    threads: int,
    save: Callable[[Row], None],
    done: Collection[tuple[str, int, str]] = (),
) -> list[Row]:
    """One row for every rung {name: recipe} and seed. The recipe's teacher must be the ladder's float student: that is
    checked by its weights. `overrides` are the recipe's (`teacher.model=...`). Rows named in `done` (rung, seed, hash
    of what trains) are not made again."""
    from edgeslm import recipe as recipes

    rows = []
    for rung, path in rungs.items():
        for seed in seeds:
            loaded = recipes.load(path, [*overrides, f"seed={seed}"])
            if (rung, seed, loaded.training_hash) not in done:
                row = {"rung": rung, "seed": seed, "recipe": path.name} | _row(
                    loaded, path.parent, student, windows, runs, threads
                )
                rows.append(row)
                save(row)
    return rows


def brought_row(rung: str, recipe: Path, folder: Path, student: Student, windows: Any, work: Path, threads: int) -> Row:
    """Of a student that another machine trained: `folder` holds the `frozen` and `summary.json` of its training stage.
    The recipe that it says it was trained by is what counts; `recipe` names the one that stands for it here."""
    import yaml

    from edgeslm.quantize.frozen import Frozen
    from edgeslm.recipe import Recipe

    frozen = Frozen.load(folder / "frozen")
    trains = yaml.safe_load(frozen.metadata["recipe"])  # the parts that train; what judges it is asked for in any case
    loaded = Recipe.model_validate({**trains, "evaluate": {"paths": ["package:text/judge/*.txt"]}})
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    scored = _scored(frozen, student, windows, work, threads)
    return {"rung": rung, "seed": loaded.seed, "recipe": recipe.name, **scored, **_trained(loaded, summary)} | {
        "seconds": {"distill": summary["seconds"]}, "trained_on": summary["device"],
    }  # fmt: skip


def _trained(recipe: Any, summary: Row) -> Row:
    curve = [{key: point[key] for key in ("tokens", "kl")} for point in summary["heldout"]]
    return {
        "training_tokens": recipe.tokens,
        "curve": curve,
        "training": recipe.training_hash,
        "recipe_hash": _recipe_hash(recipe),
    }


def _recipe_hash(recipe: Any) -> str:
    """The same for every seed, and wherever the teacher's file lies."""
    import yaml

    trains = yaml.safe_load(recipe.training_yaml())
    text = json.dumps(trains | {"seed": None, "teacher": None, "name": None}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _row(loaded: Any, base: Path, student: Student, windows: Any, runs: Path, threads: int) -> Row:
    from edgeslm.pipeline.run import run
    from edgeslm.progress import Progress
    from edgeslm.quantize.frozen import Frozen

    root = run(loaded, base, runs, Progress(), until="distill")
    record = json.loads((root / "run.json").read_text(encoding="utf-8"))
    folder = root / record["stages"]["distill"]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    row = _scored(Frozen.load(folder / "frozen"), student, windows, root, threads)
    stages = {name: record["seconds"].get(name) for name in ("plan", "round", "distill")}
    return row | {"seconds": stages} | _trained(loaded, summary)


def _scored(frozen: Any, student: Student, windows: Any, work: Path, threads: int) -> Row:
    """The file through llama.cpp against the float student, as the rivals' files are."""
    from edgeslm.devices.local import LocalDevice
    from edgeslm.evaluate.closeness import evaluate
    from edgeslm.export.gguf import export
    from edgeslm.export.verify import verify

    out = work / "ladder.gguf"
    shipped = export(frozen, out)
    exact = verify(shipped, frozen)
    found, problems = evaluate(
        float_artifact(student),
        [shipped],
        windows,
        bos_id=None,
        threads=threads,
        device=LocalDevice(),
        workdir=work,
    )
    if problems:
        raise EdgeSLMError(f"{problems[0]['artifact']}: {problems[0]['what']}")
    types = matrix_types(out)
    same = sorted(name for name, kind in types.items() if student.source_types.get(name) == kind)
    row: Row = {
        "name": frozen.name,
        "bits": shipped.bits_per_weight,
        "bytes": shipped.bytes,
        "sha256": shipped.sha256,
        "exact_tensors": exact["exact"] / exact["tensors"],
        "uses_source_grid": bool(same),
        "types": {kind: list(types.values()).count(kind) for kind in sorted(set(types.values()))},
    }
    for m in found:
        if m.where.artifact == shipped.name:
            row[m.metric], row["tokens"] = m.mean, m.extra["tokens"]
            if m.metric == "kl":
                row["standard_error"] = m.extra["standard_error"]
    out.unlink()
    return row
