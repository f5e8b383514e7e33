"""Laws of adversarial losses: at chance when teacher and student are equal, a judge that can tell them apart when they
are not, and each side training only its own weights."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import softplus

from edgeslm.knowledge import LOSSES, adversarial
from edgeslm.knowledge.base import Layer, Sizes

B, T, V, D, WIDE = 8, 6, 40, 12, 20
MASK = torch.ones(B, T)
MASK[0, 4:] = 0
TARGETS = torch.zeros(B, dtype=torch.long)
CHANCE = math.log(2)


def world(name: str, seed: int, shift: float = 0.0, width: int = D):
    """What the loss reads, [B, V] logits or a layer [B, T, D]; with `shift` told apart by every draw of it."""
    draw = torch.Generator().manual_seed(seed)
    if name == "logit_discriminator":
        x = torch.randn(B, V, generator=draw)
        x[:, : V // 2] += shift
        return x
    x = torch.randn(B, T, width, generator=draw)
    x[..., : width // 2] += shift
    return Layer(hidden=x)


def tensor_of(x):
    return x.hidden if isinstance(x, Layer) else x


def with_tensor(x, tensor):
    return replace(x, hidden=tensor) if isinstance(x, Layer) else tensor


def last(name: str):
    return TARGETS if name == "logit_discriminator" else MASK


def fresh(name: str, student: int = D, teacher: int = D):
    draw = torch.Generator().manual_seed(0)
    if name == "logit_discriminator":
        made = LOSSES[name].init(V, draw)
    else:
        made = LOSSES[name].init(Sizes(student, 1, 1), Sizes(teacher, 1, 1), draw)
    return {n: p.requires_grad_() for n, p in made.items()}


def trained(name: str, judge, student_of, teacher_of, steps: int = 120):
    """Weights after some steps of the judge on fresh draws."""
    params = fresh(name)
    learn = torch.optim.Adam(params.values(), lr=0.02)
    for step in range(steps):
        learn.zero_grad()
        judge(student_of(step), teacher_of(step), last(name), params=params).mean().backward()
        learn.step()
    return params


def kept(name: str, value: torch.Tensor) -> torch.Tensor:
    return value if name == "logit_discriminator" else value[MASK > 0]


NAMES = ["logit_discriminator", "feature_discriminator"]


def law_begins_at_chance_and_silent(name, fn, judge):
    student, teacher, params = world(name, 0), world(name, 1), fresh(name)
    leaf = tensor_of(student).clone().requires_grad_()
    value = fn(with_tensor(student, leaf), teacher, last(name), params=params)
    value.sum().backward()
    assert torch.allclose(kept(name, value), torch.tensor(CHANCE)) and leaf.grad.abs().max() == 0
    judged = judge(student, teacher, last(name), params=params)
    assert torch.allclose(kept(name, judged), torch.tensor(CHANCE))


def law_at_chance_when_equal(name, fn, judge):
    """However long the judge trains on equal things it stays at log 2, which nothing is below, and the student hears
    next to nothing."""
    params = trained(name, judge, lambda i: world(name, i), lambda i: world(name, i))
    draw = world(name, 999)
    assert (kept(name, judge(draw, draw, last(name), params=params)) >= CHANCE - 1e-5).all()
    assert judge(draw, draw, last(name), params=params)[1:].mean().item() == pytest.approx(CHANCE, abs=0.01)
    leaf = tensor_of(draw).clone().requires_grad_()
    value = fn(with_tensor(draw, leaf), draw, last(name), params=params)
    value.sum().backward()
    assert kept(name, value).mean().item() == pytest.approx(CHANCE, abs=0.05) and leaf.grad.abs().max() < 0.02


def law_tells_apart_and_can_be_deceived(name, fn, judge):
    """The judge gets below chance; a step of the student down `fn` makes it look more like the teacher."""
    params = trained(name, judge, lambda i: world(name, i, 1.5), lambda i: world(name, 500 + i))
    student, teacher = world(name, 998, 1.5), world(name, 999)
    assert kept(name, judge(student, teacher, last(name), params=params)).mean() < 0.7 * CHANCE
    assert kept(name, fn(student, teacher, last(name), params=params)).mean() > 1.3 * CHANCE
    assert kept(name, fn(teacher, student, last(name), params=params)).mean() < 0.7 * CHANCE
    leaf = tensor_of(student).clone().requires_grad_()
    fn(with_tensor(student, leaf), teacher, last(name), params=params).sum().backward()
    half = leaf.shape[-1] // 2
    toward = leaf.grad[..., :half].mean() - leaf.grad[..., half:].mean()  # the shift is what to undo
    assert toward > 0


def law_each_side_trains_its_own(name, fn, judge):
    params = trained(name, adversarial_judge(name), lambda i: world(name, i, 1.5), lambda i: world(name, 500 + i), 20)
    student, teacher = world(name, 0, 1.0), world(name, 1)
    s, t = (tensor_of(x).clone().requires_grad_() for x in (student, teacher))
    for p in params.values():
        p.grad = None
    fn(with_tensor(student, s), with_tensor(teacher, t), last(name), params=params).sum().backward()
    assert s.grad.abs().sum() > 0 and t.grad is None and all(p.grad is None for p in params.values())
    s.grad = None
    judge(with_tensor(student, s), with_tensor(teacher, t), last(name), params=params).sum().backward()
    assert s.grad is None and t.grad is None and all(p.grad.abs().sum() > 0 for p in params.values())


def law_masked_positions_do_not_matter(name, fn, judge):
    params = trained(name, adversarial_judge(name), lambda i: world(name, i, 1.5), lambda i: world(name, 500 + i), 20)
    student, teacher = world(name, 0), world(name, 1)
    other = replace(student, hidden=torch.where(MASK[..., None] > 0, student.hidden, 100.0))
    for one in (fn, judge):
        assert torch.equal(one(student, teacher, MASK, params=params), one(other, teacher, MASK, params=params))
        assert (one(student, teacher, MASK, params=params)[MASK == 0] == 0).all()


def adversarial_judge(name):
    return LOSSES[name].judge


LAWS = [
    law_begins_at_chance_and_silent,
    law_at_chance_when_equal,
    law_tells_apart_and_can_be_deceived,
    law_each_side_trains_its_own,
]


def test_every_loss_of_the_table_is_tested():
    assert [n for n, loss in LOSSES.items() if loss.judge is not None] == NAMES
    assert {n for n, loss in LOSSES.items() if loss.fn.__module__ == adversarial.__name__} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("law", LAWS)
def test_laws(law, name):
    law(name, LOSSES[name].fn, LOSSES[name].judge)


def test_masked_positions_do_not_matter():
    name = "feature_discriminator"
    law_masked_positions_do_not_matter(name, LOSSES[name].fn, LOSSES[name].judge)


def test_a_constant_on_the_logits_does_not_matter():
    name = "logit_discriminator"
    params = trained(name, LOSSES[name].judge, lambda i: world(name, i, 1.5), lambda i: world(name, 500 + i), 20)
    student, teacher = world(name, 0), world(name, 1)
    torch.testing.assert_close(
        LOSSES[name].fn(student + 9.0, teacher, TARGETS, params=params),
        LOSSES[name].fn(student, teacher, TARGETS, params=params),
    )


@pytest.mark.parametrize(("student", "teacher"), [(D, WIDE), (WIDE, D)])
def test_widths_may_differ_and_what_evens_them_is_never_trained(student, teacher):
    name = "feature_discriminator"
    params = fresh(name, student, teacher)
    with torch.no_grad():
        params["out"].fill_(0.1)
    leaf = world(name, 0, width=student).hidden.requires_grad_()
    other = world(name, 1, width=teacher)
    LOSSES[name].judge(Layer(hidden=leaf), other, MASK, params=params).sum().backward()
    assert params["reduce"].grad is None and params["embed"].grad.abs().sum() > 0
    LOSSES[name].fn(Layer(hidden=leaf), other, MASK, params=params).sum().backward()
    assert leaf.grad.isfinite().all() and leaf.grad.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extremes_stay_finite(name, dtype):
    params = trained(name, LOSSES[name].judge, lambda i: world(name, i, 1.5), lambda i: world(name, 500 + i), 20)
    student, teacher = world(name, 0), world(name, 1)
    leaf = (tensor_of(student) * 50).to(dtype).requires_grad_()
    far = with_tensor(teacher, (tensor_of(teacher) * 50).to(dtype))
    value = LOSSES[name].fn(with_tensor(student, leaf), far, last(name), params=params)
    value.sum().backward()
    assert value.isfinite().all() and value.dtype == torch.float32 and leaf.grad.isfinite().all()
    assert LOSSES[name].judge(with_tensor(student, leaf), far, last(name), params=params).isfinite().all()


# deliberately broken copies: (what, law, fn and judge made of the right ones)


def attached(name, fn, judge):
    """The judge also moves the student."""

    def loose(s, t, rest, params):
        return judge(s, t, rest, params=params) + softplus(adversarial._score(tensor_of(s), params))

    return fn, loose


def flattered(name, fn, judge):
    """The student is told to be told apart."""
    return (lambda s, t, rest, params: 2 * CHANCE - fn(s, t, rest, params=params)), judge


def doubled(name, fn, judge):
    """Sum of both sides instead of their mean."""
    return fn, lambda s, t, rest, params: 2 * judge(s, t, rest, params=params)


def labels_swapped(name, fn, judge):
    return fn, lambda s, t, rest, params: judge(t, s, rest, params=params)


def one_sided(name, fn, judge):
    """The judge sees the teacher only, and calls everything real."""
    return fn, lambda s, t, rest, params: fn_of_weights(name, t, params)


def fn_of_weights(name, x, params):
    x = adversarial._centred(x) if name == "logit_discriminator" else adversarial.unit_rms(x.hidden)
    return softplus(-adversarial._score(x, params))


def without_the_mask(name, fn, judge):
    return (lambda s, t, rest, params: fn(s, t, torch.ones_like(rest), params=params)), judge


BROKEN = [
    (attached, law_each_side_trains_its_own),
    (flattered, law_tells_apart_and_can_be_deceived),
    (doubled, law_begins_at_chance_and_silent),
    (labels_swapped, law_tells_apart_and_can_be_deceived),
    (one_sided, law_at_chance_when_equal),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("breaking", "law"), BROKEN)
def test_laws_catch_broken_copies(breaking, law, name):
    with pytest.raises(AssertionError):
        law(name, *breaking(name, LOSSES[name].fn, LOSSES[name].judge))


def test_the_mask_law_catches_a_broken_copy():
    name = "feature_discriminator"
    with pytest.raises(AssertionError):
        law_masked_positions_do_not_matter(name, *without_the_mask(name, LOSSES[name].fn, LOSSES[name].judge))
