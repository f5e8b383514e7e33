"""Laws of losses on the output distribution. A law is a plain function of a loss, so that a deliberately broken copy of
each loss can show that its law is able to fail."""

from __future__ import annotations

import inspect
import math
from functools import partial

import pytest
import torch

from edgeslm.knowledge import LOSSES, adversarial, divergences, feature, flow, relation, response, transfer

N, V = 7, 33
TARGETS = torch.arange(N)
FAMILIES = {"edgeslm.knowledge." + m for m in ("response", "divergences")}  # tested here
ELSEWHERE = {m.__name__ for m in (adversarial, feature, flow, relation, transfer)}
OPTIONS = {
    "forward_kl": [{}, {"temperature": 2.0}, {"temperature": 0.5}],
    "reverse_kl": [{}, {"temperature": 2.0}, {"temperature": 0.5}],
    "jsd": [{}, {"beta": 0.1}, {"beta": 0.9, "temperature": 2.0}],
    "skew_kl": [{}, {"alpha": 0.0}, {"alpha": 0.5, "temperature": 2.0}],
    "skew_reverse_kl": [{}, {"alpha": 0.0}, {"alpha": 0.5, "temperature": 2.0}],
    "alpha_beta": [
        {},
        {"alpha": 1.0, "beta": 1.0, "temperature": 2.0},
        {"alpha": 0.0, "beta": 0.6},
        {"alpha": 0.6, "beta": 0.0},
        {"alpha": 0.0, "beta": 0.0},
    ],
    "tvd": [{}],
    "confidence_mix": [{}, {"share": 0.3}, {"temperature": 2.0}],
    "entropy_mix": [{}, {"temperature": 2.0}],
    "soft_cross_entropy": [{}],
    "cross_entropy": [{}, {"label_smoothing": 0.1}],
    "teacher_free": [{}, {"confidence": 0.5, "temperature": 3.0}],
    "logit_mse": [{}, {"centre": False}],
    "uld": [{}],
}
CASES = [(name, options) for name, choices in OPTIONS.items() for options in choices]
TAUGHT = [c for c in CASES if LOSSES[c[0]].needs_teacher and c[0] != "soft_cross_entropy"]  # its least is an entropy


