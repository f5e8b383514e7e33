"""Run by torchrun from test_ranks and test_shards: schemes on a tiny model, `KIND: NAME` or `KIND: NAME, stopped` each.
The first rank writes what each leaves."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import tiny
import torch
from safetensors.torch import save_file
from test_scheme_kinds import CASES, KL, STEPS, Stopped, loop, make, run, student
from transformers import LlamaForCausalLM

from edgeslm import parallel
from edgeslm.compute import local
from edgeslm.parallel.shards import Shards, gathered
from edgeslm.schemes.step import Step
from edgeslm.teachers.live import LiveTeacher

FEW, INSIDE, HALF = "offline, few rows", "offline, inside of layers", "offline, bfloat16"
FAMILY = "offline, family "
STOPPED = ", stopped"  # after the fifth update, and gone on from the checkpoint after the third


def made(name: str, folder: Path, cut: bool) -> Any:
    """As of `make`; FEW: keys and values have 4 rows; INSIDE: only relations inside the last layer are compared."""
    if name in CASES:
        return make(name, folder, "q4_0")
    scheme, _, guide, *rest = make("offline", folder, "q4_0")
    if name.startswith(FAMILY):
        from test_models import tiny_model

        model, guide = tiny_model(name.removeprefix(FAMILY)), LiveTeacher(tiny_model(name.removeprefix(FAMILY)))
        generator = torch.Generator().manual_seed(9)
        for weight in guide.model.parameters():
            weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
        return scheme, [tiny.step_of(model.eval(), [KL, {"loss": "hidden", "layers": "last"}], [model])], guide, *rest
    config = student().config
    if name == FEW:
        config.num_attention_heads, config.num_key_value_heads, config.head_dim = 8, 1, 4
    torch.manual_seed(2)
    model, terms = LlamaForCausalLM(config).eval(), [{"loss": "minilm"}] if name == INSIDE else [KL]
    step = tiny.step_of(model, terms, [tiny.llama(layers=4, seed=1)], "q4_0", refit_every=4)
    if name == HALF and not cut:  # what is cut is gathered in bfloat16
        for master in step.masters.items:
            master.weight.data = master.weight.data.bfloat16()
    return scheme, [step], guide, *rest


def shared(step: Step, kind: str, ranks: parallel.Ranks, dtype: torch.dtype) -> Step:
    """The same step on all ranks."""
    if ranks.size == 1:
        return step
    if kind == "ddp":
        from edgeslm.parallel.replicas import Replicas

        some = not all(o.responses for o in (step.objective, *step.stages))
        step.engine = Replicas(step.model, step.masters, ranks, some)
        return step
    wants = [o.wants for o in (step.objective, *step.stages) if not o.responses]
    engine = Shards(step.model, step.masters, dtype, wants, ranks)
    how = {"base": step.base, "stages": step.stages, "engine": engine}
    return Step(step.model, step.masters, step.objective, step.settings, **how)


def one(name: str, folder: Path, ranks: parallel.Ranks, kind: str = "ddp", end: int = STEPS) -> list[Step]:
    """Steps after a training, whole or up to update `end`; on a grid from the third update on."""
    cut = kind == "fsdp2" and ranks.size > 1
    scheme, steps, guide, part, more = made(name, folder, cut)
    steps = [shared(step, kind, ranks, torch.bfloat16 if name == HALF else torch.float32) for step in steps]
    for step in steps:
        step.settings = replace(step.settings, micro_rows=1)  # as many passes as rows
    where = loop(folder, grid_start=2, ranks=ranks, cut=cut, **more)
    if end < STEPS:
        read = where.batch
        object.__setattr__(where, "batch", lambda index: read(index) if index < end else stop())
    run(scheme, steps, guide, where, part)
    return steps


def whole(step: Step, ranks: parallel.Ranks) -> dict[str, torch.Tensor]:
    """Masters and codes, of all ranks' rows on the first."""
    found = {}
    for master in step.masters.items:
        value = master.value.detach()
        found[f"value {master.name}"] = gathered(local(value), value, ranks).clone()
        if master.on_grid:
            found[f"codes {master.name}"] = gathered(master.codes(), value, ranks).clone()
    return found


def stop() -> NoReturn:
    raise Stopped


def main() -> None:
    torch.set_num_threads(1)
    out, ranks = Path(sys.argv[1]), parallel.join()
    assert STEPS > 5
    for job in sys.argv[2:]:
        kind, _, name = job.partition(": ")
        name, short = name.removesuffix(STOPPED), job.replace(": ", "-").replace(" ", "-")
        assert name in (*CASES, FEW, INSIDE, HALF) or name.startswith(FAMILY), name
        if job.endswith(STOPPED):
            try:
                one(name, out / short, ranks, kind, end=5)
            except Stopped:
                ranks.wait()
            assert list((out / short).glob("checkpoint*")), "stopped before it was kept"
        steps = one(name, out / short, ranks, kind)
        found = {f"{i} {key}": value for i, step in enumerate(steps) for key, value in whole(step, ranks).items()}
        if kind == "ddp":
            same = ranks.gathered(sum(float(v.double().sum()) for v in found.values()))
            assert len(set(same)) == 1, f"{name}: ranks hold different weights: {same}"
        held = ranks.gathered(sum(step.held_bytes for step in steps))
        if ranks.first:
            save_file(found, out / f"{short}.safetensors")
            (out / f"{short}.json").write_text(json.dumps(held))
        ranks.wait()
    parallel.leave()


if __name__ == "__main__":
    main()
