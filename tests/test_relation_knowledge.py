"""Laws of losses on relations, among the samples of a batch and among a model's layers. The laws that all losses on
layers share are in test_feature_knowledge.py."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import test_feature_knowledge as shared
import torch
from test_feature_knowledge import LAYERS, MASK, B, Case, D, T, changed, layers, leaves, read

from edgeslm.knowledge import LOSSES, flow, parts, relation

SAMPLED = ["rkd_distance", "rkd_angle", "similarity", "correlation_congruence", "locality"]
JOINT = ["fsp", "instance_graph", "layer_graph", "information_flow"]
CASES = [
    *(Case(name, options) for name in SAMPLED for options in ({}, {"over": "tokens"}, {"over": "tokens", "tokens": 4})),
    Case("correlation_congruence", {"gamma": 1.0, "order": 5}),
    Case("locality", {"neighbours": 1}),
    Case("svd_correlation"),
    Case("svd_correlation", {"directions": 1, "tokens": 5}),
    Case("fsp"),
    Case("fsp", {"normalise": False}),
    Case("instance_graph"),
    Case("instance_graph", {"over": "tokens", "transformations": 0.0}),
    Case("layer_graph", {"heads": 2}),
    Case("layer_graph", {"heads": 4, "over": "tokens"}),
    Case("information_flow"),
    Case("information_flow", {"over": "tokens"}),
]
BLIND_TO_SCALE = [c for c in CASES if c.options.get("normalise", True)]
# at every layer alike; learned projections and slices of the width are not blind to it
BLIND_TO_ROTATION = [c for c in CASES if c.name not in ("fsp", "instance_graph", "layer_graph")]


def test_every_loss_of_the_table_is_tested():
    here = {n for n, loss in LOSSES.items() if loss.fn.__module__ in (relation.__name__, flow.__name__)}
    assert {c.name for c in CASES} == here == {*SAMPLED, *JOINT, "svd_correlation"}
    assert {n for n in here if LOSSES[n].joint} == set(JOINT)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("law", [*shared.LAWS, shared.law_zero_at_equality])
def test_laws_of_all(law, case):
    law(case)


@pytest.mark.parametrize("case", BLIND_TO_SCALE, ids=str)
def test_scale_does_not_matter(case):
    shared.law_scale_of_the_student_does_not_matter(case)


@pytest.mark.parametrize("case", BLIND_TO_ROTATION, ids=str)
def test_rotation_does_not_matter(case):
    shared.law_rotation_of_features_does_not_matter(case)


def law_shift_does_not_matter(case: Case):
    """Distances and angles see differences of samples only."""
    shifted = changed(layers(0), lambda name, x: x + 3.0 if name == "hidden" else x)
    torch.testing.assert_close(case(shifted, layers(1)), case(layers(0), layers(1)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle", "locality"])
@pytest.mark.parametrize("over", ["rows", "tokens"])
def test_shift_does_not_matter(name, over):
    law_shift_does_not_matter(Case(name, {"over": over}))


# the papers' formulas, with loops, over the rows of a batch

ROWS = [((layers(i)[0].hidden * MASK[..., None]).sum(1) / MASK.sum(1, keepdim=True)).double() for i in (0, 1)]


def call(fn, **options):
    return fn(layers(0)[0], layers(1)[0], MASK, **options).double()


def close(got, wanted):
    torch.testing.assert_close(got, torch.as_tensor(wanted).double(), rtol=1e-3, atol=1e-5)


def law_rkd_distance(fn):
    def relation_of(x):
        d = torch.cdist(x, x)
        return d / d[~torch.eye(B, dtype=torch.bool)].mean()

    s, t = map(relation_of, ROWS)
    wanted = torch.nn.functional.huber_loss(s, t, reduction="none").sum(1) / (B - 1)
    close(call(fn), wanted)


def law_rkd_angle(fn):
    def angle(x, i, j, k):
        return torch.cosine_similarity(x[i] - x[j], x[k] - x[j], dim=0)

    wanted = []
    for j in range(B):
        triples = [(i, j, k) for i in range(B) for k in range(B) if len({i, j, k}) == 3]
        gaps = [torch.nn.functional.huber_loss(angle(ROWS[0], *x), angle(ROWS[1], *x)) for x in triples]
        wanted.append(sum(gaps) / len(gaps))
    close(call(fn), torch.stack(wanted))


def law_similarity(fn):
    s, t = (torch.nn.functional.normalize(x @ x.T, dim=1) for x in ROWS)
    close(call(fn), (s - t).pow(2).sum(1) / B)


def law_correlation_is_nearly_the_gaussian(fn):
    """At a high order of its series."""

    def gaussian(x):
        x = torch.nn.functional.normalize(x, dim=1)
        return torch.exp(-0.4 * torch.cdist(x, x).pow(2))

    close(call(fn, order=8), (gaussian(ROWS[0]) - gaussian(ROWS[1])).pow(2).sum(1) / (B - 1))


def law_locality_follows_the_teachers_neighbours(fn):
    """Of a sample's two nearest in the teacher, weighted; the farthest may go anywhere."""
    s, t = (torch.cdist(x, x).pow(2) for x in ROWS)
    off = ~torch.eye(B, dtype=torch.bool)
    s, t = s / s[off].mean(), t / t[off].mean()
    wanted = []
    for i in range(B):
        near = sorted((j for j in range(B) if j != i), key=lambda j: t[i, j])[:2]
        wanted.append(sum(torch.exp(-t[i, j]) * (s[i, j] - t[i, j]) ** 2 for j in near) / 2)
    close(call(fn, neighbours=2), torch.stack(wanted))


