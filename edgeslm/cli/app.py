"""The command line. Commands import what they need inside, so that `--help` answers at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from edgeslm.cli import devices, judge, measure, plan_training, serve_peers, ship, train
from edgeslm.errors import EdgeSLMError, RecipeError

COMMANDS: dict[str, Callable[..., None]] = {  # in the order of `--help`
    "run": train.run,
    "check": train.check,
    "plan": train.plan,
    "plan-training": plan_training.plan_training,
    "design": train.design,
    "export": ship.export,
    "eval": judge.evaluate,
    "bench": measure.bench,
    "learned": train.learned,
    "serve-peers": serve_peers.serve_peers,
    "report": measure.report,
    "chat": ship.chat,
    "doctor": ship.doctor,
    "formats": ship.formats,
    "losses": ship.losses,
}
app = typer.Typer(
    help="Distil a teacher language model into a small one, on the exact low-bit grid the device will run.\n\n"
    "Start with:  edgeslm run recipes/quickstart.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from edgeslm import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _edgeslm(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


for name, command in COMMANDS.items():
    app.command(name)(command)
app.add_typer(devices.group, name="devices")


def main() -> None:
    """Entry point: every error a user can mend is one sentence on stderr and exit code 2."""
    try:
        app()
    except RecipeError as error:
        for problem in error.problems:
            typer.echo(f"error: {problem}", err=True)
        sys.exit(error.exit_code)
    except EdgeSLMError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except SystemExit as leaving:
        if leaving.code == 130:  # Ctrl-C, which typer turns into a silent exit
            kept = (
                "; what was finished is kept, the same command goes on from there"
                if sys.argv[1:2] in (["run"], ["eval"], ["plan-training"])
                else ""
            )
            typer.echo(f"stopped{kept}", err=True)
        raise
    except OSError as error:
        typer.echo(f"error: {error.filename or 'the system'}: {error.strerror or error}", err=True)
        sys.exit(2)
