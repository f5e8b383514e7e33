"""Estimates of memory against what autograd keeps, tensor by tensor; layers that are run again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILIES as TINY
from tiny import gradients, step_of
from tiny import recipe as made_recipe
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import memory_pair
from edgeslm import compute, cost
from edgeslm import recipe as recipes
from edgeslm import training_memory as memory
from edgeslm.data.batch import Batch
from edgeslm.design import families
from edgeslm.errors import RecipeError
from edgeslm.models.arch.base import plain
from edgeslm.models.turned import straighten
from edgeslm.pipeline.check import check
from edgeslm.pipeline.check import memory as check_memory
from edgeslm.pipeline.stage import Context
from edgeslm.progress import Progress
from edgeslm.schemes import head_loss

CLOSE = 0.12
QWEN_7B, QWEN_1B = ({"model_type": "qwen2"} | memory_pair.SHAPES[name] for name in ("7b", "1.5b"))


def student(family: str, dtype: torch.dtype) -> Any:
    wanted = families.Wanted(128, 3, 4, family, kv_heads=None if family == "gpt2" else 2, ffn=384)
    special = {"vocab_size": 320, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    keys = families.config_of(wanted, special, True, 512, 1e4)
    config = AutoConfig.for_model(keys.pop("model_type"), **keys)
    model = straighten(AutoModelForCausalLM.from_config(config)).to(dtype).eval()
    model.set_attn_implementation("sdpa")
    return model


def kept_bytes(model: Any, ids: torch.Tensor) -> int:
    """Of the storages that autograd keeps for the backward pass, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _ = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_activations_are_what_autograd_keeps(family: str, dtype: torch.dtype) -> None:
    model, ids = student(family, dtype), torch.randint(3, 300, (4, 96), generator=torch.Generator().manual_seed(0))
    shape = plain(model.config)
    step = memory.Step(4, 96, dtype.itemsize)
    estimate = memory.parts(shape, None, step)["activations"]
    assert estimate == pytest.approx(kept_bytes(model, ids), rel=CLOSE)


def test_the_rest_is_counted_from_the_weights() -> None:
    model = student("llama", torch.bfloat16)
    n, shape = sum(p.numel() for p in model.parameters()), plain(model.config)
    several = memory.Step(2, 16, 2, batches=2)
    held = memory.parts(shape, shape, several)
    assert (held["masters"], held["moments"], held["gradients"], held["weights"]) == (4 * n, 8 * n, 4 * n, 2 * n)
    assert held["teacher"] > 2 * n and sum(held.values()) == memory.total(shape, shape, several)
    assert "teacher" not in memory.parts(shape, None, several)
    away = memory.parts(shape, shape, replace(several, offload=True))
    assert [away[name] for name in memory.OPTIMISER] == [0, 0, 0] and away["weights"] == 2 * n
    assert sum(memory.optimiser(shape).values()) == 16 * n
    each = memory.parts(shape, shape, replace(several, ranks=2, cut=True))
    assert (each["masters"], each["moments"], each["gradients"], each["weights"]) == (2 * n, 4 * n, 2 * n, 2 * n)
    assert memory.parts(shape, shape, replace(several, ranks=2))["buckets"] == 2 * n and "buckets" not in held
    told = (memory.CHUNK_TOKENS, memory.SLICE_BYTES, memory.GPU_SLICE_BYTES)
    assert told == (head_loss.CHUNK_TOKENS, head_loss.SLICE_BYTES, head_loss.GPU_BYTES)


def test_gradients_come_as_activations_go() -> None:
    """One micro-batch a step: its activations and all gradients are never there together. Several: they are."""
    shape = plain(student("llama", torch.float32).config)
    few, many = memory.Step(1, 8, 4), memory.Step(16, 512, 4)
    n = cost.counts(shape).total
    assert memory.parts(shape, None, few)["gradients"] == 4 * n and "activations" not in memory.parts(shape, None, few)
    assert memory.parts(shape, None, many)["gradients"] == 0 and memory.parts(shape, None, many)["activations"] > 4 * n
    both = memory.parts(shape, None, replace(many, batches=2))
    assert both["gradients"] == 4 * n and both["activations"] == memory.parts(shape, None, many)["activations"]


