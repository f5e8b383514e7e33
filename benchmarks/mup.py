"""Whether a learning rate found at a small width is the right one at a large one: muP against the usual start.

    python -m benchmarks.mup                       on a CUDA machine: some minutes, torch and transformers
    python -m benchmarks.mup --layers 2 --rows 4 --steps 120 --processes 2     on two cores: less than an hour
    python -m benchmarks.mup --widths 64,128 --steps 20 --processes 1          a small one anywhere

Llama-shaped students of few layers and heads of 64, bytes as tokens, learn the text that ships with edgeslm by our own
optimiser step at every width and learning rate; all see the same rows in the same order. The best learning rate of a
width is the lowest point of a parabola through the three points around the least held-out loss (in log2 of the rate).
`mup_lr_drift` is the largest factor between it and that of the narrowest width; `standard_lr_drift` the same without
muP. A loss that is not finite counts as the loss of knowing nothing, log 256.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import record

NAME = "mup"
TOKENS, LENGTH, HEAD = 256, 256, 64
STARTS = ("mup", "standard")
TEXT = Path(__file__).parent.parent / "edgeslm" / "assets" / "text"
JUDGED_ROWS = 64
TIMEOUT_S = 7200


def student(width: int, layers: int, base_width: int | None, seed: int, device: str) -> Any:
    """float32; `base_width` None starts it as GPT-2."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from edgeslm.design import families
    from edgeslm.students import mup

    heads = max(1, width // HEAD)
    wanted = families.Wanted(width, layers, heads, "llama", head_dim=HEAD)
    keys = families.config_of(wanted, {"vocab_size": TOKENS}, True, LENGTH, 10000.0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(keys.pop("model_type"), **keys)).eval()
    mup.initialise(model, base_width, seed=seed)
    return model.to(device)


def rows(folder: str) -> Any:
    """uint8 [rows, LENGTH] of the shipped text of a folder, document after document."""
    import torch

    data = b"\n\n".join(path.read_bytes() for path in sorted((TEXT / folder).glob("*.txt")))
    count = len(data) // LENGTH
    return torch.frombuffer(bytearray(data[: count * LENGTH]), dtype=torch.uint8).reshape(count, LENGTH)


def train(width: int, start: str, log2_lr: float, how: argparse.Namespace) -> dict[str, Any]:
    """One training; its held-out loss in nats a byte."""
    import torch

    from edgeslm import compute
    from edgeslm.data.batch import Batch
    from edgeslm.quantize.masters import attach
    from edgeslm.quantize.plan import Plan
    from edgeslm.schemes.objective import Objective
    from edgeslm.schemes.schedule import wsd
    from edgeslm.schemes.step import Diverged, Step, StepSettings
    from edgeslm.students import mup

    base = min(how.widths) if start == "mup" else None
    model = student(width, how.layers, base, how.seed, how.device)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    chosen = compute.resolve(how.device, "auto", None if how.processes == 1 else 1)
    masters = attach(model, Plan.uniform("f32").assign(shapes), chosen.dtype)
    shares = mup.shares(model, base) if base else {}
    settings = StepSettings(how.rows, 1.0, 0.0, (0.9, 0.98), None, shares=shares)
    step = Step(model, masters, Objective.build([{"loss": "cross_entropy"}]), settings)
    text, generator = rows("more").to(how.device), torch.Generator().manual_seed(how.seed)
    order = torch.randint(len(text), (how.steps, how.rows), generator=generator)
    began, last = time.perf_counter(), float("nan")
    mask = torch.ones(how.rows, LENGTH, device=how.device)
    try:
        for index in range(how.steps):
            factor = wsd(index, how.steps, how.steps // 20, how.steps // 3)
            batch = Batch(text[order[index]].long(), mask, order[index])
            last = step(batch, None, lr=2.0**log2_lr * factor, grid=False, index=index).loss
        loss = judged(model, how)
    except Diverged:
        loss = float("nan")
    return {
        "width": width,
        "start": start,
        "log2_lr": log2_lr,
        "dtype": str(chosen.dtype).removeprefix("torch."),
        "loss": loss if math.isfinite(loss) else None,
        "train_loss": last if math.isfinite(last) else None,
        "seconds": time.perf_counter() - began,
    }


def judged(model: Any, how: argparse.Namespace) -> float:
    import torch

    held, total, count = rows("judge")[:JUDGED_ROWS].to(how.device).long(), 0.0, 0
    with torch.no_grad():
        for part in held.split(16):
            logits = model(part).logits[:, :-1].float()
            total += float(
                torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum")
            )
            count += part[:, 1:].numel()
    return total / count


def best(points: Iterable[tuple[float, float | None]]) -> tuple[float, bool]:
    """(log2 of the best rate, whether it lies inside the rates that were tried) of (log2 rate, loss)."""
    found = sorted((x, math.log(TOKENS) if y is None else y) for x, y in points)
    at = min(range(len(found)), key=lambda i: found[i][1])
    if not 0 < at < len(found) - 1:
        return found[at][0], False
    (x0, y0), (x1, y1), (x2, y2) = found[at - 1 : at + 2]
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curve = (right - left) / (x2 - x0)
    return (x1 if curve <= 0 else (x0 + x1) / 2 - left / (2 * curve)), True


def drift(runs: Sequence[dict[str, Any]], start: str) -> tuple[float, dict[str, float], bool]:
    """(largest factor of the best rate to that of the narrowest width, {width: log2 rate}, all inside the grid)."""
    widths = sorted({run["width"] for run in runs})
    found = {w: best((r["log2_lr"], r["loss"]) for r in runs if (r["width"], r["start"]) == (w, start)) for w in widths}
    first = found[widths[0]][0]
    largest = max(abs(x - first) for x, _ in found.values())
    return 2.0**largest, {str(w): x for w, (x, _) in found.items()}, all(inside for _, inside in found.values())


def worker(how: argparse.Namespace) -> None:
    """Every `of`-th training from the `part`-th on; widest first, so that no process ends long after the others."""
    for width, start, log2_lr in jobs(how)[how.part :: how.processes]:
        sys.stdout.write(json.dumps(train(width, start, log2_lr, how)) + "\n")
        sys.stdout.flush()


def jobs(how: argparse.Namespace) -> list[tuple[int, str, float]]:
    return [(w, s, x) for w in sorted(how.widths, reverse=True) for s in STARTS for x in how.rates]


def run(how: argparse.Namespace) -> dict[str, Any]:
    import torch

    began = time.perf_counter()
    how.device = how.device or ("cuda" if torch.cuda.is_available() else "cpu")
    command = [sys.executable, "-m", "benchmarks.mup", *sys.argv[1:], "--device", how.device, "--part"]
    started = [subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True) for i in range(how.processes)]
    runs = []
    for process in started:
        said, _ = process.communicate(timeout=TIMEOUT_S)
        if process.returncode:
            raise SystemExit(f"a process of benchmarks.mup ended with {process.returncode}; see above")
        runs += [json.loads(line) for line in said.splitlines()]
    result: dict[str, Any] = {
        "steps": how.steps,
        "rows": how.rows,
        "length": LENGTH,
        "layers": how.layers,
        "seed": how.seed,
    }
    for start in STARTS:
        result[f"{start}_lr_drift"], result[f"{start}_best"], result[f"{start}_inside"] = drift(runs, start)
    versions = record.versions("torch", "transformers")
    return result | {"device": how.device, "versions": versions, "seconds": time.perf_counter() - began, "runs": runs}


def table(entry: dict[str, Any]) -> str:
    """Markdown: for every width the best learning rate of either start and the least loss that was seen."""
    made = [
        "| width | best learning rate, muP | least loss, nats/byte | as usual | least loss |",
        "|---|---|---|---|---|",
    ]
    for width in sorted({run["width"] for run in entry["runs"]}):
        cells = []
        for start in STARTS:
            runs = [r for r in entry["runs"] if (r["width"], r["start"]) == (width, start)]
            at, inside = best((r["log2_lr"], r["loss"]) for r in runs)
            least = min(r["loss"] for r in runs if r["loss"] is not None)
            lowest = "" if inside else " or " + ("less" if at == min(r["log2_lr"] for r in runs) else "more")
            cells += [f"{2.0**at:.5f}{lowest}", f"{least:.4f}"]
        made.append(f"| {width} | " + " | ".join(cells) + " |")
    told = [f"{entry[f'{start}_lr_drift']:.2f}" + ("" if entry[f"{start}_inside"] else " or more") for start in STARTS]
    made += [
        "",
        f"{entry['layers']} layers, {entry['steps']} steps of {entry['rows'] * entry['length']:,} bytes, one seed, "
        f"{entry['machine']['cpu']}. The best rate moves by a factor of {told[0]} at most from that of the narrowest "
        f"width with muP, of {told[1]} without.",
    ]
    return "\n".join(made)


def show(records: list[dict[str, Any]]) -> dict[str, Any]:
    last = records[-1]
    print(table(last))
    return {key: last[key] for key in last if key.startswith(STARTS)}


def arguments(parser: argparse.ArgumentParser) -> None:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser.add_argument("--widths", type=numbers, default=[128, 256, 512, 1024])
    parser.add_argument("--rates", type=numbers, default=list(range(-11, -3)), help="log2 of learning rates")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=32, help=f"rows of {LENGTH} bytes a step")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=None)
    parser.add_argument("--part", type=int, default=None, help=argparse.SUPPRESS)


if __name__ == "__main__":
    if "--part" in sys.argv:
        parser = argparse.ArgumentParser()
        arguments(parser)
        worker(parser.parse_args())
    else:
        record.main(NAME, run, show, arguments)