def law_papers_locality_pulls_together(fn):
    """`aim: zero`: positive at equality."""
    assert (fn(layers(0)[0], layers(0)[0], MASK, aim="zero") > 0.01).all()


def law_directions_are_those_of_the_svd(fn):
    """One direction, unmasked: 2 - 2 |cosine| of the leading left singular vectors."""
    u_s, u_t = (torch.linalg.svd(layers(i)[0].hidden.double()).U[..., 0] for i in (0, 1))
    got = fn(layers(0)[0], layers(1)[0], torch.ones(B, T), directions=1).double()
    close(got, 2 - 2 * (u_s * u_t).sum(-1).abs())


def law_sign_of_features_does_not_matter(fn):
    """Singular vectors have no sign of their own."""
    other = replace(layers(0)[0], hidden=-layers(0)[0].hidden)
    assert fn(other, layers(0)[0], MASK).abs().max() < 1e-4


def law_fsp_is_the_gram_between_layers(fn):
    def grams(many):
        h = [x.hidden * MASK[..., None] for x in many]
        return [a.mT @ b / MASK.sum(1)[:, None, None] for a, b in pairwise(h)]

    gaps = [(s - t).pow(2).mean((1, 2)) for s, t in zip(grams(layers(0)), grams(layers(1)), strict=True)]
    got = fn(layers(0), layers(1), MASK, params={"project": torch.eye(D)}, normalise=False)
    close(got.double(), sum(gaps) / 2)


def law_graph_has_vertices_edges_and_transformations(fn):
    """Each alone sees what the others cannot."""
    params = {"project": torch.eye(D)}
    off = {"vertices": 0.0, "edges": 0.0, "transformations": 0.0}

    def parts_of(student, teacher=None):
        teacher = layers(0) if teacher is None else teacher
        return [fn(student, teacher, MASK, params=params, **{**off, k: 1.0}).max().item() for k in off]

    turn = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(5))).Q
    turned = changed(layers(0), lambda n, x: x @ turn if n == "hidden" else x)
    place, shape, change = parts_of(turned)
    assert place > 0.1 and shape < 1e-5 and change < 1e-5  # turned as a whole: only vertices move
    first = [turned[0], *layers(0)[1:]]
    place, shape, change = parts_of(first)
    assert place > 0.1 and shape < 1e-5 and change > 1e-3  # one layer turned: its way to the next is another
    place, shape, change = parts_of(layers(1))
    assert min(place, shape, change) > 1e-3


def law_attention_between_layers(fn):
    """One head: softmax of 4 cosines from each row at a layer to the rows at the next."""

    def attention(i):
        pooled = [torch.nn.functional.normalize(parts.pooled(x.hidden, MASK), dim=1) for x in layers(i)]
        return [(4 * a @ b.T).softmax(1) for a, b in pairwise(pooled)]

    nats = [(t * (t / s).log()).sum(1) for s, t in zip(attention(0), attention(1), strict=True)]
    close(fn(layers(0), layers(1), MASK, heads=1).double(), sum(nats).double() / 2)


