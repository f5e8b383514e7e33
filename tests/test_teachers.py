"""Teachers: a few outcomes that stand for a whole distribution, targets on disk, several teachers as one."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
import torch
from safetensors import safe_open

from edgeslm.data.batch import Batch
from edgeslm.data.order import order
from edgeslm.data.rows import Rows
from edgeslm.errors import DataError
from edgeslm.knowledge import LOSSES
from edgeslm.knowledge.base import Response
from edgeslm.schemes.objective import Objective
from edgeslm.schemes.terms import response
from edgeslm.teachers import ensemble, recorded
from edgeslm.teachers.base import Need, Signals, Sparse
from edgeslm.teachers.ensemble import Ensemble
from edgeslm.teachers.live import LiveTeacher
from edgeslm.teachers.recorded import RecordedTeacher, Recording, record
from edgeslm.teachers.targets import bytes_per_token, id_type, keep, restore

N, V = 50, 40
COARSE = [name for name, loss in LOSSES.items() if isinstance(loss, Response) and loss.coarse]
HOT = [name for name in COARSE if name != "tvd"]  # that take a temperature
TARGETS = torch.zeros(N, dtype=torch.long)


def logits(seed: int, rows: int = N, scale: float = 2.0, vocabulary: int = V) -> torch.Tensor:
    return scale * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def term(name: str, **options):
    (made,) = Objective.build([{"loss": name, **options}]).terms
    return made


def top(teacher: torch.Tensor, k: int, temperature: float = 1.0) -> Sparse:
    """The likeliest k and the rest, unrounded."""
    log_p = torch.log_softmax(teacher / temperature, dim=-1)
    logs, ids = log_p.topk(k, dim=-1)
    return Sparse(ids, logs.exp(), log_p.scatter(1, ids, -torch.inf).logsumexp(-1).exp(), None, temperature)


# A few outcomes for all ---------------------------------------------------------------------------------------------


def test_the_f_divergences_that_serve_recorded_targets():
    assert COARSE == ["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd"]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", COARSE)
def test_top_k_with_its_tail_never_exceeds_the_dense_divergence_and_meets_it(name, temperature):
    if name not in HOT and temperature != 1.0:
        return
    hot = {"temperature": temperature} if name in HOT else {}
    for scale in (1.0, 3.0, 12.0):  # of teachers from unsure to sure
        student, teacher = logits(1), logits(2, scale=scale)
        whole, whole_grad = response(term(name, **hot), student, teacher, TARGETS)
        bound, before = whole + 1e-5 * whole.abs().clamp(min=1), torch.zeros(N)
        for k in (1, 3, 10, 25, V - 1, V):
            value, grad = response(term(name, **hot), student, top(teacher, k, temperature), TARGETS)
            assert (value <= bound).all() and (value >= before - 1e-5).all() and (value > -1e-6).all(), k
            before = value
            if k >= V - 1:  # each outcome its own bucket
                torch.testing.assert_close(value, whole, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(grad, whole_grad, rtol=1e-3, atol=1e-5)
        equal, flat = response(term(name, **hot), teacher, top(teacher, 5, temperature), TARGETS)
        assert equal.abs().max() < 1e-5 and (name == "tvd" or flat.abs().max() < 1e-4)


@pytest.mark.parametrize("scale", [1.0, 3.0, 12.0])
@pytest.mark.parametrize("name", COARSE)
def test_what_float16_keeps_does_not_exceed_the_dense_divergence_either(name, scale):
    """Beyond 2e-3 nats. Probabilities in float16 would, by ten nats: what a sure teacher leaves is a small number."""
    student, teacher = logits(1, 400), logits(2, 400, scale)
    targets = torch.zeros(400, dtype=torch.long)
    whole, _ = response(term(name), student, teacher, targets)
    for k in (1, 8, 24, V - 1):
        value, _ = response(term(name), student, restore(keep(teacher, k, 0, 1.0, None), 0, 1.0), targets)
        assert ((value - whole) / whole.clamp(min=1)).max() < 2e-3, k
    if name == "reverse_kl" and scale == 12.0:
        p, ids = torch.softmax(teacher, dim=-1).topk(8, dim=-1)
        p = p.half().float()
        rounded = Sparse(ids, p, (1 - p.sum(-1)).clamp(min=1e-12), None, 1.0)
        assert (response(term(name), student, rounded, targets)[0] - whole).max() > 3


def test_a_sure_student_still_learns_of_what_it_leaves_out():
    """Its own tail is far below float32's step from certainty; the gradient is that of float64."""
    student, teacher = torch.zeros(1, V), torch.zeros(1, V)
    student[0, :4] = 30.0
    teacher[0, :4] = 3.0
    given = top(teacher, 4)
    leaf = student.double().requires_grad_()
    s = torch.softmax(leaf, dim=-1)
    s = torch.cat([s[:, :4], s[:, 4:].sum(-1, keepdim=True)], dim=1)
    t = torch.cat([given.weights, given.tail[:, None]], dim=1).double()
    kl = (t * (t / s).log()).sum()
    (wanted,) = torch.autograd.grad(kl, leaf)
    value, grad = response(term("forward_kl"), student, given, TARGETS[:1])
    torch.testing.assert_close(grad.double(), wanted, rtol=1e-4, atol=1e-7)
    assert value.item() == pytest.approx(kl.item(), rel=1e-5) and grad[0, 5] < -1e-3


