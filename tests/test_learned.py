"""Learned scales: gradients against autograd through the same straight-through definition, and what training keeps."""

import pytest
import torch

from edgeslm.data.batch import Batch
from edgeslm.formats import FORMATS
from edgeslm.quantize.learned import LearnedScales
from edgeslm.quantize.masters import attach
from edgeslm.quantize.plan import Plan
from edgeslm.schemes.objective import Objective
from edgeslm.schemes.step import Step, StepSettings
from edgeslm.teachers.live import LiveTeacher
from tests.tiny import llama

LEARNABLE = [name for name, grid in FORMATS.items() if grid.gather is not None]
SOME = [name for name in ("q4_0", "q4_1", "q3_k", "q4_k", "iq4_nl", "mxfp4", "tq2_0") if name in LEARNABLE]


def test_every_trainable_grid_can_learn_its_scales():
    assert LEARNABLE
    assert set(LEARNABLE) == {name for name, grid in FORMATS.items() if grid.encode is not None and grid.block > 1}


@pytest.mark.parametrize("name", LEARNABLE)
def test_factors_of_one_are_the_fitted_scales(name):
    grid = FORMATS[name]
    w = torch.randn(6, grid.block, generator=torch.Generator().manual_seed(0))
    scales = grid.fit(w)
    again = LearnedScales.around(grid, scales).scales(grid)
    assert grid.decode(grid.encode(w, again), again).equal(grid.decode(grid.encode(w, scales), scales))


