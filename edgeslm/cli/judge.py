"""The command `eval`: what is left of the teacher in shipped files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeslm.cli.options import AsJson, Quiet, tell


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(help="Shipped files: .gguf, exported ONNX folders, run folders or run:NAME (their student)."),
    ],
    teacher: Annotated[
        str | None,
        typer.Option(help="What they are set beside: a float .gguf, an ONNX folder or any teacher spec; a run's own."),
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="UTF-8 text to judge by; may be repeated.")] = None,
    context: Annotated[int, typer.Option(help="Tokens of a window; its second half is scored.")] = 512,
    windows: Annotated[int, typer.Option(help="At most this many windows; 0 leaves text out.")] = 8,
    tasks: Annotated[str, typer.Option(help="Tasks of lm-eval, such as arc_easy,piqa,lambada_openai.")] = "",
    data: Annotated[
        Path | None, typer.Option(help="Folder of <task>.jsonl files; without it tasks ask the hub.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first items of each task.")] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, help="Examples before each item; each task's own number by default.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(min=16, help="Cut contexts to this many tokens.")] = None,
    chat_template: Annotated[bool, typer.Option("--chat-template", help="Put tasks as chat turns.")] = False,
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="JSON lines of prompts to answer side by side; 'own' takes those that ship with edgeslm."),
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 128,
    churn: Annotated[bool, typer.Option("--churn", help="How often every two of the files disagree.")] = False,
    at_least: Annotated[list[str] | None, typer.Option(help="Gate, such as retention=0.95; may be repeated.")] = None,
    at_most: Annotated[list[str] | None, typer.Option(help="Gate, such as kl=0.1; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report; runs/eval-<model> by default.")] = None,
    threads: Annotated[int, typer.Option(help="0 takes all cores.")] = 0,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Ask everything anew and keep nothing.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """How much of the teacher is left in shipped files, through the runtimes that run them.

    Closeness on text (perplexity, KL, agreement), retention on tasks, answers side by side, churn; and a report.
    Stopped at any moment, the same command goes on where it was. Leaves with 1 when a gate does not hold or a file
    could not be evaluated.

    Example:  edgeslm eval runs/quickstart --tasks arc_easy,piqa --data tasks --at-least retention=0.9 --at-most kl=0.6
    """
    from edgeslm.cli import eval as cli_eval
    from edgeslm.progress import Progress

    options = cli_eval.Options(
        text=tuple(text or (cli_eval.OWN_TEXT,)), context=context, windows=windows,
        tasks=tuple(name.strip() for name in tasks.split(",") if name.strip()), data=data, limit=limit, shots=shots,
        max_length=max_length, chat=chat_template, new=new_tokens, churn=churn, threads=threads, keep=not no_cache,
        prompts=tuple(cli_eval.OWN_PROMPTS if p == "own" else p for p in prompts or ()),
    )  # fmt: skip
    bounds = cli_eval.bounds(at_least or [], at_most or [])
    document = cli_eval.evaluate(models, teacher, options, Progress(quiet or as_json), bounds)
    typer.echo(cli_eval.finish(document, bounds, models, out, as_json))
    for sentence in document["gate"]["broken"]:
        typer.echo(f"gate: {sentence}", err=True)
    tell(document["problems"])
    raise typer.Exit(1 if document["gate"]["broken"] else 0)
