"""Every scheme's loop: who teaches whom and when, what moves, and law 5: stopped anywhere and gone on is as if never
stopped."""

from __future__ import annotations

import copy
import gc
import json
import weakref
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

from edgeslm.data.batch import Batch
from edgeslm.data.on_policy import OnPolicy, contrasted, mixed, own_writer
from edgeslm.data.order import first_by_id, order, shard
from edgeslm.data.rows import Rows
from edgeslm.data.written import WriteSettings, write_batch
from edgeslm.progress import Progress
from edgeslm.recipe.distill import (
    BlockwiseScheme,
    CodistillScheme,
    OfflineScheme,
    OnlineScheme,
    ResidualScheme,
    RouteScheme,
    SelfScheme,
    TrainPart,
)
from edgeslm.schemes import SCHEMES, blockwise, checkpoint, online
from edgeslm.schemes.exchange import Exchange
from edgeslm.schemes.exchange_places import Folder
from edgeslm.schemes.loop import Loop
from edgeslm.schemes.loss_weights import LossWeights
from edgeslm.schemes.measure import row_distance
from edgeslm.schemes.step import Step
from edgeslm.teachers.base import Need, Signals
from edgeslm.teachers.live import LiveTeacher
from edgeslm.teachers.recorded import RecordedTeacher, Recording, record

STEPS, ROWS, T = 8, 4, 16
TEXT, KL = {"loss": "cross_entropy"}, {"loss": "forward_kl"}


class Stopped(Exception):
    pass


def rows() -> Rows:
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(3, 288, (24, T), generator=generator, dtype=torch.int32)
    mask = torch.ones(24, T, dtype=torch.uint8)
    mask[7, 9:] = 0
    return Rows(ids, mask, torch.zeros(24, dtype=torch.int64), ("0:text",))


