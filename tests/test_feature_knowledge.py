"""Laws of losses on layers. A law is a plain function of a `Case`, so that deliberately broken copies of each loss can
show that its laws are able to fail. test_relation_knowledge.py has the same for relations and uses what is here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import pytest
import torch

from edgeslm.knowledge import LOSSES, feature, parts, transfer
from edgeslm.knowledge.base import Layer, Params, Sizes

B, T, D, H, LAYERS = 4, 9, 12, 2, 3
WIDE = Sizes(20, 5, 4)
SAME = Sizes(D, H, D // H)
MASK = torch.ones(B, T)
MASK[0, 6:] = 0
MASK[1, :3] = 0
MASK[2, 4] = 0


@dataclass(frozen=True)
class Case:
    """A loss with its options; `broken` replaces its function."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    broken: Any = None

    @property
    def loss(self):
        return LOSSES[self.name]

    def params(self, student: Sizes = SAME, teacher: Sizes = SAME) -> Params:
        if self.loss.init is None:
            return {}
        count = LAYERS if self.loss.joint else 1
        sizes = replace(student, layers=count), replace(teacher, layers=count)
        return self.loss.init(*sizes, torch.Generator().manual_seed(3), **self.options)

    def __call__(self, student: list[Layer], teacher: list[Layer], mask: torch.Tensor = MASK, params=None, **more):
        params = self.params(sizes_of(student[0]), sizes_of(teacher[0])) if params is None else params
        own = {"params": params} if self.loss.init else {}
        fn = self.broken or self.loss.fn
        pair = (student, teacher) if self.loss.joint else (student[0], teacher[0])
        return fn(*pair, mask, **own, **{**self.options, **more})


def sizes_of(layer: Layer) -> Sizes:
    return Sizes(layer.hidden.shape[-1], layer.query.shape[1], layer.query.shape[-1])


