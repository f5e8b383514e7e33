"""What training small models costs: tokens per second over size, attention, micro-batch, compilation and processes, and
the four findings of arXiv:2410.19456 put to what was measured.

    python -m benchmarks.training_cost                       20M to 125M on this machine
    python -m benchmarks.training_cost --shapes 20M,60M      the same in about half the time
    python -m benchmarks.training_cost --shapes 20M,125M,350M,1B,2B --length 1024 --rows 64 --micro-rows 1,4,16,64
                                                             where there is an accelerator

The project's own step on random tokens, weights anew, cross-entropy. Every figure comes from fresh processes, in rounds
over all points, each round in an order of its own. Prices an hour come from `--prices FILE` alone and are recorded as
given. `--show` ends with the verdict on each finding.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.training_cost_findings import FINDINGS
from benchmarks.training_cost_shapes import SHAPES, SMALL, config_of
from edgeslm import training_memory
from edgeslm.training_cost import fit, grid, launch
from edgeslm.training_cost.figures import peaks, tokens_per_s
from edgeslm.training_cost.grid import Point
from edgeslm.training_cost.machine import Here
from edgeslm.training_cost.store import MEASURED
from edgeslm.training_cost.study import REFUSED, TOO_LARGE, Row, shuffled

NAME = "training_cost"


def points_of(shape: str, how: argparse.Namespace, backend: str) -> list[Point]:
    """Attention by micro-batch; compiled and in several processes at the largest micro-batch, for some of the sizes."""
    attention = grid.names("--attention", how.attention, grid.ATTENTION)
    micro = grid.numbers("--micro-rows", how.micro_rows)
    assert attention and micro
    found = [Point(kind, rows) for kind in attention for rows in micro]
    top, first = max(micro), attention[0]
    if shape in how.compiled:
        found.append(Point(first, top, compile=True))
    for ranks in grid.numbers("--ranks", how.ranks) or ():
        if ranks > 1 and shape in how.joined:
            kinds = grid.names("--parallel", how.parallel, grid.PARALLEL)
            ends = grid.names("--backend", how.backend, grid.BACKENDS)
            found += [
                Point(first, min(top, how.rows // ranks), False, ranks, kind, end)
                for kind in kinds or ("ddp",)
                for end in ends or (backend,)
            ]
    return grid.unique(found)


def run(how: argparse.Namespace) -> dict[str, Any]:
    from edgeslm import compute, cost
    from edgeslm.training_cost.machine import here
    from edgeslm.training_cost.prices import load, price_of

    chosen = compute.resolve(how.device, how.precision, how.threads)
    found = here(chosen)
    price = price_of(load(how.prices), found.names, how.machine) if how.prices else None
    configs = {shape: config_of(shape) for shape in how.shapes}
    points = {shape: points_of(shape, how, found.backend) for shape in how.shapes}
    rows = [(shape, row) for shape in how.shapes for row in rows_of(configs[shape], points[shape], how, found)]
    measure([(configs[shape], row) for shape, row in rows], how)
    flops = compute.matmul_flops(chosen)
    return {
        "versions": record.versions("edgeslm", "torch", "transformers"),
        "device": {"name": found.name, "kind": found.device, "dtype": found.dtype, "memory_bytes": found.memory_bytes},
        "price": price.to_json() if price else None,
        "batch": {"rows": how.rows, "length": how.length},
        "measured": {"steps": how.steps, "warmups": how.warmups, "repeats": how.repeats},
        "matmul_flops_per_s": flops,
        "rows": [
            {
                "shape": shape,
                "parameters": cost.counts(configs[shape]).total,
                "bound_tokens_per_s": cost.training_bound(configs[shape], how.length, flops),
                "point": row.point.to_json(),
                "state": row.state,
                "why": row.why,
                "estimated_bytes": row.needs_bytes,
                "results": row.results,
            }
            for shape, row in rows
        ],
    }


def rows_of(config: dict[str, Any], points: Sequence[Point], how: argparse.Namespace, found: Here) -> list[Row]:
    made = []
    for point in points:
        own = -(-how.rows // point.ranks)  # rows of a rank
        rows = min(point.micro_rows, own)
        gpu, batches = found.device == "cuda", -(-own // rows)
        step = training_memory.Step(rows, how.length, found.number_bytes, gpu, batches=batches)
        needs = fit.needs(config, None, point, step)
        row = Row(point, needs_bytes=needs.per_rank_bytes)
        if why := found.refusal(point):
            row.state, row.why = REFUSED, why
        elif not needs.fits(found.memory_bytes):
            row.state, row.why = TOO_LARGE, f"{needs.on_one_device:.3g} of {found.memory_bytes:.3g} bytes"
        made.append(row)
    return made


def measure(rows: Sequence[tuple[dict[str, Any], Row]], how: argparse.Namespace) -> None:
    """Rounds until all are done or the time is over; then the round that was begun does not count."""
    end = time.monotonic() + 60 * how.minutes
    configs = {id(row): config for config, row in rows}
    left = [row for _, row in rows if not row.state]
    for number in range(how.repeats):
        for row in shuffled([r for r in left if r.state in ("", MEASURED)], how.seed, number):
            if time.monotonic() > end:
                for begun in left:
                    del begun.results[number:]
                    if not begun.results and begun.state in ("", MEASURED):
                        begun.state, begun.why = "not reached", f"the {how.minutes:g} minutes were over"
                return
            row.take(launch.run(job_of(configs[id(row)], row.point, how), row.point.ranks))


def job_of(config: dict[str, Any], point: Point, how: argparse.Namespace) -> dict[str, Any]:
    return {
        "kind": "shape", "config": config, "point": point.to_json(), "rows": how.rows, "length": how.length,
        "steps": how.steps, "warmups": how.warmups, "device": how.device, "precision": how.precision,
        "threads": how.threads,
    }  # fmt: skip


def flat(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a record as the findings read them."""
    device, price = entry["device"], entry["price"] or {}
    return [
        {
            "shape": row["shape"],
            "parameters": row["parameters"],
            "machine": device["name"],
            "memory_bytes": device["memory_bytes"],
            "own_memory": device["kind"] == "cuda",  # each rank has a card of its own
            "per_hour": price.get("per_hour"),
            "currency": price.get("currency"),
            **entry["batch"],
            **row["point"],
            "state": row["state"],
            "kernel": row["results"][0]["kernel"] if row["results"] else None,
            "tokens_per_s": [tokens_per_s(result) for result in row["results"]],
            "peak_memory_bytes": peaks(row["results"]),
        }
        for row in entry["rows"]
    ]


