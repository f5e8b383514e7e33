"""Proofs of codistillation between processes that are killed at random moments. Between machines: two hosts with
networks, addresses and folders of their own, and nothing between them but a wire; one of them is cut off, or killed
with all its processes, and comes back. And on one machine with a scheduled exchange, where nothing may change at
all."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_scheme_kinds import lines

pytestmark = pytest.mark.proof
WORKER = Path(__file__).parent / "codistill_worker.py"
STEPS, CHECKPOINT, EVENTS, SEEDS, PORT = 300, 7, 20, 3, 7310
SHARES = {"weights": {"kind": "weights"}, "served": {"kind": "served", "k": 24, "timeout_s": 0.3}}


def why_not() -> str:
    """What this machine lacks for hosts of its own; empty where nothing is missing."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "two hosts need network namespaces, which only root makes"
    if shutil.which("ip") is None:
        return "two hosts need `ip netns` (apt-get install iproute2)"
    made = subprocess.run(["ip", "netns", "add", "edgeslm-probe"], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", "edgeslm-probe"], capture_output=True, check=False)
    return f"two hosts need `ip netns add`, which says: {made.stderr.strip()}" if made.returncode else ""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Wire:
    """Two network namespaces and what joins them."""

    def __init__(self) -> None:
        self.names = [f"edgeslm-{os.getpid()}-{side}" for side in "ab"]
        self.ends = [f"es{os.getpid()}{side}"[:15] for side in "ab"]
        self.addresses = ["10.77.0.1", "10.77.0.2"]

    def __enter__(self) -> Wire:
        for name in self.names:
            ip("netns", "add", name)
        ip(
            "link",
            "add",
            self.ends[0],
            "netns",
            self.names[0],
            "type",
            "veth",
            "peer",
            self.ends[1],
            "netns",
            self.names[1],
        )
        for name, end, address in zip(self.names, self.ends, self.addresses, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", end, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def set(self, side: int, up: bool) -> None:
        ip("-n", self.names[side], "link", "set", self.ends[side], "up" if up else "down")


class NoWire:
    """Both hosts are this machine."""

    names, addresses = ("", ""), ("127.0.0.1", "127.0.0.1")


class Starter:
    """Makes processes of hosts (see codistill_worker), with `more` in their environment."""

    def __init__(self, more: dict[str, str] | None = None):
        self.more = more or {}

    def __enter__(self) -> Starter:
        environment = {**os.environ, "PYTHONPATH": f"{WORKER.parent}:{WORKER.parent.parent}", "OMP_NUM_THREADS": "1"}
        environment |= self.more
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def start(self, job: dict[str, Any]) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Host:
    """A machine that trains one group: its own folder, and processes that see its own network alone."""

    def __init__(
        self, wire: Wire | NoWire, starter: Starter, side: int, folder: Path, share: dict[str, Any], seed: int,
        pause_s: float, scheme: dict[str, Any] | None = None, bucket: str = "",
    ):  # fmt: skip
        """`bucket`: where groups meet in place of a folder."""
        self.wire, self.starter, self.side, self.folder = wire, starter, side, folder / f"host-{side}"
        self.shared = (self.folder if isinstance(wire, Wire) else folder) / "exchange"
        for place in (self.folder, self.shared / f"group-{side}"):
            place.mkdir(parents=True, exist_ok=True)
        self.job = {
            "folder": str(self.folder), "shared": bucket or str(self.shared), "group": side, "steps": STEPS,
            "seed": seed, "share": share, "servers": [(a, PORT) for a in wire.addresses], "port": PORT,
            "pause_s": pause_s, "hurry": str(folder / "hurry"), "checkpoint_every": CHECKPOINT,
            "namespace": wire.names[side], "scheme": scheme or {"exchange_every": 5},
        }  # fmt: skip
        self.processes: dict[str, int] = {}
        self.start()

    def start(self) -> None:
        self.known = len(self.noted("starts"))
        roles = ["serve"] if self.job["share"]["kind"] == "served" else ["files", "mirror"]
        roles = roles if isinstance(self.wire, Wire) else []
        for role in [*roles, *([] if self.done else ["train"])]:
            job = {**self.job, "role": role, "errors": str(self.folder / f"{role}.err")}
            self.processes[role] = self.starter.start(job)

    def kill(self) -> None:
        """All at once, as when the power goes."""
        for pid in self.processes.values():
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not any(map(alive, self.processes.values())), 10)

    @property
    def errors(self) -> str:
        path = self.folder / "train.err"
        return path.read_text()[-2000:] if path.exists() else ""

    @property
    def done(self) -> bool:
        return (self.folder / "result.json").exists()

    @property
    def boots(self) -> bool:
        """Whether its training has not gone on yet since it was started."""
        return len(self.noted("starts")) == self.known

    @property
    def step(self) -> int:
        """Of the last whole line of its log."""
        log = self.folder / "log.jsonl"
        return log.read_bytes().count(b"\n") if log.exists() else 0

    @property
    def result(self) -> dict[str, Any]:
        """`loss` on held-out text; `weights`, their digest."""
        found: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return found

    @property
    def loss(self) -> float:
        return float(self.result["loss"])

    def noted(self, name: str) -> list[Any]:
        path = self.folder / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def until(holds: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to hold"
        time.sleep(0.02)


def finish(hosts: list[Host], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not all(host.done for host in hosts):
        for host in hosts:
            assert time.monotonic() < end and (host.done or alive(host.processes["train"])), (host.step, host.errors)
        time.sleep(0.1)


def undisturbed(wire: Wire, starter: Starter, folder: Path, share: dict[str, Any], seed: int) -> list[float]:
    folder.mkdir()
    (folder / "hurry").touch()
    hosts = [Host(wire, starter, side, folder, share, seed, 0.0) for side in (0, 1)]
    try:
        finish(hosts, 200)
        return [host.loss for host in hosts]
    finally:
        for host in hosts:
            host.kill()


@pytest.mark.parametrize("kind", list(SHARES))
def test_two_hosts_of_which_one_is_cut_off_or_killed_twenty_times(kind, tmp_path):
    if reason := why_not():
        pytest.skip(reason)
    seed = int(os.environ.get("EDGESLM_PROOF_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
    dice, share = random.Random(seed), SHARES[kind]
    print(f"\n{kind}: EDGESLM_PROOF_SEED={seed}")
    with Wire() as wire, Starter() as starter:
        calm = [undisturbed(wire, starter, tmp_path / f"calm-{s}", share, s) for s in range(SEEDS)]
        rough = tmp_path / "rough"
        rough.mkdir()
        hosts = [Host(wire, starter, side, rough, share, 0, 0.3) for side in (0, 1)]
        try:
            until(lambda: all(host.step for host in hosts), 60)
            events = [strike(wire, hosts, dice) for _ in range(EVENTS)]
            (rough / "hurry").touch()
            last = max(host.step for host in hosts)
            finish(hosts, 200)
        finally:
            for host in hosts:
                host.kill()
        look(hosts, events, last, kind)
    found = [host.loss for host in hosts]
    kills = sum(event["kind"] == "kill" for event in events)
    print(f"{kills} kills, {EVENTS - kills} cuts, {sum(e['away_s'] for e in events):.0f} s away in all")
    by_group = [[pair[side] for pair in calm] for side in (0, 1)]
    spread = max(max(losses) - min(losses) for losses in by_group)
    print(f"spread of held-out losses over {SEEDS} seeds, the wider of both groups': {spread:.4f}")
    for side, (loss, losses) in enumerate(zip(found, by_group, strict=True)):
        told = ", ".join(f"{x:.4f}" for x in losses[1:])
        print(f"group {side}: {loss:.4f}; undisturbed {losses[0]:.4f}, with other seeds {told}")
        assert abs(loss - losses[0]) <= spread


def strike(wire: Wire, hosts: list[Host], dice: random.Random) -> dict[str, Any]:
    """One host goes away for a while; the other must go on meanwhile."""
    time.sleep(dice.uniform(0.2, 2.0))
    side, kind, away_s = dice.randrange(2), dice.choice(["kill", "cut"]), dice.uniform(0.8, 2.5)
    victim, survivor = hosts[side], hosts[1 - side]
    assert not victim.done and not survivor.done, "the training was over before the events were"
    wire.set(side, False)
    if kind == "kill":
        victim.kill()
    before, boots = (victim.step, survivor.step), survivor.boots
    time.sleep(away_s)
    until(lambda: survivor.step > before[1] or boots, 60)
    after = survivor.step
    wire.set(side, True)
    if kind == "kill":
        victim.start()
    how = "was starting" if boots else f"went from {before[1]} to {after}"
    print(f"  {kind} of host {side} at its step {before[0]}, {away_s:.1f} s; the other {how}")
    return {"kind": kind, "side": side, "away_s": away_s, "at": before[0], "went": after - before[1], "boots": boots}


def look(hosts: list[Host], events: list[dict[str, Any]], last: int, kind: str) -> None:
    """Nothing is lost, half read or made up."""
    for host, other in zip(hosts, reversed(hosts), strict=True):
        log = lines(host.folder)
        assert [line["step"] for line in log] == list(range(1, STEPS + 1))
        starts, cuts = host.noted("starts"), [e["at"] for e in events if e["kind"] == "kill" and e["side"] == host.side]
        resumed = starts[1:]
        print(f"  host {host.side}: killed at {cuts}, went on from {resumed}")
        assert starts[0] == 0 and all(done % CHECKPOINT == 0 and done <= STEPS for done in resumed)
        assert resumed == sorted(resumed) and len(resumed) <= len(cuts)
        at = 0
        for done in resumed:  # each from a checkpoint of one of the steps it had when it was killed, and its newest
            at = next(i for i in range(at, len(cuts)) if cuts[i] - CHECKPOINT <= done <= cuts[i] + 1) + 1
        published = {(step, digest) for step, digest in other.noted("published")}
        taken = [line for line in host.noted("exchange") if line["peer_step"] is not None]
        assert taken and {x["peer_step"] for x in taken} <= {step for step, _ in published}
        if kind == "weights":
            assert {(x["peer_step"], x["sha256"]) for x in taken} <= published
        assert any(line["used"] for line in log if line["step"] > last), "nobody taught after the last event"
        problems = [p for line in log for p in line.get("exchange_problems", ())]
        halves = sum("half a file" in p or "damaged" in p for p in problems)
        ages = [u["age"] for line in log for u in line["used"]]
        print(
            f"  host {host.side}: taught in {sum(bool(line['used']) for line in log)} of {STEPS} steps, peers up to "
            f"{max(ages)} steps behind; {len(problems)} exchanges went wrong, {halves} of them on half a file"
        )
    awake = [event for event in events if not event["boots"]]
    assert len(awake) > EVENTS / 2 and all(event["went"] > 0 for event in awake), events


SCHEDULED = {"exchange_every": 5, "exchange": "scheduled", "lag": 5, "patience_s": 120.0}


@pytest.mark.parametrize(
    "share", [{"kind": "weights"}, {"kind": "predictions", "rows": 60, "k": 8}], ids=["weights", "predictions"]
)
def test_groups_killed_at_random_are_bit_for_bit_as_never_killed(share, tmp_path):
    """Each group by itself, though its peer was killed as well."""
    seed = int(os.environ.get("EDGESLM_PROOF_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
    dice, found, killed = random.Random(seed), [], 0
    print(f"\n{share['kind']}: EDGESLM_PROOF_SEED={seed}")
    with Starter() as starter:
        for name, pause_s in (("calm", 0.0), ("rough", 0.05)):
            (tmp_path / name).mkdir()
            hosts = [Host(NoWire(), starter, side, tmp_path / name, share, 0, pause_s, SCHEDULED) for side in (0, 1)]
            try:
                while pause_s and killed < 10:
                    time.sleep(dice.uniform(0.2, 1.5))
                    victim = dice.choice(hosts)
                    assert not victim.done, "the training was over before it was killed often enough"
                    victim.kill()
                    print(f"  killed group {victim.side} at its step {victim.step}")
                    killed += 1
                    victim.start()
                finish(hosts, 200)
            finally:
                for host in hosts:
                    host.kill()
            found.append([host.result["weights"] for host in hosts])
            for host in hosts:
                assert [line["step"] for line in lines(host.folder)] == list(range(1, STEPS + 1))
    print(f"  digests of weights, never killed {found[0]}, killed {killed} times {found[1]}")
    assert found[0] == found[1] and found[0][0] != found[0][1]