def layers(seed: int, sizes: Sizes = SAME, rows: int = B) -> list[Layer]:
    """As many as a joint loss takes, of independent random numbers; attention is causal."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(LAYERS):
        scores = torch.randn(rows, sizes.heads, T, T, generator=draw)
        scores = scores.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), -torch.inf)
        heads = [torch.randn(rows, sizes.heads, T, sizes.head_width, generator=draw) for _ in range(3)]
        hidden = torch.randn(rows, T, sizes.hidden, generator=draw)
        made.append(Layer(hidden, torch.softmax(scores, -1), *heads))
    return made


def changed(many: list[Layer], change) -> list[Layer]:
    """`change(field name, tensor)` of every field of every layer."""
    return [Layer(**{f.name: change(f.name, getattr(x, f.name)) for f in fields(x)}) for x in many]


def leaves(many: list[Layer]) -> list[Layer]:
    return changed(many, lambda _, x: x.clone().requires_grad_())


def read(case: Case, many: list[Layer]) -> list[torch.Tensor]:
    return [getattr(x, name) for x in many[: LAYERS if case.loss.joint else 1] for name in case.loss.reads]


def law_one_value_per_token_or_row(case: Case):
    value = case(layers(0), layers(1))
    assert value.shape in ((B, T), (B,)) and value.isfinite().all() and value.dtype == torch.float32
    assert (value >= -1e-6).all() and value.max() > 1e-3


def law_zero_at_equality(case: Case):
    assert case(layers(0), layers(0)).abs().max() < 1e-5


def law_masked_positions_do_not_matter(case: Case):
    """Neither to the value at other places nor through the gradient, and there the value is 0."""
    junk = layers(9)

    def spoil(many):
        keep = {"hidden": MASK[..., None], "attention": MASK[:, None, :, None] * MASK[:, None, None, :]}
        other = MASK[:, None, :, None]
        return [
            Layer(
                **{
                    f.name: torch.where(keep.get(f.name, other) > 0, getattr(x, f.name), 3 * getattr(j, f.name))
                    for f in fields(x)
                }
            )
            for x, j in zip(many, junk, strict=True)
        ]

    clean, spoiled = case(layers(0), layers(1)), case(spoil(layers(0)), spoil(layers(1)))
    torch.testing.assert_close(spoiled, clean, rtol=1e-4, atol=1e-5)
    if clean.shape == MASK.shape:
        assert (spoiled[MASK == 0] == 0).all()
    student = leaves(layers(0))
    case(student, layers(1)).sum().backward()
    for x in read(case, student):
        at = MASK == 0 if x.dim() == 3 else (MASK == 0)[:, None].expand(x.shape[:3])
        assert x.grad is None or (x.grad[at] == 0).all()


def law_no_gradient_to_the_teacher(case: Case):
    student, teacher = leaves(layers(0)), leaves(layers(1))
    case(student, teacher).sum().backward()
    assert all(x.grad is None for x in read(case, teacher))
    assert any(x.grad is not None and x.grad.abs().sum() > 0 for x in read(case, student))


def law_gradient_is_that_of_the_value(case: Case):
    """By finite differences along the gradient."""
    student, teacher, params = leaves(layers(0)), layers(1), case.params()
    case(student, teacher, MASK, params).sum().backward()
    grads = [{f.name: getattr(x, f.name).grad for f in fields(x)} for x in student]
    norm = sum(g.square().sum() for many in grads for g in many.values() if g is not None).sqrt().item()

    def moved(size):
        with torch.no_grad():
            there = [
                Layer(**{n: getattr(x, n) if g is None else getattr(x, n) + size * g / norm for n, g in many.items()})
                for x, many in zip(student, grads, strict=True)
            ]
            return case(there, teacher, MASK, params).double().sum().item()

    assert norm > 0 and (moved(1e-2) - moved(-1e-2)) / 2e-2 == pytest.approx(norm, rel=3e-2)


def law_widths_and_heads_may_differ(case: Case):
    student = leaves(layers(0))
    params = {name: p.requires_grad_() for name, p in case.params(SAME, WIDE).items()}
    value = case(student, layers(1, WIDE), params=params)
    value.sum().backward()
    assert value.isfinite().all() and all(x.grad is None or x.grad.isfinite().all() for x in read(case, student))
    assert any(x.grad is not None and x.grad.abs().sum() > 0 for x in read(case, student))


def law_lone_and_empty_rows(case: Case):
    """One row; a row without an unmasked token; none at all: finite values, finite gradients, 0 where empty."""
    for mask in (torch.ones(1, T), torch.zeros(1, T), torch.cat([torch.zeros(1, T), MASK[1:]])):
        rows = len(mask)
        student = leaves(layers(0, rows=rows))
        value = case(student, layers(1, rows=rows), mask)
        value.sum().backward()
        assert value.isfinite().all() and (value[mask.sum(1) == 0] == 0).all()
        assert all(x.grad is None or x.grad.isfinite().all() for x in read(case, student))


def law_order_of_rows(case: Case):
    order = torch.tensor([2, 0, 3, 1])
    there = [changed(layers(i), lambda _, x: x[order]) for i in (0, 1)]
    torch.testing.assert_close(case(*there, MASK[order]), case(layers(0), layers(1))[order], rtol=1e-4, atol=1e-5)


def law_extremes(case: Case):
    """Scale 50, an outlier channel, a vector of zeros, bfloat16."""

    def hard(name, x):
        if name == "attention":
            return x.bfloat16()
        x = x * 50
        x[..., 0] = 2000.0
        x[:, ..., 1, :] = 0.0
        return x.bfloat16()

    student = leaves(changed(layers(0), hard))
    value = case(student, changed(layers(1), hard))
    value.sum().backward()
    assert value.isfinite().all() and value.dtype == torch.float32
    assert all(x.grad is None or x.grad.isfinite().all() for x in read(case, student))


def law_scale_of_the_student_does_not_matter(case: Case):
    louder = changed(layers(0), lambda _, x: 7 * x)
    torch.testing.assert_close(case(louder, layers(1)), case(layers(0), layers(1)), rtol=1e-3, atol=1e-5)


def law_rotation_of_features_does_not_matter(case: Case):
    """The same rotation at every layer, of the student's features alone."""
    turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(5))).Q
    turned = changed(layers(0), lambda name, x: x @ turn if name == "hidden" else x)
    torch.testing.assert_close(case(turned, layers(1)), case(layers(0), layers(1)), rtol=1e-3, atol=1e-5)


