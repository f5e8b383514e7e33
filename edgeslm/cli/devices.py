"""The command `devices`: look at devices, build what runs there, talk to a model in a browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgeslm.cli.options import AsJson

group = typer.Typer(invoke_without_command=True)


@group.callback()
def devices(
    context: typer.Context,
    on: Annotated[
        list[str] | None, typer.Option(help="Look at this one too, such as ssh:pi@raspberrypi; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What is in reach, what each device can measure, and what is missing there. Nothing is taken, nothing left."""
    if context.invoked_subcommand is not None:
        return
    from edgeslm.devices.listing import text
    from edgeslm.devices.open import entries, in_reach

    found = list(entries(in_reach(on or ())))
    typer.echo(json.dumps([one.to_json() for one in found], indent=1) if as_json else text(found))
    raise typer.Exit(1 if any(one.why_not for one in found) else 0)


@group.command("build-runtime")
def build_runtime(
    targets: Annotated[list[str] | None, typer.Argument(help="Such as native; all of them by default.")] = None,
) -> None:
    """Build the llama.cpp worker that runs on devices, and llama-bench: one llama.cpp version everywhere.

    From the sources inside the llama-cpp-python package, for this CPU and for 64-bit ARM, kept in the cache.
    """
    from edgeslm.progress import Progress
    from edgeslm.runtimes.build import TARGETS, build

    for name, path in build(targets or list(TARGETS), Progress().say).items():
        typer.echo(f"{name}: {path}")


@group.command()
def show(
    models: Annotated[list[Path], typer.Argument(help="Models to offer: .gguf files or exported ONNX folders.")],
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in your browser.")] = True,
) -> None:
    """A page on this machine to talk with models in a browser, until Ctrl-C. No request leaves the machine."""
    from edgeslm.devices.browser_show import show as serve
    from edgeslm.runtimes.npm import page_folder

    serve(page_folder(), models, open_browser, typer.echo)
