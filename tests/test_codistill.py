"""Codistillation: what copies learn from each other, when, and what a broken, late or strange peer does to others."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import tiny
import torch
from places import File, bucket, place
from test_scheme_kinds import KL, ROWS, STEPS, TEXT, Mean, Stopped, equal, lines, loop, rows, student, teacher, weights

from edgeslm.data.order import first_by_id, order, shard
from edgeslm.errors import DataError
from edgeslm.recipe.distill import CodistillScheme
from edgeslm.schemes import SCHEMES, codistill, exchange
from edgeslm.schemes.exchange import Exchange, Mark, Unusable
from edgeslm.schemes.exchange_places import Bucket, Folder, Place

GROUPS = 2


def part(**how) -> CodistillScheme:
    plain = {"groups": GROUPS, "exchange_every": 2, "burn_in": 0.25, "ramp": 0.25, "weight": 0.5}
    return CodistillScheme(kind="codistill", **{**plain, **how})


@pytest.fixture(params=["folder", "memory"])
def where(request, tmp_path, monkeypatch):
    """Makes places where groups meet: folders, or buckets."""
    monkeypatch.setattr(Bucket, "rest_s", 0.01)
    kind = request.param
    return lambda name: Folder(tmp_path / name) if kind == "folder" else bucket(kind, tmp_path / name)


def everyones(how: CodistillScheme) -> list[int]:
    return first_by_id(rows(), how.share.rows) if how.share.kind == "predictions" else []


def own_rows(group: int, groups: int = GROUPS, shared=()):
    return order(shard(rows(), group, groups, shared), [1.0], STEPS * ROWS, 0)


DICE = threading.Lock()  # torch's generator is one for all threads


def step(group: int):
    """Copies begin differently here, so that whose weights are whose can be seen."""
    with DICE:
        return tiny.step_of(student(seed=2 + group), [TEXT])


def train(here: tuple[int, ...], folder: Path, shared: Path | Place, how: CodistillScheme, steps=None, **more):
    steps = steps or [step(g) for g in here]
    all_read = everyones(how)
    orders = [own_rows(g, how.groups, all_read) for g in here]
    met = Exchange(place(shared), "one recipe", here, orders, all_read, more.pop("servers", ()))
    SCHEMES["codistill"](steps, more.pop("teacher", None), loop(folder, exchange=met, **more), how)
    return steps


def taken(folder: Path) -> list[tuple[int, int, int, int | None]]:
    found = [json.loads(line) for line in (folder / "exchange.jsonl").read_text().splitlines()]
    return [(x["step"], x["group"], x["peer"], x["peer_step"]) for x in found]


def strip(log: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_s")} for line in log]


# What is learned from whom ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", ["kl", "cross_entropy"])
def test_copies_learn_from_stale_predictions_as_written_out(term, tmp_path):
    """Against plain steps on an objective whose teacher is the mean of copies made by hand."""
    ours = train((0, 1, 2), tmp_path, tmp_path / "x", part(groups=3, term=term))
    found, stale = [step(g) for g in range(3)], {}
    objectives = {}
    for index in range(STEPS):
        if index >= 2 and index % 2 == 0:
            stale = {g: s.masters.state() for g, s in enumerate(found)}
            stale = {g: {k: v.clone() for k, v in state.items()} for g, state in stale.items()}
        for g, each in enumerate(found):
            peers = []
            for other, state in stale.items():
                model = student(seed=9)
                for name, value in model.named_parameters():
                    value.data.copy_(state[f"master|{name}"])
                peers += [model] if other != g else []
            weight = {2: 0.25, 3: 0.5}.get(index, 0.5 if index > 3 else 0.0)
            terms = [TEXT, {**KL, "weight": weight}] if peers else [TEXT]
            objectives = tiny.step_of(student(), terms).objective
            batch = loop(tmp_path / "y", order=own_rows(g, 3)).batch(index)
            lr = 2e-3 * min(1.0, (STEPS - index) / 4)
            log = each(batch, Mean(peers), lr=lr, grid=False, index=index, objective=objectives)
            if g == 0 and term == "kl":
                assert lines(tmp_path)[index]["loss"] == pytest.approx(log.loss, rel=1e-4)
    for mine, theirs in zip(ours, found, strict=True):
        for a, b in zip(mine.masters.items, theirs.masters.items, strict=True):
            torch.testing.assert_close(a.value, b.value, rtol=1e-3, atol=2e-5)
    assert not equal(weights(ours[0]), weights(ours[1]))


def test_a_copy_learns_alone_until_its_burn_in_ends(tmp_path):
    alone, seen = [step(0)], []
    order_of_rows = own_rows(0)
    keep = {3: lambda: seen.append(weights(alone[0]))}
    SCHEMES["offline"](alone, None, loop(tmp_path / "alone", order=order_of_rows, keep=keep), None)
    steps = [step(0), step(1)]
    train(
        (0, 1), tmp_path / "both", tmp_path / "x", part(burn_in=0.375), steps,
        keep={3: lambda: seen.append(weights(steps[0]))},
    )  # fmt: skip
    assert equal(*seen) and not equal(weights(alone[0]), weights(steps[0]))
    log = lines(tmp_path / "both")
    assert [line["peer_weight"] for line in log] == [0, 0, 0, 0.25, 0.5, 0.5, 0.5, 0.5]
    assert [[(u["group"], u["peer"], u["step"], u["age"]) for u in line["used"]] for line in log[2:6]] == [
        [], [(0, 1, 2, 1), (1, 0, 2, 1)], [(0, 1, 4, 0), (1, 0, 4, 0)], [(0, 1, 4, 1), (1, 0, 4, 1)],
    ]  # fmt: skip
    assert "forward_kl" not in log[2]["terms"] and log[3]["terms"]["forward_kl"] > 0.01


def test_the_recipes_teacher_stands_beside_the_peers(tmp_path):
    steps = [tiny.step_of(student(seed=2 + g), [KL], [tiny.llama(layers=4, seed=1)]) for g in (0, 1)]
    train((0, 1), tmp_path, tmp_path / "x", part(), steps, teacher=teacher())
    log = lines(tmp_path)
    assert set(log[0]["terms"]) == {"forward_kl"} and set(log[3]["terms"]) == {"forward_kl", "forward_kl.2"}
    assert log[3]["loss"] == pytest.approx(
        log[3]["terms"]["forward_kl"] + 0.5 * log[3]["terms"]["forward_kl.2"], rel=1e-5
    )


def test_a_few_peers_are_the_next_round_the_ring(tmp_path):
    train((0, 1, 2), tmp_path, tmp_path / "x", part(groups=3, learn_from=1))
    assert {(group, peer) for _, group, peer, _ in taken(tmp_path)} == {(0, 1), (1, 2), (2, 0)}


@pytest.mark.parametrize(("lag", "wanted"), [(0, [2, 4, 6]), (2, [None, 2, 4]), (4, [None, None, 2])])
def test_scheduled_takes_the_checkpoint_of_a_lag_ago(lag, wanted, tmp_path):
    train((0, 1), tmp_path, tmp_path / "x", part(exchange="scheduled", lag=lag))
    assert [step for at, group, _, step in taken(tmp_path) if group == 0 and at < STEPS] == wanted
    ages = [u["age"] for line in lines(tmp_path) for u in line["used"] if u["group"] == 0]
    assert ages and min(ages) == lag and max(ages) == lag + 1


def test_a_peer_that_fell_far_behind_does_not_teach(tmp_path):
    shared = tmp_path / "x"
    written(shared, 1, 2)
    train((0,), tmp_path / "run", shared, part(max_age=3))
    assert [len(line["used"]) for line in lines(tmp_path / "run")] == [0, 0, 1, 1, 1, 1, 0, 0]


def test_the_average_of_all_ships(tmp_path):
    one, other = train((0, 1), tmp_path, tmp_path / "x", part(after="average"))
    _, theirs = exchange.read(Folder(tmp_path / "x").path(0, STEPS))
    mean = {m.name: (m.value + theirs[m.name]) / 2 for m in other.masters.items}
    assert all(torch.allclose(m.weight, mean[m.name], atol=1e-7) for m in one.masters.items)
    assert not all(torch.equal(m.weight, theirs[m.name]) for m in one.masters.items)


# Processes of their own: killed, late, strange ----------------------------------------------------------------------


def apart(
    tmp_path: Path, how: CodistillScheme, name: str, stop_first_at: int | None = None, shared: Place | None = None
):
    """Each group alone with the shared place, at the same time; the first is stopped once and started anew."""
    found: dict[int, object] = {}

    def one(group: int) -> None:
        folder, meet = tmp_path / f"{name}-{group}", shared or tmp_path / name

        def stop() -> None:
            raise Stopped

        if group == 0 and stop_first_at is not None:
            with pytest.raises(Stopped):
                train((group,), folder, meet, how, keep={stop_first_at: stop})
        found[group] = train((group,), folder, meet, how)[0]

    threads = [threading.Thread(target=one, args=(g,)) for g in range(GROUPS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return found


@pytest.mark.parametrize(("stop_at", "kind"), [(None, "folder"), (1, "folder"), (5, "folder"), (5, "whole")])
def test_groups_apart_are_as_groups_in_turn_and_as_never_stopped(stop_at, kind, tmp_path, monkeypatch):
    """Bitwise, when the exchange is scheduled; a stop before and after the first checkpoint."""
    monkeypatch.setattr(codistill, "POLL_S", 0.01)
    monkeypatch.setattr(Bucket, "rest_s", 0.01)
    how = part(exchange="scheduled", lag=2)
    together = train((0, 1), tmp_path / "turn", tmp_path / "turn-x", how)
    shared = None if kind == "folder" else bucket(kind, tmp_path / "apart")
    found = apart(tmp_path, how, "apart", stop_at, shared)
    for group in range(GROUPS):
        assert equal(weights(found[group]), weights(together[group]))
    assert taken(tmp_path / "apart-0") == [line for line in taken(tmp_path / "turn") if line[1] == 0]


def written(shared: Path | Place, group: int, at: int, recipe: str = "one recipe", seed: int = 7) -> File:
    tensors = {n: v.detach() for n, v in student(seed=seed).named_parameters()}
    exchange.publish(place(shared), Mark(group, at, at * ROWS, recipe, ""), tensors, keep=9)
    return File(place(shared), group, at)


def test_a_resumed_run_takes_what_it_took_before(where, tmp_path):
    """Its peer writes on while it is away, and removes what was taken: newest would be another."""

    def go(name: str, stop: bool):
        folder, shared = tmp_path / name, where(f"{name}-x")
        written(shared, 1, 2)

        def later() -> None:
            if stop:
                exchange.start_anew(shared, 1)
                written(shared, 1, 90, seed=8)
                raise Stopped

        keep = {5: lambda: written(shared, 1, 4, seed=9), 7: later}
        if stop:
            with pytest.raises(Stopped):
                train((0,), folder, shared, part(), keep=keep)
            return train((0,), folder, shared, part())
        return train((0,), folder, shared, part(), keep=keep)

    once, again = go("once", False), go("again", True)
    assert equal(weights(once[0]), weights(again[0]))
    assert strip(lines(tmp_path / "once")) == strip(lines(tmp_path / "again"))
    assert [t[3] for t in taken(tmp_path / "again")] == [2, 2, 4]


def test_copies_of_files_that_lost_bytes_are_taken_anew(tmp_path):
    """As after a loss of power: the line is there, its file is not whole. What can be had now is used instead."""
    folder, shared = tmp_path / "run", tmp_path / "x"
    written(shared, 1, 2)

    def stop() -> None:
        for copy in folder.glob("checkpoint.safetensors.of-1-*"):
            half(copy)
        written(shared, 1, 3, seed=8)
        raise Stopped

    with pytest.raises(Stopped):
        train((0,), folder, shared, part(), keep={5: stop})
    train((0,), folder, shared, part())
    log = lines(folder)
    assert [line["step"] for line in log] == list(range(1, STEPS + 1))
    assert [u["step"] for line in log for u in line["used"]] == [2, 3, 3, 3, 3]  # 3 updates were kept by a checkpoint


def half(file: File | Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def damaged(file: File) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


def misplaced(file: File) -> None:
    file.write_bytes(File(file.place, 1, 2).read_bytes())


def another_model(file: File) -> None:
    exchange.publish(file.place, Mark(1, 4, 0, "one recipe", ""), {"w": torch.ones(2)}, keep=9)


def diverged(file: File) -> None:
    mark, tensors = file.read()
    tensors["model.norm.weight"][0] = torch.inf
    exchange.publish(file.place, mark, tensors, keep=9)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (half, "half a file"), (damaged, "damaged"), (misplaced, "holds step 2"), (None, "of another recipe"),
        (another_model, "weights of another model"), (diverged, "not finite"),
    ],
)  # fmt: skip
def test_what_is_not_whole_or_not_ours_is_passed_over(harm, said, where, tmp_path):
    shared = where("x")
    written(shared, 1, 2)
    bad = written(shared, 1, 4, "one recipe" if harm else "another recipe")
    if harm:
        harm(bad)
    (once,) = train((0,), tmp_path / "run", shared, part())
    log = lines(tmp_path / "run")
    assert all(u["step"] == 2 for line in log for u in line["used"]) and log[7]["used"]
    assert said in log[2]["exchange_problems"][0] and not list((tmp_path / "run").glob("*.part*"))
    clean = where("clean-x")
    written(clean, 1, 2)
    assert equal(weights(once), weights(train((0,), tmp_path / "clean", clean, part())[0]))


def test_without_peers_a_copy_trains_as_if_alone(tmp_path):
    (lonely,) = train((0,), tmp_path / "run", tmp_path / "x", part())
    alone = [step(0)]
    SCHEMES["offline"](alone, None, loop(tmp_path / "alone", order=own_rows(0)), None)
    assert equal(weights(lonely), weights(alone[0]))


def test_a_folder_out_of_reach_does_not_stop_a_copy(tmp_path):
    shared = tmp_path / "x"
    shared.write_text("no folder")
    train((0,), tmp_path / "run", shared, part())
    log = lines(tmp_path / "run")
    assert "group 0 could not write step 2" in log[2]["exchange_problems"][0] and len(log) == STEPS


def test_a_copy_that_starts_anew_removes_what_it_left(where, tmp_path):
    shared = where("x")
    written(shared, 0, 500)
    train((0,), tmp_path / "run", shared, part())
    assert shared.steps(0) == [8, 6, 4, 2]


def test_scheduled_says_who_it_waits_for(where, tmp_path, monkeypatch):
    monkeypatch.setattr(codistill, "POLL_S", 0.01)
    how, shared = part(exchange="scheduled", patience_s=0.05), where("x")
    with pytest.raises(DataError, match="group 0 waits for step 2 of group 1, which that one has not written"):
        train((0,), tmp_path / "run", shared, how)
    for at in (20, 22, 24):
        written(shared, 1, at)
    with pytest.raises(DataError, match="which that one has removed"):
        train((0,), tmp_path / "run", shared, how)


def test_scheduled_waits_for_the_rest_of_a_file_that_is_seen_too_early(where, tmp_path, monkeypatch):
    shared = where("x")
    how, path = part(exchange="scheduled", patience_s=60), written(shared, 1, 2)
    bytes_of, naps = path.read_bytes(), []
    for at in (4, 6, 8):
        written(shared, 1, at)
    path.write_bytes(bytes_of[: len(bytes_of) // 2])

    def nap(seconds: float) -> None:
        naps.append(seconds)
        path.write_bytes(bytes_of)

    monkeypatch.setattr(codistill.time, "sleep", nap)
    train((0,), tmp_path / "run", shared, how)
    assert len(naps) == 1 and [line[3] for line in taken(tmp_path / "run")] == [2, 4, 6]
    monkeypatch.undo()
    damaged(path)
    with pytest.raises(DataError, match=r"group 1, step 2: is damaged.*start all groups anew"):
        train((0,), tmp_path / "again", shared, part(exchange="scheduled", patience_s=0.01))


def test_what_a_killed_writer_began_goes_with_the_next_file(tmp_path):
    begun = Folder(tmp_path).path(0, 1).with_name("step-00000001.safetensors.part-1")
    begun.parent.mkdir(parents=True)
    begun.touch()
    exchange.publish(Folder(tmp_path), Mark(0, 2, 8, "r", ""), {"a": torch.ones(2)}, keep=2)
    assert [p.name for p in begun.parent.iterdir()] == ["step-00000002.safetensors"]


# Files and rows -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_says_what_it_is_and_old_ones_go(where, tmp_path):
    tensors = {"b": torch.arange(6.0).reshape(2, 3).to(torch.bfloat16), "a": torch.ones(2)}
    shared = where("x")
    for at in (1, 2, 3, 10):
        mark = exchange.publish(shared, Mark(0, at, at * 4, "r", ""), tensors, keep=2)
    assert shared.steps(0) == [10, 3] and shared.steps(1) == []
    found, back = File(shared, 0, 10).read()
    assert found == mark == Mark(0, 10, 40, "r", exchange.digest(tensors))
    assert all(torch.equal(back[n], v) and back[n].dtype == v.dtype for n, v in tensors.items())
    assert exchange.digest({**tensors, "a": torch.zeros(2)}) != mark.sha256
    with pytest.raises(FileNotFoundError):
        exchange.fetch(shared, 0, 99, "r", tmp_path / "copy")
    with pytest.raises(Unusable, match="another recipe"):
        exchange.fetch(shared, 0, 10, "s", tmp_path / "copy")
    assert not (tmp_path / "copy").exists() and not list(tmp_path.rglob("*.part*"))
    if isinstance(shared, Folder):
        (tmp_path / "plain").touch()
        assert shared.path(0, 10).stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_shards_are_a_partition_by_row_id():
    whole = rows()
    parts = [shard(whole, g, 5) for g in range(5)]
    owned = torch.stack([p.source >= 0 for p in parts]).sum(0)
    assert torch.equal(owned, torch.ones_like(owned))
    counts = [int((p.source >= 0).sum()) for p in parts]
    assert max(counts) - min(counts) <= 1
    turned = torch.arange(len(whole) - 1, -1, -1)  # the same rows, packed in another order
    again = shard(type(whole)(whole.ids[turned], whole.mask[turned], whole.source[turned], whole.sources), 0, 5)
    names = set(torch.tensor([int(n[:12], 16) for n in whole.row_ids()])[parts[0].source >= 0].tolist())
    turned_names = torch.tensor([int(n[:12], 16) for n in whole.row_ids()])[turned][again.source >= 0]
    assert names == set(turned_names.tolist())


def test_rows_that_all_read_are_in_every_part_and_the_others_in_one():
    whole = rows()
    shared = first_by_id(whole, 7)
    names = whole.row_ids()
    assert sorted(names)[:7] == [names[i] for i in shared]
    owned = torch.stack([shard(whole, g, 3, shared).source >= 0 for g in range(3)]).sum(0)
    assert owned[shared].tolist() == [3] * 7 and int(owned.sum()) == 3 * 7 + len(whole) - 7
    with pytest.raises(DataError, match="25 rows are asked for that all read, and the text has 24"):
        first_by_id(whole, 25)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"group": 2}, "none of 2 groups"), ({"learn_from": 2}, "2 peers of 1"), ({"lag": 3}, "multiple of exchange"),
        ({"lag": 2}, "with exchange: scheduled"),
        ({"folder": "s3://key:secret@bucket/x"}, "holds a password"), ({"folder": "s3:///"}, "names no bucket"),
        ({"folder": "file:///x"}, "name it without file://"), ({"folder": "simplecache::s3://b/x"}, "a chain of"),
        ({"after": "average", "share": {"kind": "predictions", "rows": 4}}, "the average is of weights"),
        ({"exchange": "scheduled", "share": {"kind": "served"}}, "answers with what is newest"),
        ({"share": {"kind": "predictions"}}, "rows"), ({"share": {"kind": "weights", "k": 4}}, "k"),
    ],
)  # fmt: skip
def test_parts_that_mean_nothing_are_refused(how, said):
    with pytest.raises(ValueError, match=said):
        part(**how)


# The report ---------------------------------------------------------------------------------------------------------


def test_the_report_charts_how_old_was_what_taught(tmp_path):
    from test_report import FOLDERS, make_run

    from edgeslm.report import render

    run = make_run(tmp_path)
    assert "learned from each other" not in render(run).html.read_text()
    written(tmp_path / "x", 1, 2)
    half(written(tmp_path / "x", 1, 4))
    train((0,), tmp_path / "train", tmp_path / "x", part())
    (run / FOLDERS["distill"] / "log.jsonl").write_bytes((tmp_path / "train" / "log.jsonl").read_bytes())
    files = render(run)
    page, text = files.html.read_text(), files.markdown.read_text()
    assert "Age of what peers taught" in page and "group 0 from group 1" in page and "5 steps old" in page
    assert "| group 0 from group 1 | 6 | 1 | 2.5 | 5 | 2 |" in text and "is half a file" in text
    assert "Peers taught in 6 of the 6 steps that follow the burn-in." in text