LAWS = [
    law_one_value_per_token_or_row,
    law_masked_positions_do_not_matter,
    law_no_gradient_to_the_teacher,
    law_gradient_is_that_of_the_value,
    law_widths_and_heads_may_differ,
    law_lone_and_empty_rows,
    law_order_of_rows,
    law_extremes,
]

CASES = [
    Case("hidden"),
    Case("hidden", {"normalise": True}),
    Case("cosine"),
    Case("attention_transfer"),
    Case("attention_transfer", {"power": 1.0}),
    Case("attention_maps"),
    Case("attention_maps", {"distance": "kl"}),
    Case("minilm"),
    Case("minilm", {"relations": ("value",), "causal": False}),
    Case("minilm", {"relation_heads": 4}),
    Case("neuron_selectivity"),
    Case("neuron_selectivity", {"kernel": "linear"}),
    Case("probabilistic"),
    Case("probabilistic", {"over": "rows"}),
    Case("probabilistic", {"tokens": 4}),
    Case("factor_transfer"),
    Case("factor_transfer", {"rate": 1.0}),
    Case("activation_boundary"),
    Case("cross_layer"),
    Case("cross_layer", {"normalise": False}),
]
NOT_ZERO = {"activation_boundary", "cross_layer"}  # at equality; their own tests say where they are
SCALE_FREE = [c for c in CASES if c.name not in ("hidden", "attention_maps", "minilm", *NOT_ZERO)]
SCALE_FREE.append(Case("hidden", {"normalise": True}))


def test_every_loss_of_the_table_is_tested():
    here = {n for n, loss in LOSSES.items() if loss.fn.__module__ in (feature.__name__, transfer.__name__)}
    assert {c.name for c in CASES} == here and here


MAPS_KL = Case("attention_maps", {"distance": "kl"})  # a step off a probability of 0 is none; it has its own test


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("law", LAWS)
def test_laws_of_all(law, case):
    if (law, case) != (law_gradient_is_that_of_the_value, MAPS_KL):
        law(case)


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in NOT_ZERO and c != Case("factor_transfer")], ids=str)
def test_zero_at_equality(case):
    law_zero_at_equality(case)


@pytest.mark.parametrize("case", SCALE_FREE, ids=str)
def test_scale_does_not_matter(case):
    law_scale_of_the_student_does_not_matter(case)


@pytest.mark.parametrize("options", [{}, {"over": "rows"}])
def test_probabilistic_transfer_is_blind_to_rotation(options):
    law_rotation_of_features_does_not_matter(Case("probabilistic", options))


def law_hidden_is_the_mean_square(fn):
    got = fn(layers(0)[0], layers(1)[0], MASK, params={"project": torch.eye(D)})
    wanted = (layers(0)[0].hidden - layers(1)[0].hidden).pow(2).mean(-1) * MASK
    torch.testing.assert_close(got, wanted)


def law_cosine_is_torchs(fn):
    s, t = layers(0)[0], layers(1)[0]
    wanted = 1 - torch.nn.functional.cosine_similarity(s.hidden, t.hidden, dim=-1)
    torch.testing.assert_close(fn(s, t, MASK, params={"project": torch.eye(D)}), wanted * MASK, rtol=1e-4, atol=1e-5)


def law_nst_is_the_mmd_of_its_kernel(fn, kernel="poly"):
    """From the three means of the kernel over pairs of neurons."""
    s, t = (
        torch.nn.functional.normalize((x.hidden * MASK[..., None]).mT, dim=-1)
        for x in (layers(0)[0], layers(1, WIDE)[0])
    )

    def mean(a, b):
        product = a @ b.mT
        return (product**2 if kernel == "poly" else product).mean(dim=(1, 2))

    got = fn(layers(0)[0], layers(1, WIDE)[0], MASK, kernel=kernel)
    torch.testing.assert_close(got, mean(s, s) + mean(t, t) - 2 * mean(s, t), rtol=1e-3, atol=1e-5)