def logits(seed: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(N, V, generator=torch.Generator().manual_seed(seed)) * scale


def gradient(fn, student, teacher, **options):
    leaf = student.clone().requires_grad_()
    return torch.autograd.grad(fn(leaf, teacher, TARGETS, **options).sum(), leaf)[0]


def test_every_loss_of_the_table_is_tested():
    here = {name for name, loss in LOSSES.items() if loss.fn.__module__ in FAMILIES}
    assert set(OPTIONS) == here and here
    assert {loss.fn.__module__ for loss in LOSSES.values()} == FAMILIES | ELSEWHERE


# formulas as the papers print them, in float64 on probabilities: t teacher, s student, heat T already applied


def _kl(p, q):
    return (p * (p / q).log()).sum(-1)


def _jsd(t, s, beta=0.5):
    return beta * _kl(t, beta * t + (1 - beta) * s) + (1 - beta) * _kl(s, beta * t + (1 - beta) * s)


def _alpha_beta(t, s, alpha=0.2, beta=0.7):
    alpha, beta, both = max(alpha, 1e-5), max(beta, 1e-5), max(alpha, 1e-5) + max(beta, 1e-5)
    return -(t**alpha * s**beta - alpha / both * t**both - beta / both * s**both).sum(-1) / (alpha * beta)


FORMULAS = {
    "forward_kl": _kl,
    "reverse_kl": lambda t, s: _kl(s, t),
    "jsd": _jsd,
    "skew_kl": lambda t, s, alpha=0.1: _kl(t, alpha * t + (1 - alpha) * s),
    "skew_reverse_kl": lambda t, s, alpha=0.1: _kl(s, alpha * s + (1 - alpha) * t),
    "alpha_beta": _alpha_beta,
    "tvd": lambda t, s: 0.5 * (t - s).abs().sum(-1),
}


def law_formula(fn, name, **options):
    heat = options.get("temperature", 1.0)
    t, s = (torch.softmax(logits(i).double() / heat, -1) for i in (1, 0))
    wanted = heat**2 * FORMULAS[name](t, s, **{k: v for k, v in options.items() if k != "temperature"})
    torch.testing.assert_close(fn(logits(0), logits(1), TARGETS, **options).double(), wanted, rtol=5e-4, atol=1e-4)


def law_zero_at_equality_only(fn, **options):
    assert fn(logits(0), logits(0), TARGETS, **options).abs().max() < 1e-5
    assert (fn(logits(0), logits(1), TARGETS, **options) > 0.01).all()


def law_blind_to_a_constant(fn, **options):
    torch.testing.assert_close(
        fn(logits(0) + 5.0, logits(1) - 2.0, TARGETS, **options),
        fn(logits(0), logits(1), TARGETS, **options),
        rtol=1e-4,
        atol=1e-4,
    )


def law_gradient_does_not_depend_on_temperature(fn, **options):
    """T^2: at high temperatures, where distributions are nearly flat, the gradient stays as it is."""
    warm, hot = (gradient(fn, logits(0), logits(1), **options, temperature=heat) for heat in (200.0, 800.0))
    assert 0.9 < (hot.norm() / warm.norm()).item() < 1.1


def law_coarse_never_exceeds(fn, **options):
    """All but the teacher's k most likely tokens in one bucket: the data-processing inequality."""
    log_s, log_t = (torch.log_softmax(logits(i).double(), -1) for i in (0, 1))
    order = log_t.argsort(-1, descending=True)
    for k in (1, 4, 16):
        bucketed = [
            torch.cat([x[:, :k], x[:, k:].logsumexp(-1, keepdim=True)], -1)
            for x in (log_s.gather(1, order), log_t.gather(1, order))
        ]
        coarse = fn(*bucketed, torch.zeros(N, dtype=torch.long), **options)
        assert (coarse <= fn(log_s, log_t, TARGETS, **options) + 1e-5).all() and (coarse > 0).all()


def law_equal(fn, other, **options):
    """The same numbers as another loss."""
    got, wanted = (f(logits(0), logits(1), TARGETS, **options) for f in (fn, other))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def law_soft_targets(fn):
    """forward_kl plus the teacher's entropy, of the same gradient."""
    log_t = torch.log_softmax(logits(1), -1)
    entropy = -(log_t.exp() * log_t).sum(-1)
    law_equal(lambda *a: fn(*a) - entropy, response.forward_kl)
    both = [gradient(f, logits(0), logits(1)) for f in (fn, response.forward_kl)]
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-5)


def law_jsd_symmetric(fn):
    torch.testing.assert_close(fn(logits(0), logits(1), TARGETS), fn(logits(1), logits(0), TARGETS))