def test_top_k_made_to_sum_to_one_would_break_the_law():
    """Why there is a tail: without it the KL can exceed the dense one, so the test above can fail."""
    student, teacher = logits(1), logits(2)
    whole, _ = response(term("forward_kl"), student, teacher, TARGETS)
    ids = teacher.topk(3, dim=-1).indices
    cut, _ = response(term("forward_kl"), student.gather(1, ids), teacher.gather(1, ids), TARGETS)
    assert (cut > whole).any()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd"])
def test_gradients_on_buckets_equal_autograd_of_the_formula(name, temperature):
    given = top(logits(2), 6, temperature)
    leaf = logits(1).requires_grad_()
    log_s = torch.log_softmax(leaf / temperature, dim=-1).gather(1, given.ids)
    s = torch.cat([log_s.exp(), 1 - log_s.exp().sum(-1, keepdim=True)], dim=1)
    t = torch.cat([given.weights, given.tail[:, None]], dim=1)
    m = 0.3 * t + 0.7 * s
    formula = {
        "forward_kl": (t * (t / s).log()).sum(-1),
        "reverse_kl": (s * (s / t).log()).sum(-1),
        "jsd": 0.3 * (t * (t / m).log()).sum(-1) + 0.7 * (s * (s / m).log()).sum(-1),
    }[name] * temperature**2
    (wanted,) = torch.autograd.grad(formula.sum(), leaf)
    options = {"beta": 0.3} if name == "jsd" else {}
    value, grad = response(term(name, temperature=temperature, **options), leaf.detach(), given, TARGETS)
    torch.testing.assert_close(value, formula.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grad, wanted, rtol=1e-3, atol=1e-5)


def test_a_tail_that_is_nothing_is_no_division_by_zero():
    """A teacher, and a student, as sure as float32 can be."""
    sure = torch.zeros(2, V)
    sure[:, 3] = 200.0
    for name in COARSE:
        for student in (sure, logits(1, 2)):
            for teacher in (sure, logits(2, 2)):
                value, grad = response(term(name), student, top(teacher, 4), TARGETS[:2])
                assert torch.isfinite(value).all() and torch.isfinite(grad).all(), name


DRAWS = 30_000


