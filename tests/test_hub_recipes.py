"""Recipes whose models come from a hub, checked on what its cache would hold; a plan for a pair larger than a card."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from hub_layout import PUBLISHED, cached
from typer.testing import CliRunner

from edgeslm import artifact, compute, units
from edgeslm import recipe as recipes
from edgeslm.cli.app import app
from edgeslm.errors import RecipeError
from edgeslm.models import source
from edgeslm.pipeline.check import check
from edgeslm.pipeline.check import files as check_files
from edgeslm.pipeline.stage import Context
from edgeslm.progress import Progress

FOLDER = Path(__file__).parent.parent / "recipes"
CODER = ("teacher.model=Qwen/Qwen2.5-Coder-1.5B-Instruct", "student.model=Qwen/Qwen2.5-Coder-0.5B-Instruct")
# recipe: (what is said on the command line, models it takes from the hub, parameters of teacher and student)
PAIRS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[float, float]]] = {
    "smollm2-1.7b-360m": ((), ("SmolLM2-1.7B-Instruct", "SmolLM2-360M-Instruct"), (1.711e9, 0.3618e9)),
    "qwen3-1.7b-0.6b": ((), ("Qwen3-1.7B", "Qwen3-0.6B"), (1.7206e9, 0.5960e9)),
    "llama-3.2-3b-1b": ((), ("Llama-3.2-3B-Instruct", "Llama-3.2-1B-Instruct"), (3.2127e9, 1.2358e9)),
    "qwen2.5-coder-1.5b-0.5b": (
        CODER,
        ("Qwen2.5-Coder-1.5B-Instruct", "Qwen2.5-Coder-0.5B-Instruct"),
        (1.5437e9, 0.4940e9),
    ),
    "qwen2.5-coder-1.5b-pruned": (CODER[:1], ("Qwen2.5-Coder-1.5B-Instruct",), (1.5437e9, 0.5069e9)),
    "qwen2.5-7b-1.5b": ((), ("Qwen2.5-7B-Instruct", "Qwen2.5-1.5B-Instruct"), (7.6156e9, 1.5437e9)),
}
CARD = 25.3e9  # bytes: what a card sold with 24 GB tells
SMALL = 100_000_000  # bytes; files of holes are larger, and reading them tells nothing
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("hub")
    for repo in PUBLISHED:
        cached(made, repo)
    return made


@pytest.fixture(autouse=True)
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is the hub; disks have room; nothing has to read gigabytes of holes."""

    def sha256(path: Path) -> str:
        size = path.stat().st_size
        return artifact.file_sha256(path) if size < SMALL else f"{path.name} {size}"

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(source, "file_sha256", sha256)
    monkeypatch.setattr(check_files.shutil, "disk_usage", lambda _: Usage(10**12, 0, 10**12))


def context_of(name: str, tmp_path: Path, *overrides: str) -> Context:
    path = FOLDER / f"{name}.yaml"
    return Context(recipes.load(path, overrides), path.parent, tmp_path / name, Progress(quiet=True))


def on_card(context: Context, monkeypatch: pytest.MonkeyPatch, size: float = CARD) -> Context:
    """As if this machine had a card of that size: nothing of a check computes on it but the product that it times."""
    context.__dict__["compute"] = compute.Compute(torch.device("cuda"), torch.bfloat16, 1)
    monkeypatch.setattr(compute, "matmul_flops", lambda *_, **__: 1e14)
    monkeypatch.setattr(compute, "memory_bytes", lambda _: size)
    return context


def plan_of(context: Context) -> dict[str, Any]:
    found = check(context)
    assert found.problems == []
    return dict(found.plan)


def test_every_recipe_of_the_hub_is_listed() -> None:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.yaml")}
    named = {name for name, text in texts.items() if any(f"model: {repo}\n" in text for repo in PUBLISHED)}
    assert named == {name for name, (said, _, _) in PAIRS.items() if not said}
    assert {model for _, models, _ in PAIRS.values() for model in models} == {repo.split("/")[1] for repo in PUBLISHED}


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_of_the_hub_passes_check(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides, models, (teacher, student) = PAIRS[name]
    plan = plan_of(on_card(context_of(name, tmp_path, *overrides), monkeypatch))
    assert models[0] in plan["teacher"] and f"{units.count(teacher)} parameters" in plan["teacher"]
    assert plan["student"].endswith(f"{units.count(student)} parameters")
    assert plan["teacher's tensors"].endswith(" bf16")
    held = {part.split()[0] for part in plan["memory to train (an estimate)"].split(": ")[1].split(", ")}
    assert {"weights", "teacher"} <= held and "files" in plan


def test_the_command_prints_the_plan(tmp_path: Path) -> None:
    command = ["check", str(FOLDER / "smollm2-1.7b-360m.yaml"), "--runs", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert done.output.endswith("nothing is wrong with this recipe\n")
    assert {"teacher", "student's weights", "memory to train (an estimate)"} <= {
        line[:42].strip() for line in done.output.splitlines()
    }


def test_a_student_of_1_5b_under_7b_has_a_plan_for_a_card_of_24_gb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, plain = "qwen2.5-7b-1.5b", ("micro_rows=8", "recompute=false", "offload=false")
    plan = plan_of(on_card(context_of(name, tmp_path), monkeypatch))
    assert plan["memory there is"] == "25.3 GB, enough"
    assert plan["main memory beside it (an estimate)"].startswith("24.7 GB: masters 6.2 GB, moments 12.3 GB")
    whole = on_card(context_of(name, tmp_path, *(f"distill.train.{said}" for said in plain)), monkeypatch)
    found = check(whole)
    plan = dict(found.plan)
    assert "too little" in plan["memory there is"]
    assert "distill.train: a step would take about 70.0 GB of memory and there are 25.3 GB" in found.problems[0]
    fits = {label.strip() for label, value in plan.items() if label.startswith("  ") and value.endswith(", fits")}
    assert fits == {"all of these"}
    assert {f"  distill.train.{said}" for said in ("recompute: true", "micro_rows: 1", "offload: true")} <= set(plan)


def test_float32_copies_go_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after training: on a card of 80 GB they stay, on one of 24 GB they are on the CPU."""
    for size, where in ((80e9, "cuda"), (CARD, "cpu")):
        context = on_card(context_of("qwen2.5-7b-1.5b", tmp_path), monkeypatch, size)
        assert context.exact.compute.device.type == where and context.compute.device.type == "cuda"
        assert context.exact.compute.dtype == torch.bfloat16 and context.exact.exact is context.exact
        assert ("float32 copies, before and after" in plan_of(context)) == (where == "cpu")


def test_offload_is_for_a_card_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (problem,) = check(context_of("qwen2.5-7b-1.5b", tmp_path, "device=cpu")).problems
    assert problem.startswith("distill.train.offload: is for a CUDA card; on 'cpu'")
    feedback = context_of("qwen2.5-7b-1.5b", tmp_path, "quantize.rounding=feedback")
    assert not check(on_card(feedback, monkeypatch)).problems  # it rounds before there are masters
    with pytest.raises(RecipeError, match="offload: is for the offline scheme"):
        context_of("qwen2.5-7b-1.5b", tmp_path, "distill.scheme={kind: online}")


def test_a_missing_model_is_one_sentence(tmp_path: Path) -> None:
    (problem,) = check(context_of("qwen3-1.7b-0.6b", tmp_path, "teacher.model=Qwen/Qwen3-9000B")).problems
    assert "Qwen/Qwen3-9000B: is no local folder and could not be had from the hub" in problem
