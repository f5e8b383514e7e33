"""The command line. Sub-commands import what they need inside, so that `--help` answers at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from edgeslm.errors import EdgeSLMError, RecipeError

app = typer.Typer(
    help="Distil a teacher language model into a small one, on the exact low-bit grid the device will run.\n\n"
    "Start with:  edgeslm run recipes/quickstart.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeFile = Annotated[Path, typer.Argument(help="A recipe, for example recipes/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Overrides such as distill.train.steps=200 (values are YAML).")
]
Runs = Annotated[Path, typer.Option("--runs", help="Folder that holds run folders.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")]
Model = Annotated[str, typer.Argument(help="A .gguf file, an exported ONNX folder, or any teacher spec.")]


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


@app.command()
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
    _tell(json.loads(record)["problems"])


@app.command()
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


@app.command()
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Choose every tensor's format for the size a recipe gives (quantize.target), and show it. Trains nothing."""
    from edgeslm.cli_plan import planned

    typer.echo(planned(recipe, overrides or [], runs, quiet, as_json))


@app.command()
def export(
    run_folder: Annotated[Path, typer.Argument(help="A run folder, or a frozen student inside one.")],
    kind: Annotated[str, typer.Option("--kind", help="gguf or onnx.")] = "gguf",
    out: Annotated[Path | None, typer.Option("--out", help="Where to write; beside the run by default.")] = None,
    accuracy_level: Annotated[
        int | None, typer.Option(help="ONNX only: 0 float32, 4 int8 activations (the default).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export a trained student again, and verify every tensor of the file bit for bit."""
    from edgeslm.cli_actions import export_again

    result = export_again(run_folder, kind, out, accuracy_level)
    line = (
        f"{result['path']}: {result['exact']} of {result['tensors']} tensors bitwise exact, {result['bytes']:,} bytes"
    )
    typer.echo(json.dumps(result, indent=1) if as_json else line)


@app.command("eval")
def evaluate(
    models: Annotated[
        list[str], typer.Argument(help="Shipped files: .gguf, exported ONNX folders, or run folders (their student).")
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
    from edgeslm import cli_eval
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
    _tell(document["problems"])
    raise typer.Exit(1 if document["gate"]["broken"] else 0)


@app.command()
def bench(
    models: Annotated[list[str], typer.Argument(help="Files to measure: .gguf or exported ONNX folders.")],
    prefill: Annotated[str, typer.Option(help="Prompt lengths, such as 128,512.")] = "128",
    depths: Annotated[str, typer.Option(help="Tokens already in the cache when decoding is timed.")] = "128",
    new_tokens: Annotated[int, typer.Option(help="Tokens decoded at each depth.")] = 64,
    processes: Annotated[int, typer.Option(help="Fresh processes per file.")] = 2,
    repeats: Annotated[int, typer.Option(help="Timed rounds in each process.")] = 3,
    warmups: Annotated[int, typer.Option(help="Untimed rounds at least; more until two agree.")] = 1,
    threads: Annotated[int, typer.Option(help="0 takes all cores, or those of --cpus.")] = 0,
    cpus: Annotated[str, typer.Option(help="Keep to these CPUs: 4-7, or fast.")] = "",
    sustained: Annotated[float, typer.Option(help="Decode on for so many seconds: shows throttling.")] = 0.0,
    cool: Annotated[float, typer.Option(help="Wait so many seconds at most for the first temperature.")] = 0.0,
    watts_per_core: Annotated[float | None, typer.Option(help="Allows an energy estimate without a meter.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse disturbed runs instead of marking them.")] = False,
    seed: Annotated[int, typer.Option(help="Of the order of files.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the document to this JSON file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Load time, first token, prefill, decode, memory and energy of files on this machine, all with the same job."""
    from edgeslm import cli_bench

    options = cli_bench.Options(
        prefill, depths, new_tokens, processes, repeats, warmups, threads, cpus, sustained, cool, watts_per_core,
        strict, seed,
    )  # fmt: skip
    document = cli_bench.bench_files(models, options)
    if out is not None:
        cli_bench.write(document, out)
    typer.echo(json.dumps(document, indent=1) if as_json else cli_bench.text(document))
    _tell(document["problems"])


@app.command()
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
    from edgeslm import cli_learned
    from edgeslm.progress import Progress

    options = cli_learned.Options(tuple(text or ()), layers, windows, length, margin, seed, threads)
    typer.echo(cli_learned.learned(runs, options, Progress(quiet or as_json), out, as_json))


@app.command()
def report(run_folder: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write report.html, report.md and results.json anew from what a run folder holds."""
    from edgeslm.report import render

    files = render(run_folder)
    for path in (files.html, files.markdown, files.json):
        typer.echo(str(path))


@app.command()
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
    from edgeslm.cli_actions import converse

    sampling = {"temperature": temperature, "top_p": top_p, "seed": seed}
    converse(model, system, max_new, sampling, context, threads)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What works on this machine, and how to get what does not."""
    from edgeslm.doctor import examine, lines

    findings = examine()
    typer.echo(json.dumps([f.__dict__ for f in findings], indent=1) if as_json else "\n".join(lines(findings)))
    raise typer.Exit(0 if all(f.ok or f.optional for f in findings) else 1)


@app.command()
def formats(as_json: AsJson = False) -> None:
    """The number grids: bits, block, what each can do, which container holds it exactly, what runs it fast."""
    from edgeslm.cli_actions import format_lines, format_table

    typer.echo(json.dumps(format_table(), indent=1) if as_json else "\n".join(format_lines()))


@app.command()
def losses(as_json: AsJson = False) -> None:
    """What a recipe's objective and scheme may name: what each reads, its options, where it comes from."""
    from edgeslm.cli_losses import document, lines

    typer.echo(json.dumps(document(), indent=1) if as_json else "\n".join(lines()))


def _tell(problems: list[dict[str, str]]) -> None:
    """Artifacts that failed, on stderr; leaves with 1 when there are any."""
    for problem in problems:
        typer.echo(f"{problem['artifact']}: {problem['what']}", err=True)
    if problems:
        raise typer.Exit(1)


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
                if sys.argv[1:2] in (["run"], ["eval"])
                else ""
            )
            typer.echo(f"stopped{kept}", err=True)
        raise
    except OSError as error:
        typer.echo(f"error: {error.filename or 'the system'}: {error.strerror or error}", err=True)
        sys.exit(2)