def estimates(kept: int, samples: int, temperature: float, sparse=None) -> tuple[torch.Tensor, torch.Tensor, float]:
    """(deviation of the mean gradient and of the mean value from the dense one in standard errors, largest error of
    the gradient) over many draws for one prediction."""
    student, teacher = logits(1, 1, vocabulary=12), logits(2, 1, vocabulary=12)
    uniform = torch.rand(DRAWS, samples, generator=torch.Generator().manual_seed(7))
    made = keep(teacher.expand(DRAWS, -1), kept, samples, temperature, uniform)
    given = restore(made, samples, temperature)
    given = given if sparse is None else sparse(given)
    some = term("forward_kl", temperature=temperature)
    value, grad = response(some, student.expand(DRAWS, -1), given, torch.zeros(DRAWS, dtype=torch.long))
    whole, dense = response(some, student, teacher, TARGETS[:1])
    of_grad = (grad.mean(0) - dense[0]) / (grad.std(0) / math.sqrt(DRAWS)).clamp(min=2e-4)  # float16 of what is kept
    of_value = (value.mean() - whole[0]) / (value.std() / math.sqrt(DRAWS)).clamp(min=2e-4)
    return of_grad, of_value, float((grad.mean(0) - dense[0]).abs().max())


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("kept", "samples"), [(0, 1), (0, 6), (3, 1), (3, 5)])
def test_sampled_targets_have_the_dense_gradient_on_average(kept, samples, temperature):
    of_grad, of_value, _ = estimates(kept, samples, temperature)
    assert of_grad.abs().max() < 4.5 and abs(of_value) < 4.5


def test_biased_targets_fail_that_bound():
    def renormalised(given: Sparse) -> Sparse:
        """The likeliest alone, made to sum to one."""
        weights = given.weights[:, :3] / given.weights[:, :3].sum(-1, keepdim=True)
        return Sparse(given.ids[:, :3], weights, None, given.entropy, given.temperature)

    def once_each(given: Sparse) -> Sparse:
        """What is drawn weighs as the distribution says, though it was drawn by it."""
        p = torch.softmax(logits(2, 1, vocabulary=12), dim=-1)[0][given.ids]
        return Sparse(given.ids, p / p.sum(-1, keepdim=True), None, given.entropy, given.temperature)

    for kept, sparse in ((3, renormalised), (0, once_each)):
        of_grad, _, error = estimates(kept, 5, 1.0, sparse)
        assert of_grad.abs().max() > 20 and error > 0.01


def test_draws_never_hit_what_is_kept_or_impossible():
    teacher = logits(2, 1, vocabulary=12)
    teacher[:, 7] = -torch.inf
    uniform = torch.linspace(0, 1 - 1e-7, 4000)[:, None].expand(-1, 1)
    made = keep(teacher.expand(4000, -1), 3, 1, 1.0, uniform)
    drawn = set(made.ids[:, 3].tolist())
    assert drawn == set(range(12)) - set(made.ids[0, :3].tolist()) - {7}


def test_more_outcomes_than_there_are_is_all_of_them():
    made = keep(logits(2), V + 5, 0, 1.0, None)
    assert made.ids.shape == (N, V)
    value, _ = response(term("forward_kl"), logits(1), restore(made, 0, 1.0), TARGETS)
    whole, _ = response(term("forward_kl"), logits(1), logits(2), TARGETS)
    assert (value - whole).abs().max() < 5e-3


# On disk ------------------------------------------------------------------------------------------------------------

T = 12
TOPK, SAMPLED, DRAWN = Recording(8, 0, 1.0, 0), Recording(4, 6, 2.0, 0), Recording(0, 12, 1.0, 0)


