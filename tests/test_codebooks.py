"""Codebook grids as something to train on: searches against whole books, feedback in vectors, a student that ships.

What every trainable grid must keep is in test_low_formats.py (libggml, idempotence, scales) and test_feedback.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from test_feedback import correlated

from edgeslm.data.batch import Batch
from edgeslm.export import EXPORTERS
from edgeslm.export.verify import verify
from edgeslm.formats import FORMATS, codebookfit, codebooks
from edgeslm.quantize import planner
from edgeslm.quantize.feedback import curvature, layer_error, round_plainly, round_with_feedback
from edgeslm.quantize.freeze import freeze
from edgeslm.quantize.masters import attach
from edgeslm.quantize.plan import Plan, Rule
from edgeslm.quantize.sensitivity import rounding_costs
from edgeslm.quantize.vectors import vectors
from edgeslm.schemes.objective import Objective
from edgeslm.schemes.step import Step, StepSettings
from edgeslm.teachers.live import LiveTeacher

BOOKS = list(codebooks.BOOKS)
EVEN = [name for name in BOOKS if codebooks.BOOKS[name].even]
CPU = torch.device("cpu")


def gauss(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spiky(*shape: int, seed: int = 1) -> torch.Tensor:
    return (2 * gauss(*shape, seed=seed)).exp()


def least(x: torch.Tensor, u: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
    """Least sum of u (x - g)^2 over all entries g; x, u [m, v], book [e, v] -> [m]."""
    return torch.cat(
        [((a[:, None] - book) ** 2 * b[:, None]).sum(2).amin(1) for a, b in zip(x.split(64), u.split(64), strict=True)]
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", BOOKS)
def test_encode_loses_little_to_looking_at_the_whole_book(name, weighted):
    grid, w = FORMATS[name], gauss(8, 256)
    u = spiky(8, 256) if weighted else torch.ones(8, 256)
    scales = grid.fit(w, u)
    step = grid.spread(scales)[0]
    step = step.repeat_interleave(256 // step.shape[1], 1)
    search = codebooks.BOOKS[name].search(CPU)
    book, eights, squares = search.entries.t(), (w / step).view(-1, 8), (u * step**2).view(-1, 8)

    def best(sizes: torch.Tensor) -> torch.Tensor:
        size = book.shape[1]
        return least(sizes.reshape(-1, size), squares.reshape(-1, size), book).view(len(sizes), -1).sum(1)

    wanted = best(eights.abs())
    if name in EVEN:  # where the signs are an odd number, the best of eight to turn
        turned = torch.stack([best(eights.abs() * (1 - 2 * torch.eye(8)[j])) for j in range(8)]).amin(0)
        wanted = torch.where((eights < 0).sum(1) % 2 == 1, turned, wanted)
    decoded = grid.decode(grid.nearest(w, scales, u if weighted else None), scales)
    ours = ((decoded - w).square() * u).view(-1, 8).sum(1)
    assert (ours > wanted * (1 - 1e-3)).all()  # the whole book holds what was taken
    print(f"{name}: {float(ours.sum() / wanted.sum()):.4f} of exhaustive search's error")
    assert ours.sum() < (1.12 if weighted else 1.03) * wanted.sum()


@pytest.mark.parametrize("name", BOOKS)
def test_importance_inside_a_vector_decides_which_code_is_nearest(name):
    grid, w, u = FORMATS[name], gauss(32, 256), spiky(32, 256)
    scales = grid.fit(w, u)
    plain, weighed = (((grid.decode(grid.nearest(w, scales, x), scales) - w) ** 2 * u).sum() for x in (None, u))
    assert weighed < 0.8 * plain


@pytest.mark.parametrize("name", BOOKS)
def test_signs_are_free_or_an_even_number_of_them_is_negative(name):
    grid, w = FORMATS[name], gauss(64, 256)
    scales = grid.fit(w)
    codes = grid.encode(w, scales)
    levels = grid.levels(codes)
    odd = (levels.view(-1, 8) < 0).sum(1) % 2 == 1
    assert not odd.any() if name in EVEN else 0.4 < odd.float().mean() < 0.6
    turned = (torch.sign(levels) != torch.sign(w)).view(-1, 8).sum(1)
    wrong = (w.view(-1, 8) < 0).sum(1) % 2 == 1 if name in EVEN else torch.zeros_like(odd)
    assert torch.equal(turned, wrong.to(turned.dtype))
    assert torch.equal(grid.unpack(grid.pack(codes, scales))[0], codes)


def test_the_sign_that_turns_is_the_one_that_loses_least():
    x = torch.tensor([[1.0, 2.0, 3.0, -0.5, 1.0, 1.0, 1.0, 1.0]]).T
    size, signs = codebookfit.sizes_and_signs(x, None, True)
    assert signs.tolist() == [0] and size[3] == -0.5
    u = torch.ones(8, 1)
    u[3], u[1] = 100, 0.01
    size, signs = codebookfit.sizes_and_signs(x, u, True)
    assert signs.tolist() == [0b1010] and size[1] == -2 and size[3] == 0.5
    assert codebookfit.sizes_and_signs(x, None, False)[1].tolist() == [0b1000]


@pytest.mark.parametrize("name", BOOKS)
def test_a_vector_in_a_leaning_measure_is_near_the_best_of_all_entries_and_signs(name):
    rungs = vectors(FORMATS[name], CPU)
    size, m = rungs.size, 24
    root = torch.linalg.cholesky(correlated(size) + 2 * torch.eye(size), upper=True)
    book = rungs.search.entries.t()
    x = gauss(size, m, seed=2) * (float(book.max()) / 2)
    signs = 1 - 2 * ((torch.arange(1 << size)[:, None] >> torch.arange(size)) & 1).float()
    for odd in (None, torch.arange(m) % 3 == 0):
        found = rungs.nearest(x, root, odd)
        assert (found.abs().T[:, None] == book).all(2).any(1).all()
        negative = (found < 0).sum(0) % 2 == 1
        assert odd is None or torch.equal(negative, odd)
        ours, wanted = (root @ (found - x)).square().sum(0), 0.0
        for i in range(m):
            allowed = signs if odd is None else signs[(signs < 0).sum(1) % 2 == int(odd[i])]
            every = torch.stack([((book * s - x[:, i]) @ root.T).square().sum(1).amin() for s in allowed])
            assert ours[i] > every.min() * (1 - 1e-3)
            wanted += float(every.min())
        print(f"{name}: {float(ours.sum() / wanted):.3f} of the least error")
        assert ours.sum() < 1.15 * wanted


@pytest.mark.parametrize("name", ["iq3_s", "iq3_xxs", "iq2_xxs"])
def test_feedback_in_vectors_is_worth_more_than_weighted_rounding(name):
    """On inputs that lean a little, as real ones do; and codes are those of the weight that is returned."""
    form, g = FORMATS[name], torch.Generator().manual_seed(3)
    x = torch.randn(1024, 512, generator=g) @ (torch.eye(512) + 0.08 * torch.randn(512, 512, generator=g))
    x *= torch.exp(0.5 * torch.randn(512, generator=g))
    w, moment = gauss(32, 512) * 0.05, x.T @ x / 1024
    found = round_with_feedback(w, curvature(moment), form)
    fed, weighted = (
        layer_error(w, q.weight, moment) for q in (found, round_plainly(w, form, moment.diagonal().contiguous()))
    )
    print(f"{name}: {fed / weighted:.3f} of weighted rounding")
    assert fed < 0.7 * weighted
    again = form.decode(*form.unpack(form.pack(found.codes, found.scales))).view_as(w)
    assert torch.equal(again, found.weight)


@pytest.mark.parametrize("name", ["iq3_s", "iq2_xs"])
def test_feedback_never_leaves_a_row_worse_than_plain_rounding(name):
    """On inputs that hardly know of each other there is next to nothing to feed back, and plain is luckier here and
    there."""
    form, x = FORMATS[name], gauss(4096, 256, seed=5)
    w, curve = gauss(48, 256) * 0.05, curvature(x.T @ x / 4096, 0.0)
    fed, plain = (
        ((w - q.weight) @ curve.hessian * (w - q.weight)).sum(1)
        for q in (round_with_feedback(w, curve, form, sweeps=0), round_plainly(w, form))
    )
    assert (fed <= plain * (1 + 1e-4)).all()
    assert 0 < (fed > plain * (1 - 1e-4)).sum() < len(w)


def test_the_planner_takes_a_codebook_where_it_is_best():
    shapes = {"model.layers.0.mlp.down_proj.weight": (64, 512)}
    choices = planner.options(shapes, None)["model.layers.0.mlp.down_proj.weight"]
    assert set(BOOKS) < set(choices) and "iq1_s" not in choices
    w, fisher = gauss(64, 512) * 0.05, torch.rand(64, 512, generator=torch.Generator().manual_seed(4))
    for bits, wanted in ((3.44, "iq3_s"), (2.6, "iq2_s")):
        costs = {name: rounding_costs(w, fisher, choices, fisher.mean(0)) for name in shapes}
        found = planner.solve(costs, shapes, int(bits * w.numel() / 8))
        assert found.formats == dict.fromkeys(shapes, wanted)


def plan() -> Plan:
    return Plan(
        (Rule("*embed*", "iq3_s"), Rule("*down_proj*", "iq2_s"), Rule("*o_proj*", "iq3_xxs"), Rule("*", "iq3_s"))
    )


def student(scale_lr: float | None = None) -> tuple[Step, LiveTeacher, Batch]:
    torch.manual_seed(0)
    model, teacher = (tiny.llama(layers=1, hidden=256, intermediate=256) for _ in range(2))
    teacher.load_state_dict({k: v + 0.02 * torch.randn_like(v) for k, v in model.state_dict().items()})
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    masters = attach(model, plan().assign(shapes), torch.float32)
    for master in masters:
        if master.value.dim() == 2 and "embed" not in master.name:
            master.importance = spiky(master.value.shape[1])
    masters.set_weights(grid=True, refit=True)
    step = Step(
        model,
        masters,
        Objective.build([{"loss": "forward_kl"}]),
        StepSettings(4, 1.0, 0.0, (0.9, 0.99), None, scale_lr),
    )
    ids = torch.randint(0, 263, (4, 12), generator=torch.Generator().manual_seed(2))
    return step, LiveTeacher(teacher), Batch(ids, torch.ones(4, 12))


@pytest.mark.parametrize("scale_lr", [None, 20.0])
def test_a_student_on_codebooks_learns_and_ships_bit_for_bit(scale_lr, tmp_path: Path):
    step, teacher, batch = student(scale_lr)
    before = {m.name: {k: v.clone() for k, v in m.scales.items()} for m in step.masters}
    losses = [step(batch, teacher, lr=2e-3, grid=True, index=i).loss for i in range(8)]
    assert losses[-1] < 0.8 * losses[0]
    moved = any(not torch.equal(v, before[m.name][k]) for m in step.masters for k, v in m.scales.items())
    assert moved == (scale_lr is not None)
    folder = tmp_path / "tokenizer"
    tiny.tokenizer().save_pretrained(folder)
    frozen = freeze(step.masters, "llama", step.model.config.to_dict(), folder, "tiny", {})
    assert {t.format for t in frozen.tensors.values()} == {"f32", "iq3_s", "iq3_xxs", "iq2_s"}
    assert frozen.parameters == sum(p.numel() for p in step.model.parameters())
    for name, parameter in step.model.named_parameters():
        assert torch.equal(frozen.tensors[name].decode(), parameter), name
    found = verify(EXPORTERS["gguf"](frozen, tmp_path / "m.gguf"), frozen)
    assert found["exact"] == found["tensors"] == len(frozen.tensors) and found["first_mismatch"] is None


@pytest.mark.parametrize("name", ["iq3_s", "iq2_xs"])
def test_a_master_that_adopts_codes_ships_them(name):
    model = torch.nn.Linear(512, 16, bias=False)
    master = attach(model, {"weight": name}, torch.float32).items[0]
    master.importance = spiky(512)
    was = master.value.detach().clone()
    found = round_with_feedback(was, curvature(correlated(512)), FORMATS[name])
    master.adopt(found.weight, found.codes, found.scales)
    master.project()
    assert torch.equal(master.codes(), found.codes) and torch.equal(master.weight, found.weight)
    kept = (master.value == was).view(-1, 8)
    assert torch.equal(kept.all(1), kept.any(1)) and kept.any() and not kept.all()