@pytest.mark.parametrize("family", TINY)
def test_layers_that_run_again_give_the_same_gradients_and_keep_less(family: str) -> None:
    ids = torch.randint(3, 280, (4, 24), generator=torch.Generator().manual_seed(2))
    batch, found, kept = Batch(ids, torch.ones(ids.shape), None), [], []
    for again in (False, True):
        model = TINY[family]()
        if again:
            compute.recompute_layers(model)
        kept.append(kept_bytes(model, ids))
        step = step_of(model, [{"loss": "cross_entropy"}])
        found.append(gradients(step, batch, None))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(grad, found[1][1][name]) for name, grad in found[0][1].items())
    assert kept[1] < kept[0] / 4
    with torch.no_grad():
        model.generate(ids[:1, :4], max_new_tokens=2, do_sample=False, pad_token_id=0)


def test_losses_on_layers_see_the_same_when_layers_run_again() -> None:
    from edgeslm.teachers.live import LiveTeacher

    ids, found = torch.randint(3, 280, (4, 24), generator=torch.Generator().manual_seed(2)), []
    terms = [{"loss": "forward_kl"}, {"loss": "hidden", "layers": "last"}]
    for again in (False, True):
        model, teacher = TINY["llama"](), TINY["llama"](seed=1)
        if again:
            compute.recompute_layers(model)
        step = step_of(model, terms, [teacher])
        found.append(gradients(step, Batch(ids, torch.ones(ids.shape), None), LiveTeacher(teacher)))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(grad, found[1][1][name]) for name, grad in found[0][1].items())


def test_a_large_pair_on_a_small_card_is_told_what_would_fit() -> None:
    """A 1.5B student of a 7B teacher in 24 GB: not without the optimiser in main memory."""
    step = memory.Step(8, 1024, 2, gpu=True)
    found = dict(memory.alternatives(QWEN_1B, QWEN_7B, step))
    whole = memory.total(QWEN_1B, QWEN_7B, step)
    assert cost.counts(QWEN_1B).total == pytest.approx(1.54e9, rel=0.01) and whole > 40e9
    assert all(size < whole for size in found.values())
    assert found.pop("all of these") < 0.9 * 25e9 < min(found.values())
    assert "distill.train.offload: true" not in dict(memory.alternatives(QWEN_1B, QWEN_7B, replace(step, gpu=False)))
    (left,) = memory.alternatives(QWEN_1B, QWEN_7B, replace(step, rows=1, recompute=True))
    assert left[0] == "distill.train.offload: true"


def test_check_prints_the_plan_and_what_would_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = recipes.load(made_recipe(tmp_path))
    context = Context(loaded, tmp_path, tmp_path / "runs" / "tiny", Progress(quiet=True))
    plan = dict(check(context).plan)
    assert plan["memory to train (an estimate)"].startswith("5.1 MB: masters 444.2 kB, ")
    assert plan["memory there is"].endswith("enough")
    monkeypatch.setattr(check_memory, "available_bytes", lambda context: 5.4e6)
    plan = dict(check(context).plan)
    assert "too little" in plan["memory there is"] and "fits" in plan["  distill.train.recompute: true"]
    cut = recipes.load(made_recipe(tmp_path), ["distill.train.parallel={kind: fsdp2}"])
    plan = dict(check(Context(cut, tmp_path, tmp_path / "runs" / "tiny", Progress(quiet=True))).plan)
    assert "masters 222.1 kB" in plan["memory to train, each of 2 processes (an estimate)"]
    with pytest.raises(RecipeError, match="set compile or recompute to false"):
        recipes.load(made_recipe(tmp_path), ["distill.train.compile=true", "distill.train.recompute=true"])


