"""Codistillation: what copies learn from each other, when, and what a broken, late or strange peer does to others."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import tiny
import torch
from test_scheme_kinds import KL, ROWS, STEPS, TEXT, Mean, Stopped, equal, lines, loop, rows, student, teacher, weights

from edgeslm.data.order import order, shard
from edgeslm.errors import DataError
from edgeslm.recipe_distill import CodistillScheme
from edgeslm.schemes import SCHEMES, codistill, exchange
from edgeslm.schemes.exchange import Exchange, Mark, Unusable

GROUPS = 2


def part(**how) -> CodistillScheme:
    plain = {"groups": GROUPS, "exchange_every": 2, "burn_in": 0.25, "ramp": 0.25, "weight": 0.5}
    return CodistillScheme(kind="codistill", **{**plain, **how})


def own_rows(group: int, groups: int = GROUPS):
    return order(shard(rows(), group, groups), [1.0], STEPS * ROWS, 0)


DICE = threading.Lock()  # torch's generator is one for all threads


def step(group: int):
    """Copies begin differently here, so that whose weights are whose can be seen."""
    with DICE:
        return tiny.step_of(student(seed=2 + group), [TEXT])


def train(here: tuple[int, ...], folder: Path, shared: Path, how: CodistillScheme, steps=None, **more):
    steps = steps or [step(g) for g in here]
    met = Exchange(shared, "one recipe", here, [own_rows(g, how.groups) for g in here])
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
    _, theirs = exchange.read(exchange.path_of(tmp_path / "x", 0, STEPS))
    mean = {m.name: (m.value + theirs[m.name]) / 2 for m in other.masters.items}
    assert all(torch.allclose(m.weight, mean[m.name], atol=1e-7) for m in one.masters.items)
    assert not all(torch.equal(m.weight, theirs[m.name]) for m in one.masters.items)


# Processes of their own: killed, late, strange ----------------------------------------------------------------------


def apart(tmp_path: Path, how: CodistillScheme, name: str, stop_first_at: int | None = None):
    """Each group alone with the shared folder, at the same time; the first is stopped once and started anew."""
    found: dict[int, object] = {}

    def one(group: int) -> None:
        folder, shared = tmp_path / f"{name}-{group}", tmp_path / name

        def stop() -> None:
            raise Stopped

        if group == 0 and stop_first_at is not None:
            with pytest.raises(Stopped):
                train((group,), folder, shared, how, keep={stop_first_at: stop})
        found[group] = train((group,), folder, shared, how)[0]

    threads = [threading.Thread(target=one, args=(g,)) for g in range(GROUPS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return found


@pytest.mark.parametrize("stop_at", [None, 1, 5])
def test_groups_apart_are_as_groups_in_turn_and_as_never_stopped(stop_at, tmp_path, monkeypatch):
    """Bitwise, when the exchange is scheduled; a stop before and after the first checkpoint."""
    monkeypatch.setattr(codistill, "POLL_S", 0.01)
    how = part(exchange="scheduled", lag=2)
    together = train((0, 1), tmp_path / "turn", tmp_path / "turn-x", how)
    found = apart(tmp_path, how, "apart", stop_at)
    for group in range(GROUPS):
        assert equal(weights(found[group]), weights(together[group]))
    assert taken(tmp_path / "apart-0") == [line for line in taken(tmp_path / "turn") if line[1] == 0]


def written(shared: Path, group: int, at: int, recipe: str = "one recipe", seed: int = 7) -> Path:
    tensors = {n: v.detach() for n, v in student(seed=seed).named_parameters()}
    exchange.publish(shared, Mark(group, at, at * ROWS, recipe, ""), tensors, keep=9)
    return exchange.path_of(shared, group, at)


def test_a_resumed_run_takes_what_it_took_before(tmp_path):
    """Its peer writes on while it is away, and removes what was taken: newest would be another."""

    def go(name: str, stop: bool):
        folder, shared = tmp_path / name, tmp_path / f"{name}-x"
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


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def misplaced(path: Path) -> None:
    path.write_bytes(exchange.path_of(path.parent.parent, 1, 2).read_bytes())


@pytest.mark.parametrize(
    ("harm", "said"),
    [(half, "half a file"), (damaged, "damaged"), (misplaced, "holds step 2"), (None, "of another recipe")],
)
def test_what_is_not_whole_or_not_ours_is_passed_over(harm, said, tmp_path):
    shared = tmp_path / "x"
    written(shared, 1, 2)
    bad = written(shared, 1, 4, "one recipe" if harm else "another recipe")
    if harm:
        harm(bad)
    (once,) = train((0,), tmp_path / "run", shared, part())
    log = lines(tmp_path / "run")
    assert all(u["step"] == 2 for line in log for u in line["used"]) and log[7]["used"]
    assert said in log[2]["exchange_problems"][0] and not list((tmp_path / "run").glob("*.part*"))
    clean = tmp_path / "clean-x"
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


def test_a_copy_that_starts_anew_removes_what_it_left(tmp_path):
    shared = tmp_path / "x"
    written(shared, 0, 500)
    train((0,), tmp_path / "run", shared, part())
    assert exchange.steps_of(shared, 0) == [8, 6, 4, 2]


def test_scheduled_says_who_it_waits_for(tmp_path, monkeypatch):
    monkeypatch.setattr(codistill, "POLL_S", 0.01)
    how = part(exchange="scheduled", patience_s=0.05)
    with pytest.raises(DataError, match="group 0 waits for step 2 of group 1, which that one has not written"):
        train((0,), tmp_path / "run", tmp_path / "x", how)
    for at in (20, 22, 24):
        written(tmp_path / "x", 1, at)
    with pytest.raises(DataError, match="which that one has removed"):
        train((0,), tmp_path / "run", tmp_path / "x", how)


# Files and rows -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_says_what_it_is_and_old_ones_go(tmp_path):
    tensors = {"b": torch.arange(6.0).reshape(2, 3).to(torch.bfloat16), "a": torch.ones(2)}
    for at in (1, 2, 3, 10):
        mark = exchange.publish(tmp_path, Mark(0, at, at * 4, "r", ""), tensors, keep=2)
    assert exchange.steps_of(tmp_path, 0) == [10, 3] and exchange.steps_of(tmp_path, 1) == []
    found, back = exchange.read(exchange.path_of(tmp_path, 0, 10))
    assert found == mark == Mark(0, 10, 40, "r", exchange.digest(tensors))
    assert all(torch.equal(back[n], v) and back[n].dtype == v.dtype for n, v in tensors.items())
    assert exchange.digest({**tensors, "a": torch.zeros(2)}) != mark.sha256
    with pytest.raises(FileNotFoundError):
        exchange.fetch(tmp_path, 0, 99, "r", tmp_path / "copy")
    with pytest.raises(Unusable, match="another recipe"):
        exchange.fetch(tmp_path, 0, 10, "s", tmp_path / "copy")
    assert not (tmp_path / "copy").exists() and not list(tmp_path.rglob("*.part*"))


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


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"group": 2}, "none of 2 groups"), ({"learn_from": 2}, "2 peers of 1"), ({"lag": 3}, "multiple of exchange"),
        ({"lag": 2}, "with exchange: scheduled"),
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


@pytest.mark.proof
def test_killed_and_cut_off_twenty_times_nothing_is_lost(tmp_path):
    """Two processes that see the folder through a link of their own. One or the other is killed, or its link is taken
    away for a while, at random moments; it is started again with the same command. Both end with every step in their
    log once, and with losses of undisturbed runs."""
    import os
    import random
    import subprocess
    import sys
    import time

    steps, dice = 300, random.Random(3)
    script = Path(__file__).parent / "codistill_worker.py"

    class Host:
        def __init__(self, name: str, group: int, pause_s: float):
            self.folder, self.link, self.shared = tmp_path / f"{name}-{group}", tmp_path / f"{name}-l{group}", name
            self.asked = [self.folder, self.link, group, steps, pause_s]
            self.connect(True)
            self.start()

        def connect(self, there: bool) -> None:
            target, new = tmp_path / (f"{self.shared}-shared" if there else "gone"), self.link.with_suffix(".new")
            os.symlink(target, new)
            os.replace(new, self.link)

        def start(self) -> None:
            environment = {**os.environ, "PYTHONPATH": f"{script.parent}:{script.parent.parent}"}
            self.process = subprocess.Popen([sys.executable, str(script), *map(str, self.asked)], env=environment)

        def final(self) -> float:
            log = lines(self.folder)
            assert [line["step"] for line in log] == list(range(1, steps + 1))
            return sum(line["terms"]["cross_entropy"] for line in log[-20:]) / 20

    def pair(name: str, pause_s: float) -> list[Host]:
        (tmp_path / f"{name}-shared").mkdir()
        return [Host(name, group, pause_s) for group in (0, 1)]

    quiet = pair("quiet", 0.0)
    assert [host.process.wait(400) for host in quiet] == [0, 0]
    harmed, kills, cuts = pair("harmed", 0.4), 0, 0
    while kills + cuts < 20 or any(host.process.poll() is None for host in harmed):
        time.sleep(dice.uniform(2.0, 8.0))
        host = dice.choice(harmed)
        if kills + cuts < 20 and host.process.poll() is None:
            if dice.random() < 0.6:
                kills += 1
                host.process.kill()
                host.process.wait()
            else:
                cuts += 1
                host.connect(False)
                time.sleep(dice.uniform(1.0, 5.0))
                host.connect(True)
        for each in harmed:
            if each.process.poll() not in (None, 0):
                each.start()
        assert kills + cuts == 20 or any(host.process.poll() is None for host in harmed), (kills, cuts)
    found = [[host.final() for host in hosts] for hosts in (quiet, harmed)]
    spread = abs(found[0][0] - found[0][1])
    assert kills > 5 and cuts > 2
    print(f"{kills} kills, {cuts} cuts; losses undisturbed {found[0]}, disturbed {found[1]}")
    for calm, rough in zip(*found, strict=True):
        assert abs(calm - rough) < max(spread, 0.05)
    used = [line["used"] for host in harmed for line in lines(host.folder)]
    assert sum(map(bool, used)) > steps and max(u[0]["age"] for u in used if u) > 10
    assert any("exchange_problems" in line for host in harmed for line in lines(host.folder))
