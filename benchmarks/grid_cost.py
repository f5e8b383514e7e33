"""What a grid costs: decoding, packing and fitting a whole model, and keeping it on the grid during training.

    python -m benchmarks.grid_cost                 every format a GGUF file holds

The model is SmolLM2-135M's weights laid end to end (real values, cut to whole blocks). `step_share` is the time to
round and decode all weights anew, divided by one training step without a grid (2,048 tokens, forward and backward,
float32 masters, AdamW), both in this process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import record

NAME = "grid_cost"
SLICE = 1 << 19  # weights, as training takes them


def seconds(what: Callable[[], Any], repeats: int) -> float:
    """Least of `repeats`: the others were disturbed."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        what()
        found.append(time.perf_counter() - start)
    return min(found)


def weights() -> Any:
    import torch

    from edgeslm.models.load import load
    from edgeslm.models.source import resolve
    from edgeslm.recipe.parts import DEFAULT_TEACHER

    model = load(resolve(DEFAULT_TEACHER, Path.cwd()), torch.float32).model
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def costs(grid: Any, flat: Any, repeats: int) -> dict[str, float]:
    """Seconds for all weights: fit (from a sixteenth), keep (encode and decode), pack, decode (unpack and decode)."""
    import torch

    if grid.encode is None:
        data = torch.randint(0, 256, (flat.numel() // grid.block, grid.bytes), dtype=torch.uint8)
        rows = max(1, SLICE // grid.block)
        return {"decode": seconds(lambda: [grid.decode(*grid.unpack(p)) for p in data.split(rows)], repeats)}
    blocks = flat[: flat.numel() // grid.block * grid.block].view(-1, grid.block)
    parts = blocks.split(max(1, SLICE // grid.block))
    some = parts[:: max(1, len(parts) // 16)]
    fit = seconds(lambda: [grid.fit(p) for p in some], 1) * len(parts) / len(some)
    scales = [grid.fit(p) if p.shape[0] < 64 else grid.fit(p[:64]) for p in parts]
    scales = [
        {k: v.repeat(-(-len(p) // len(v)), 1)[: len(p)] for k, v in s.items()}
        for s, p in zip(scales, parts, strict=True)
    ]
    pairs = list(zip(parts, scales, strict=True))
    codes = [grid.encode(p, s) for p, s in pairs]
    packed = [grid.pack(c, s) for c, s in zip(codes, scales, strict=True)]
    return {
        "fit": fit,
        "keep": seconds(lambda: [grid.decode(grid.encode(p, s), s) for p, s in pairs], repeats),
        "pack": seconds(lambda: [grid.pack(c, s) for c, s in zip(codes, scales, strict=True)], repeats),
        "decode": seconds(lambda: [grid.decode(*grid.unpack(p)) for p in packed], repeats),
    }


def step_seconds(repeats: int) -> float:
    """One training step of SmolLM2-135M, student and teacher, weights in float."""
    import torch

    from edgeslm import compute
    from edgeslm.data.batch import Batch
    from edgeslm.models.load import load
    from edgeslm.models.source import resolve
    from edgeslm.quantize.masters import attach
    from edgeslm.quantize.plan import Plan
    from edgeslm.recipe.parts import DEFAULT_TEACHER
    from edgeslm.schemes.objective import Objective
    from edgeslm.schemes.step import Step, StepSettings
    from edgeslm.teachers.live import LiveTeacher

    source = resolve(DEFAULT_TEACHER, Path.cwd())
    dtype = compute.resolve("cpu", "auto", torch.get_num_threads()).dtype
    student, teacher = load(source, torch.float32).model, load(source, dtype).model
    shapes = {n: tuple(p.shape) for n, p in student.named_parameters()}
    masters = attach(student, Plan.uniform("f32").assign(shapes), dtype)
    step = Step(
        student, masters, Objective.build([{"loss": "forward_kl"}]), StepSettings(8, 1.0, 0.0, (0.9, 0.98), None)
    )
    ids = torch.randint(0, 40_000, (8, 256), generator=torch.Generator().manual_seed(0))
    batch, guide = Batch(ids, torch.ones(8, 256)), LiveTeacher(teacher)
    step(batch, guide, lr=1e-6, grid=False, index=0)
    return seconds(lambda: step(batch, guide, lr=1e-6, grid=False, index=1), repeats)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from edgeslm import compute
    from edgeslm.formats import FORMATS
    from edgeslm.quantize.plan import FLOATS

    torch.set_num_threads(arguments.threads)
    compute.keep_freed_memory()
    flat = weights()
    names = [n for n, f in FORMATS.items() if n not in FLOATS and f.ggml_type is not None]
    found = {name: costs(FORMATS[name], flat, arguments.repeats) for name in names}
    step = step_seconds(arguments.repeats)
    return {
        "weights": flat.numel(),
        "threads": arguments.threads,
        "step_seconds": step,
        "formats": {n: f | ({"step_share": f["keep"] / step} if "keep" in f else {}) for n, f in found.items()},
        "versions": record.versions("edgeslm", "torch"),
    }


def show(records: list[dict[str, Any]]) -> dict[str, Any]:
    last = records[-1]
    print(
        f"seconds for {last['weights']:,} weights, {last['threads']} threads; a step takes {last['step_seconds']:.2f} s"
    )
    print(f"{'format':14} {'decode':>7} {'pack':>7} {'keep':>7} {'of a step':>10} {'fit':>7}")
    for name, cost in last["formats"].items():
        cells = [f"{cost[key]:7.2f}" if key in cost else f"{'-':>7}" for key in ("decode", "pack", "keep")]
        share = f"{100 * cost['step_share']:9.1f}%" if "step_share" in cost else f"{'-':>10}"
        print(f"{name:14} {' '.join(cells)} {share} {cost.get('fit', 0):7.1f}")
    return show_figures(last)


def show_figures(entry: dict[str, Any]) -> dict[str, Any]:
    trained = {n: c for n, c in entry["formats"].items() if "keep" in c}
    return {
        "slowest_decode_s": max(c["decode"] for c in entry["formats"].values()),
        "slowest_pack_s": max(c["pack"] for c in trained.values()),
        "largest_step_share": max(c["step_share"] for c in trained.values()),
        "k_formats_step_share": max(c["step_share"] for n, c in trained.items() if n.endswith("_k")),
    }


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)


if __name__ == "__main__":
    record.main(NAME, run, show, options)