def law_minilm_is_blind_to_later_tokens(fn):
    """What a token reads of itself and earlier ones does not change when later ones do."""
    later = MASK * 0
    later[:, 5:] = 1
    there = [
        changed(layers(i), lambda n, x: x if n in ("hidden", "attention") else x + later[:, None, :, None])[0]
        for i in (0, 1)
    ]
    got, wanted = fn(*there, MASK), fn(layers(0)[0], layers(1)[0], MASK)
    torch.testing.assert_close(got[:, :5], wanted[:, :5])
    assert not torch.allclose(got[:, 5:], wanted[:, 5:])


def law_minilm_is_the_papers(fn):
    """Value relation of MiniLM over as many heads as there are, without padding."""
    s, t = layers(0)[0].value.double(), layers(1)[0].value.double()
    ahead = ~torch.ones(T, T, dtype=torch.bool).tril()
    p, q = (torch.softmax((x @ x.mT / x.shape[-1] ** 0.5).masked_fill(ahead, -torch.inf), -1) for x in (t, s))
    wanted = torch.where(p > 0, p * (p / q).log(), 0.0).sum(-1).mean(1).float()
    got = fn(layers(0)[0], layers(1)[0], torch.ones(B, T), relations=("value",))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def law_attention_maps_sum_keys_and_average_heads(fn):
    s, t = layers(0)[0].attention, layers(1)[0].attention
    torch.testing.assert_close(
        fn(layers(0)[0], layers(1)[0], torch.ones(B, T)), (s - t).pow(2).sum(-1).mean(1), rtol=1e-4, atol=1e-6
    )


def law_attention_kl_is_torchs(fn):
    """Value and gradient, by way of scores; the last positions are padding that no unmasked query looks at."""
    ahead = ~torch.ones(T, T, dtype=torch.bool).tril()
    mask = torch.ones(B, T)
    mask[:, 7:] = 0
    draw = torch.Generator().manual_seed(0)
    scores, aims = (torch.randn(B, H, T, T, generator=draw).masked_fill(ahead, -torch.inf) for _ in range(2))
    scores.requires_grad_()
    got = fn(Layer(attention=scores.softmax(-1)), Layer(attention=aims.softmax(-1)), mask, distance="kl")
    log_s, log_t = scores.log_softmax(-1).masked_fill(ahead, 0.0), aims.log_softmax(-1).masked_fill(ahead, 0.0)
    wanted = (aims.softmax(-1) * (log_t - log_s)).sum(-1).mean(1) * mask
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
    grads = [torch.autograd.grad(x.sum(), scores)[0].masked_fill(ahead, 0.0) for x in (got, wanted)]
    torch.testing.assert_close(*grads, rtol=1e-2, atol=1e-4)


def law_boundary_is_zero_on_the_right_side(fn):
    """And one margin squared from it at 0, four on the other side at the margin."""
    t = layers(1)[0]
    for size, wanted in ((1.0, 0.0), (5.0, 0.0), (0.0, 1.0), (-1.0, 4.0)):
        got = fn(replace(t, hidden=size * t.hidden.sign()), t, MASK, params={"project": torch.eye(D)})
        torch.testing.assert_close(got, wanted * MASK)


def law_factors_and_paraphraser_train_apart(fn):
    params = {n: p.requires_grad_() for n, p in Case("factor_transfer").params().items()}
    s, t = leaves(layers(0)), layers(1)
    fn(s[0], t[0], MASK, params=params).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in params.values()) and s[0].hidden.grad.abs().sum() > 0
    # at a student whose factor is the teacher's, only what the paraphraser loses is left, whatever the translator
    equal = {**params, "translate": params["encode"].detach()}
    lost = fn(t[0], t[0], MASK, params=equal)
    kept = t[0].hidden @ params["encode"] @ params["decode"] - t[0].hidden
    wanted = kept.pow(2).sum(-1) / t[0].hidden.pow(2).sum(-1) * MASK
    torch.testing.assert_close(lost, wanted, rtol=1e-4, atol=1e-5)
    # the paraphraser is not drawn to the student
    fresh = {n: p.detach().requires_grad_() for n, p in params.items()}
    grads = []
    for seed in (0, 7):
        value = fn(layers(seed)[0], t[0], MASK, params=fresh).sum()
        grads.append(torch.autograd.grad(value, fresh["encode"])[0])
    torch.testing.assert_close(*grads)