def test_stages_before_training_are_estimated_and_refused_where_they_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeslm.pipeline import moments

    assert memory.MOMENT_ROWS == moments.ROWS
    how = ["quantize={target: {bits: 5.0}, rounding: fisher, equalise: true}", "distill.train.steps=2"]
    loaded = recipes.load(made_recipe(tmp_path), how)
    context = Context(loaded, tmp_path, tmp_path / "runs" / "tiny", Progress(quiet=True))
    assert dict(check(context).plan)["memory before training (an estimate)"].startswith("equalise ")
    plain = recipes.load(made_recipe(tmp_path), ["quantize={rounding: feedback}"])
    plain_context = Context(plain, tmp_path, tmp_path / "runs" / "tiny", Progress(quiet=True))
    assert "plan" not in dict(check(plain_context).plan)["memory before training (an estimate)"]
    monkeypatch.setattr(check_memory, "available_bytes", lambda context: 1e5)
    problems = check(context).problems
    for stage, remedy in check_memory.WITHOUT.items():
        assert any(p.startswith(f"quantize: stage {stage} would take about") and remedy in p for p in problems), stage


def test_what_a_plan_holds_at_least_is_in_its_estimate() -> None:
    """The student in float32 and cast, squares of gradients; and with codes that stay no moments."""
    step, n = memory.Step(8, 256, 2), cost.counts(QWEN_1B).total
    before = memory.preparing(QWEN_1B, QWEN_1B, step, ("plan", "round"), 1e9)
    assert list(before) == ["plan", "round"] and before["plan"] > (4 + 2 + 4) * n < before["round"] + 4 * n
    assert memory.preparing(QWEN_1B, QWEN_1B, step, ("round",), 3e9)["round"] == before["round"] + 2e9
    trained, alone = (memory.parts(QWEN_1B, None, replace(step, held=share)) for share in (0.0, 1.0))
    assert alone["moments"] < trained["moments"] / 8 and alone["masters"] == 5 * n
    pruned = memory.preparing(QWEN_1B, QWEN_7B, step, ("equalise", "plan", "round"), 1e9)
    whole, books = 4 * cost.counts(QWEN_7B).total, memory.BOOKS_BYTES
    assert pruned == {"equalise": whole + 2 * n, "plan": whole + 4 * n + books, "round": whole + books}


def stepped(device: str, where: torch.device | None) -> tuple[Any, int]:
    """A student after two updates on `device`, its masters `where`; what the device held at most."""
    from edgeslm.quantize.masters import attach
    from edgeslm.quantize.plan import Plan
    from edgeslm.schemes.objective import Objective
    from edgeslm.schemes.step import Step, StepSettings

    model = TINY["llama"]().to(device)
    assigned = Plan.uniform("q4_0").assign({name: tuple(p.shape) for name, p in model.named_parameters()})
    masters = attach(model, assigned, torch.float32, where)
    masters.set_weights(grid=True, refit=True)
    settings = StepSettings(2, 1.0, 0.0, (0.9, 0.98), None)
    step = Step(model, masters, Objective.build([{"loss": "cross_entropy"}]), settings)
    ids = torch.randint(3, 280, (4, 24), generator=torch.Generator().manual_seed(2)).to(device)
    for index in range(2):
        step(Batch(ids, torch.ones(ids.shape, device=device), None), None, lr=1e-3, grid=True, index=index)
    return step, torch.cuda.max_memory_allocated() if device == "cuda" else 0


def test_masters_are_given_back_once_they_are_frozen() -> None:
    step, _ = stepped("cpu", torch.device("cpu"))
    weights = {name: p.detach().clone() for name, p in step.model.named_parameters()}
    held = sum(p.numel() for p in step.model.parameters())
    assert step.held_bytes > 16 * held  # weights, masters and two moments
    step.release()
    scales = sum(t.numel() * t.element_size() for m in step.masters.items for t in m.scales.values())
    assert step.held_bytes == 4 * held + scales
    assert all(torch.equal(p, weights[name]) for name, p in step.model.named_parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_an_optimiser_in_main_memory_learns_the_same_and_leaves_the_card() -> None:
    found = []
    for where in (None, torch.device("cpu")):
        torch.cuda.reset_peak_memory_stats()
        step, peak = stepped("cuda", where)
        assert {m.value.device.type for m in step.masters.items} == {"cuda" if where is None else "cpu"}
        found.append(({name: p.detach().cpu() for name, p in step.model.named_parameters()}, peak))
        step.release()
    (here, most), (away, less) = found
    assert less < most and all(torch.allclose(value, away[name], atol=2e-3) for name, value in here.items())
