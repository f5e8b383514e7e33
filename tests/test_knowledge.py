"""Laws of response losses: zero at equality, never negative, fused equals autograd, the temperature limit."""

from __future__ import annotations

import pytest
import torch

from edgeslm.knowledge import LOSSES

N, V = 7, 33
OPTIONS = {
    "forward_kl": [{}, {"temperature": 2.0}, {"temperature": 0.5}],
    "cross_entropy": [{}, {"label_smoothing": 0.1}],
}
CASES = [(name, options) for name, choices in OPTIONS.items() for options in choices]


def logits(seed: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(N, V, generator=torch.Generator().manual_seed(seed)) * scale


TARGETS = torch.arange(N)


def test_every_loss_of_the_table_is_tested():
    assert set(OPTIONS) == set(LOSSES)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_one_value_per_token(name, options):
    value = LOSSES[name].fn(logits(0), logits(1), TARGETS, **options)
    assert value.shape == (N,) and torch.isfinite(value).all() and (value >= 0).all()


@pytest.mark.parametrize(("name", "options"), [c for c in CASES if LOSSES[c[0]].needs_teacher])
def test_divergences_are_zero_at_equality_only(name, options):
    same = LOSSES[name].fn(logits(0), logits(0), TARGETS, **options)
    shifted = LOSSES[name].fn(logits(0) + 5.0, logits(0), TARGETS, **options)
    assert same.abs().max() < 1e-5 and shifted.abs().max() < 1e-4
    assert (LOSSES[name].fn(logits(0), logits(1), TARGETS, **options) > 0.01).all()


@pytest.mark.parametrize(("name", "options"), [c for c in CASES if LOSSES[c[0]].fused])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_is_autograd_of_the_plain_function(name, options, dtype):
    student, teacher = logits(2).to(dtype), logits(3).to(dtype)
    leaf = student.float().requires_grad_()
    value = LOSSES[name].fn(leaf, teacher, TARGETS, **options)
    (wanted,) = torch.autograd.grad(value.sum(), leaf)
    got_value, got = LOSSES[name].fused(student.clone(), teacher.clone(), TARGETS, **options)
    torch.testing.assert_close(got_value, value.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_forward_kl_is_torch_kl_div():
    log_s, log_t = torch.log_softmax(logits(4), -1), torch.log_softmax(logits(5), -1)
    wanted = torch.nn.functional.kl_div(log_s, log_t, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(LOSSES["forward_kl"].fn(logits(4), logits(5), TARGETS), wanted)


def test_forward_kl_tends_to_logit_matching_at_high_temperature():
    """Hinton et al.: T^2 grad -> (z_s - z_t, both mean-centred) / V."""
    student, teacher, heat = logits(6), logits(7), 1e4
    leaf = student.double().requires_grad_()
    log_s, log_t = torch.log_softmax(leaf / heat, -1), torch.log_softmax(teacher.double() / heat, -1)
    (grad,) = torch.autograd.grad((heat**2 * (log_t.exp() * (log_t - log_s)).sum(-1)).sum(), leaf)
    centred = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    torch.testing.assert_close(grad.float(), centred / V, rtol=2e-3, atol=2e-3)
    _, fused = LOSSES["forward_kl"].fused(student.clone(), teacher.clone(), TARGETS, temperature=100.0)
    torch.testing.assert_close(fused, centred / V, rtol=0.1, atol=5e-3)


def test_label_smoothing_is_a_mix_of_one_hot_and_uniform():
    student = logits(8)
    log_s = torch.log_softmax(student, -1)
    wanted = -(0.9 * log_s.gather(1, TARGETS[:, None])[:, 0] + 0.1 * log_s.mean(-1))
    torch.testing.assert_close(LOSSES["cross_entropy"].fn(student, None, TARGETS, label_smoothing=0.1), wanted)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_option_says_what_it_takes(name):
    """Annotated, and its own default passes."""
    import inspect

    from edgeslm.pipeline.check_losses import mistake, options_of

    options = options_of(LOSSES[name].fn)
    defaults = {n: inspect.signature(LOSSES[name].fn).parameters[n].default for n in options}
    assert [mistake(default, options[n]) for n, default in defaults.items()] == [None] * len(options)
    assert all(mistake(object(), annotation) for annotation in options.values())
