"""Commands around a recipe: run it, check it, plan its grids, look at what its student learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgeslm.cli.options import AsJson, Overrides, Quiet, RecipeFile, Runs, tell
from edgeslm.errors import RecipeError


def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    until: Annotated[str | None, typer.Option(help="Stop after this stage (teacher, data, student, ...).")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run a recipe from teacher to report. Stopped at any moment, the same command goes on where it was.

    Leaves with 1 when a file could not be evaluated or timed; the rest is done and reported all the same.
    """
    from edgeslm import recipe as recipes
    from edgeslm.pipeline.run import run as run_pipeline
    from edgeslm.pipeline.run import stages
    from edgeslm.progress import Progress

    loaded = recipes.load(recipe, overrides or [])
    names = [s.name for s in stages(loaded)]
    if until is not None and until not in names:
        raise RecipeError([f"--until {until}: no such stage; stages of this recipe are {', '.join(names)}"])
    folder = run_pipeline(loaded, recipe.parent, runs, Progress(quiet), until)
    record = (folder / "run.json").read_text(encoding="utf-8")
    typer.echo(record if as_json else str(folder))
    tell(json.loads(record)["problems"])


def check(recipe: RecipeFile, overrides: Overrides = None, runs: Runs = Path("runs"), as_json: AsJson = False) -> None:
    """Say everything that is wrong with a recipe, and what it will do, before any compute."""
    from edgeslm import recipe as recipes
    from edgeslm.pipeline.check import check as check_recipe
    from edgeslm.pipeline.stage import Context
    from edgeslm.progress import Progress

    loaded = recipes.load(recipe, overrides or [])
    found = check_recipe(Context(loaded, recipe.parent, runs / loaded.name, Progress(quiet=True)))
    if as_json:
        typer.echo(json.dumps({"problems": found.problems, "plan": dict(found.plan)}, indent=1))
    else:
        for label, value in found.plan:
            typer.echo(f"{label:42} {value}")
    found.raise_if_any()
    if not as_json:
        typer.echo("nothing is wrong with this recipe")


def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Choose every tensor's format for the size a recipe gives (quantize.target), and show it. Trains nothing."""
    from edgeslm.cli.plan import planned

    typer.echo(planned(recipe, overrides or [], runs, quiet, as_json))


def learned(
    runs: Annotated[list[str], typer.Argument(help="Run folders whose training kept points (distill.train.keep).")],
    text: Annotated[list[str] | None, typer.Option(help="UTF-8 text to look at; may be repeated.")] = None,
    layers: Annotated[str, typer.Option(help="Such as 2,4,6; thirds of the student by default.")] = "",
    windows: Annotated[int, typer.Option(min=1, help="At most this many windows.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens of a window.")] = 64,
    margin: Annotated[float, typer.Option(min=0, help="Nats by which a knowledge point stands out.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the page; runs/learned by default.")] = None,
    threads: Annotated[int, typer.Option(help="0 takes all cores.")] = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """What students learned, when, and by how straight a path (arXiv:2003.03622): runs side by side, and a page."""
    from edgeslm.cli import learned as cli_learned
    from edgeslm.progress import Progress

    options = cli_learned.Options(tuple(text or ()), layers, windows, length, margin, seed, threads)
    typer.echo(cli_learned.learned(runs, options, Progress(quiet or as_json), out, as_json))


def design(
    budget: Annotated[str, typer.Option(help="0.1B or 60M parameters, or 60MB of weights as shipped.")] = "0.1B",
    device: Annotated[str, typer.Option(help="A profile such as pi5, or a document of bench --out.")] = "pi5",
    bits: Annotated[int, typer.Option(help="Of a weight, about: 2, 3, 4, 5, 6 or 8.")] = 4,
    context: Annotated[int, typer.Option(help="Positions that the cache must hold.")] = 1024,
    vocabulary: Annotated[int | None, typer.Option(help="Tokens; the teacher's by default.")] = None,
    teacher: Annotated[str | None, typer.Option(help="A model to cut the students out of; else from scratch.")] = None,
    as_json: AsJson = False,
) -> None:
    """Propose student shapes for a budget and a device, with what each would cost there, and a recipe's section.

    Example:  edgeslm design --budget 0.1B --device pi5 --bits 4
    """
    from edgeslm.cli import design as cli_design

    typer.echo(cli_design.design(budget, device, bits, context, vocabulary, teacher, as_json))
