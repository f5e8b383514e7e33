"""Several processes train one student: as one process does with the same global batch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ranks_worker
import tiny
import torch
from safetensors.torch import load_file

from edgeslm import parallel
from edgeslm import recipe as recipes
from edgeslm.data.batch import Batch
from edgeslm.errors import RecipeError
from edgeslm.pipeline import ranks as ranks_of_recipes
from edgeslm.quantize.frozen import Frozen

HERE = Path(__file__).parent
SCHEMES = ["offline, features", "online, leader", "self, average", "blockwise", "online, writing"]
SCHEMES += ["codistill", "codistill, predictions"]
HALTED = ("offline, features", "codistill")
QUICK = (
    "distill.train.steps=4", "data.sources=[{kind: text, paths: [learn.txt]}]", "benchmark=null", "quantize.start=0.5",
    "student={kind: depth, layers: 3, importance_tokens: 64}", "evaluate.prompts=[]",
)  # fmt: skip


def torchrun(*arguments: object, processes: int = 2, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent}", "OMP_NUM_THREADS": "1"}
    command += list(map(str, arguments))
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout, env=environment)


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def alike(job: str, folder: Path, processes: int = 2) -> list[float]:
    """Asserts that what ranks left of a job is as one process's; the share of equal integers of each tensor on a grid.

    In float32 sums of other parts differ by a few 1e-7 of their size. Before weights lie on the grid losses differ by
    no more (1e-5 is asked for). Then a weight between two codes may go to either, and Adam divides by the root of small
    second moments, so single masters part by up to a step (5e-3 is asked for, 2 learning rates)."""
    name, short = job.partition(": ")[2], job.replace(": ", "-").replace(" ", "-")
    alone = ranks_worker.one(name, folder / "one" / short, parallel.ALONE)
    ours, theirs = log(folder / "many" / short), log(folder / "one" / short)
    assert [line["ranks"] for line in ours] == [processes] * len(theirs) and len(ours) == ranks_worker.STEPS
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-3), job
        assert a["terms"] == pytest.approx(b["terms"], rel=2e-2, abs=1e-3)
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5), job
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4), job
    found = load_file(folder / "many" / f"{short}.safetensors")
    each = enumerate(ranks_worker.whole(step, parallel.ALONE) for step in alone)
    wanted = {f"{i} {key}": value for i, left in each for key, value in left.items()}
    assert found.keys() == wanted.keys()
    far = [float((found[key] - value).abs().max()) for key, value in wanted.items() if " value " in key]
    assert max(far) < 5e-3, (job, max(far))
    return [float((found[key] == value).float().mean()) for key, value in wanted.items() if " codes " in key]


def learn_what_one_learns(kind: str, schemes: list[str], folder: Path) -> None:
    """Two processes, every scheme; those of HALTED stopped and gone on with are bit for bit as never stopped."""
    jobs = [f"{kind}: {name}" for name in schemes]
    halted = [f"{kind}: {name}" for name in schemes if name in HALTED]
    done = torchrun(HERE / "ranks_worker.py", folder / "many", *jobs, *(f"{j}{ranks_worker.STOPPED}" for j in halted))
    assert done.returncode == 0, done.stderr[-3000:]
    for job in jobs:
        assert min(alike(job, folder)) > 0.97
    for job in halted:
        short = job.replace(": ", "-").replace(" ", "-")
        once, again = (folder / "many" / f"{short}{end}.safetensors" for end in ("", ",-stopped"))
        assert once.read_bytes() == again.read_bytes(), job


def test_two_processes_learn_what_one_learns(tmp_path):
    """Replicas, every kind of loop: losses step by step, gradient norms, weights at the end."""
    learn_what_one_learns("ddp", SCHEMES, tmp_path)


def test_a_recipe_is_run_by_two_processes(tmp_path):
    path = tiny.recipe(tmp_path)
    arguments = ["-m", "edgeslm", "run", path, *QUICK, "--runs", tmp_path / "runs", "--until", "export", "--quiet"]
    done = torchrun(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    root = tmp_path / "runs" / "tiny"
    stages = json.loads((root / "run.json").read_text())["stages"]
    assert set(stages) == {"teacher", "data", "student", "distill", "export"} and len(list(root.glob("distill-*"))) == 1
    told = json.loads((root / stages["distill"] / "ranks.json").read_text())
    assert told["ranks"] == 2 and len(told["peak_memory_bytes"]) == 2
    lines = log(root / stages["distill"])
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and lines[0]["ranks"] == 2

    from edgeslm.pipeline.run import run
    from edgeslm.progress import Progress

    alone = run(recipes.load(path, QUICK), tmp_path, tmp_path / "alone", Progress(quiet=True), until="distill")
    (folder,) = alone.glob("distill-*")
    assert folder.name != stages["distill"]  # sums of other parts have other last bits: another training
    assert [line["loss"] for line in log(folder)] == pytest.approx([line["loss"] for line in lines], rel=2e-3)
    frozen, other = Frozen.load(folder / "frozen"), Frozen.load(root / stages["distill"] / "frozen")
    same = [(t.codes == other.tensors[n].codes).float().mean() for n, t in frozen.tensors.items() if t.codes.dim()]
    assert torch.stack(same).mean() > 0.9
    again = torchrun(*arguments)
    assert again.returncode == 0, again.stderr[-3000:]
    assert json.loads((root / "run.json").read_text())["stages"] == stages


def test_shares_are_all_rows_once():
    batch = Batch(torch.arange(7)[:, None], torch.ones(7, 1), torch.arange(7))
    shares = [parallel.Ranks(rank, 3).share(batch) for rank in range(3)]
    assert torch.cat([s.ids for s in shares]).flatten().tolist() == list(range(7))
    assert [len(s) for s in shares] == [2, 2, 3] and len(parallel.ALONE.share(batch)) == 7


def test_passes_are_as_many_on_every_process_and_none_is_empty():
    for rows in range(1, 14):
        batch = Batch(torch.arange(rows)[:, None], torch.ones(rows, 1), torch.arange(rows))
        for size in range(1, rows + 1):
            for most in (1, 2, 3, 8):
                passes = [parallel.Ranks(rank, size).passes(batch, most) for rank in range(size)]
                ids = torch.cat([part.ids for own in passes for part in own]).flatten()
                assert ids.tolist() == list(range(rows))
                lengths = [len(part) for own in passes for part in own]
                assert len({len(own) for own in passes}) == 1 or size == 1
                assert min(lengths) >= 1 and max(lengths) <= most + (most == 1 and rows % size > 0)


def test_a_process_asks_for_the_recorded_targets_of_its_own_rows_alone(monkeypatch):
    from edgeslm.teachers.base import Dense, Signals

    model, asked, summed = tiny.llama(layers=2, hidden=32), [], []

    def teacher(batch, need):
        asked.extend(batch.rows.tolist())
        return Signals(Dense(torch.zeros(batch.mask[:, 1:].numel(), 32), torch.zeros(288, 32)))

    step = tiny.step_of(model, [{"loss": "forward_kl"}], [model], micro_rows=2)
    step.engine.ranks = parallel.Ranks(1, 2)
    monkeypatch.setattr(parallel.Ranks, "add_up", lambda self, found: summed.append(list(found)))
    rows = torch.tensor([11, 4, 7, 2, 9, 30])
    step._backward(Batch(torch.ones(6, 8, dtype=torch.int64), torch.ones(6, 8), rows), teacher, step.objective)
    assert asked == [2, 9, 30] and summed


def test_one_process_reads_whole_shards_of_recorded_targets_the_others_their_rows(tmp_path, monkeypatch):
    from test_scheme_kinds import _recorded, rows

    from edgeslm.teachers import recorded

    _recorded(tmp_path / "training")

    def read(path: Path) -> str:
        raise AssertionError("read as a whole")

    monkeypatch.setattr(recorded, "file_sha256", read)
    with pytest.raises(AssertionError, match="read as a whole"):
        recorded.RecordedTeacher(tmp_path / "targets", rows(), range(24))
    assert len(recorded.RecordedTeacher(tmp_path / "targets", rows(), range(24), digests=False).place) == 24


def test_what_several_processes_cannot_do_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "5")
    path = tiny.recipe(tmp_path)
    with pytest.raises(RecipeError, match="4 rows a step leave some of 5 processes without any"):
        ranks_of_recipes.first(recipes.load(path))
    assert ranks_of_recipes.together() == [5]
    monkeypatch.delenv("WORLD_SIZE")
    assert ranks_of_recipes.first(recipes.load(path)) and ranks_of_recipes.together() == []


def test_the_first_process_says_what_is_wrong_and_the_others_only_that_it_stopped(tmp_path):
    path = tiny.recipe(tmp_path)
    done = torchrun("-m", "edgeslm", "run", path, "distill.objective=[{loss: hiden}]", "--runs", tmp_path / "runs")
    assert done.returncode != 0 and "unknown loss 'hiden'" in done.stderr
    assert "Error" not in re.sub("ChildFailedError", "", done.stderr), done.stderr


def test_processes_begin_with_the_scales_and_codes_that_the_first_has_found(tmp_path):
    path = tiny.recipe(tmp_path)
    start = [*QUICK, "threads=1", "quantize.start=0", "quantize.equalise=true", "quantize.rounding=fisher"]
    done = torchrun("-m", "edgeslm", "run", path, *start, "--runs", tmp_path / "runs", "--until", "distill", "--quiet")
    assert done.returncode == 0, done.stderr[-3000:]
    root = tmp_path / "runs" / "tiny"
    stages = json.loads((root / "run.json").read_text())["stages"]
    assert {"equalise", "round"} <= set(stages)

    from edgeslm.pipeline.run import run
    from edgeslm.progress import Progress

    alone = run(recipes.load(path, start), tmp_path, tmp_path / "alone", Progress(quiet=True), until="distill")
    (folder,) = alone.glob("distill-*")
    assert (alone / stages["round"]).exists()  # rounding is the first process's alone, and so the same
    first = [float(lines[0]["loss"]) for lines in (log(folder), log(root / stages["distill"]))]
    assert first[0] == pytest.approx(first[1], rel=1e-4)