def law_weights_over_teacher_layers_sum_to_one(weigh):
    case = Case("cross_layer")
    s, t = ([x.hidden for x in layers(i)] for i in (0, 1))
    weights = weigh(s, t, MASK, case.params())
    assert weights.shape == (B, LAYERS, LAYERS) and (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, LAYERS))


def law_cross_layer_is_zero_where_all_layers_are_one(fn):
    one = [layers(0)[0]] * LAYERS
    case = Case("cross_layer", broken=fn)
    assert case(one, one).abs().max() < 1e-5
    torch.testing.assert_close(case(one, [layers(1)[0]] * LAYERS), Case("hidden", {"normalise": True})(one, layers(1)))


def test_single_losses():
    law_hidden_is_the_mean_square(feature.hidden)
    law_cosine_is_torchs(feature.cosine)
    law_nst_is_the_mmd_of_its_kernel(transfer.neuron_selectivity)
    law_nst_is_the_mmd_of_its_kernel(transfer.neuron_selectivity, kernel="linear")
    law_minilm_is_blind_to_later_tokens(feature.minilm)
    law_minilm_is_the_papers(feature.minilm)
    law_attention_maps_sum_keys_and_average_heads(feature.attention_maps)
    law_attention_kl_is_torchs(feature.attention_maps)
    law_boundary_is_zero_on_the_right_side(transfer.activation_boundary)
    law_factors_and_paraphraser_train_apart(transfer.factor_transfer)
    law_weights_over_teacher_layers_sum_to_one(transfer.layer_weights)
    law_cross_layer_is_zero_where_all_layers_are_one(transfer.cross_layer)


def test_cross_layer_learns_which_layer_to_follow():
    """The teacher's layers in another order: the weights of each student layer settle on the one it came from."""
    case, order = Case("cross_layer"), [2, 0, 1]
    student = layers(0)
    teacher = [student[i] for i in order]
    params = {n: p.requires_grad_(n != "project") for n, p in case.params().items()}
    learn = torch.optim.Adam([params["query"], params["key"]], lr=0.05)
    for _ in range(150):
        learn.zero_grad()
        case(student, teacher, params=params).mean().backward()
        learn.step()
    weights = transfer.layer_weights([x.hidden for x in student], [x.hidden for x in teacher], MASK, params)
    assert [order.index(i) for i in range(LAYERS)] == weights.mean(0).argmax(-1).tolist()


def test_relation_heads_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="relation_heads: 5"):
        Case("minilm", {"relation_heads": 5})(layers(0), layers(1))


def test_a_field_that_nobody_captured_is_refused():
    with pytest.raises(ValueError, match="not captured"):
        feature.attention_transfer(Layer(), Layer(), MASK)


def test_projection_keeps_lengths_and_angles():
    assert torch.equal(parts.projection(5, 5, None), torch.eye(5))
    draw = torch.Generator().manual_seed(0)
    up, down = parts.projection(5, 8, draw), parts.projection(8, 5, draw)
    torch.testing.assert_close(up @ up.T, torch.eye(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(down.T @ down, torch.eye(5), rtol=0, atol=1e-5)


def test_tokens_are_spaced_evenly_over_the_unmasked():
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 0], [0, 0, 1, 0, 1, 0, 0, 0]])
    index, valid = parts.spaced(mask, 3)
    assert index[0].tolist() == [1, 3, 5] and valid[0].tolist() == [1, 1, 1]
    assert index[1, :2].tolist() == [2, 4] and valid[1].tolist() == [1, 1, 0]


# deliberately broken copies


def unmasked(case: Case) -> Case:
    """Padding counts as if it were text."""
    return replace(case, broken=lambda s, t, mask, **o: case.loss.fn(s, t, torch.ones_like(mask), **o))


