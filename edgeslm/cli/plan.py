"""How `edgeslm plan` prints a plan: one line per kind of tensor, then what the whole of it gives."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from edgeslm import units
from edgeslm.errors import RecipeError


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """plan.json -> lines of text. KL is to the float student, before any training."""
    tensors = list(plan["tensors"].values())
    lines = [f"{'tensors':14} {'bits':>6} {'size':>9} {'KL':>9}  formats"]
    for kind in dict.fromkeys(t["kind"] for t in tensors):
        rows = [t for t in tensors if t["kind"] == kind]
        weights, size = sum(math.prod(t["shape"]) for t in rows), sum(t["bytes"] for t in rows)
        expected = plan["joint"] * sum(t["kl"][t["format"]] for t in rows)
        formats = Counter(t["format"] for t in sorted(rows, key=lambda t: t["bits"]))
        said = ", ".join(f"{count} {name}" if len(rows) > 1 else name for name, count in formats.items())
        lines.append(f"{kind:14} {8 * size / weights:6.2f} {units.byte_count(size):>9} {expected:9.4f}  {said}")
    return [
        *lines,
        f"all tensors: {units.byte_count(plan['bytes'])}, {plan['bits']:.3f} bits a weight "
        f"(at most {units.byte_count(plan['allowed_bytes'])})",
        f"KL to the float student before training: {plan['predicted_kl']:.4f} nats a token predicted, "
        f"{plan['measured_kl']:.4f} measured on {plan['tokens']['measured_kl']:,} other tokens"
        + (", both with nearest rounding; chosen for rounding with feedback" if plan.get("left_by_feedback") else ""),
    ]


def planned(recipe: Path, overrides: list[str], runs: Path, quiet: bool, as_json: bool) -> str:
    """Run a recipe until its plan stands, and print that. Raises RecipeError for a recipe without a target."""
    from edgeslm import recipe as recipes
    from edgeslm.pipeline.run import run
    from edgeslm.progress import Progress

    loaded = recipes.load(recipe, overrides)
    if loaded.quantize.target is None:
        raise RecipeError([f"{recipe.name}: gives no quantize.target; write one, such as target: {{bits: 4.0}}"])
    folder = run(loaded, recipe.parent, runs, Progress(quiet), "plan")
    stage = json.loads((folder / "run.json").read_text(encoding="utf-8"))["stages"]["plan"]
    document = json.loads((folder / stage / "plan.json").read_text(encoding="utf-8"))
    return json.dumps(document, indent=1) if as_json else "\n".join(plan_lines(document))
