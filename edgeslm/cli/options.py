"""Arguments and options that several commands share, and how their problems are told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[Path, typer.Argument(help="A recipe, for example recipes/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Overrides such as distill.train.steps=200 (values are YAML).")
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder that holds run folders.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")]
Model = Annotated[str, typer.Argument(help="A .gguf file, an exported ONNX folder, or any teacher spec.")]


def tell(problems: list[dict[str, str]]) -> None:
    """Artifacts that failed, on stderr; leaves with 1 when there are any."""
    for problem in problems:
        typer.echo(f"{problem['artifact']}: {problem['what']}", err=True)
    if problems:
        raise typer.Exit(1)