def law_jsd_tends_to_both_kl(fn):
    small = 1e-4
    args = logits(0, 0.5), logits(1, 0.5), TARGETS
    torch.testing.assert_close(fn(*args, beta=small) / small, response.forward_kl(*args), rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(fn(*args, beta=1 - small) / small, response.reverse_kl(*args), rtol=5e-3, atol=5e-3)


def law_at_most_one(fn):
    far = 40 * torch.nn.functional.one_hot(TARGETS, V).float()
    assert (fn(far, far.roll(1, 1), TARGETS) <= 1 + 1e-6).all()


def law_sure_teacher_is_reverse(fn):
    """The teacher's probability at the target 1, or its entropy 0; a teacher that is sure of another is forward for
    `confidence_mix`, a flat teacher for both."""
    sure = 30 * torch.nn.functional.one_hot(TARGETS, V).float()
    got = fn(logits(0), sure, TARGETS)
    torch.testing.assert_close(got, response.reverse_kl(logits(0), sure, TARGETS), rtol=1e-3, atol=1e-3)


def law_flat_teacher_is_forward(fn):
    flat = torch.zeros(N, V)
    torch.testing.assert_close(
        fn(logits(0), flat, TARGETS), response.forward_kl(logits(0), flat, TARGETS), rtol=5e-2, atol=1e-3
    )


def law_smoothing(fn):
    log_s = torch.log_softmax(logits(8), -1)
    wanted = -(0.9 * log_s.gather(1, TARGETS[:, None])[:, 0] + 0.1 * log_s.mean(-1))
    torch.testing.assert_close(fn(logits(8), None, TARGETS, label_smoothing=0.1), wanted)


def law_virtual_teacher(fn, confidence=0.8, temperature=1.0):
    """The cross-entropy is forward_kl to the virtual teacher plus T^2 times its entropy; least where it is met."""
    virtual = torch.full((N, V), (1 - confidence) / (V - 1))
    virtual[torch.arange(N), TARGETS] = confidence
    p = torch.softmax(virtual.log() / temperature, -1)
    kl = response.forward_kl(logits(0), virtual.log(), TARGETS, temperature=temperature)
    wanted = kl - temperature**2 * (p * p.log()).sum(-1)
    options = {"confidence": confidence, "temperature": temperature}
    torch.testing.assert_close(fn(logits(0), None, TARGETS, **options), wanted)
    assert gradient(fn, virtual.log(), None, **options).abs().max() < 1e-6


def law_uld_sorts(fn):
    """Blind to the order of the vocabulary, and to tokens of no probability that only one model has."""
    order = torch.randperm(V, generator=torch.Generator().manual_seed(1))
    assert fn(logits(0), logits(0)[:, order], TARGETS).abs().max() < 1e-6
    more = torch.cat([logits(1), torch.full((N, 5), -60.0)], 1)
    torch.testing.assert_close(fn(logits(0), more, TARGETS), fn(logits(0), logits(1), TARGETS))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_one_value_per_token(name, options):
    value = LOSSES[name].fn(logits(0), logits(1), TARGETS, **options)
    assert value.shape == (N,) and torch.isfinite(value).all() and (value >= 0).all()


@pytest.mark.parametrize(("name", "options"), TAUGHT)
def test_zero_at_equality_only(name, options):
    law_zero_at_equality_only(LOSSES[name].fn, **options)


@pytest.mark.parametrize(("name", "options"), [c for c in TAUGHT if c[1] != {"centre": False}])
def test_blind_to_a_constant(name, options):
    law_blind_to_a_constant(LOSSES[name].fn, **options)


@pytest.mark.parametrize(("name", "options"), [c for c in CASES if c[0] in FORMULAS])
def test_formula(name, options):
    law_formula(LOSSES[name].fn, name, **options)


HEATED = [n for n in OPTIONS if "temperature" in inspect.signature(LOSSES[n].fn).parameters and n != "teacher_free"]


@pytest.mark.parametrize("name", HEATED)
def test_gradient_does_not_depend_on_temperature(name):
    flat = {"alpha": 1.0, "beta": 0.0} if name == "alpha_beta" else {}
    law_gradient_does_not_depend_on_temperature(LOSSES[name].fn, **flat)


COARSE = [c for c in CASES if LOSSES[c[0]].coarse and "temperature" not in c[1]]


@pytest.mark.parametrize(("name", "options"), COARSE)
def test_coarse_never_exceeds_dense(name, options):
    law_coarse_never_exceeds(LOSSES[name].fn, **options)


def test_what_is_not_coarse_is_marked_so():
    assert {n for n in OPTIONS if LOSSES[n].coarse} == set(FORMULAS) - {"alpha_beta"}
    # alpha_beta is an f-divergence only at alpha + beta = 1. At (1, 1), half the squared distance: many small gaps of
    # one sign add up in a bucket
    even, peaked = torch.zeros(1, V), torch.zeros(1, V).index_fill_(1, torch.tensor(0), 3.0)
    logs = [torch.log_softmax(x, -1) for x in (even, peaked)]
    coarse = [torch.stack([x[:, 0], x[:, 1:].logsumexp(-1)], -1) for x in logs]
    squared = partial(divergences.alpha_beta, targets=TARGETS[:1], alpha=1.0, beta=1.0)
    assert squared(*coarse) > 1.5 * squared(*logs)
    law_coarse_never_exceeds(partial(divergences.alpha_beta, alpha=0.4, beta=0.6))


@pytest.mark.parametrize(("name", "options"), [c for c in CASES if LOSSES[c[0]].fused])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [3.0, 50.0])
def test_fused_is_autograd_of_the_plain_function(name, options, dtype, scale):
    student, teacher = logits(2, scale).to(dtype), logits(3, scale).to(dtype)
    leaf = student.float().requires_grad_()
    value = LOSSES[name].fn(leaf, teacher, TARGETS, **options)
    (wanted,) = torch.autograd.grad(value.sum(), leaf)
    got_value, got = LOSSES[name].fused(student.clone(), teacher.clone(), TARGETS, **options)
    torch.testing.assert_close(got_value, value.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes_stay_finite(name, options, dtype):
    """Logits of scale 50, gaps of 80, and a token that the teacher, the student or both forbid."""
    student, teacher = logits(4, 50.0).to(dtype), logits(5, 50.0).to(dtype)
    student[0], teacher[0], student[0, 0], teacher[0, 1] = 0.0, 0.0, 80.0, 80.0
    hard = student.clone(), teacher.clone()
    hard[0][1, 5] = hard[1][2, 6] = hard[0][3, 7] = hard[1][3, 7] = -torch.inf
    for s, t in ((student, teacher), hard):
        if name == "logit_mse" and torch.isinf(s).any():
            continue  # a distance of logits has no value there
        if name in ("cross_entropy", "teacher_free") and torch.isinf(s).any() and options:
            continue  # nor has the logarithm of a probability of 0
        leaf = s.clone().requires_grad_()
        value = LOSSES[name].fn(leaf, t, TARGETS, **options)
        assert value.dtype == torch.float32 and not value.isnan().any()
        assert torch.autograd.grad(value.sum(), leaf)[0].isfinite().all()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_gradient_is_that_of_the_value_and_none_reaches_the_teacher(name, options):
    student, teacher = logits(2, 1.0), logits(3, 1.0).requires_grad_()
    grad = gradient(LOSSES[name].fn, student, teacher, **options)
    step = 1e-2 * grad / grad.norm()
    up, down = (LOSSES[name].fn(student + d, teacher, TARGETS, **options).sum() for d in (step, -step))
    assert ((up - down) / 2e-2).item() == pytest.approx(grad.norm().item(), rel=2e-2)
    LOSSES[name].fn(student.clone().requires_grad_(), teacher, TARGETS, **options).sum().backward()
    assert teacher.grad is None


@pytest.mark.parametrize("heat", [1.0, 2.0])
def test_limits_and_special_cases(heat):
    law_soft_targets(response.soft_cross_entropy)
    same = partial(law_equal, temperature=heat)
    same(partial(divergences.skew_kl, alpha=0.0), response.forward_kl)
    same(partial(divergences.skew_reverse_kl, alpha=0.0), response.reverse_kl)
    same(partial(divergences.alpha_beta, alpha=1.0, beta=0.0), response.forward_kl)
    same(partial(divergences.alpha_beta, alpha=0.0, beta=1.0), response.reverse_kl)
    same(partial(divergences.confidence_mix, share=0.0), response.forward_kl)
    same(partial(divergences.confidence_mix, share=1.0), response.reverse_kl)
    law_virtual_teacher(response.teacher_free, temperature=heat)


def test_alpha_beta_is_continuous_at_its_limits():
    for alpha, beta in ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.6, 0.0), (0.0, 0.6)):
        limit, near = (
            divergences.alpha_beta(logits(0, 1.0), logits(1, 1.0), TARGETS, alpha=alpha + e, beta=beta + e)
            for e in (0.0, 0.002)
        )
        torch.testing.assert_close(near, limit, rtol=0.05, atol=1e-3)


