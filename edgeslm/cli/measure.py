"""Commands around devices: time files there, and report what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgeslm.cli.options import AsJson, Quiet, tell


def bench(
    models: Annotated[list[str], typer.Argument(help="Files to measure: .gguf or exported ONNX folders.")],
    on: Annotated[
        list[str] | None,
        typer.Option(help="Where: local, ssh:user@host:port, adb:SERIAL, browser; may be repeated."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave models on the device for the next time.")] = False,
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
    energy: Annotated[float, typer.Option(help="Answer so many seconds under the device's energy sensors.")] = 0.0,
    idle: Annotated[float, typer.Option(help="Seconds of waiting before that: what the device takes anyway.")] = 5.0,
    meter: Annotated[Path | None, typer.Option(help="CSV of a meter at the supply: time and watts.")] = None,
    watts_per_core: Annotated[float | None, typer.Option(help="Allows an energy estimate without a meter.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse disturbed runs instead of marking them.")] = False,
    seed: Annotated[int, typer.Option(help="Of the order of files.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the document to this JSON file.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Load time, first token, prefill, decode, memory and energy of files on devices, all with the same job.

    Nothing is left on a device. What each can measure is said by  edgeslm devices

    Example:  edgeslm bench student.gguf teacher-f32.gguf --on local --on ssh:pi@raspberrypi --energy 30 --out pi.json
    """
    from edgeslm.cli import bench as cli_bench
    from edgeslm.progress import Progress

    options = cli_bench.Options(
        prefill, depths, new_tokens, processes, repeats, warmups, threads, cpus, sustained, cool, energy, idle,
        watts_per_core, strict, seed,
    )  # fmt: skip
    document = cli_bench.bench_files(models, options, on or [], keep, meter, Progress(quiet or as_json))
    if out is not None:
        cli_bench.write(document, out)
    typer.echo(json.dumps(document, indent=1) if as_json else cli_bench.text(document))
    tell(document["problems"])


def report(
    paths: Annotated[list[Path], typer.Argument(help="A run folder; bench documents or reports with an option.")],
    compare: Annotated[bool, typer.Option("--compare", help="Deltas from one to another, with intervals.")] = False,
    fleet: Annotated[bool, typer.Option("--fleet", help="One page for several devices.")] = False,
    add: Annotated[bool, typer.Option("--add", help="Check bench documents and append them to a record.")] = False,
    to: Annotated[Path | None, typer.Option(help="The record; benchmarks/results/devices.jsonl by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the fleet's page; runs/fleet by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """A run's report anew (html, md, json), what differs between two, a page for a fleet, or the shared record."""
    from edgeslm.cli import report as cli_report

    typer.echo(cli_report.report(paths, compare, fleet, add, to, out, as_json))