def law_flow_is_normalised_mutual_information(fn):
    """From the three information potentials, with loops over layers."""

    def flow_of(i):
        kernels = []
        for x in layers(i):
            h = torch.nn.functional.normalize(parts.pooled(x.hidden, MASK).double(), dim=1)
            kernels.append((1 + h @ h.T) / 2)

        def information(a, b):
            within = (a * b).mean()
            everywhere, between = a.mean() * b.mean(), (a.mean(1) * b.mean(1)).mean()
            return within + everywhere - 2 * between

        last = kernels[-1]
        return [information(k, last) / (information(k, k) * information(last, last)).sqrt() for k in kernels[:-1]]

    wanted = sum((s - t) ** 2 for s, t in zip(flow_of(0), flow_of(1), strict=True)) / (LAYERS - 1)
    close(fn(layers(0), layers(1), MASK).double(), wanted.expand(B))


def law_rows_are_pooled_over_the_mask(pool):
    close(pool(layers(0)[0].hidden, MASK).double(), ROWS[0])
    assert (pool(layers(0)[0].hidden, MASK * 0) == 0).all()


OWN = [
    (law_rkd_distance, relation.rkd_distance),
    (law_rkd_angle, relation.rkd_angle),
    (law_similarity, relation.similarity),
    (law_correlation_is_nearly_the_gaussian, relation.correlation_congruence),
    (law_locality_follows_the_teachers_neighbours, relation.locality),
    (law_papers_locality_pulls_together, relation.locality),
    (law_directions_are_those_of_the_svd, flow.svd_correlation),
    (law_sign_of_features_does_not_matter, flow.svd_correlation),
    (law_fsp_is_the_gram_between_layers, flow.fsp),
    (law_graph_has_vertices_edges_and_transformations, flow.instance_graph),
    (law_attention_between_layers, flow.layer_graph),
    (law_flow_is_normalised_mutual_information, flow.information_flow),
    (law_rows_are_pooled_over_the_mask, parts.pooled),
]


@pytest.mark.parametrize(("law", "fn"), OWN)
def test_single_losses(law, fn):
    law(fn)


@pytest.mark.parametrize("name", JOINT)
def test_one_layer_is_refused(name):
    loss, own = LOSSES[name], Case(name).params()
    with pytest.raises(ValueError, match="at least two"):
        loss.fn(layers(0)[:1], layers(1)[:1], MASK, **({"params": own} if own else {}))
    with pytest.raises(ValueError, match="2 layers of the student and 3"):
        loss.fn(layers(0)[:2], layers(1), MASK, **({"params": own} if own else {}))


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="heads: 5"):
        Case("layer_graph", {"heads": 5})(layers(0), layers(1))


@pytest.mark.parametrize("rank", [1, 2])
def test_directions_that_meet_keep_a_finite_gradient(rank):
    """Features of low rank, and two equal singular values: where the true gradient of a singular vector is infinite."""
    basis = torch.linalg.qr(torch.randn(B, T, rank, generator=torch.Generator().manual_seed(0))).Q
    student = leaves([replace(x, hidden=basis @ torch.eye(rank, D)) for x in layers(0)])
    Case("svd_correlation")(student, layers(1)).sum().backward()
    assert all(x.grad.isfinite().all() for x in read(Case("svd_correlation"), student))


# deliberately broken copies


def euclid_unscaled(s, t, mask):
    a, b, valid = parts.samples(s.hidden, t.hidden, mask, "rows", 9)
    gap = parts.distances(a) - parts.distances(b)
    return parts.per_row(parts.mean_over_others(relation.huber(gap), parts.pairs(valid)), valid, "rows")


def angles_from_the_origin(s, t, mask):
    a, b, valid = parts.samples(s.hidden, t.hidden, mask, "rows", 9)
    gap = parts.unit(a) @ parts.unit(a).mT - parts.unit(b) @ parts.unit(b).mT
    return parts.per_row(parts.mean_over_others(relation.huber(gap), parts.pairs(valid)), valid, "rows")