def test_laws_of_single_losses():
    law_jsd_symmetric(divergences.jsd)
    law_jsd_tends_to_both_kl(divergences.jsd)
    law_at_most_one(divergences.tvd)
    law_sure_teacher_is_reverse(divergences.confidence_mix)
    law_flat_teacher_is_forward(divergences.confidence_mix)
    law_sure_teacher_is_reverse(divergences.entropy_mix)
    law_flat_teacher_is_forward(divergences.entropy_mix)
    law_smoothing(response.cross_entropy)
    law_uld_sorts(response.uld)


def test_forward_kl_is_torch_kl_div():
    log_s, log_t = torch.log_softmax(logits(4), -1), torch.log_softmax(logits(5), -1)
    wanted = torch.nn.functional.kl_div(log_s, log_t, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(LOSSES["forward_kl"].fn(logits(4), logits(5), TARGETS), wanted)


def law_tends_to_logit_matching(fused):
    """Hinton et al.: T^2 grad -> (z_s - z_t, both mean-centred) / V, the gradient of half logit_mse."""
    wanted = gradient(LOSSES["logit_mse"].fn, logits(6), logits(7)) / 2
    _, got = fused(logits(6), logits(7), TARGETS, temperature=100.0)
    torch.testing.assert_close(got, wanted, rtol=0.1, atol=5e-3)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_both_kl_tend_to_logit_matching_at_high_temperature(name):
    law_tends_to_logit_matching(LOSSES[name].fused)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_option_says_what_it_takes(name):
    """Annotated, and its own default passes."""
    from edgeslm.pipeline.check.losses import mistake, options_of

    options = {n: a for n, a in options_of(LOSSES[name].fn).items() if n != "params"}
    defaults = {n: inspect.signature(LOSSES[name].fn).parameters[n].default for n in options}
    assert [mistake(default, options[n]) for n, default in defaults.items()] == [None] * len(options)
    assert all(mistake(object(), annotation) for annotation in options.values())
    takes_params = "params" in inspect.signature(LOSSES[name].fn).parameters
    assert takes_params == (LOSSES[name].init is not None)


def test_bounds_of_options():
    from edgeslm.pipeline.check.losses import mistake, options_of

    refused = [("jsd", "beta", 0.0), ("jsd", "beta", 1.0), ("skew_kl", "alpha", 1.0), ("alpha_beta", "beta", -0.1)]
    refused += [
        ("forward_kl", "temperature", 0.0),
        ("confidence_mix", "share", 1.1),
        ("teacher_free", "confidence", 1.0),
    ]
    assert all(mistake(value, options_of(LOSSES[name].fn)[option]) for name, option, value in refused)
    assert mistake(None, options_of(LOSSES["confidence_mix"].fn)["share"]) is None


# deliberately broken copies: each must be caught by the law beside it


def _mixed(s, t, beta):
    log_s, log_t = torch.log_softmax(s, -1), torch.log_softmax(t, -1)
    return log_s, log_t, torch.log(beta * log_t.exp() + (1 - beta) * log_s.exp())


def wrong_heat(s, t, y, temperature=1.0):
    return response.forward_kl(s, t, y, temperature=temperature) / temperature


def entropy_left_in(s, t, y):
    return -(torch.softmax(t, -1) * torch.log_softmax(s, -1)).sum(-1)


def mixture_on_the_wrong_side(s, t, y, beta=0.5):
    log_s, log_t, log_m = _mixed(t, s, beta)
    return beta * divergences._kl(log_s, log_m) + (1 - beta) * divergences._kl(log_t, log_m)


def one_sided_jsd(s, t, y, beta=0.5):
    _, log_t, log_m = _mixed(s, t, beta)
    return divergences._kl(log_t, log_m)


def swapped(fn):
    return lambda s, t, y, **options: fn(t, s, y, **options)


def spread_over_all(s, t, y, confidence=0.9, temperature=1.0):
    log_s = torch.log_softmax(s, -1)
    return -(confidence * log_s.gather(1, y[:, None])[:, 0] + (1 - confidence) * log_s.mean(-1))


def other_way(fn):
    """Forward and reverse exchanged."""
    return lambda s, t, y, **o: response.forward_kl(s, t, y) + response.reverse_kl(s, t, y) - fn(s, t, y, **o)


def wrong_smoothing(s, t, y, label_smoothing=0.0):
    return response.cross_entropy(s, t, y) * (1 - label_smoothing) + label_smoothing * V


def unsorted_uld(s, t, y):
    return (torch.softmax(s, -1) - torch.softmax(t[:, :V], -1)).abs().sum(-1)


def doubled_step(s, t, y, temperature=1.0):
    value, grad = response.reverse_kl_fused(s, t, y, temperature=temperature)
    return value, grad * temperature


BROKEN = {
    "forward_kl": [
        ("T, not T^2", wrong_heat, law_gradient_does_not_depend_on_temperature),
        ("cross-entropy", entropy_left_in, law_zero_at_equality_only),
    ],
    "reverse_kl": [
        ("swapped", swapped(response.reverse_kl), partial(law_formula, name="reverse_kl")),
        ("gradient times T", doubled_step, law_tends_to_logit_matching),
    ],
    "jsd": [
        ("mixture of the wrong side", mixture_on_the_wrong_side, partial(law_formula, name="jsd", beta=0.2)),
        ("mixture of the wrong side", mixture_on_the_wrong_side, law_jsd_tends_to_both_kl),
        ("one side only", one_sided_jsd, law_jsd_symmetric),
    ],
    "skew_kl": [
        (
            "alpha on the wrong side",
            lambda s, t, y, alpha=0.1: divergences.skew_kl(s, t, y, alpha=1 - alpha - 1e-6),
            lambda fn: law_equal(partial(fn, alpha=0.0), response.forward_kl),
        )
    ],
    "skew_reverse_kl": [
        (
            "forward",
            divergences.skew_kl,
            lambda fn: law_equal(partial(fn, alpha=0.0), response.reverse_kl),
        )
    ],
    "alpha_beta": [
        (
            "swapped",
            swapped(divergences.alpha_beta),
            lambda fn: law_equal(partial(fn, alpha=1.0, beta=0.0), response.forward_kl),
        ),
        ("swapped", swapped(divergences.alpha_beta), partial(law_formula, name="alpha_beta")),
    ],
    "tvd": [("without the half", lambda s, t, y: 2 * divergences.tvd(s, t, y), law_at_most_one)],
    "confidence_mix": [
        ("the other way", other_way(divergences.confidence_mix), law_sure_teacher_is_reverse),
        (
            "the other way",
            other_way(divergences.confidence_mix),
            lambda fn: law_equal(partial(fn, share=0.0), response.forward_kl),
        ),
    ],
    "entropy_mix": [
        ("the other way", other_way(divergences.entropy_mix), law_sure_teacher_is_reverse),
        ("the other way", other_way(divergences.entropy_mix), law_flat_teacher_is_forward),
    ],
    "soft_cross_entropy": [("its entropy left out", response.forward_kl, law_soft_targets)],
    "cross_entropy": [("a constant smooths nothing", wrong_smoothing, law_smoothing)],
    "teacher_free": [("label smoothing instead", spread_over_all, law_virtual_teacher)],
    "logit_mse": [("never centred", partial(response.logit_mse, centre=False), law_blind_to_a_constant)],
    "uld": [("unsorted", unsorted_uld, law_uld_sorts)],
}


def test_every_loss_has_a_broken_copy():
    assert set(BROKEN) == set(OPTIONS) and all(BROKEN.values())


@pytest.mark.parametrize(("fn", "law"), [(b[1], b[2]) for copies in BROKEN.values() for b in copies])
def test_laws_catch_broken_copies(fn, law):
    with pytest.raises(AssertionError):
        law(fn)


def test_recorded_nats_are_natural():
    """One sure, one even guess between two: log 2."""
    sure, even = torch.tensor([[40.0, 0.0]]), torch.zeros(1, 2)
    assert response.forward_kl(even, sure, TARGETS[:1]).item() == pytest.approx(math.log(2), abs=1e-5)
