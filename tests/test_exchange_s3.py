"""Proofs with a real S3 client and server (s3fs, moto), in an environment of their own: processes that are killed and
started anew, and what the client says when something is wrong.

    ${XDG_CACHE_HOME:-~/.cache}/edgeslm/venvs/s3-<key>/    made.txt is written last
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from filelock import FileLock
from test_scheme_kinds import lines
from test_two_hosts import CHECKPOINT, SCHEDULED, STEPS, Host, NoWire, Starter, finish, until

from edgeslm.models.pypi import cache_folder

pytestmark = pytest.mark.proof
WANTED = ("moto[server]==5.2.5", f"s3fs=={fsspec.__version__}")
KILLS = 6
SHARES = {"weights": {"kind": "weights"}, "predictions": {"kind": "predictions", "rows": 60, "k": 8}}

CLIENT = """
import json, os, sys
from pathlib import Path
sys.path.append(os.environ["EDGESLM_PROOF_PACKAGES"])
from edgeslm.schemes.exchange_places import Bucket
told = {}
def said(name, do):
    try:
        told[name] = do()
    except OSError as error:
        told[name] = f"{type(error).__name__}: {error}"
here = Bucket("s3://edgeslm/large")
said("tried", lambda: here.try_out(0))
said("left", lambda: here.fs.find("edgeslm/large"))
data = os.urandom(120 << 20)
said("put", lambda: here.put(0, 1, lambda path: path.write_bytes(data)))
said("steps", lambda: here.steps(0))
copy = Path(sys.argv[1]) / "copy"
said("copy", lambda: here.copy(0, 1, copy))
told["same"] = copy.read_bytes() == data
said("removed", lambda: here.remove(0, [1, 2]))
said("after", lambda: here.steps(0))
said("gone", lambda: here.copy(0, 1, copy))
said("no bucket, steps", lambda: Bucket("s3://nobody/x").steps(0))
said("no bucket, tried", lambda: Bucket("s3://nobody/x").try_out(0))
os.environ["AWS_ENDPOINT_URL"] = "http://127.0.0.1:9"
away = Bucket("s3://edgeslm/x")
type(away.fs).clear_instance_cache()
said("no server", lambda: Bucket("s3://edgeslm/x").try_out(0))
print(json.dumps(told))
"""


def python() -> Path:
    """Of the environment with client and server, made (half a minute, and the package index) when it is not there."""
    key = hashlib.sha256(repr((WANTED, sys.version_info[:2])).encode()).hexdigest()[:16]
    folder = cache_folder().parent / "venvs" / f"s3-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "made.txt").exists():
            shutil.rmtree(folder, ignore_errors=True)
            bare = {k: v for k, v in os.environ.items() if k not in ("PIP_CONSTRAINT", "PYTHONPATH")}
            for command in (
                [sys.executable, "-m", "venv", str(folder)],
                [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *WANTED],
            ):
                done = subprocess.run(command, env=bare, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr[-2000:]
            (folder / "made.txt").write_text("\n".join(WANTED))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """A server with a bucket; yields the environment that its clients need."""
    program = python()
    (packages,) = program.parent.parent.glob("lib/python*/site-packages")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    clients = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "proof", "AWS_SECRET_ACCESS_KEY": "proof",
        "AWS_DEFAULT_REGION": "us-east-1", "EDGESLM_PROOF_PACKAGES": str(packages),
    }  # fmt: skip
    bare = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | clients
    server = subprocess.Popen(
        [str(program), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], env=bare,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: _answers(port), 60)
        made = "import boto3; boto3.client('s3').create_bucket(Bucket='edgeslm')"
        subprocess.run([str(program), "-c", made], env=bare, check=True)
        yield clients
    finally:
        server.kill()
        server.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_what_a_client_of_s3_says(s3, tmp_path):
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(tmp_path)], env={**os.environ, **s3, "PYTHONPATH": root},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout)
    print("\n" + "\n".join(f"  {name}: {what}" for name, what in told.items()))
    assert told["tried"] is told["put"] is told["copy"] is told["removed"] is None and told["same"]
    assert told["left"] == [] and told["steps"] == [1] and told["after"] == []
    assert told["gone"].startswith("FileNotFoundError") and told["no bucket, steps"] == []
    assert "bucket" in told["no bucket, tried"] and "Could not connect" in told["no server"]


def both(
    starter: Starter, folder: Path, share: dict[str, Any], scheme: dict[str, Any], dice: random.Random | None, url: str
) -> list[Host]:
    """Two groups, each a process; with `dice` they are killed at random and started anew."""
    folder.mkdir()
    hosts = [Host(NoWire(), starter, side, folder, share, 0, 0.05 if dice else 0.0, scheme, url) for side in (0, 1)]
    try:
        for _ in range(KILLS if dice else 0):
            assert dice is not None
            time.sleep(dice.uniform(0.2, 1.5))
            victim = dice.choice(hosts)
            until(lambda victim=victim: not victim.boots, 60)  # type: ignore[misc]
            assert not victim.done, "the training was over before it was killed often enough"
            victim.kill()
            print(f"  killed group {victim.side} at its step {victim.step}")
            victim.start()
        finish(hosts, 300)
    finally:
        for host in hosts:
            host.kill()
    for host in hosts:
        assert [line["step"] for line in lines(host.folder)] == list(range(1, STEPS + 1))
    return hosts


@pytest.mark.parametrize("kind", list(SHARES))
def test_groups_killed_at_random_that_meet_in_a_bucket_are_as_in_a_folder(kind, s3, tmp_path):
    """Bit for bit, with a scheduled exchange."""
    seed = int(os.environ.get("EDGESLM_PROOF_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
    print(f"\n{kind}: EDGESLM_PROOF_SEED={seed}")
    found = []
    with Starter(s3) as starter:
        for name, dice, url in (
            ("folder", None, ""), ("bucket", random.Random(seed), f"s3://edgeslm/{kind}/scheduled"),
        ):  # fmt: skip
            hosts = both(starter, tmp_path / name, SHARES[kind], SCHEDULED, dice, url)
            found.append([host.result["weights"] for host in hosts])
            assert not list((tmp_path / name).rglob("*.part*"))
    assert not list((tmp_path / "bucket").rglob("step-*")) and list((tmp_path / "folder").rglob("step-*"))
    print(f"  digests of weights, never killed in a folder {found[0]}, killed {KILLS} times in a bucket {found[1]}")
    assert found[0] == found[1] and found[0][0] != found[0][1]


def test_groups_killed_at_random_lose_nothing_in_a_bucket(s3, tmp_path):
    """Newest: what is taken was written, whole, by the other; a run goes on from its checkpoint."""
    seed = int(os.environ.get("EDGESLM_PROOF_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
    print(f"\nnewest: EDGESLM_PROOF_SEED={seed}")
    with Starter(s3) as starter:
        hosts = both(
            starter,
            tmp_path / "x",
            SHARES["weights"],
            {"exchange_every": 5},
            random.Random(seed),
            "s3://edgeslm/newest",
        )
    for host, other in zip(hosts, reversed(hosts), strict=True):
        starts = host.noted("starts")
        assert starts[0] == 0 and all(done % CHECKPOINT == 0 for done in starts) and starts == sorted(starts)
        published = {(step, digest) for step, digest in other.noted("published")}
        took = [line for line in host.noted("exchange") if line["peer_step"] is not None]
        assert took and {(line["peer_step"], line["sha256"]) for line in took} <= published
        log = lines(host.folder)
        problems = [p for line in log for p in line.get("exchange_problems", ())]
        taught = sum(bool(line["used"]) for line in log)
        print(
            f"  group {host.side}: started at {starts}, taught in {taught} of {STEPS} steps, {len(problems)} problems"
        )
        assert not any("half a file" in p or "damaged" in p for p in problems)