@pytest.fixture(scope="module")
def rows() -> Rows:
    """Three shards, the last one short; two rows are equal."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(0, 288, (150, T), generator=generator, dtype=torch.int32)
    ids[9] = ids[140]
    mask = torch.ones(150, T, dtype=torch.uint8)
    mask[149, 5:] = 0
    return Rows(ids, mask, torch.zeros(150, dtype=torch.int64), ("0:text",))


@pytest.fixture(scope="module")
def teacher() -> LiveTeacher:
    return LiveTeacher(tiny.llama(seed=1))


def write(teacher, rows: Rows, folder: Path, how: Recording = TOPK, chosen=range(150), stop_at: int | None = None):
    said = []

    def output_of(batch: Batch):
        said.append(1)
        if len(said) == stop_at:
            raise KeyboardInterrupt
        return teacher(batch, Need()).output

    record(output_of, rows, list(chosen), how, 288, {"teacher": "abc"}, folder, torch.device("cpu"))
    return folder


@pytest.fixture(scope="module")
def written(teacher, rows, tmp_path_factory) -> dict[str, Path]:
    kinds = {"topk": TOPK, "sampled": SAMPLED, "drawn": DRAWN}
    return {name: write(teacher, rows, tmp_path_factory.mktemp(name), how) for name, how in kinds.items()}


def batch_of(rows: Rows, chosen) -> Batch:
    chosen = torch.as_tensor(chosen)
    return Batch(rows.ids[chosen].long(), rows.mask[chosen].float(), chosen)


def given(teacher: RecordedTeacher, rows: Rows, chosen) -> Sparse:
    """All that is recorded of some rows."""
    batch = batch_of(rows, chosen)
    targets = batch.ids[:, 1:].reshape(-1)
    return teacher(batch, Need()).output.rows(slice(0, len(targets)), targets)


def same(a: Sparse, b: Sparse) -> bool:
    for field in ("tail", "entropy"):
        x, y = getattr(a, field), getattr(b, field)
        if (x is None) != (y is None) or (x is not None and not torch.equal(x, y)):
            return False
    return all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("ids", "weights"))


@pytest.mark.parametrize(("name", "how"), [("topk", TOPK), ("sampled", SAMPLED), ("drawn", DRAWN)])
def test_bytes_on_disk_are_those_that_are_told(written, name, how):
    folder = written[name]
    index = json.loads((folder / "index.json").read_text())
    held = 0
    for shard in index["shards"]:
        with safe_open(folder / shard["file"], framework="pt") as file:
            held += sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118 (not a dict)
    assert [len(s["rows"]) for s in index["shards"]] == [64, 64, 22]
    assert held == 150 * (T - 1) * index["bytes_per_token"]
    assert index["bytes_per_token"] == bytes_per_token(how.count, how.samples, 288) == {8: 34, 4: 30, 0: 26}[how.count]
    assert (index["count"], index["samples"], index["temperature"]) == (how.count, how.samples, how.temperature)
    assert index["teacher"] == "abc" and index["vocabulary"] == 288


def test_ids_beyond_two_bytes_take_four():
    assert (id_type(1 << 16), id_type((1 << 16) + 1)) == (torch.uint16, torch.int32)
    assert bytes_per_token(24, 0, 151_936) == 24 * (4 + 2) + 2 and bytes_per_token(24, 0, 49_152) == 24 * (2 + 2) + 2


@pytest.mark.parametrize("name", ["topk", "sampled", "drawn"])
def test_what_is_played_back_is_what_was_heard(written, teacher, rows, name):
    """Within what float16 rounds; losses on it within 1e-3 nats."""
    how = {"topk": TOPK, "sampled": SAMPLED, "drawn": DRAWN}[name]
    played = given(RecordedTeacher(written[name], rows, range(150)), rows, [3, 70, 149])
    batch = batch_of(rows, [3, 70, 149])
    targets = batch.ids[:, 1:].reshape(-1)
    heard = teacher(batch, Need()).output.rows(slice(0, None), targets)
    p = torch.softmax(heard / how.temperature, dim=-1)
    torch.testing.assert_close(played.weights[:, : how.count], p.topk(how.count, dim=-1).values, rtol=4e-3, atol=0)
    assert torch.equal(played.ids[:, : how.count], p.topk(how.count, dim=-1).indices)
    if name != "topk":
        torch.testing.assert_close(played.entropy, -(p * p.log()).sum(-1), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(played.weights.sum(-1), torch.ones(len(targets)), rtol=1e-4, atol=1e-4)
        return
    student = LiveTeacher(tiny.llama(seed=2))(batch, Need()).output.rows(slice(0, None), targets)
    for loss in HOT:
        live, _ = response(term(loss), student, top(heard, 8), targets)
        value, _ = response(term(loss), student, played, targets)
        assert (value - live).abs().max() < 1e-3, loss


def test_equal_rows_are_heard_apart_and_found_by_their_ids(written, rows):
    names = rows.row_ids()
    assert names[9] != names[140]
    teacher = RecordedTeacher(written["sampled"], rows, [9, 140])
    one, other = given(teacher, rows, [9]), given(teacher, rows, [140])
    assert torch.equal(one.weights, other.weights) and not torch.equal(one.ids, other.ids)


@pytest.mark.parametrize("name", ["topk", "sampled", "drawn"])
def test_targets_are_found_by_row_whatever_seed_batch_or_company(written, rows, name):
    """Another order of the rows, other batches, and rows of another source in front."""
    straight = RecordedTeacher(written[name], rows, range(150))
    wanted = {rows.row_ids()[i]: given(straight, rows, [i]) for i in range(150)}
    shuffled = torch.randperm(150, generator=torch.Generator().manual_seed(1))
    other = Rows(rows.ids[shuffled], rows.mask[shuffled], rows.source, rows.sources)
    front = Rows(torch.full((7, T), 5, dtype=torch.int32), rows.mask[:7], rows.source[:7], ("1:text",))
    for made, shares in ((other, [1.0]), (Rows.join([front, rows]), [0.0, 1.0])):
        names = made.row_ids()
        for seed, size in ((0, 4), (9, 7)):
            chosen = order(made, shares, 6 * size, seed)
            teacher = RecordedTeacher(written[name], made, [int(i) for i in chosen])
            for at in range(0, len(chosen), size):
                some = chosen[at : at + size]
                found = given(teacher, made, some)
                rebuilt = [wanted[names[int(i)]] for i in some]
                if made is other and {9, 140} & {int(shuffled[i]) for i in some}:
                    continue  # of two equal rows the first is the first in either order
                for field in ("ids", "weights", "tail" if name == "topk" else "entropy"):
                    assert torch.equal(getattr(found, field), torch.cat([getattr(r, field) for r in rebuilt]))


def test_draws_depend_on_the_row_and_the_seed_not_on_neighbours(teacher, written, rows, tmp_path):
    some = [140, 77, 2]
    alone = RecordedTeacher(write(teacher, rows, tmp_path, SAMPLED, some), rows, some)
    whole = RecordedTeacher(written["sampled"], rows, some)
    for row in some:
        assert same(given(alone, rows, [row]), given(whole, rows, [row])), row
    (tmp_path / "b").mkdir()
    other = RecordedTeacher(write(teacher, rows, tmp_path / "b", Recording(4, 6, 2.0, 1), some), rows, some)
    ours, theirs = given(other, rows, some), given(whole, rows, some)
    assert torch.equal(ours.ids[:, :4], theirs.ids[:, :4]) and not torch.equal(ours.ids[:, 4:], theirs.ids[:, 4:])


@pytest.mark.parametrize("how", [TOPK, SAMPLED])
def test_a_recording_that_was_stopped_goes_on(teacher, written, rows, tmp_path, how):
    with pytest.raises(KeyboardInterrupt):
        write(teacher, rows, tmp_path, how, stop_at=100)
    assert [p.name for p in tmp_path.iterdir()] == ["targets-00000.safetensors"]
    first = tmp_path / "targets-00000.safetensors"
    before = first.stat().st_mtime_ns, first.stat().st_ino
    (tmp_path / "targets-00001.safetensors.part").write_bytes(b"half")
    with pytest.raises(DataError, match="holds no recorded targets"):
        RecordedTeacher(tmp_path, rows, range(150))
    write(teacher, rows, tmp_path, how)
    assert (first.stat().st_mtime_ns, first.stat().st_ino) == before
    whole = written["topk" if how is TOPK else "sampled"]
    for path in whole.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(AssertionError, match="heard again"):  # nothing is left to do, and another choice is no excuse
        record(_never, rows, list(range(149, 0, -1))[:64], how, 288, {}, tmp_path, torch.device("cpu"))
    record(_never, rows, list(range(150)), how, 288, {"teacher": "abc"}, tmp_path, torch.device("cpu"))


def _never(batch: Batch):
    raise AssertionError("heard again")


def test_a_damaged_or_missing_shard_is_refused_by_its_name(teacher, rows, tmp_path):
    folder = write(teacher, rows, tmp_path)
    shard = folder / "targets-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-7] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"targets-00001.safetensors: missing or not as recorded; delete"):
        RecordedTeacher(folder, rows, range(150))
    shard.unlink()
    with pytest.raises(DataError, match=r"targets-00001.safetensors: missing"):
        RecordedTeacher(folder, rows, range(150))


def test_rows_that_were_not_heard_are_refused(written, rows, teacher, tmp_path):
    folder = write(teacher, rows, tmp_path, chosen=range(64))
    RecordedTeacher(folder, rows, range(64))
    with pytest.raises(DataError, match="86 of the 150 training rows were not recorded; record with the same data"):
        RecordedTeacher(folder, rows, [*range(150), 3, 149])
    longer = Rows(torch.cat([rows.ids, rows.ids], dim=1), rows.mask, rows.source, rows.sources)
    with pytest.raises(DataError, match="150 of the 150 training rows"):
        RecordedTeacher(written["topk"], longer, range(150))


@pytest.mark.parametrize("name", ["topk", "sampled"])
def test_a_step_on_recorded_targets(written, rows, name):
    """Micro-batches find their own rows' targets, and the temperature is the recorded one."""
    heat = 2.0 if name == "sampled" else 1.0
    terms = [{"loss": "forward_kl", "temperature": heat}, {"loss": "cross_entropy", "weight": 0.5}]
    batch, found = batch_of(rows, [149, 5, 70, 6]), []
    for micro_rows in (1, 3, 4):
        step = tiny.step_of(tiny.llama(seed=2), terms, micro_rows=micro_rows)
        found.append(tiny.gradients(step, batch, RecordedTeacher(written[name], rows, range(150))))
    for total, grads, _ in found[1:]:
        assert total == pytest.approx(found[0][0], rel=1e-5)
        for key, grad in grads.items():
            torch.testing.assert_close(grad, found[0][1][key], rtol=1e-4, atol=1e-6)
    wrong = batch_of(rows, [5, 149, 6, 70])  # other rows' targets would be seen
    mixed = Batch(batch.ids, batch.mask, wrong.rows)
    step = tiny.step_of(tiny.llama(seed=2), terms)
    other, _, _ = tiny.gradients(step, mixed, RecordedTeacher(written[name], rows, range(150)))
    assert abs(other - found[0][0]) > 0.01


