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
def test_gradients_of_scales_whose_codes_stay_are_those_of_decoding(name):
    """Autograd through levels * step - minimum, the levels constants."""
    grid = FORMATS[name]
    generator = torch.Generator().manual_seed(1)
    w, grad = torch.randn(8, grid.block, generator=generator), torch.randn(8, grid.block, generator=generator)
    scales = grid.fit(w)
    codes = grid.encode(w, scales)
    factors = LearnedScales.around(grid, scales)
    step, minimum = grid.spread(scales)
    shape = (8, step.shape[1], -1)
    one = torch.ones(8, 1)
    decoded = grid.levels(codes).view(shape) * (step * factors.step * factors.outer.get("d", one))[:, :, None]
    if minimum is not None:
        decoded = decoded - (minimum * factors.minimum * factors.outer.get("dmin", one))[:, :, None]
    torch.testing.assert_close(decoded.reshape(w.shape), grid.decode(codes, scales), rtol=1e-5, atol=1e-6)
    wanted = torch.autograd.grad((decoded * grad.view(shape)).sum(), factors.parameters)
    for ours, theirs in zip(factors.gradients_of_held(grid, codes, grad, scales, slice(0, 8)), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-5)


def _step(scale_lr):
    torch.manual_seed(0)
    student, teacher = llama(), llama()
    teacher.load_state_dict({k: v + 0.02 * torch.randn_like(v) for k, v in student.state_dict().items()})
    shapes = {n: tuple(p.shape) for n, p in student.named_parameters()}
    masters = attach(student, Plan.uniform("q4_0").assign(shapes), torch.float32)
    masters.set_weights(grid=True, refit=True)
    objective = Objective.build([{"loss": "forward_kl"}])
    step = Step(student, masters, objective, StepSettings(4, 1.0, 0.0, (0.9, 0.99), None, scale_lr))
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
