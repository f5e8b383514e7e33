"""The step against plain autograd, and what must not change it: chunk size, micro-batches, ties."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch

from edgeslm.data.batch import Batch
from edgeslm.quantize.masters import attach
from edgeslm.quantize.plan import Plan
from edgeslm.schemes import head_loss as head_module
from edgeslm.schemes.objective import Objective, masked_mean
from edgeslm.schemes.schedule import SCHEDULES
from edgeslm.schemes.step import Diverged, Step, StepSettings
from edgeslm.teachers.live import LiveTeacher

KL = [{"loss": "forward_kl"}]
MIXED = [{"loss": "forward_kl", "temperature": 2.0, "weight": 0.7}, {"loss": "cross_entropy", "weight": 0.3}]


def settings(micro_rows: int = 4, refit_every: int = 1) -> StepSettings:
    return StepSettings(micro_rows, clip=1e9, weight_decay=0.0, betas=(0.9, 0.99), refit_every=refit_every)


def batch(rows: int = 4) -> Batch:
    g = torch.Generator().manual_seed(3)
    mask = (torch.rand(rows, 16, generator=g) > 0.2).float()
    return Batch(torch.randint(0, 288, (rows, 16), generator=g), mask)


def plain_loss(student, teacher, data: Batch, terms) -> torch.Tensor:
    """What a reader would write: whole logits, one formula."""
    logits = student(data.ids).logits[:, :-1].reshape(-1, 288)
    wanted = teacher(data.ids).logits[:, :-1].reshape(-1, 288).detach()
    targets, mask = data.ids[:, 1:].reshape(-1), data.mask[:, 1:].reshape(-1)
    total = torch.zeros(())
    for term in Objective.build(terms).terms:
        values = term.loss.fn(logits, wanted, targets, **term.options)
        total = total + term.weight * masked_mean(values, mask, mask.sum())
    return total


@pytest.mark.parametrize("terms", [KL, MIXED])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("micro_rows", [4, 1])
def test_gradients_equal_plain_autograd(terms, tied, micro_rows, monkeypatch):
    monkeypatch.setattr(head_module, "CHUNK_TOKENS", 11)  # several uneven chunks
    monkeypatch.setattr(head_module, "SLICE_BYTES", 5 * 4 * 288)
    teacher, student, data = tiny.llama(seed=1), tiny.llama(seed=2, tied=tied), batch()
    oracle = copy.deepcopy(student)
    wanted = plain_loss(oracle, teacher, data, terms)
    wanted.backward()
    masters = attach(student, Plan.uniform("f32").assign(shapes(student)), torch.float32)
    step = Step(student, masters, Objective.build(terms), settings(micro_rows))
    grads = {}
    step.optimiser.step = lambda: grads.update({m.name: m.value.grad.clone() for m in masters.items})
    log = step(data, LiveTeacher(teacher), lr=0.0, grid=False, index=0)
    assert log.loss == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert set(grads) == {n for n, _ in oracle.named_parameters()}
    for name, parameter in oracle.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_teacher_is_not_called_when_no_term_needs_it():
    student = tiny.llama()
    masters = attach(student, Plan.uniform("f32").assign(shapes(student)), torch.float32)
    step = Step(student, masters, Objective.build([{"loss": "cross_entropy"}]), settings())

    def never(ids):
        raise AssertionError("called")

    assert step(batch(), never, lr=1e-3, grid=False, index=0).loss > 0


def test_training_on_the_grid_keeps_weights_on_the_grid_and_learns():
    teacher, student, data = tiny.llama(seed=1), tiny.llama(seed=1), batch(8)
    masters = attach(student, Plan.uniform("q4_0").assign(shapes(student)), torch.float32)
    masters.set_weights(grid=True, refit=True)
    step = Step(student, masters, Objective.build(KL), settings(8, refit_every=5))
    losses = [step(data, LiveTeacher(teacher), lr=2e-3, grid=True, index=i).loss for i in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    for master in masters.items:
        if master.on_grid:
            decoded = master.format.decode(master.codes(), master.scales).reshape(master.value.shape)
            assert torch.equal(decoded, master.weight.data), master.name
            assert not torch.equal(master.value.data, master.weight.data), master.name


def test_a_tied_head_is_one_master():
    student = tiny.llama(tied=True)
    masters = attach(student, Plan.uniform("q4_0").assign(shapes(student)), torch.float32)
    assert "lm_head.weight" not in [m.name for m in masters.items]
    masters.set_weights(grid=True, refit=True)
    assert student.lm_head.weight.data_ptr() == student.model.embed_tokens.weight.data_ptr()


def test_rotary_frequencies_stay_float32_in_bfloat16():
    student = tiny.llama()
    before = student.model.rotary_emb.inv_freq.clone()
    attach(student, Plan.uniform("q4_0").assign(shapes(student)), torch.bfloat16)
    assert student.model.embed_tokens.weight.dtype == torch.bfloat16
    assert torch.equal(student.model.rotary_emb.inv_freq, before)


def test_a_loss_that_is_not_finite_stops_with_a_sentence():
    student = tiny.llama()
    masters = attach(student, Plan.uniform("f32").assign(shapes(student)), torch.float32)
    student.model.norm.weight.data.fill_(float("nan"))
    step = Step(student, masters, Objective.build([{"loss": "cross_entropy"}]), settings())
    with pytest.raises(Diverged, match="step 4"):
        step(batch(), None, lr=1e-3, grid=False, index=4)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_schedules_warm_up_and_come_down(name):
    factors = [SCHEDULES[name](i, 100, 10, 40) for i in range(100)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == pytest.approx(1.0)
    assert factors[-1] < 0.15 and all(0 < f <= 1 for f in factors)
    assert factors[10:] == sorted(factors[10:], reverse=True)


def shapes(model) -> dict:
    return {n: tuple(p.shape) for n, p in model.named_parameters()}