def latest(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the last record of each device."""
    last = {entry["device"]["name"]: entry for entry in records}
    return [row for entry in last.values() for row in flat(entry)]


def show(records: list[dict[str, Any]]) -> dict[str, Any]:
    last = records[-1]
    device, batch = last["device"], last["batch"]
    print(f"{last['date'][:16]}  {device['name']}, {device['dtype']}, {batch['rows']} rows of {batch['length']}")
    print(f"{'shape':6} {'how':44} {'tok/s':>8} {'bound':>6} {'peak GB':>8}")
    best: dict[str, float] = {}
    for row, given in zip(flat(last), last["rows"], strict=True):
        label = Point(**given["point"]).label
        if row["state"] != MEASURED:
            print(f"{row['shape']:6} {label:44} {row['state']}: {given['why']}")
            continue
        speed = statistics.median(row["tokens_per_s"])
        best[row["shape"]] = max(speed, best.get(row["shape"], 0.0))
        peak = max(row["peak_memory_bytes"], default=0) / 1e9
        print(f"{row['shape']:6} {label:44} {speed:8,.0f} {speed / given['bound_tokens_per_s']:6.0%} {peak:8.2f}")
    found = {name: test(latest(records)) for name, test in FINDINGS.items()}
    for name, finding in found.items():
        print(f"{name}: {finding.verdict}: {finding.why}")
    return {**{name: finding.verdict for name, finding in found.items()}, "tokens_per_s": best}


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: the newest run, and what it says of each finding."""
    last = records[-1]
    lines = ["| shape | how | tokens/s | of bound | peak memory |", "|---|---|---|---|---|"]
    for row, given in zip(flat(last), last["rows"], strict=True):
        if row["state"] == MEASURED:
            speed = statistics.median(row["tokens_per_s"])
            peak = max(row["peak_memory_bytes"], default=0) / 1e9
            bound = f"{speed / given['bound_tokens_per_s']:.0%}"
            lines.append(
                f"| {row['shape']} | {Point(**given['point']).label} | {speed:,.0f} | {bound} | {peak:.2f} GB |"
            )
    findings = {name: test(latest(records)) for name, test in FINDINGS.items()}
    said = [f"- {name.replace('_', ' ')}: {finding.verdict} ({finding.why})" for name, finding in findings.items()]
    batch = last["batch"]
    about = (
        f"{last['device']['name']}, {last['device']['dtype']}, {batch['rows']} rows of {batch['length']} tokens a step."
    )
    return "\n".join([*lines, "", about, "", *said])


def options(parser: argparse.ArgumentParser) -> None:
    def shapes(text: str) -> list[str]:
        if unknown := [name for name in text.split(",") if name not in SHAPES]:
            raise argparse.ArgumentTypeError(f"'{unknown[0]}' is none of {', '.join(SHAPES)}")
        return text.split(",")

    parser.add_argument("--shapes", type=shapes, default=list(SMALL))
    parser.add_argument("--attention", default="sdpa,eager", help=f"of {', '.join(grid.ATTENTION)}")
    parser.add_argument("--micro-rows", default="1,8")
    parser.add_argument("--compiled", type=shapes, default=["20M"], help="sizes that are compiled too")
    parser.add_argument("--joined", type=shapes, default=["20M", "60M"], help="sizes that several processes train too")
    parser.add_argument("--ranks", default="1,2")
    parser.add_argument("--parallel", default="ddp,fsdp2", help=f"of {', '.join(grid.PARALLEL)}")
    parser.add_argument("--backend", default="", help=f"of {', '.join(grid.BACKENDS)}; the device's by default")
    parser.add_argument("--rows", type=int, default=8, help="of a batch")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--steps", type=int, default=3, help="timed, in each process")
    parser.add_argument("--warmups", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="processes of a point")
    parser.add_argument("--minutes", type=float, default=120.0, help="no process begins after so many")
    parser.add_argument("--prices", type=Path, default=None, help="YAML: currency, and prices an hour by machine")
    parser.add_argument("--machine", default=None, help="which entry of --prices this machine is")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0, help="of the order of points")


if __name__ == "__main__":
    record.main(NAME, run, show, options)