@pytest.mark.parametrize("name", SOME)
def test_gradients_are_those_of_the_straight_through_definition(name):
    """Autograd through levels * step - minimum with a rounding whose gradient is 1 inside the grid and 0 outside."""
    grid = FORMATS[name]
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(8, grid.block, generator=generator)
    scales = grid.fit(w)
    w = 1.3 * w  # some weights are clipped
    grad = torch.randn(8, grid.block, generator=generator)
    learned = LearnedScales.around(grid, scales)
    step, minimum = (x if x is None else x.clone().requires_grad_() for x in grid.spread(scales))
    groups = step.shape[1]
    shape = (8, groups, grid.block // groups)
    shifted = w.view(shape) if minimum is None else w.view(shape) + minimum[:, :, None]
    x = (shifted / step[:, :, None]).clamp(learned.low, learned.high)
    level = grid.levels(grid.encode(w, scales)).view(shape)
    through = x + (level - x).detach()
    decoded = through * step[:, :, None]
    if minimum is not None:
        decoded = decoded - minimum[:, :, None]
    wanted = torch.autograd.grad((decoded * grad.view(shape)).sum(), [step] if minimum is None else [step, minimum])
    base = [x for x in grid.spread(scales) if x is not None]
    found = learned.gradients(grid, w, grad, scales, slice(0, 8))
    assert len(found) == len(wanted) + len(learned.outer)
    for ours, theirs, fitted in zip(found, wanted, base, strict=False):
        torch.testing.assert_close(ours, theirs * fitted, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", LEARNABLE)
@pytest.mark.parametrize("held", [False, True])
def test_gradients_of_factors_are_those_of_decoding(name, held):
    """Autograd through levels * step - minimum, the levels constants, with factors that have moved."""
    grid = FORMATS[name]
    generator = torch.Generator().manual_seed(1)
    w, grad = torch.randn(8, grid.block, generator=generator), torch.randn(8, grid.block, generator=generator)
    fitted = grid.fit(w)
    codes = grid.encode(w, fitted)
    factors = LearnedScales.around(grid, fitted, hold_codes=held)
    for factor in factors.outer.values():
        factor.data.fill_(1.25)
    scales = factors.scales(grid)
    step, minimum = grid.spread(fitted)
    shape, one = (8, step.shape[1], -1), torch.ones(8, 1)
    decoded = grid.levels(codes).view(shape) * (step * factors.step * factors.outer.get("d", one))[:, :, None]
    if minimum is not None:
        own = factors.step if factors.minimum is None else factors.minimum
        decoded = decoded - (minimum * own * factors.outer.get("dmin", one))[:, :, None]
    torch.testing.assert_close(decoded.reshape(w.shape), grid.decode(codes, scales), rtol=2e-3, atol=2e-3)
    wanted = torch.autograd.grad((decoded * grad.view(shape)).sum(), factors.parameters)
    found = factors.gradients_of_held(grid, codes, grad, scales, slice(0, 8))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)


def test_zero_points_are_codes_too_and_stay_where_codes_do():
    grid = FORMATS["n4a_b32"]
    w = torch.randn(16, 32, generator=torch.Generator().manual_seed(0)) + 0.3
    fitted = grid.fit(w)
    factors = LearnedScales.around(grid, fitted, hold_codes=True)
    assert factors.minimum is None and len(factors.parameters) == 1
    factors.step.data.mul_(torch.linspace(0.9, 1.1, 16)[:, None])
    moved = factors.scales(grid)
    assert moved["z"].equal(fitted["z"]) and not moved["d"].equal(fitted["d"])


def _step(scale_lr, hold_codes=False):
    torch.manual_seed(0)
    student, teacher = llama(), llama()
    teacher.load_state_dict({k: v + 0.02 * torch.randn_like(v) for k, v in student.state_dict().items()})
    shapes = {n: tuple(p.shape) for n, p in student.named_parameters()}
    masters = attach(student, Plan.uniform("q4_0").assign(shapes), torch.float32)
    masters.set_weights(grid=True, refit=True)
    objective = Objective.build([{"loss": "forward_kl"}])
    step = Step(
        student, masters, objective, StepSettings(4, 1.0, 0.0, (0.9, 0.99), None, scale_lr, hold_codes=hold_codes)
    )
    ids = torch.randint(0, student.config.vocab_size, (4, 16), generator=torch.Generator().manual_seed(2))
    return step, LiveTeacher(teacher), Batch(ids, torch.ones(4, 16))


def test_training_moves_scales_only_where_they_are_learned():
    for scale_lr in (None, 5.0):
        step, teacher, batch = _step(scale_lr)
        before = {m.name: {k: v.clone() for k, v in m.scales.items()} for m in step.masters.items}
        for index in range(3):
            step(batch, teacher, lr=1e-3, grid=True, index=index)
        moved = any(not value.equal(before[m.name][key]) for m in step.masters.items for key, value in m.scales.items())
        assert moved == (scale_lr is not None)


def test_what_is_held_is_let_go_once_it_is_frozen():
    step, teacher, batch = _step(5.0, hold_codes=True)
    step(batch, teacher, lr=1e-3, grid=True, index=0)
    held = [m for m in step.masters.items if m.held is not None]
    assert held and all(m.value.grad is None for m in held)
    step.release()
    assert all(m.held is None and m.learned is None for m in step.masters.items)


def test_learning_scales_helps_the_loss_of_a_fixed_batch():
    losses = {}
    for scale_lr in (1e-9, 5.0):
        step, teacher, batch = _step(scale_lr)
        losses[scale_lr] = [step(batch, teacher, lr=1e-3, grid=True, index=i).loss for i in range(12)][-1]
    assert losses[5.0] != losses[1e-9]


def test_a_restart_from_a_checkpoint_gives_the_same_weights(tmp_path):
    from edgeslm.schemes import checkpoint

    whole, teacher, batch = _step(5.0)
    for index in range(4):
        if index == 2:
            checkpoint.save([whole], {}, 2, tmp_path)
        whole(batch, teacher, lr=1e-3, grid=True, index=index)
    again, _, _ = _step(5.0)
    assert checkpoint.load([again], {}, tmp_path) == 2
    again.masters.set_weights(grid=True, refit=False)
    for index in range(2, 4):
        again(batch, teacher, lr=1e-3, grid=True, index=index)
    for ours, theirs in zip(again.masters.items, whole.masters.items, strict=True):
        assert ours.value.equal(theirs.value)
        assert ours.weight.equal(theirs.weight)
