"""Codistillation by predictions: on rows that all groups read, or from a server; the same as peers' models would teach,
and as hard to stop."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from places import File, bucket, place
from test_codistill import (
    apart,
    damaged,
    everyones,
    half,
    own_rows,
    part,
    step,
    strip,
    taken,
    train,
    written,
)
from test_scheme_kinds import KL, ROWS, SCHEMES, STEPS, TEXT, Said, Stopped, T, equal, lines, loop, rows, student
from test_scheme_kinds import weights as all_weights
from tiny import step_of

from edgeslm.errors import RuntimeFailure
from edgeslm.schemes import codistill, exchange, exchange_server, exchange_wire
from edgeslm.schemes.exchange import Exchange, Mark
from edgeslm.schemes.exchange_places import Folder, Place
from edgeslm.schemes.exchange_server import Desk, PeerServer
from edgeslm.schemes.objective import Term
from edgeslm.teachers.base import Signals
from edgeslm.teachers.peer import numbers, predict, wrong
from edgeslm.teachers.targets import bytes_per_token

V = 288


def shared(count: int = 12, k: int = V, **how):
    return part(share={"kind": "predictions", "rows": count, "k": k}, **how)


def served(k: int = V, timeout_s: float = 5.0, **how):
    return part(share={"kind": "served", "k": k, "timeout_s": timeout_s}, **how)


class ByHand:
    """What models say of some rows, from whole logits, one term each."""

    def __init__(self, models, known_rows):
        self.models, self.known_rows = models, known_rows

    @torch.no_grad()
    def __call__(self, batch, need):
        known = torch.tensor([float(int(r) in self.known_rows) for r in batch.rows]).repeat_interleave(T - 1)
        logits = [m(batch.ids).logits[:, :-1].reshape(-1, V) for m in self.models]
        return Signals(None, foreign={-1 - i: (Said(x), known) for i, x in enumerate(logits)})


def by_hand(groups: int, known_rows, orders, folder: Path, scheme, stale_at):
    """Copies trained by plain steps; after the updates `stale_at` they learn from each other as they then are."""
    found, stale = [step(g) for g in range(groups)], {}
    for index in range(STEPS):
        if index in stale_at:
            stale = {g: {m.name: m.weight.detach().clone() for m in s.masters.items} for g, s in enumerate(found)}
        for g, each in enumerate(found):
            peers = []
            for state in [stale[o] for o in sorted(stale) if o != g]:
                model = student(seed=9)
                for name, value in model.named_parameters():
                    value.data.copy_(state[name])
                peers.append(model)
            weight = codistill.peer_weight(scheme, index, STEPS)
            batch = loop(folder, order=orders[g]).batch(index)
            teaches = peers and weight and any(int(r) in known_rows for r in batch.rows)
            terms = [Term("forward_kl", weight / len(peers), {}, teacher=-1 - i) for i in range(len(peers))]
            objective = replace(each.objective, terms=(*each.objective.terms, *(terms if teaches else ())))
            lr = 2e-3 * min(1.0, (STEPS - index) / 4)
            each(batch, ByHand(peers, known_rows), lr=lr, grid=False, index=index, objective=objective)
    return found


def near(ours, theirs) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        for a, b in zip(mine.masters.items, other.masters.items, strict=True):
            torch.testing.assert_close(a.value, b.value, rtol=2e-3, atol=1e-4)


# Predictions on shared rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [2, 3])
def test_shared_rows_teach_as_models_would(groups, tmp_path):
    """All outcomes kept, so that only float16 stands between."""
    how = shared(groups=groups)
    ours = train(tuple(range(groups)), tmp_path, tmp_path / "x", how)
    known = everyones(how)
    orders = [own_rows(g, groups, known) for g in range(groups)]
    near(ours, by_hand(groups, known, orders, tmp_path / "hand", how, {2, 4, 6}))
    alone = train((0,), tmp_path / "alone", tmp_path / "nobody", how)
    assert not equal(all_weights(ours[0]), all_weights(alone[0]))
    log = lines(tmp_path)
    assert {u["peer"] for line in log for u in line["used"] if u["group"] == 0} == set(range(1, groups))
    names = {"forward_kl", *(f"forward_kl.{i}" for i in range(2, groups))}
    assert set(log[3]["terms"]) == {"cross_entropy", *names}


def test_a_file_of_predictions_holds_what_it_says_it_costs(tmp_path):
    how = shared(10, 6)
    train((0, 1), tmp_path, tmp_path / "x", how)
    path = Folder(tmp_path / "x").path(1, 6)
    mark, tensors = exchange.read(path)
    assert (mark.group, mark.step, mark.position, mark.recipe) == (1, 6, 6 * ROWS, "one recipe")
    held = sum(v.numel() * v.element_size() for v in tensors.values())
    assert held == 10 * ((T - 1) * bytes_per_token(6, 0, V) + 8) and bytes_per_token(6, 0, V) == 26
    assert path.stat().st_size < held + 1000
    total = tensors["logs"].float().exp().sum(-1) + tensors["rest"].float().exp()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=2e-3)


def test_updates_without_shared_rows_are_as_if_alone(tmp_path):
    how = shared(1)
    train((0, 1), tmp_path, tmp_path / "x", how)
    (row,) = everyones(how)
    order = own_rows(0, 2, [row])
    has = [row in order[i * ROWS : (i + 1) * ROWS] for i in range(STEPS)]
    used = [any(u["group"] == 0 for u in line["used"]) for line in lines(tmp_path)]
    assert used == [seen and i >= 2 for i, seen in enumerate(has)] and any(used) and not all(used[2:])


@pytest.mark.parametrize("stop_at", [None, 5])
def test_predictions_apart_in_turn_and_stopped_are_the_same_bit_for_bit(stop_at, tmp_path, monkeypatch):
    monkeypatch.setattr(codistill, "POLL_S", 0.01)
    how = shared(8, 5, exchange="scheduled", lag=2)
    together = train((0, 1), tmp_path / "turn", tmp_path / "turn-x", how)
    found = apart(tmp_path, how, "apart", stop_at)
    assert all(equal(all_weights(found[g]), all_weights(together[g])) for g in (0, 1))


def guessed(folder: Path, group: int, at: int, how, seed: int = 7, recipe: str = "one recipe") -> File:
    said = predict(exchange_server.LiveTeacher(student(seed=seed)), rows(), everyones(how), 3, how.share.k, "cpu")
    exchange.publish(place(folder), Mark(group, at, at * ROWS, recipe, ""), said, keep=9)
    return File(place(folder), group, at)


def test_a_resumed_run_learns_from_the_predictions_it_had(tmp_path):
    def go(name: str, stop: bool):
        folder, where, how = tmp_path / name, tmp_path / f"{name}-x", shared(9, 7)
        guessed(where, 1, 2, how)

        def later() -> None:
            if stop:
                exchange.start_anew(place(where), 1)
                guessed(where, 1, 90, how, seed=8)
                raise Stopped

        keep = {5: lambda: guessed(where, 1, 4, how, seed=9), 7: later}
        if stop:
            with pytest.raises(Stopped):
                train((0,), folder, where, how, keep=keep)
            keep = {}
        return train((0,), folder, where, how, keep=keep)

    once, again = go("once", False), go("again", True)
    assert equal(all_weights(once[0]), all_weights(again[0]))
    assert strip(lines(tmp_path / "once")) == strip(lines(tmp_path / "again"))
    assert [t[3] for t in taken(tmp_path / "again")] == [2, 2, 4]


def other_rows(file: File) -> None:
    mark, tensors = file.read()
    tensors["rows"] = tensors["rows"].flip(0)
    exchange.publish(file.place, mark, tensors, keep=9)


def no_numbers(file: File) -> None:
    mark, tensors = file.read()
    tensors["logs"][0, 0, 0] = torch.nan
    exchange.publish(file.place, mark, tensors, keep=9)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (half, "half a file"), (damaged, "damaged"), (None, "of another recipe"), (other_rows, "of other rows"),
        (no_numbers, "no log-probabilities"), (lambda file: written(file.place, 1, 4), "no such predictions"),
    ],
)  # fmt: skip
def test_predictions_that_are_not_whole_or_not_ours_are_passed_over(harm, said, tmp_path):
    where, how = tmp_path / "x", shared(9, 7)
    guessed(where, 1, 2, how)
    bad = guessed(where, 1, 4, how, recipe="one recipe" if harm else "another recipe")
    if harm:
        harm(bad)
    (once,) = train((0,), tmp_path / "run", where, how)
    clean = tmp_path / "clean-x"
    guessed(clean, 1, 2, how)
    assert said in lines(tmp_path / "run")[2]["exchange_problems"][0]
    assert equal(all_weights(once), all_weights(train((0,), tmp_path / "clean", clean, how)[0]))


def test_predictions_name_what_is_wrong_with_them():
    how = shared(4, 6)
    said = predict(exchange_server.LiveTeacher(student()), rows(), everyones(how), 3, 6, torch.device("cpu"))
    asked = numbers(rows().row_ids(), everyones(how))
    names = rows().row_ids()
    assert said["rows"].tolist() == asked.tolist()
    assert [f"{int(n) % (1 << 64):016x}" for n in numbers(names, range(24))] == names
    assert wrong(said, asked, T - 1, 6, V) is None
    far = {**said, "ids": said["ids"].clone()}
    far["ids"][1, 2, 3] = V
    assert "vocabulary does not have" in wrong(far, asked, T - 1, 6, V)
    assert "no such predictions" in wrong({**said, "more": asked}, asked, T - 1, 6, V)
    assert "no such predictions" in wrong(said, asked, T - 1, 7, V)


# A server -----------------------------------------------------------------------------------------------------------


def desk(folder: Path | Place, k: int = V, recipe: str = "one recipe", groups: int = 2) -> Desk:
    return Desk(place(folder), recipe, student(seed=11), rows(), groups, k, 3, ROWS)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(exchange_server, "LOOK_S", 0.01)


def test_a_server_teaches_as_models_would(tmp_path, quick):
    where, how = tmp_path / "x", served(learn_from=1)
    written(where, 1, 2)
    with PeerServer(("127.0.0.1", 0), desk(where)) as server:
        until(lambda: 1 in server.desk.marks)
        ours = train((0,), tmp_path / "run", where, how, servers=[server.server_address] * 2)
    peer, mine = student(seed=7), step(0)
    for index in range(STEPS):
        weight = codistill.peer_weight(how, index, STEPS)
        batch = loop(tmp_path / "hand", order=own_rows(0)).batch(index)
        term = Term("forward_kl", weight, {}, teacher=-1)
        objective = replace(mine.objective, terms=(*mine.objective.terms, *((term,) if weight else ())))
        lr = 2e-3 * min(1.0, (STEPS - index) / 4)
        mine(batch, ByHand([peer], range(24)), lr=lr, grid=False, index=index, objective=objective)
    near(ours, [mine])
    log = lines(tmp_path / "run")
    assert [[(u["peer"], u["step"], u["age"]) for u in line["used"]] for line in log] == [
        [(1, 2, i - 2)] if i >= 2 else [] for i in range(STEPS)
    ]
    assert "exchange_problems" not in str(log) and Folder(where).steps(0) == [8, 6, 4, 2]


def test_a_port_that_is_taken_is_one_sentence(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(RuntimeFailure, match=r"cannot be had .*; give another --port, or end what uses it"):
            PeerServer(taken.getsockname(), desk(tmp_path))


def test_a_server_without_memory_for_a_newer_copy_says_so_and_goes_on(tmp_path, quick, monkeypatch):
    said = []
    with PeerServer(("127.0.0.1", 0), desk(tmp_path), said.append) as server:
        monkeypatch.setattr(server.desk, "_take", _no_memory)
        written(tmp_path, 1, 2)
        until(lambda: said)
        monkeypatch.undo()
        until(lambda: 1 in server.desk.marks)
    assert "newer checkpoints could not be taken: CUDA out of memory" in said


def _no_memory(*_):
    raise RuntimeError("CUDA out of memory\nmore words")


def until(holds, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.01)


class _Strange(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.server.seen += 1
        exchange_wire.receive(self.request, 1 << 20)
        self.server.say(self.request)


class Strange(socketserver.ThreadingTCPServer):
    """A server of which nothing good comes."""

    daemon_threads, allow_reuse_address, seen = True, True, 0

    def __init__(self, say):
        self.say = say
        super().__init__(("127.0.0.1", 0), _Strange)

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


def says_nothing(request) -> None:
    time.sleep(2.0)


def drips(request) -> None:
    request.sendall(exchange_wire.LENGTH.pack(1000))
    for _ in range(40):
        time.sleep(0.05)
        request.sendall(b"{")


def leaves(request) -> None:
    request.close()


def half_an_answer(request) -> None:
    exchange_wire.send(request, b'{"problem": null}')
    request.sendall(exchange_wire.LENGTH.pack(900) + b"x" * 100)


def too_much(request) -> None:
    exchange_wire.send(request, b'{"problem": null}')
    request.sendall(exchange_wire.LENGTH.pack(1 << 40))


def noise(request) -> None:
    request.sendall(bytes(range(256)) * 20)


def no_file(request) -> None:
    exchange_wire.send(request, b'{"problem": null}', b"no tensors at all")


def no_object(request) -> None:
    exchange_wire.send(request, b"[1]", b"")


STRANGE = {
    says_nothing: "has not answered in 0.1 s", drips: "has not answered in 0.1 s", leaves: "cannot be asked",
    half_an_answer: "cannot be asked", too_much: "more than", noise: "cannot be asked", no_file: "half a file",
    no_object: "no JSON object",
}  # fmt: skip


@pytest.mark.parametrize("say", list(STRANGE), ids=lambda say: say.__name__)
def test_a_strange_server_costs_a_moment_and_nothing_else(say, tmp_path):
    with Strange(say) as server:
        start = time.monotonic()
        (ours,) = train(
            (0,), tmp_path / "run", tmp_path / "x", served(timeout_s=0.1), servers=[server.server_address] * 2
        )
        assert time.monotonic() - start < 20.0
    alone = [step(0)]
    SCHEMES["offline"](alone, None, loop(tmp_path / "alone", order=own_rows(0)), None)
    assert equal(all_weights(ours), all_weights(alone[0]))
    problems = [line.get("exchange_problems") for line in lines(tmp_path / "run")]
    assert [bool(p) for p in problems] == [i in (2, 4, 6) for i in range(STEPS)]  # asked again with each exchange
    assert STRANGE[say] in problems[2][0] and server.seen == 3
    assert not list((tmp_path / "run").glob("*.part*"))


def test_without_a_server_a_copy_trains_as_if_alone(tmp_path):
    address = ("127.0.0.1", free_port())
    (ours,) = train((0,), tmp_path / "run", tmp_path / "x", served(), servers=[address] * 2)
    alone = [step(0)]
    SCHEMES["offline"](alone, None, loop(tmp_path / "alone", order=own_rows(0)), None)
    assert equal(all_weights(ours), all_weights(alone[0]))
    said = lines(tmp_path / "run")[2]["exchange_problems"][0]
    assert said == f"the server of group 1 at 127.0.0.1:{address[1]} cannot be asked (Connection refused)"


def test_a_server_that_comes_back_teaches_again(tmp_path, quick):
    where, address = tmp_path / "x", ("127.0.0.1", free_port())
    written(where, 1, 2)
    servers = [PeerServer(address, desk(where)).__enter__()]
    until(lambda: 1 in servers[0].desk.marks)

    def fall() -> None:
        servers.pop().__exit__()

    def rise() -> None:
        servers.append(PeerServer(address, desk(where)).__enter__())
        until(lambda: 1 in servers[0].desk.marks)

    train((0,), tmp_path / "run", where, served(), servers=[address] * 2, keep={3: fall, 5: rise})
    servers.pop().__exit__()
    log = lines(tmp_path / "run")
    # what had been asked before it fell is there for update 4; of update 5 nobody asks again before the next exchange
    assert [bool(line["used"]) for line in log] == [False, False, True, True, False, False, True, True]
    assert [bool(line.get("exchange_problems")) for line in log] == [i == 4 for i in range(STEPS)]


def test_who_is_left_teaches_when_others_are_gone(tmp_path, quick):
    """Of two peers one is there: alone it teaches as much as both would, whatever groups share."""
    where, how = tmp_path / "x", served(groups=3)
    written(where, 1, 2)
    with PeerServer(("127.0.0.1", 0), desk(where, groups=3)) as server:
        until(lambda: 1 in server.desk.marks)
        at = [server.server_address, server.server_address, ("127.0.0.1", free_port())]
        (asked,) = train((0,), tmp_path / "asked", where, how, servers=at)
    (beside,) = train((0,), tmp_path / "beside", where, part(groups=3))
    near([asked], [beside])
    for name in ("asked", "beside"):
        assert [[u["peer"] for u in line["used"]] for line in lines(tmp_path / name)] == [[]] * 2 + [[1]] * 6
    problems = [line.get("exchange_problems", []) for line in lines(tmp_path / "asked")]
    assert [len(p) for p in problems] == [i in (2, 4, 6) for i in range(STEPS)] and "group 2" in problems[2][0]


def test_a_server_refuses_who_is_of_another_recipe(tmp_path, quick):
    where = tmp_path / "x"
    written(where, 1, 2)
    with PeerServer(("127.0.0.1", 0), desk(where, recipe="another")) as server:
        train((0,), tmp_path / "run", where, served(), servers=[server.server_address] * 2)
    log = lines(tmp_path / "run")
    assert not any(line["used"] for line in log)
    assert "serves another recipe or other text (another), not one recipe" in log[2]["exchange_problems"][0]


@pytest.mark.parametrize("stop_at", [4, 7])
def test_a_resumed_run_uses_the_answers_it_had(stop_at, tmp_path, quick):
    """Up to where it was stopped bit for bit, whatever the server has by then."""

    def go(name: str, stop: bool):
        folder, where = tmp_path / name, tmp_path / f"{name}-x"
        written(where, 1, 2)
        seen: dict[int, dict] = {}
        steps = [step(0)]
        with PeerServer(("127.0.0.1", 0), desk(where)) as server:
            until(lambda: 1 in server.desk.marks)

            def later() -> None:
                seen[stop_at] = all_weights(steps[0])
                if stop:
                    written(where, 1, 90, seed=8)
                    until(lambda: server.desk.marks[1].step == 90)
                    raise Stopped

            servers = [server.server_address] * 2
            if stop:
                with pytest.raises(Stopped):
                    train((0,), folder, where, served(), steps, servers=servers, keep={stop_at: later})
                steps = [step(0)]
                later_again = {stop_at: lambda: seen.update({stop_at: all_weights(steps[0])})}
                train((0,), folder, where, served(), steps, servers=servers, keep=later_again)
            else:
                train((0,), folder, where, served(), steps, servers=servers, keep={stop_at: later})
        return seen[stop_at]

    assert equal(go("once", False), go("again", True))
    once, again = (strip(lines(tmp_path / name)) for name in ("once", "again"))
    assert once[:stop_at] == again[:stop_at]
    assert {u["step"] for line in again[stop_at + 1 :] for u in line["used"]} <= {90}


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_what_a_desk_takes_and_passes_over(kind, tmp_path):
    where = Folder(tmp_path / "x") if kind == "folder" else bucket(kind, tmp_path / "x")
    said = desk(where, k=5)
    assert said.look() == [] and "no checkpoint of group 1" in said.answer(question()).problem
    written(where, 1, 2)
    half(written(where, 1, 4))
    written(where, 1, 6, "another recipe")
    told = said.look()
    assert said.marks[1].step == 2 and told[0] == "group 1: step 2"
    assert sum("half a file" in t for t in told) == sum("of another recipe" in t for t in told) == 1
    reads = _counted(where)
    assert said.look() == []  # said once
    assert len(reads) == (2 if kind == "folder" else 0)  # what was read in a bucket was paid for
    written(where, 1, 8, seed=8)
    assert said.look() == ["group 1: step 8"]
    given = said.answer(question())
    path = tmp_path / "answer"
    path.write_bytes(given.data)
    mark, tensors = exchange.read(path)
    chosen = [0, 3]
    wanted = predict(exchange_server.LiveTeacher(student(seed=8)), rows(), chosen, 3, 5, torch.device("cpu"))
    assert (mark.group, mark.step) == (1, 8) and given.problem is None
    assert all(torch.equal(tensors[n], wanted[n]) for n in wanted)


def _counted(where: Place) -> list[int]:
    """Steps that are copied from now on."""
    found, copy = [], where.copy

    def counted(group: int, step: int, into: Path) -> None:
        found.append(step)
        copy(group, step, into)

    where.copy = counted
    return found


def question(**other):
    names = rows().row_ids()
    return {"recipe": "one recipe", "group": 0, "peer": 1, "rows": [names[0], names[3]], **other}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"recipe": "no"}, "serves another recipe"), ({"rows": ["ff"]}, "knows no row ff"), ({"rows": []}, "1 to 4"),
        ({"rows": None}, "1 to 4"), ({"rows": [7]}, "knows no row 7"), ({"rows": ["a"] * 5}, "1 to 4"),
        ({"peer": [1]}, "knows no group"), ({"peer": 5}, "no checkpoint of group 5"),
    ],
)  # fmt: skip
def test_a_desk_answers_whatever_it_is_asked(other, said, tmp_path):
    written(tmp_path, 1, 2)
    one = desk(tmp_path)
    one.look()
    assert said in one.answer(question(**other)).problem


def test_a_server_outlives_whoever_speaks_something_else(tmp_path, quick):
    written(tmp_path, 1, 2)
    heard: list[str] = []
    with PeerServer(("127.0.0.1", 0), desk(tmp_path), heard.append) as server:
        until(lambda: 1 in server.desk.marks)
        for data in (b"GET / HTTP/1.1\r\n\r\n", exchange_wire.LENGTH.pack(3) + b"{]}", b""):
            with socket.create_connection(server.server_address, 5) as other:
                other.sendall(data)
        until(lambda: sum("was not answered" in h for h in heard) == 3)
        answer = exchange_wire.Question(server.server_address, question(), 5.0, 1 << 20).answer(5.0)
    assert answer.problem is None and len(answer.data) > 1000


def test_peers_and_a_teacher_stand_side_by_side(tmp_path):
    from test_scheme_kinds import teacher
    from tiny import llama

    steps = [step_of(student(seed=2 + g), [KL], [llama(layers=4, seed=1)]) for g in (0, 1)]
    train((0, 1), tmp_path, tmp_path / "x", shared(24, 6), steps, teacher=teacher())
    log = lines(tmp_path)
    assert set(log[3]["terms"]) == {"forward_kl", "forward_kl.2"} and log[3]["terms"]["forward_kl.2"] > 0
    assert TEXT["loss"] not in log[3]["terms"]
    assert Exchange(place(tmp_path), "r", (0,)).servers == ()


def test_ranks_of_a_group_hear_what_the_first_is_told(tmp_path, quick):
    """Two ranks end as one process does, up to sums of other parts."""
    import json

    from test_ranks import HERE, torchrun

    written(tmp_path / "x", 1, 2)
    with PeerServer(("127.0.0.1", 0), desk(tmp_path / "x", k=9)) as server:
        until(lambda: 1 in server.desk.marks)
        address = server.server_address
        done = torchrun(HERE / "served_ranks_worker.py", tmp_path / "many", *address)
        assert done.returncode == 0, done.stderr[-3000:]
        (alone,) = train((0,), tmp_path / "one", tmp_path / "x", served(k=9), servers=[address] * 2)
    found = json.loads((tmp_path / "many" / "weights.json").read_text())
    assert found["same"] and [bool(line["used"]) for line in lines(tmp_path / "many")] == [i >= 2 for i in range(STEPS)]
    for master in alone.masters.items:
        torch.testing.assert_close(
            master.value.detach(), torch.tensor(found["weights"][master.name]), rtol=1e-3, atol=2e-5
        )
