"""The command `serve-peers`: peers' predictions for the groups of a codistillation, from a process of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeslm.cli.options import Overrides, Quiet, RecipeFile, Runs


def serve_peers(
    recipe: RecipeFile,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    host: Annotated[str, typer.Option(help="Address to answer at; 0.0.0.0 for every one of this machine.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7310,
    quiet: Quiet = False,
) -> None:
    """Run the newest checkpoints of codistilling groups and answer with what they predict, until stopped.

    For recipes with scheme {kind: codistill, share: {kind: served}}. Whoever reaches the port may ask: there is no
    password, and an answer holds predictions on the recipe's own rows.
    """
    import signal
    import threading

    from edgeslm import recipe as recipes
    from edgeslm.pipeline.serve import server
    from edgeslm.progress import Progress

    progress, stop = Progress(quiet), threading.Event()
    with server(recipes.load(recipe, overrides or []), recipe.parent, runs, progress, (host, port)) as running:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: stop.set())
        at, of = running.server_address, running.desk
        typer.echo(f"serving predictions of groups in {of.folder} at {at[0]}:{at[1]} (recipe {of.recipe})")
        stop.wait()