def test_several_teachers_are_recorded_as_one(rows, tmp_path):
    both = Ensemble([LiveTeacher(tiny.llama(seed=1)), LiveTeacher(tiny.llama(seed=5), index=1)], [1, 3])
    folder = write(both, rows, tmp_path, chosen=[0, 1])
    played = given(RecordedTeacher(folder, rows, [0, 1]), rows, [0, 1])
    targets = rows.ids[:2, 1:].reshape(-1).long()
    p = both(batch_of(rows, [0, 1]), Need()).output.rows(slice(0, None), targets).exp()
    torch.testing.assert_close(played.weights, p.topk(8, dim=-1).values, rtol=4e-3, atol=0)


# Several as one -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    logits: torch.Tensor

    def rows(self, part: slice, targets: torch.Tensor) -> torch.Tensor:
        return self.logits[part]


class Fixed:
    """A teacher that says of each row what it was given."""

    def __init__(self, said: torch.Tensor):
        self.said = said

    def __call__(self, batch: Batch, need: Need) -> Signals:
        by_row = self.said.reshape(-1, batch.ids.shape[1] - 1, self.said.shape[1])
        return Signals(Said(by_row[batch.rows].flatten(0, 1)) if need.output else None)


def setting(rows: int = 5, length: int = 8, vocabulary: int = V):
    generator = torch.Generator().manual_seed(2)
    mask = (torch.rand(rows, length, generator=generator) > 0.3).float()
    batch = Batch(torch.randint(0, V, (rows, length), generator=generator), mask, torch.arange(rows))
    said = [logits(seed, rows * (length - 1)) for seed in (1, 2, 3)]
    return batch, said, batch.ids[:, 1:].reshape(-1)