def loop(folder: Path, steps: int = STEPS, grid_start: int | None = None, **more) -> Loop:
    """`steps` updates of four rows, a checkpoint after every third, in float unless `grid_start` says when not."""
    train = TrainPart(steps=steps, batch_tokens=ROWS * T, lr=2e-3, warmup=0.0, decay=0.5, checkpoint_every=3)
    read = rows()
    plain = {
        "rows": read,
        "order": order(read, [1.0], steps * ROWS, 0),
        "batch_rows": ROWS,
        "train": train,
        "grid_start": steps if grid_start is None else grid_start,
        "folder": folder,
        "progress": Progress(quiet=True),
        "device": torch.device("cpu"),
        "measure": lambda done: None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    return Loop(**{**plain, **more})


def student(seed: int = 2, **how):
    return tiny.llama(layers=3, seed=seed, hidden=32, **how)


def teacher() -> LiveTeacher:
    return LiveTeacher(tiny.llama(layers=4, seed=1))


def weights(step: Step) -> dict[str, torch.Tensor]:
    """All that a training leaves: masters, module, weights of losses."""
    found = {f"master {m.name}": m.value.detach().clone() for m in step.masters.items}
    found |= {f"module {m.name}": m.weight.detach().clone() for m in step.masters.items}
    return found | {f"own {n}": v.detach().clone() for n, v in step.own.named.items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def run(kind: str, steps, teacher, where: Loop, part) -> None:
    SCHEMES[kind](steps, teacher, where, part)


def watched(steps, folder: Path, kind: str, guide, part, **more) -> list[dict[str, torch.Tensor]]:
    """Weights of the first student before the first and after every update."""
    seen = [weights(steps[0])]
    keep = {i: lambda: seen.append(weights(steps[0])) for i in range(1, STEPS + 1)}
    run(kind, steps, guide, loop(folder, keep=keep, **more), part)
    return seen


# Law 5 and the grid, for every scheme -------------------------------------------------------------------------------


def policy(**how) -> OnPolicy:
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 0}
    writer = own_writer(WriteSettings(0, 0, 0, **plain), {2})
    made = {"share": 0.5, "prompt": 5, "writer": writer, "padding": 0, "seed": 3}
    return OnPolicy(**{**made, **how})


def anchors(spec: str) -> LiveTeacher:
    return LiveTeacher(tiny.llama(layers=4, seed={"first": 7, "second": 8}[spec]))


def differing(student, batch: Batch) -> torch.Tensor:
    return row_distance(student, teacher().model, batch)


FEATURES = [
    {"loss": "hidden", "layers": [[1, 2], [3, [3, 4]]]},
    {"loss": "minilm"},
    {"loss": "fsp"},
    {"loss": "feature_discriminator"},
    {"loss": "logit_discriminator", "weight": 0.1},
    KL,
]
BLOCKWISE = BlockwiseScheme(kind="blockwise", blocks=3, share=0.75)
ROUTE = RouteScheme(kind="route", anchors=("first", "second"))


def on_line(**how):
    return OnlineScheme(kind="online", **how)


def codistill(groups: int, **how):
    plain = {"exchange_every": 2, "burn_in": 0.25, "ramp": 0.25, "weight": 0.5}
    return CodistillScheme(kind="codistill", groups=groups, **{**plain, **how})


# name -> (kind, its part, objective, peers, what else the loop is given)
CASES = {
    "offline": ("offline", OfflineScheme(), [KL], 1, {}),
    "offline, features": ("offline", OfflineScheme(), FEATURES, 1, {}),
    "offline, recorded": ("offline", OfflineScheme(), [KL], 1, {}),
    "offline, writing": ("offline", OfflineScheme(), [KL], 1, {"on_policy": policy()}),
    "offline, far texts": (
        "offline", OfflineScheme(), [KL], 1, {"on_policy": policy(candidates=2, distance=differing)},
    ),
    "residual": ("residual", ResidualScheme(kind="residual", base="run:x"), [KL], 1, {}),
    "online, two": ("online", on_line(), [TEXT, KL], 2, {}),
    "online, ensemble": ("online", on_line(peers=3, learn_from="ensemble"), [TEXT, KL], 3, {}),
    "online, leader": ("online", on_line(peers=3, learn_from="leader"), [TEXT, KL], 3, {}),
    "online, outer teacher": ("online", on_line(outer_share=0.6), [TEXT, KL], 2, {}),
    "online, writing": ("online", on_line(), [TEXT, KL], 2, {"on_policy": policy(candidates=2)}),
    "self, average": ("self", SelfScheme(kind="self", decay=0.7), [TEXT, KL], 1, {}),
    "self, snapshot": ("self", SelfScheme(kind="self", teacher="snapshot", every=2), [TEXT, KL], 1, {}),
    "self, deep": ("self", SelfScheme(kind="self", teacher="deep", exits=(1, 2)), [TEXT, KL], 1, {}),
    "route": ("route", ROUTE, [KL], 1, {"load": anchors}),
    "blockwise": ("blockwise", BLOCKWISE, [KL, {"loss": "cosine"}], 1, {}),
    "codistill": ("codistill", codistill(2), [TEXT], 2, {}),
    "codistill, three, a teacher": ("codistill", codistill(3, learn_from=1), [KL], 3, {}),
    "codistill, predictions": (
        "codistill", codistill(2, share={"kind": "predictions", "rows": 12, "k": 5}), [TEXT], 2, {},
    ),
    "codistill, average": ("codistill", codistill(2, after="average", term="cross_entropy"), [TEXT], 2, {}),
}  # fmt: skip


def make(name: str, folder: Path, grid: str):
    """(kind, steps, teacher, part, loop's options), all of it fresh, as after a restart."""
    kind, part, terms, peers, more = CASES[name]
    guide, how = teacher(), {"refit_every": 4 if grid != "f32" else None, "micro_rows": 3}
    if kind == "residual":
        how["base"] = LiveTeacher(tiny.llama(layers=2, seed=5))
    if kind == "blockwise":
        how["stages"] = blockwise.terms(part, 3, 4)
    if kind == "self" and part.exits:
        how["exits"] = part.exits
    if name == "offline, recorded":
        guide = _recorded(folder)
    if kind == "codistill":
        all_read = first_by_id(rows(), getattr(part.share, "rows", 0))
        orders = [order(shard(rows(), g, peers, all_read), [1.0], STEPS * ROWS, 0) for g in range(peers)]
        more = {"exchange": Exchange(Folder(folder / "exchange"), "same", tuple(range(peers)), orders, all_read)}
    steps = [tiny.step_of(student(), terms, [tiny.llama(layers=4, seed=1)], grid, **how) for _ in range(peers)]
    return kind, steps, guide, part, copy.deepcopy(more) if "load" not in more else more


def _recorded(folder: Path) -> RecordedTeacher:
    live, place = teacher(), folder.parent / "targets"
    place.mkdir(exist_ok=True)
    how = Recording(6, 5, 1.0, 0)
    record(lambda batch: live(batch, Need()).output, rows(), range(24), how, 288, {}, place, torch.device("cpu"))
    return RecordedTeacher(place, rows(), range(24))


def whole(name: str, folder: Path, grid: str, grid_start: int):
    kind, steps, guide, part, more = make(name, folder, grid)
    run(kind, steps, guide, loop(folder, grid_start=grid_start, **more), part)
    return steps


def stopped_and_gone_on(name: str, folder: Path, grid: str, grid_start: int, after: int):
    kind, steps, guide, part, more = make(name, folder, grid)

    def stop() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        run(kind, steps, guide, loop(folder, grid_start=grid_start, keep={after: stop}, **more), part)
    return whole(name, folder, grid, grid_start)


def test_every_scheme_has_a_case():
    assert {case[0] for case in CASES.values()} == set(SCHEMES)


@pytest.mark.parametrize(
    ("name", "after", "grid", "grid_start"),
    [
        *((name, 5, "q4_0", 2) for name in CASES),  # two updates past a checkpoint
        ("offline", 1, "f32", STEPS),  # before the first checkpoint
        ("self, average", 6, "f32", STEPS),  # as the second is to be written
    ],
)
def test_stopped_and_gone_on_is_as_never_stopped(name, after, grid, grid_start, tmp_path):
    """From new objects, as in a new process. On the grid, every weight that is left is a value of the grid."""
    once = whole(name, tmp_path / "once", grid, grid_start)
    again = stopped_and_gone_on(name, tmp_path / "again", grid, grid_start, after)
    for a, b in zip(once, again, strict=True):
        assert equal(weights(a), weights(b))
    drop = ("seconds", "tokens_per_s", "written_tokens_per_s")
    told = [
        [{k: v for k, v in line.items() if k not in drop} for line in lines(tmp_path / f)] for f in ("once", "again")
    ]
    assert told[0] == told[1] and [line["step"] for line in told[0]] == list(range(1, STEPS + 1))
    assert not equal(weights(once[0]), weights(make(name, tmp_path / "new", grid)[1][0]))
    assert [line["grid"] for line in told[0]] == [grid != "f32" and i >= 1 for i in range(STEPS)]
    if grid == "f32":
        return
    for step in once:
        for master in step.masters.items:
            if master.on_grid:
                decoded = master.format.decode(master.codes(), master.scales).reshape(master.value.shape)
                assert torch.equal(decoded, master.weight.data), master.name
                assert not torch.equal(master.value.data, master.weight.data), master.name


def _without_kept(steps, kept, folder):
    return LOAD(steps, {}, folder)


LOAD = checkpoint.load
FORGOTTEN = {
    "weights of losses": ("offline, features", (LossWeights, "load_state", lambda self, flat: None)),
    "the average": ("self, average", (checkpoint, "load", _without_kept)),
    "the snapshot": ("self, snapshot", (checkpoint, "load", _without_kept)),
    "who leads": ("online, leader", (checkpoint, "load", _without_kept)),
}


@pytest.mark.parametrize("what", list(FORGOTTEN))
def test_what_a_checkpoint_forgot_would_be_seen(what, tmp_path, monkeypatch):
    """The law's test fails for a checkpoint that leaves something out."""
    name, patch = FORGOTTEN[what]
    once = whole(name, tmp_path / "once", "f32", STEPS)
    monkeypatch.setattr(*patch)
    again = stopped_and_gone_on(name, tmp_path / "again", "f32", STEPS, 5)
    if what == "who leads":
        assert lines(tmp_path / "once")[3]["leader"] != 0  # else nothing depends on it
    assert not all(equal(weights(a), weights(b)) for a, b in zip(once, again, strict=True))


# Who teaches whom ---------------------------------------------------------------------------------------------------


class Mean:
    """The mean of models' probabilities, from whole logits."""

    def __init__(self, models):
        self.models = models

    @torch.no_grad()
    def __call__(self, batch: Batch, need: Need) -> Signals:
        p = sum(torch.softmax(m(batch.ids).logits[:, :-1], dim=-1) for m in self.models) / len(self.models)
        return Signals(Said(p.reshape(-1, p.shape[-1]).log()))


class Said:
    def __init__(self, logits: torch.Tensor):
        self.logits = logits

    def rows(self, part: slice, targets: torch.Tensor) -> torch.Tensor:
        return self.logits[part]


def peers(count: int, **how) -> list[Step]:
    return [tiny.step_of(student(), [TEXT, {**KL, "weight": 4.0}], **how) for _ in range(count)]


@pytest.mark.parametrize(
    ("count", "learn_from"), [(2, "mean"), (3, "mean"), (2, "ensemble"), (3, "ensemble"), (3, "leader")]
)
def test_peers_teach_each_other_as_written_out(count, learn_from, tmp_path, monkeypatch):
    """Against a loop of plain steps. Peers start equal and read different rows."""
    monkeypatch.setattr(online, "MEMORY", 0.3)  # so that leaders change in a few steps
    steps, where = peers(count), loop(tmp_path)
    run("online", steps, None, where, on_line(peers=count, learn_from=learn_from))
    found, running, leaders = peers(count), [0.0] * count, []
    for index in range(STEPS):
        texts = []
        for me, step in enumerate(found):
            others = [s.model for s in found if s is not step]
            best = min(range(count), key=lambda i: running[i])
            guides = {"mean": others, "ensemble": [s.model for s in found], "leader": [found[best].model]}[learn_from]
            if learn_from == "leader" and best == me:
                guides = others
            batch = where.batch((index + me * (STEPS // count)) % STEPS)
            log = step(batch, Mean(guides), lr=2e-3 * min(1.0, (STEPS - index) / 4), grid=False, index=index)
            text = log.terms["cross_entropy"]
            running[me] = text if index == 0 else 0.3 * running[me] + 0.7 * text
            texts.append(log.loss)
        leaders.append(min(range(count), key=lambda i: running[i]))
        assert lines(tmp_path)[index]["peer_losses"] == pytest.approx(texts, rel=1e-4)
    for ours, theirs in zip(steps, found, strict=True):
        for a, b in zip(ours.masters.items, theirs.masters.items, strict=True):
            torch.testing.assert_close(a.value, b.value, rtol=1e-3, atol=2e-5)
    if learn_from == "leader":
        assert [line["leader"] for line in lines(tmp_path)] == leaders and len(set(leaders)) > 1
    assert not equal(weights(steps[0]), weights(steps[1]))


def test_the_leader_is_the_peer_that_reads_the_text_best(tmp_path, monkeypatch):
    """Not the one that is nearest to its teacher: the terms of the text decide, where there are any."""
    monkeypatch.setattr(online, "MEMORY", 0.3)
    seen: list[list[dict[str, float]]] = [[], []]
    called = Step.__call__

    def heard(self, *args, **how):
        log = called(self, *args, **how)
        seen[steps.index(self)].append(log.terms)
        return log

    monkeypatch.setattr(Step, "__call__", heard)
    terms = [{**TEXT, "weight": 0.01}, {**KL, "weight": 100.0}]
    steps = [tiny.step_of(student(), terms) for _ in range(2)]
    run("online", steps, None, loop(tmp_path), on_line(learn_from="leader"))
    running, wrong = [0.0, 0.0], [0.0, 0.0]
    by_text, by_all = [], []
    for index in range(STEPS):
        for me in range(2):
            text = seen[me][index]["cross_entropy"]
            total = 0.01 * text + 100 * seen[me][index]["forward_kl"]
            running[me] = text if index == 0 else 0.3 * running[me] + 0.7 * text
            wrong[me] = total if index == 0 else 0.3 * wrong[me] + 0.7 * total
        by_text.append(running.index(min(running)))
        by_all.append(wrong.index(min(wrong)))
    assert [line["leader"] for line in lines(tmp_path)] == by_text != by_all


def test_an_outer_teacher_joins_the_mean(tmp_path):
    (first, second), guide = peers(2), teacher()
    run("online", [first, second], guide, loop(tmp_path, 1), on_line(outer_share=0.6))
    batch, start = loop(tmp_path / "x", 1).batch(0), student()
    p = [torch.softmax(m(batch.ids).logits[:, :-1], dim=-1).detach() for m in (start, guide.model)]
    mean, log_s = 0.4 * p[0] + 0.6 * p[1], p[0].log()
    kl = ((mean * (mean.log() - log_s)).sum(-1) * batch.mask[:, 1:]).sum() / batch.mask[:, 1:].sum()
    assert lines(tmp_path)[0]["terms"]["forward_kl"] == pytest.approx(float(kl), rel=1e-4) and kl > 0.1


def test_an_outer_teacher_without_a_share_is_not_called(tmp_path):
    def never(batch, need):
        raise AssertionError("called")

    run("online", peers(2), never, loop(tmp_path, 2), on_line())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_average_of_its_weights_teaches(dtype, tmp_path):
    """Kept in float32: what one update adds is far below the step of bfloat16. It teaches as it was before the
    update."""
    step = tiny.step_of(student().to(dtype), [TEXT, KL])
    average = {m.name: m.weight.detach().double() for m in step.masters.items}
    part = SelfScheme(kind="self", decay=0.98)
    seen = watched([step], tmp_path, "self", None, part)
    for after in seen[1:]:
        for name in average:
            average[name] = 0.98 * average[name] + 0.02 * after[f"module {name}"].double()
    kept = load_file(tmp_path / checkpoint.NAME)
    for name, value in average.items():
        torch.testing.assert_close(kept[f"kept|{name}"].double(), value, rtol=0, atol=1e-6)
    told = lines(tmp_path)
    kl = [line["terms"]["forward_kl"] for line in told]
    assert kl[0] < 1e-5 < 1e-4 < kl[3]


def test_a_snapshot_teaches_until_the_next(tmp_path):
    step = tiny.step_of(student(), [TEXT, KL])
    seen = watched([step], tmp_path, "self", None, SelfScheme(kind="self", teacher="snapshot", every=3))
    kept = load_file(tmp_path / checkpoint.NAME)
    for master in step.masters.items:
        assert torch.equal(kept[f"kept|{master.name}"], seen[6][f"module {master.name}"])
        assert master.value.dim() == 1 or not torch.equal(kept[f"kept|{master.name}"], master.weight)
    kl = [line["terms"]["forward_kl"] for line in lines(tmp_path)]
    assert max(kl[0], kl[3], kl[6]) < 1e-5 < 1e-4 < min(kl[1], kl[2], kl[4], kl[5], kl[7])


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("terms", [[TEXT, {**KL, "weight": 0.5}], [TEXT]])
def test_the_last_layer_teaches_the_exits(terms, outer, tmp_path):
    """Every exit has the objective with the last layer as its teacher; an outer teacher, where there is one, teaches
    the last layer."""
    model, guide, data = student(), teacher() if outer else None, loop(tmp_path, 1).batch(0)
    step, oracle = tiny.step_of(model, terms, exits=(1, 2), micro_rows=2), copy.deepcopy(model)
    total, grads, _ = tiny.gradients(step, data, guide)
    out = oracle.model(data.ids, output_hidden_states=True, use_cache=False)
    last = oracle.lm_head(out.last_hidden_state)[:, :-1]
    early = [oracle.lm_head(oracle.model.norm(out.hidden_states[i]))[:, :-1] for i in (1, 2)]
    given = (guide.model(data.ids).logits[:, :-1] if guide else last).detach()
    mask, targets = data.mask[:, 1:], data.ids[:, 1:]

    def objective(logits, taught):
        log_s, t = torch.log_softmax(logits, -1), torch.softmax(taught, -1)
        text = -log_s.gather(2, targets[:, :, None])[:, :, 0]
        kl = (t * (t.log() - log_s)).sum(-1) if len(terms) > 1 else torch.zeros(())
        return ((text + 0.5 * kl) * mask).sum() / mask.sum()

    wanted = objective(last, given) + sum(objective(e, last.detach()) for e in early) / 2
    wanted.backward()
    assert total == pytest.approx(float(wanted.detach()), rel=1e-5)
    for name, parameter in oracle.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=2e-4, atol=1e-6)


def test_anchors_teach_one_after_another_and_the_recipes_teacher_last(tmp_path):
    """Equal shares; each is loaded when its turn comes and let go before the next is loaded."""
    loaded, alive = [], []

    def load(spec: str) -> LiveTeacher:
        gc.collect()
        assert not any(ref() for ref in alive), "the last one is still held"
        made = anchors(spec)
        loaded.append(spec)
        alive.append(weakref.ref(made.model))
        return made

    step = tiny.step_of(student(), [KL], micro_rows=4)
    where, seen = loop(tmp_path, load=load), []
    seen = watched([step], tmp_path, "route", teacher(), ROUTE, load=load)
    assert loaded == ["first", "second"]
    told = lines(tmp_path)
    assert [line["anchor"] for line in told] == [0, 0, 0, 1, 1, 1, 2, 2]
    model = student()
    for index, line in enumerate(told):  # as far from the student as the one that teaches
        guide = [anchors("first"), anchors("second"), teacher()][line["anchor"]]
        for name, parameter in model.named_parameters():
            parameter.data.copy_(seen[index][f"module {name}"])
        batch = where.batch(index)
        far = row_distance(model, guide.model, batch)
        counts = batch.mask[:, 1:].sum(1)
        assert line["loss"] == pytest.approx(float((far * counts).sum() / counts.sum()), rel=1e-3), index


def test_a_route_that_goes_on_loads_the_anchor_of_its_place(tmp_path):
    loaded: list[str] = []
    kind, steps, guide, part, _ = make("route", tmp_path, "f32")

    def stop() -> None:
        raise Stopped

    def load(spec: str) -> LiveTeacher:
        loaded.append(spec)
        return anchors(spec)

    with pytest.raises(Stopped):
        run(kind, steps, guide, loop(tmp_path, load=load, keep={4: stop}), part)
    _, steps, guide, part, _ = make("route", tmp_path, "f32")
    run(kind, steps, guide, loop(tmp_path, load=load), part)
    assert loaded == ["first", "second", "second"]


@pytest.mark.parametrize("tied", [True, False])
def test_block_by_block_only_the_block_moves_and_then_all(tied, tmp_path):
    def trained(folder: Path) -> list[set[str]]:
        model = student(tied=tied)
        terms = blockwise.terms(BLOCKWISE, 3, 4)
        assert [t[0]["layers"] for t in terms] == [[[1, 1]], [[2, 3]], [[3, 4]]]
        step = tiny.step_of(model, [KL], [teacher().model], stages=terms)
        seen = watched([step], folder, "blockwise", teacher(), BLOCKWISE)
        return [{n for n in a if not torch.equal(a[n], b[n])} for a, b in pairwise(seen)]

    moved = trained(tmp_path / "right")
    told = lines(tmp_path / "right")
    assert [line["block"] for line in told] == [0, 0, 1, 1, 2, 2, None, None]
    assert [set(line["terms"]) for line in told] == [{"hidden"}] * 6 + [{"forward_kl"}] * 2
    every = {name for name, _ in student(tied=tied).named_parameters()}
    for index, names in enumerate(moved):
        block = told[index]["block"]
        wanted = {n for n in every if n.startswith(f"model.layers.{block}.")} if block is not None else every
        wanted |= {"model.embed_tokens.weight"} if block == 0 else set()
        assert {n.removeprefix("master ") for n in names if n.startswith("master")} == wanted, index
        own = {n.split("|")[0] for n in names if n.startswith("own")}
        assert own == ({f"own {block + 1}"} if block is not None else set()), index


def test_without_holding_the_others_still_earlier_blocks_would_move(tmp_path, monkeypatch):
    monkeypatch.setattr(Step, "_hold", lambda self, only: None)
    step = tiny.step_of(student(), [KL], [teacher().model], stages=blockwise.terms(BLOCKWISE, 3, 4))
    seen = watched([step], tmp_path, "blockwise", teacher(), BLOCKWISE)
    name = "master model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(seen[4][name], seen[5][name])


@pytest.mark.parametrize(("layers", "blocks"), [(3, 2), (3, 3), (5, 2), (24, 7), (30, 4), (6, 5)])
def test_blocks_share_all_layers_out(layers, blocks):
    ends = blockwise.ends(layers, blocks)
    sizes = [b - a for a, b in zip([0, *ends], ends, strict=False)]
    assert ends[-1] == layers and min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


def test_a_residual_student_adds_its_logits_to_the_earlier_ones(tmp_path):
    """Value and gradients against whole logits; the earlier student is read at its output alone, whatever layers the
    objective asks the teacher for."""
    model, guide, data = student(), teacher(), loop(tmp_path, 1).batch(0)
    base, oracle = tiny.llama(layers=2, seed=5), copy.deepcopy(model)
    asked = []

    def earlier(batch: Batch, need: Need) -> Signals:
        asked.append(need)
        return LiveTeacher(base)(batch, need)

    terms = [{**KL, "temperature": 2.0}, {"loss": "hidden", "layers": [[3, 4]], "weight": 0.1}]
    step = tiny.step_of(model, terms, [guide.model], base=earlier, micro_rows=3)
    total, grads, _ = tiny.gradients(step, data, guide)
    assert len(asked) == 2 and all(need.output and not need.layers for need in asked)
    ours = oracle(data.ids).logits + base(data.ids).logits.detach()
    log_s, t = torch.log_softmax(ours[:, :-1] / 2, -1), torch.softmax(guide.model(data.ids).logits[:, :-1] / 2, -1)
    mask = data.mask[:, 1:]
    kl = 4 * ((t * (t.log() - log_s)).sum(-1) * mask).sum() / mask.sum()
    states = []
    for part in (oracle, guide.model):
        hook = part.model.norm.register_forward_pre_hook(lambda module, given: states.append(given[0]))
        part(data.ids)
        hook.remove()
    project = step.own.named["0|hidden|0|project"].detach()
    gap = (states[0] @ project - states[1].detach()).square().mean(-1)
    wanted = kl + 0.1 * (gap * data.mask).sum() / data.mask.sum()
    wanted.backward()
    assert total == pytest.approx(float(wanted.detach()), rel=1e-4)
    for name, parameter in oracle.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=5e-4, atol=2e-6)


# What the student writes --------------------------------------------------------------------------------------------


def test_a_share_of_nothing_is_the_offline_scheme(tmp_path):
    found = []
    for name, more in (("plain", {}), ("none", {"on_policy": policy(share=0.0)})):
        step = tiny.step_of(student(), [KL])
        run("offline", [step], teacher(), loop(tmp_path / name, **more), OfflineScheme())
        found.append(weights(step))
    assert equal(*found)
    assert all(line["written"] == 0 for line in lines(tmp_path / "none"))
    assert "written" not in lines(tmp_path / "plain")[0]


def test_a_share_of_everything_writes_every_batch(tmp_path):
    step = tiny.step_of(student(), [KL])
    run("offline", [step], teacher(), loop(tmp_path, on_policy=policy(share=1.0)), OfflineScheme())
    told = lines(tmp_path)
    assert all(0 < line["written"] <= ROWS * (T - 5) and line["written_tokens_per_s"] > 0 for line in told)
    half = policy(share=0.5, writer=lambda model, prompts, length, seed: prompts)
    chosen = []
    for index in range(200):
        _, notes = half(index, loop(tmp_path, 1).batch(0), step.model)
        chosen.append("written_tokens_per_s" in notes)
    assert 75 < sum(chosen) < 125


def test_what_a_student_wrote_is_graded_and_no_truth(tmp_path):
    """Terms on the text alone are left out of batches that were written, and come back with those that are read."""
    told = []
    for kind, guide, part, count in (("offline", teacher(), OfflineScheme(), 1), ("online", None, on_line(), 2)):
        run(kind, peers(count), guide, loop(tmp_path / kind, on_policy=policy()), part)
        told = lines(tmp_path / kind)
        written = [line["step"] for line in told if "cross_entropy" not in line["terms"]]
        wanted = [i + 1 for i in range(STEPS) if np.random.default_rng((3, i)).random() < 0.5]
        assert written == wanted == [line["step"] for line in told if line["written"]]
        assert 0 < len(wanted) < STEPS
        assert all("forward_kl" in line["terms"] for line in told)


def test_only_what_was_written_counts():
    texts = [[9, 8, 7, 6, 5, 11, 12, 2], [9, 8, 7, 6, 5, *range(20, 31)]]
    calls = []

    def writer(model, prompts, length, seed):
        calls.append((model, prompts, length, seed))
        return texts

    ids = torch.arange(2 * T).reshape(2, T)
    made = policy(share=1.0, writer=writer, padding=1)
    written, notes = made(4, Batch(ids, torch.ones(2, T), torch.arange(2)), "the student")
    assert written.ids.tolist() == [[*texts[0], *[1] * 8], texts[1]] and written.rows is None
    assert written.mask.tolist() == [[0.0] * 5 + [1.0] * 3 + [0.0] * 8, [0.0] * 5 + [1.0] * 11]
    ((model, prompts, length, _),) = calls
    assert (model, prompts, length) == ("the student", ids[:, :5].tolist(), T)
    assert notes["written"] == 14


def test_what_is_written_depends_on_seed_step_and_weights_alone(tmp_path):
    batch, model = loop(tmp_path, 1).batch(0), student()
    one, other = policy(share=1.0), policy(share=1.0)
    (first, _), (second, _) = one(0, batch, model), one(1, batch, model)
    assert torch.equal(other(1, batch, model)[0].ids, second.ids)
    assert torch.equal(other(0, batch, model)[0].ids, first.ids)
    assert not torch.equal(first.ids, second.ids)
    assert not torch.equal(policy(share=1.0, seed=4)(0, batch, model)[0].ids, first.ids)


def sampling(**how) -> WriteSettings:
    return WriteSettings(
        **{"rows": 0, "max_new": 0, "batch": 0, "temperature": 0, "top_k": 0, "top_p": 1.0, "seed": 0, **how}
    )


def test_two_authors_write_each_token_together():
    """Greedy, against a loop without caches or batches; rows that end leave the batch."""
    ours, theirs = student(), tiny.llama(layers=4, seed=1)
    prompts = [[5, 6, 7, 8], [9, 10], [250, 3, 4]]
    for share in (0.0, 0.5, 1.0):
        wanted = []
        for prompt in prompts:
            text = list(prompt)
            while len(text) < len(prompt) + 6 and (len(text) == len(prompt) or text[-1] not in STOP):
                p = [torch.softmax(m(torch.tensor([text])).logits[0, -1], -1) for m in (ours, theirs)]
                text.append(int(((1 - share) * p[0] + share * p[1]).argmax()))
            wanted.append(text)
        here = replace(sampling(), max_new=6)
        assert write_batch([ours, theirs], mixed(share), prompts, here, STOP, torch.Generator()) == wanted
        lengths = {len(w) - len(p) for w, p in zip(wanted, prompts, strict=True)}
        alone = {0.0: ours, 1.0: theirs}.get(share)
        if alone is not None:
            assert write_batch([alone], None, prompts, here, STOP, torch.Generator()) == wanted
    assert lengths


STOP = set(range(0, 288, 9))


def test_a_mix_of_authors_is_a_distribution():
    logits = [torch.randn(3, 20, generator=torch.Generator().manual_seed(i)) * 4 for i in (1, 2)]
    for share in (0.0, 0.3, 1.0):
        wanted = (1 - share) * torch.softmax(logits[0], -1) + share * torch.softmax(logits[1], -1)
        torch.testing.assert_close(torch.softmax(mixed(share)(logits), -1), wanted, rtol=1e-4, atol=1e-6)


def test_an_adversary_writes_what_the_teacher_likes_and_the_student_does_not():
    student, guide = (torch.randn(3, 20, generator=torch.Generator().manual_seed(i)) * 2 for i in (1, 2))
    p, q = torch.softmax(guide, -1), torch.softmax(student, -1)
    likely = p >= 0.1 * p.max(-1, keepdim=True).values
    wanted = torch.where(likely, p * (p / q) ** 0.5, 0.0)
    found = torch.softmax(contrasted(0.5)([student, guide]), -1)
    torch.testing.assert_close(found, wanted / wanted.sum(-1, keepdim=True), rtol=1e-4, atol=1e-6)
    assert 0 < likely.sum() < likely.numel()


@pytest.mark.parametrize("training", [True, False])
def test_a_writer_leaves_the_student_as_it_was(training):
    model = student().train(training)
    before = copy.deepcopy(model.state_dict())
    own_writer(sampling(), {2})(model, [[5, 6]], 6, 0)
    assert model.training == training
    with pytest.raises(IndexError):
        own_writer(sampling(), {2})(model, [[5, 999]], 6, 0)
    assert model.training == training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_of_several_texts_the_one_counts_on_which_the_two_differ_most(tmp_path):
    model, guide, batch = student(), teacher().model, loop(tmp_path, 1).batch(0)
    texts = {}

    def writer(model, prompts, length, seed):
        generator = torch.Generator().manual_seed(5)
        texts["all"] = [[*p, *torch.randint(3, 288, (length - 5,), generator=generator).tolist()] for p in prompts]
        return texts["all"]

    far = lambda student, written: row_distance(student, guide, written)  # noqa: E731
    written, _ = policy(share=1.0, candidates=3, writer=writer, distance=far)(0, batch, model)
    ids = torch.tensor(texts["all"])
    log_s, log_t = (torch.log_softmax(m(ids).logits[:, :-1], -1) for m in (model, guide))
    kl = (log_t.exp() * (log_t - log_s)).sum(-1)[:, 4:].mean(1).reshape(3, ROWS)
    best = kl.argmax(0)
    assert written.ids.tolist() == [texts["all"][int(best[row]) * ROWS + row] for row in range(ROWS)]
    assert len(set(best.tolist())) > 1 and written.mask.shape == (ROWS, T)


def test_distance_of_rows_whatever_their_length_or_padding(tmp_path):
    model, guide = student(), teacher().model
    batch = loop(tmp_path, 1).batch(0)
    mask = batch.mask.clone()
    mask[0, 4:], mask[1] = 0, 0
    found = row_distance(model, guide, Batch(batch.ids, mask))
    log_s, log_t = (torch.log_softmax(m(batch.ids).logits[:, :-1], -1).detach() for m in (model, guide))
    kl = (log_t.exp() * (log_t - log_s)).sum(-1)
    wanted = [kl[0, :3].mean(), torch.zeros(()), kl[2].mean(), kl[3].mean()]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-4, atol=1e-5)
    wider = tiny.llama(layers=4, seed=1)
    wider.resize_token_embeddings(320)  # padded to another size: what both have is compared
    assert row_distance(model, wider, batch).shape == (ROWS,)


# Memory -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["offline, far texts", "online, leader", "self, average", "blockwise", "residual"])
def test_turns_hold_on_to_nothing(name, tmp_path):
    """As many tensors live after the last update as after the one before."""
    kind, steps, guide, part, more = make(name, tmp_path, "f32")
    if "on_policy" in more:
        more["on_policy"] = replace(more["on_policy"], share=1.0)
    alive = []

    def count() -> None:
        gc.collect()
        alive.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))

    keep = dict.fromkeys((7, 8), count)
    run(kind, steps, guide, loop(tmp_path, keep=keep, **more), part)
    assert alive[0] == alive[1]
