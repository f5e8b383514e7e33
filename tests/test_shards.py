"""Processes that share a student, each holding rows of every tensor (FSDP2), train it as one process does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import ranks_worker
import tiny
import torch
from safetensors.torch import load_file
from test_ranks import HERE, QUICK, alike, learn_what_one_learns, log, torchrun
from torch import nn

from edgeslm import recipe as recipes
from edgeslm.errors import ModelError, RecipeError
from edgeslm.formats import FORMATS
from edgeslm.parallel.shards import ends_inside
from edgeslm.pipeline import ranks as ranks_of_recipes
from edgeslm.pipeline.check import check
from edgeslm.pipeline.run import run
from edgeslm.pipeline.stage import Context
from edgeslm.progress import Progress
from edgeslm.quantize.frozen import Frozen
from edgeslm.quantize.masters import Master

SCHEMES = [
    "offline, features", "online, leader", "self, average", "self, deep", "blockwise", "route", "residual",
    "offline, far texts", "codistill", "codistill, predictions", "codistill, average",
    ranks_worker.INSIDE, ranks_worker.HALF,
]  # fmt: skip


def test_two_processes_that_share_a_student_learn_what_one_learns(tmp_path):
    """Every kind of loop; stopped and gone on is as never stopped, bit for bit; each holds half of everything."""
    learn_what_one_learns("fsdp2", SCHEMES, tmp_path)
    (step,) = ranks_worker.one(SCHEMES[0], tmp_path / "alone", ranks_worker.parallel.ALONE)
    held = json.loads((tmp_path / "many" / "fsdp2-offline,-features.json").read_text())
    assert [size / step.held_bytes for size in held] == pytest.approx([0.5, 0.5], abs=0.01)


def test_three_processes_and_rows_that_they_do_not_divide(tmp_path):
    """Four rows of text for three; tensors of 32 rows, and of 4: those are 2, 2 and none."""
    jobs = [f"fsdp2: {ranks_worker.FEW}", f"ddp: {ranks_worker.FEW}"]
    done = torchrun(HERE / "ranks_worker.py", tmp_path / "many", *jobs, processes=3)
    assert done.returncode == 0, done.stderr[-3000:]
    for job in jobs:
        assert min(alike(job, tmp_path, 3)) > 0.97
    wanted = load_file(tmp_path / "many" / "fsdp2-offline,-few-rows.safetensors")
    assert min(value.shape[0] for value in wanted.values()) == 4


@pytest.mark.parametrize("name", [n for n, f in FORMATS.items() if f.fit is not None])
def test_a_process_without_rows_of_a_tensor_has_nothing_to_round(name):
    grid = FORMATS[name]
    master = Master("w", nn.Parameter(torch.empty(0, grid.block)), nn.Parameter(torch.empty(0, grid.block)), grid)
    other = Master("w", nn.Parameter(torch.ones(1, grid.block)), nn.Parameter(torch.ones(1, grid.block)), grid)
    for one in (master, other):
        one.fit()
        one.project()
    assert master.codes().dtype == other.codes().dtype and master.codes().shape == (0, *other.codes().shape[1:])
    kinds = [{key: (value.dtype, value.shape[1:]) for key, value in m.scales.items()} for m in (master, other)]
    assert kinds[0] == kinds[1] and not any(len(value) for value in master.scales.values())
    if grid.spread is not None and master.on_grid:
        factors = master.learn_scales().parameters
        master.value.grad = torch.zeros(0, grid.block)
        master.scale_gradients()
        assert all(f.grad is not None and len(f.grad) == 0 for f in factors)
        assert master.learned_part.scales(grid).keys() == master.scales.keys()


@pytest.mark.parametrize(
    ("wants", "inside"),
    [({}, False), ({3: {"hidden", "query"}}, False), ({2: {"hidden"}, 3: {"attention"}}, True), ({2: {"key"}}, True)],
)
def test_layers_whose_inside_alone_is_compared_stay_gathered(wants, inside):
    assert ends_inside({layer: frozenset(fields) for layer, fields in wants.items()}) == inside


def test_what_cannot_be_shared_is_refused(tmp_path, monkeypatch):
    path = tiny.recipe(tmp_path)
    shared = "distill.train.parallel={kind: fsdp2}"
    with pytest.raises(RecipeError, match="start them with torchrun"):
        ranks_of_recipes.first(recipes.load(path, [shared]))
    with pytest.raises(ModelError, match="inside the first layer"):
        ends_inside({1: frozenset({"query"})})
    first = recipes.load(path, [shared, "distill.objective=[{loss: minilm, layers: [[1, 1]]}]"])
    found = check(Context(first, tmp_path, tmp_path / "runs" / "tiny", Progress(quiet=True)))
    assert len(found.problems) == 1 and "inside the first layer" in found.problems[0]
    monkeypatch.setenv("WORLD_SIZE", "2")
    rows = ["distill.objective=[{loss: rkd_distance}]", "distill.train.micro_rows=4"]
    with pytest.raises(RecipeError, match="would not make the same passes"):
        ranks_of_recipes.first(recipes.load(path, [shared, *rows]))
    with pytest.raises(RecipeError, match="offload"):
        ranks_of_recipes.first(recipes.load(path, [shared, "distill.train.offload=true"]))


def test_a_recipe_is_run_by_two_processes_that_share_student_and_teacher(tmp_path):
    """Learned scales, layers that run again in the backward pass, a point that is kept; against one process."""
    path, plain = tiny.recipe(tmp_path), [*QUICK, "quantize={scales: {kind: learned}}", "distill.train.keep=1"]
    cut = "distill.train.parallel={kind: fsdp2, teacher: sharded}"
    how = [*plain, "distill.train.recompute=true", cut, "--runs", tmp_path / "cut", "--until", "distill", "--quiet"]
    done = torchrun("-m", "edgeslm", "run", path, *how)
    assert done.returncode == 0, done.stderr[-3000:]
    (ours,) = (tmp_path / "cut" / "tiny").glob("distill-*")
    root = run(recipes.load(path, plain), tmp_path, tmp_path / "one", Progress(quiet=True), until="distill")
    (theirs,) = root.glob("distill-*")
    losses = [[line["loss"] for line in log(folder)] for folder in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3) and len(losses[0]) == 4
    told = json.loads((ours / "ranks.json").read_text())
    assert told["parallel"] == {"kind": "fsdp2", "teacher": "sharded"} and told["tokens_per_s"] > 0
    assert len(told["peak_memory_bytes"]) == 2 and told == json.loads((ours / "summary.json").read_text())["processes"]
    assert told["held_bytes"][0] == pytest.approx(told["held_bytes"][1], rel=0.02)
    points = [json.loads((folder / "heldout.json").read_text())["points"] for folder in (ours, theirs)]
    assert [p["kl"] for p in points[0]] == pytest.approx([p["kl"] for p in points[1]], rel=2e-3)
    frozen, other = (Frozen.load(folder / "frozen") for folder in (ours, theirs))
    same = [(t.codes == other.tensors[n].codes).float().mean() for n, t in frozen.tensors.items()]
    assert len(same) == len(other.tensors) and torch.stack(same).mean() > 0.9
    kept = [load_file(folder / "route" / "1" / "model.safetensors") for folder in (ours, theirs)]
    assert kept[0].keys() == kept[1].keys()
    assert max(float((kept[0][n] - w).abs().max()) for n, w in kept[1].items()) < 5e-3
    assert not list(ours.glob("checkpoint*"))


@pytest.mark.proof
def test_every_family_is_trained_by_two_processes_as_by_one(tmp_path):
    """In float, by losses: biases of keys have no gradient but rounding, which Adam makes as large as any other."""
    from test_models import CONFIGS

    jobs = [f"{kind}: {ranks_worker.FAMILY}{name}" for kind in ("ddp", "fsdp2") for name in CONFIGS]
    done = torchrun(HERE / "ranks_worker.py", tmp_path / "many", *jobs, timeout=900)
    assert done.returncode == 0 and "view tensor" not in done.stderr, done.stderr[-3000:]
    for job in jobs:
        ranks_worker.one(job.partition(": ")[2], tmp_path / "one" / job, ranks_worker.parallel.ALONE)
        short = job.replace(": ", "-").replace(" ", "-")
        ours, theirs = ([line["loss"] for line in log(f)] for f in (tmp_path / "many" / short, tmp_path / "one" / job))
        assert ours == pytest.approx(theirs, rel=1e-5), job


@pytest.mark.proof
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_processes_that_were_killed_go_on_as_if_they_had_not_been(kind, tmp_path):
    """SIGKILL to torchrun and all that it started, ten updates past a checkpoint or less."""
    path = tiny.recipe(tmp_path)
    how = [*QUICK, "distill.train.steps=120", "distill.train.checkpoint_every=10", "--until", "distill", "--quiet"]
    how.append(f"distill.train.parallel={{kind: {kind}}}")
    assert torchrun("-m", "edgeslm", "run", path, *how, "--runs", tmp_path / "whole").returncode == 0
    again = ["-m", "edgeslm", "run", path, *how, "--runs", tmp_path / "killed"]
    started = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, again)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while not any(len(p.read_text().splitlines()) > 34 for p in tmp_path.glob("killed/tiny/distill-*/log.jsonl")):
        assert started.poll() is None, "ended before it was killed"
        time.sleep(0.02)
    children = subprocess.run(["pgrep", "-P", str(started.pid)], capture_output=True, text=True, check=True)
    for pid in (started.pid, *map(int, children.stdout.split())):
        os.kill(pid, signal.SIGKILL)
    started.wait()
    (stopped,) = tmp_path.glob("killed/tiny/distill-*")
    assert not (stopped / "done.json").exists() and list(stopped.glob("checkpoint.safetensors*"))
    done = torchrun(*again)
    assert done.returncode == 0, done.stderr[-3000:]
    frozen = [next(tmp_path.glob(f"{w}/tiny/distill-*")) / "frozen/frozen.safetensors" for w in ("whole", "killed")]
    assert frozen[0].read_bytes() == frozen[1].read_bytes()
    assert json.loads((stopped / "done.json").read_text())["resumed"]