def mixed(teacher: Ensemble, batch: Batch, targets: torch.Tensor, chunk: int = 1000) -> torch.Tensor:
    output = teacher(batch, Need()).output
    parts = [slice(at, at + chunk) for at in range(0, len(targets), chunk)]
    return torch.cat([output.rows(part, targets[part]) for part in parts])


@pytest.mark.parametrize("weights", [(1, 1, 1), (0.2, 3.0, 0.8)])
def test_probabilities_are_averaged_not_logits(weights, monkeypatch):
    monkeypatch.setattr(ensemble, "ROWS", 3)
    batch, said, targets = setting()
    found = mixed(Ensemble([Fixed(s) for s in said], weights), batch, targets, 5)
    wanted = sum(w * torch.softmax(s, dim=-1) for w, s in zip(weights, said, strict=True)) / sum(weights)
    torch.testing.assert_close(found.exp(), wanted, rtol=1e-4, atol=1e-7)
    of_logits = torch.softmax(sum(w * s for w, s in zip(weights, said, strict=True)) / sum(weights), dim=-1)
    assert (of_logits - wanted).abs().max() > 0.05


def test_token_takes_the_best_teacher_of_each_prediction():
    batch, said, targets = setting()
    found = mixed(Ensemble([Fixed(s) for s in said], [1, 1, 1], "token"), batch, targets, 4)
    logs = torch.stack([torch.log_softmax(s, dim=-1) for s in said])
    best = logs[:, torch.arange(len(targets)), targets].argmax(0)
    assert set(best.tolist()) == {0, 1, 2}
    torch.testing.assert_close(found, logs[best, torch.arange(len(targets))])
    favoured = mixed(Ensemble([Fixed(s) for s in said], [1e9, 1, 1], "token"), batch, targets)
    torch.testing.assert_close(favoured, logs[0])