def swapped(case: Case) -> Case:
    """The teacher takes the student's place: it gets the gradient."""
    return replace(case, broken=lambda s, t, mask, **o: case.loss.fn(t, s, mask, **o))


def halves_missing(case: Case) -> Case:
    """Value without its gradient: part of the student detached."""

    def fn(s, t, mask, **o):
        cut = partial(changed, change=lambda _, x: (x + x.detach()) / 2)
        return case.loss.fn(cut(s) if case.loss.joint else cut([s])[0], t, mask, **o)

    return replace(case, broken=fn)


def summed_square(s, t, mask, *, params):
    return (s.hidden @ params["project"] - t.hidden).pow(2).sum(-1) * mask


def raw_weights(s, t, mask, params):
    s, t = torch.stack([parts.pooled(x, mask) for x in s], 1), torch.stack([parts.pooled(x, mask) for x in t], 1)
    return (s @ s.mT + t @ t.mT).exp()


def not_scaled(s, t, mask, *, params, **_):
    return 3 * transfer.cross_layer(s, t, mask, params=params)


def drawn_paraphraser(s, t, mask, *, params, rate=0.5):
    """The distance also moves the teacher's factor."""
    gap = parts.unit(s.hidden @ params["translate"]) - parts.unit(t.hidden @ params["encode"])
    return transfer.factor_transfer(s, t, mask, params=params) + gap.abs().sum(-1) * mask


OWN = [
    (law_hidden_is_the_mean_square, summed_square),
    (law_cosine_is_torchs, lambda s, t, m, **o: 2 * feature.cosine(s, t, m, **o)),
    (law_nst_is_the_mmd_of_its_kernel, lambda s, t, m, kernel: transfer.neuron_selectivity(s, t, m, kernel="linear")),
    (law_minilm_is_blind_to_later_tokens, partial(feature.minilm, causal=False)),
    (law_minilm_is_the_papers, lambda s, t, m, **o: feature.minilm(t, s, m, **o)),
    (law_minilm_is_the_papers, partial(feature.minilm, relation_heads=1)),
    (law_attention_maps_sum_keys_and_average_heads, lambda *a: feature.attention_maps(*a) / T),
    (law_attention_kl_is_torchs, lambda s, t, m, **o: feature.attention_maps(t, s, m, **o)),
    (law_boundary_is_zero_on_the_right_side, lambda s, t, m, **o: transfer.activation_boundary(t, s, m, **o)),
    (law_factors_and_paraphraser_train_apart, drawn_paraphraser),
    (law_weights_over_teacher_layers_sum_to_one, raw_weights),
    (law_cross_layer_is_zero_where_all_layers_are_one, not_scaled),
]


@pytest.mark.parametrize(("law", "fn"), OWN)
def test_laws_of_single_losses_catch_broken_copies(law, fn):
    with pytest.raises(AssertionError):
        law(fn)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    ("breaking", "law"),
    [
        (unmasked, law_masked_positions_do_not_matter),
        (swapped, law_no_gradient_to_the_teacher),
        (halves_missing, law_gradient_is_that_of_the_value),
    ],
)
def test_laws_of_all_catch_broken_copies(breaking, law, case):
    with pytest.raises(AssertionError):
        law(breaking(case))


def test_other_laws_catch_broken_copies():
    plain = Case(
        "hidden", {"normalise": True}, lambda s, t, m, params, normalise: feature.hidden(s, t, m, params=params)
    )
    with pytest.raises(AssertionError):
        law_scale_of_the_student_does_not_matter(plain)
    with pytest.raises(AssertionError):
        law_rotation_of_features_does_not_matter(plain)
    with pytest.raises(AssertionError):
        law_zero_at_equality(Case("probabilistic", broken=lambda s, t, m: transfer.probabilistic(s, t, m) + 1e-3))
    with pytest.raises(AssertionError):
        law_order_of_rows(Case("probabilistic", broken=lambda s, t, m: transfer.probabilistic(s, t, m).cumsum(0)))
    with pytest.raises(AssertionError):
        law_lone_and_empty_rows(Case("hidden", broken=lambda s, t, m, params: (s.hidden.sum(-1) * m).sum(1) / m.sum(1)))