def gram_not_normalised(s, t, mask):
    a, b, valid = parts.samples(s.hidden, t.hidden, mask, "rows", 9)
    return parts.per_row((a @ a.mT - b @ b.mT).pow(2).sum(-1) / B, valid, "rows")


def students_own_neighbours(s, t, mask, **options):
    return relation.locality(t, s, mask, **options)


def signed(s, t, mask):
    """Directions with the sign of the features' mean, not aligned with each other."""

    def top(x):
        u = torch.linalg.svd(x.hidden * mask[..., None]).U[..., 0]
        return u * (u * x.hidden.mean(-1)).sum(-1, keepdim=True).sign()

    return (top(s) - top(t)).pow(2).sum(-1)


def mean_over_padding(hidden, mask):
    return hidden.mean(1)


def first_with_first(s, t, mask, *, params, normalise):
    return flow.fsp([s[0], s[0], s[0]], [t[0], t[0], t[0]], mask, params=params, normalise=normalise)


def only_vertices(s, t, mask, *, params, vertices, edges, transformations):
    return flow.instance_graph(s, t, mask, params=params)


def raw_potential(s, t, mask):
    def potential(many):
        k = [(1 + parts.unit(parts.pooled(x.hidden, mask)) @ parts.unit(parts.pooled(x.hidden, mask)).T) for x in many]
        return torch.stack([(a * k[-1]).mean() for a in k[:-1]])

    return (potential(s) - potential(t)).pow(2).mean().expand(len(mask))


BROKEN = [
    ("rkd_distance", law_rkd_distance, euclid_unscaled),
    ("rkd_angle", law_rkd_angle, angles_from_the_origin),
    ("similarity", law_similarity, gram_not_normalised),
    (
        "correlation_congruence",
        law_correlation_is_nearly_the_gaussian,
        lambda s, t, m, order: relation.correlation_congruence(s, t, m, order=1),
    ),
    ("locality", law_locality_follows_the_teachers_neighbours, students_own_neighbours),
    ("locality", law_papers_locality_pulls_together, lambda s, t, m, aim: relation.locality(s, t, m)),
    ("svd_correlation", law_directions_are_those_of_the_svd, lambda s, t, m, **o: flow.svd_correlation(s, t, m)),
    ("svd_correlation", law_sign_of_features_does_not_matter, signed),
    ("fsp", law_fsp_is_the_gram_between_layers, first_with_first),
    ("instance_graph", law_graph_has_vertices_edges_and_transformations, only_vertices),
    ("layer_graph", law_attention_between_layers, lambda s, t, m, heads: flow.layer_graph(t, s, m, heads=1)),
    ("information_flow", law_flow_is_normalised_mutual_information, raw_potential),
    ("pooled", law_rows_are_pooled_over_the_mask, mean_over_padding),
]


def test_every_loss_has_a_broken_copy():
    assert {name for name, *_ in BROKEN} - {"pooled"} == {c.name for c in CASES}


@pytest.mark.parametrize(("name", "law", "fn"), BROKEN)
def test_laws_of_single_losses_catch_broken_copies(name, law, fn):
    with pytest.raises(AssertionError):
        law(fn)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    ("breaking", "law"),
    [
        (shared.unmasked, shared.law_masked_positions_do_not_matter),
        (shared.swapped, shared.law_no_gradient_to_the_teacher),
        (shared.halves_missing, shared.law_gradient_is_that_of_the_value),
    ],
)
def test_laws_of_all_catch_broken_copies(breaking, law, case):
    with pytest.raises(AssertionError):
        law(breaking(case))


def test_invariances_catch_broken_copies():
    for law, broken in (
        (shared.law_scale_of_the_student_does_not_matter, Case("rkd_distance", broken=euclid_unscaled)),
        (shared.law_scale_of_the_student_does_not_matter, Case("similarity", broken=gram_not_normalised)),
        (law_shift_does_not_matter, Case("rkd_angle", broken=angles_from_the_origin)),
        (shared.law_rotation_of_features_does_not_matter, Case("layer_graph")),
        (shared.law_order_of_rows, Case("similarity", broken=lambda s, t, m: relation.similarity(s, t, m).sort()[0])),
    ):
        with pytest.raises(AssertionError):
            law(broken)
