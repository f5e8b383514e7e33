"""The sub-command `plan-training`: what a recipe's training costs here, over the ways in which it can be run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeslm.cli.options import AsJson, Overrides, Quiet, RecipeFile, Runs
from edgeslm.errors import EdgeSLMError


def plan_training(
    recipe: RecipeFile,
    overrides: Overrides = None,
    prices: Annotated[Path | None, typer.Option(help="YAML: currency, and prices an hour by machine.")] = None,
    machine: Annotated[str | None, typer.Option(help="Which entry of --prices this machine is.")] = None,
    attention: Annotated[str, typer.Option(help="Of sdpa, eager, flash; such as sdpa,eager.")] = "",
    micro_rows: Annotated[str, typer.Option(help="Rows at once, such as 1,2,4.")] = "",
    compiled: Annotated[str, typer.Option("--compile", help="on, off, or on,off.")] = "",
    ranks: Annotated[str, typer.Option(help="Processes, such as 1,2.")] = "",
    parallel: Annotated[str, typer.Option(help="Of ddp, fsdp2, for more than one process.")] = "",
    backend: Annotated[str, typer.Option(help="Of gloo, nccl, for more than one process.")] = "",
    steps: Annotated[int, typer.Option(min=1, help="Timed steps of a process.")] = 5,
    repeats: Annotated[int, typer.Option(min=3, help="Fresh processes of each way to train.")] = 3,
    runs: Runs = Path("runs"),
    out: Annotated[Path | None, typer.Option(help="Folder of the page; in the run's folder by default.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure what a recipe's training costs here by how it is run, and recommend one way (after arXiv:2410.19456).

    Axes that are given are combined, the others stay as the recipe has them; without any, the recipe and what differs
    from it in one axis is measured. Stopped at any moment, the same command goes on where it was.
    """
    from edgeslm import recipe as recipes
    from edgeslm.progress import Progress
    from edgeslm.report.page import strict
    from edgeslm.training_cost import grid
    from edgeslm.training_cost.page import lines, render
    from edgeslm.training_cost.study import How

    asked = grid.asked(attention, micro_rows, compiled, ranks, parallel, backend)
    given = _prices(prices, machine)
    loaded = recipes.load(recipe, overrides or [])
    how, progress = How(steps=steps, repeats=repeats), Progress(quiet or as_json)
    document, folder = planned(loaded, recipe.parent, runs, asked, how, given, machine, progress)
    files = render(document, out or folder)
    if as_json:
        typer.echo(json.dumps(strict(document), indent=1, allow_nan=False))
        return
    for line in lines(document):
        typer.echo(line)
    typer.echo(str(files[0]))


def _prices(path: Path | None, machine: str | None) -> Any:
    """Before anything is run: the file's prices, None without a file. Raises DataError."""
    from edgeslm.errors import DataError
    from edgeslm.training_cost.prices import load, price_of

    if path is None:
        if machine is not None:
            raise DataError(f"--machine {machine}: names an entry of --prices FILE, which is not given")
        return None
    prices = load(path)
    if machine is not None:
        price_of(prices, (), machine)
    return prices


def planned(
    recipe: Any, base: Path, runs: Path, asked: Any, how: Any, prices: Any, machine: str | None, progress: Any
) -> tuple[dict[str, Any], Path]:
    """(the document, the folder that it belongs into). Raises EdgeSLMError."""
    from filelock import FileLock, Timeout

    from edgeslm.training_cost import grid, page
    from edgeslm.training_cost.prepare import prepare
    from edgeslm.training_cost.prices import price_of
    from edgeslm.training_cost.store import Store
    from edgeslm.training_cost.study import document, study

    ready = prepare(recipe, base, runs, progress, how.warmups + how.steps)
    price, why = None, "no file of prices was given (--prices)"
    if prices is not None:
        price = price_of(prices, ready.here.names, machine)
        why = f"the file names {', '.join(prices)}; this machine is '{ready.here.name}', or say --machine NAME"
    folder = ready.context.root / page.NAME
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            points = grid.points(ready.own, asked, recipe.batch_rows, ready.joined)
            rows = study(ready, points, how, Store(folder / "points.jsonl"), progress)
    except Timeout:
        raise EdgeSLMError(f"{folder}: another plan-training is measuring here, wait for it") from None
    return document(ready, rows, how, price, why), folder