@pytest.mark.parametrize("weights", [(1, 1, 1), (0.2, 3.0, 0.8)])
def test_sample_weighs_teachers_by_row(weights, monkeypatch):
    monkeypatch.setattr(ensemble, "ROWS", 4)
    batch, said, targets = setting()
    teacher = Ensemble([Fixed(s) for s in said], weights, "sample")
    mask = batch.mask[:, 1:]
    p = torch.stack([torch.softmax(s, dim=-1) for s in said])
    losses = -p[:, torch.arange(len(targets)), targets].log().reshape(3, *mask.shape)
    mean = (losses * mask).sum(-1) / mask.sum(-1)  # [M, B]
    by_row = torch.softmax(-mean + torch.tensor(weights).log()[:, None], dim=0)
    assert by_row.std(1).min() > 0.02  # rows differ
    wanted = (by_row.repeat_interleave(mask.shape[1], dim=1)[:, :, None] * p).sum(0)
    torch.testing.assert_close(mixed(teacher, batch, targets, 3).exp(), wanted, rtol=1e-4, atol=1e-7)
    alone = mixed(teacher, batch.part(slice(2, 4)), targets.reshape(5, -1)[2:4].reshape(-1))
    torch.testing.assert_close(alone.exp(), wanted.reshape(5, -1, V)[2:4].reshape(-1, V), rtol=1e-4, atol=1e-7)
    blank = Batch(batch.ids, torch.zeros_like(batch.mask), batch.rows)
    assert torch.isfinite(mixed(teacher, blank, targets)).all()


