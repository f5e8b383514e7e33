"""Does it matter what groups of a codistillation share: weights, predictions on common rows, or what a server says?

    python -m benchmarks.codistillation_shares --stories stories15M.bin --tokenizer tokenizer.model

Two copies cut from TinyStories 15M learn from text (disjoint halves of the rows) and from each other, through the
command a user types, `edgeslm run recipes/stories15m-6m-codistill.yaml`, once for each share and seed; `alone` is a
first copy whose peer has no weight: the same rows in the same order. No other teacher: what peers give would be lost
beside it. Figures are of the first copy on text that nobody read.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.recipe_rows import share_stages

NAME = "codistillation_shares"
RECIPE = Path(__file__).parent.parent / "recipes" / "stories15m-6m-codistill.yaml"
ALONE = "alone"
SHARES: dict[str, dict[str, Any]] = {
    "weights": {"kind": "weights"},
    "predictions": {"kind": "predictions", "rows": 512},
    "served": {"kind": "served", "address": "127.0.0.1:7310", "timeout_s": 60.0},
}
WEIGHT, UNHEARD = 1.0, 1e-12  # of the term between copies
Row = dict[str, Any]


def run(arguments: argparse.Namespace) -> Row:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="shares-") as folder:
        for seed in arguments.seeds:
            for share in (ALONE, *arguments.shares):
                rows.append(one(share, seed, arguments, Path(folder)))
                print(line(rows[-1]), flush=True)
    return {
        "rows": rows, "steps": arguments.steps, "recipe": RECIPE.name, "threads": arguments.threads,
        "versions": record.versions("edgeslm", "torch", "transformers"),
    }  # fmt: skip


def one(share: str, seed: int, arguments: argparse.Namespace, runs: Path) -> Row:
    """Trains with one share. Raises SystemExit with the command's last line where it fails."""
    meeting = runs / f"{share}-{seed}-exchange"
    how = [
        f"name=shares-{share}-{seed}", f"seed={seed}", f"threads={arguments.threads}",
        f"teacher.model={arguments.stories.resolve()}", f"teacher.tokenizer={arguments.tokenizer.resolve()}",
        f"distill.train.steps={arguments.steps}", "distill.objective=[{loss: cross_entropy}]", "evaluate.prompts=[]",
    ]  # fmt: skip
    weight = UNHEARD if share == ALONE else WEIGHT
    apart = {"folder": str(meeting), "weight": weight, "share": SHARES.get(share, SHARES["weights"])}
    how += [f"distill.scheme.{key}={json.dumps(value)}" for key, value in apart.items()]
    share_stages(runs, "shares", f"shares-{share}-{seed}")
    start = time.monotonic()
    with served(how, runs) if share == "served" else nobody():
        command("run", [*how, "--runs", str(runs), "--until", "distill", "--quiet"])
    seconds = time.monotonic() - start
    (folder,) = (runs / f"shares-{share}-{seed}").glob("distill-*")
    last = json.loads((folder / "heldout.json").read_text())["points"][-1]
    lines = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    files = sorted(meeting.glob("group-0/*.safetensors"))
    found = {
        "share": share, "seed": seed, "loss": last["loss"], "tokens": last["judged"], "heldout": last,
        "training_tokens": lines[-1]["tokens"], "seconds": seconds, "bytes_an_exchange": files[-1].stat().st_size,
        "taught_steps": sum(bool(said["used"]) for said in lines),
    }  # fmt: skip
    shutil.rmtree(meeting)
    return found


def command(name: str, arguments: Sequence[str]) -> None:
    done = subprocess.run(argv(name, arguments), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"edgeslm {name} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")


def argv(name: str, arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "edgeslm", name, str(RECIPE), *arguments]


@contextmanager
def nobody() -> Iterator[None]:
    yield


@contextmanager
def served(how: Sequence[str], runs: Path) -> Iterator[None]:
    """`edgeslm serve-peers` beside the training."""
    said = runs / "served.txt"
    with said.open("w") as out:
        options = [*how, "--runs", str(runs), "--quiet"]
        server = subprocess.Popen(argv("serve-peers", options), stdout=out, stderr=out)
        try:
            while "serving predictions" not in said.read_text():
                if server.poll() is not None:
                    raise SystemExit(f"edgeslm serve-peers failed: {said.read_text().strip().splitlines()[-1:]}")
                time.sleep(0.2)
            yield
        finally:
            server.terminate()
            server.wait(30)


def line(row: Row) -> str:
    return (
        f"{row['share']:12} seed {row['seed']}  loss {row['loss']:.4f} nats/token ({row['tokens']} tokens)  "
        f"{row['taught_steps']} steps taught  {row['bytes_an_exchange'] / 1e6:.1f} MB a file  {row['seconds']:.0f} s"
    )


def by_share(entry: Row) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in entry["rows"]:
        found.setdefault(row["share"], []).append(row)
    return found


def table(entry: Row) -> str:
    """Markdown."""
    made = ["| share | held-out loss, nats/token, by seed | steps taught | a file |", "|---|---|---|---|"]
    for share, rows in by_share(entry).items():
        losses = ", ".join(f"{row['loss']:.4f}" for row in rows)
        taught, size = ", ".join(dict.fromkeys(str(row["taught_steps"]) for row in rows)), "–"
        if share == ALONE:
            taught = "0"
        else:
            size = f"{rows[0]['bytes_an_exchange'] / 1e6:.1f} MB"
        made.append(f"| {share} | {losses} | {taught} of {entry['steps']} | {size} |")
    first = entry["rows"][0]
    made += [
        "",
        f"stories15m-6m-codistill on text alone, {first['training_tokens']:,} tokens a copy, {first['tokens']:,} "
        f"held-out tokens, {entry['machine']['cpu']}. Files are exchanged every 20 steps; what is served is asked for "
        "batch by batch, and the file is what the server reads.",
    ]
    return "\n".join(made)


def show(records: list[Row]) -> Row:
    """`spread`: the widest range of a share over its seeds; `over_alone`: mean loss less that of a copy alone."""
    found = by_share(records[-1])
    for rows in found.values():
        for row in rows:
            print(line(row))
    means = {share: statistics.fmean(row["loss"] for row in rows) for share, rows in found.items()}
    ranges = [max(r["loss"] for r in rows) - min(r["loss"] for r in rows) for rows in found.values()]
    return {
        "over_alone": {share: mean - means[ALONE] for share, mean in means.items() if share != ALONE},
        "spread": max(ranges),
    }


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stories", type=Path, required="--show" not in sys.argv, help="llama2.c's TinyStories 15M")
    parser.add_argument("--tokenizer", type=Path, required="--show" not in sys.argv, help="and its tokenizer")
    parser.add_argument("--shares", nargs="+", default=list(SHARES), choices=list(SHARES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)


if __name__ == "__main__":
    record.main(NAME, run, show, options)
