"""Commands around a model: export it, talk to it, and what this toolkit and this machine can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgeslm.cli.options import AsJson, Model
from edgeslm.errors import ExportError


def export(
    run_folder: Annotated[Path, typer.Argument(help="A run folder, or a frozen student inside one.")],
    kind: Annotated[str | None, typer.Option("--kind", help="gguf (the default) or onnx.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where to write; beside the run by default.")] = None,
    accuracy_level: Annotated[
        int | None, typer.Option(help="ONNX, optimum: 0 float32, 4 int8 activations (the default).")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Write a checked bundle for apps: a folder, or one .zip file.")
    ] = None,
    part_size: Annotated[str | None, typer.Option(help="Cut a bundle's files above this size, such as 100MB.")] = None,
    to: Annotated[str | None, typer.Option(help="Lay it out for ollama, genai, optimum or a hub-folder.")] = None,
    licence: Annotated[str, typer.Option(help="The teacher's licence, where it is not known here.")] = "",
    name: Annotated[str, typer.Option(help="What the bundle or card calls the model.")] = "",
    as_json: AsJson = False,
) -> None:
    """Export a trained student again, and verify every tensor of the file bit for bit; or lay it out for others."""
    if bundle is not None or to is not None:
        from edgeslm.cli import bundle as cli_bundle

        given = (bundle, to, kind, out, part_size, licence, name, as_json, accuracy_level)
        typer.echo(cli_bundle.export(run_folder, *given))
        return
    from edgeslm.cli.actions import export_again

    alone = {"--part-size": part_size, "--licence": licence, "--name": name}
    if given_alone := [option for option, value in alone.items() if value]:
        raise ExportError(f"{given_alone[0]} goes with --bundle or --to; leave it out, or name one of them")
    result = export_again(run_folder, kind or "gguf", out, accuracy_level)
    line = (
        f"{result['path']}: {result['exact']} of {result['tensors']} tensors bitwise exact, {result['bytes']:,} bytes"
    )
    typer.echo(json.dumps(result, indent=1) if as_json else line)


def chat(
    model: Model,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    max_new: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.7,
    top_p: Annotated[float, typer.Option()] = 0.95,
    seed: Annotated[int, typer.Option()] = 0,
    context: Annotated[int, typer.Option(help="Longest conversation in tokens.")] = 2048,
    threads: Annotated[int, typer.Option(help="0 takes all cores.")] = 0,
) -> None:
    """Talk to an exported file or a teacher. Answers stream; an empty line or Ctrl-D ends it."""
    from edgeslm.cli.actions import converse

    sampling = {"temperature": temperature, "top_p": top_p, "seed": seed}
    converse(model, system, max_new, sampling, context, threads)


def doctor(as_json: AsJson = False) -> None:
    """What works on this machine, and how to get what does not."""
    from edgeslm.doctor import examine, lines

    findings = examine()
    typer.echo(json.dumps([f.__dict__ for f in findings], indent=1) if as_json else "\n".join(lines(findings)))
    raise typer.Exit(0 if all(f.ok or f.optional for f in findings) else 1)


def formats(as_json: AsJson = False) -> None:
    """The number grids: bits, block, what each can do, which container holds it exactly, what runs it fast."""
    from edgeslm.cli.actions import format_lines, format_table

    typer.echo(json.dumps(format_table(), indent=1) if as_json else "\n".join(format_lines()))


def losses(as_json: AsJson = False) -> None:
    """What a recipe's objective and scheme may name: what each reads, its options, where it comes from."""
    from edgeslm.cli.losses import document, lines

    typer.echo(json.dumps(document(), indent=1) if as_json else "\n".join(lines()))