@pytest.mark.parametrize("combine", ["weighted", "sample", "token"])
def test_a_mixture_is_a_distribution(combine):
    """Whatever the scale of the logits, and where a teacher forbids an outcome."""
    batch, said, targets = setting()
    said[0][:, 3] = -torch.inf
    said[1] *= 30
    found = mixed(Ensemble([Fixed(s) for s in said], [1, 2, 3], combine), batch, targets)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(len(targets)), rtol=1e-5, atol=1e-5)
    assert not torch.isnan(found).any()


def test_a_teacher_of_weight_zero_says_nothing():
    batch, said, targets = setting()
    found = mixed(Ensemble([Fixed(s) for s in said], [0, 1, 0]), batch, targets)
    torch.testing.assert_close(found, torch.log_softmax(said[1], dim=-1))


def test_vocabularies_padded_differently_meet_in_what_they_share():
    batch, said, targets = setting()
    wider = torch.cat([said[1], torch.full((len(targets), 8), -3.0)], dim=1)
    found = mixed(Ensemble([Fixed(said[0]), Fixed(wider)], [1, 1]), batch, targets)
    torch.testing.assert_close(found, mixed(Ensemble([Fixed(said[0]), Fixed(said[1])], [1, 1]), batch, targets))


def test_features_of_each_teacher_come_through():
    models = [tiny.llama(seed=1), tiny.llama(layers=2, seed=5, hidden=32)]
    batch = tiny_batch()
    both = Ensemble([LiveTeacher(m, index=i) for i, m in enumerate(models)], [1, 1])
    need = Need(False, {1: {2: frozenset({"hidden"})}})
    signals = both(batch, need)
    assert signals.output is None and list(signals.layers) == [1] and list(signals.layers[1]) == [2]
    assert signals.layers[1][2].hidden.shape == (2, T, 32)
    terms = [{"loss": "forward_kl"}, {"loss": "hidden", "teacher": 1, "layers": "last"}, {"loss": "cosine"}]
    student = tiny.llama(layers=2, seed=3)
    step = tiny.step_of(student, terms, models)
    assert step.own.named["0|hidden|0|project"].shape == (64, 32)
    total, _, own = tiny.gradients(step, batch, both)
    with torch.no_grad():
        out = models[1](batch.ids, output_hidden_states=True)
        ours = student(batch.ids, output_hidden_states=True)
    pre = [{}, {}]
    for index, model in enumerate((models[1], student)):
        hook = model.model.norm.register_forward_pre_hook(lambda m, x, index=index: pre[index].update(hidden=x[0]))
        model(batch.ids)
        hook.remove()
    project = step.own.named["0|hidden|0|project"]
    gap = (pre[1]["hidden"].detach() @ project - pre[0]["hidden"].detach()).square().mean(-1) * batch.mask
    (wanted,) = torch.autograd.grad(gap.sum() / batch.mask.sum(), project)
    torch.testing.assert_close(own["0|hidden|0|project"], wanted, rtol=1e-3, atol=1e-6)
    p = [torch.softmax(m(batch.ids).logits[:, :-1], dim=-1) for m in models]
    log_s = torch.log_softmax(ours.logits[:, :-1], dim=-1)
    mean = sum(p).detach() / 2
    assert out.hidden_states is not None and total > 0
    kl = ((mean * (mean.log() - log_s)).sum(-1) * batch.mask[:, 1:]).sum() / batch.mask[:, 1:].sum()
    log = step(batch, both, lr=0.0, grid=False, index=0)
    assert log.terms["forward_kl"] == pytest.approx(float(kl), rel=1e-4)


def tiny_batch() -> Batch:
    generator = torch.Generator().manual_seed(6)
    return Batch(torch.randint(0, 288, (2, T), generator=generator), torch.ones(2, T))


def test_shards_are_as_long_as_the_module_says():
    assert recorded.SHARD_ROWS == 64  # the tests above count on it
