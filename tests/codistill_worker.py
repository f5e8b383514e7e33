"""Processes of hosts in the proof of two hosts. `codistill_worker.py` reads jobs, a JSON a line, and forks a process
for each, into the network namespace that it names: with what it imports already there, a host is up in a moment. It
answers with the process's id. Roles: `train` a group; `serve` its checkpoints' predictions; `files`, its checkpoints by
HTTP; `mirror` those of the other host."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

RECIPE = "two hosts"
T, ROWS = 32, 8


def text_rows(name: str, most: int) -> Any:
    import tiny

    from edgeslm.data.rows import pack

    text = (Path(__file__).parents[1] / "edgeslm" / "assets" / "text" / name).read_text(encoding="utf-8")
    return pack([tiny.tokenizer()(text[: most * T * 3])["input_ids"][: most * T]], T, 0, "0:text")


def place_of(shared: str) -> Any:
    from edgeslm.schemes.exchange_places import Bucket, Folder

    Bucket.rest_s = 0.1  # the store is on this machine
    return Bucket(shared) if "://" in shared else Folder(Path(shared))


def student(seed: int) -> Any:
    import tiny

    return tiny.llama(layers=2, seed=seed, hidden=32)


def train(job: SimpleNamespace) -> None:
    import tiny
    import torch

    from edgeslm.data.order import first_by_id, order, shard
    from edgeslm.progress import Progress
    from edgeslm.recipe.codistill import CodistillScheme
    from edgeslm.recipe.distill import TrainPart
    from edgeslm.schemes import codistill, exchange
    from edgeslm.schemes.exchange import Exchange
    from edgeslm.schemes.loop import Loop

    torch.set_num_threads(1)
    folder, hurry = Path(job.folder), Path(job.hurry)
    folder.mkdir(parents=True, exist_ok=True)
    rows = text_rows("learn/carroll-alice.txt", 600)
    part = CodistillScheme(kind="codistill", weight=0.5, share=job.share, **job.scheme)
    all_read = first_by_id(rows, getattr(part.share, "rows", 0))
    read = order(shard(rows, job.group, 2, all_read), [1.0], job.steps * ROWS, job.seed)
    servers = [(host, port) for host, port in job.servers]
    met = Exchange(place_of(job.shared), RECIPE, (job.group,), [read], all_read, servers)
    settings = TrainPart(steps=job.steps, batch_tokens=ROWS * T, lr=5e-3, checkpoint_every=job.checkpoint_every)
    step = tiny.step_of(student(10 * job.seed + job.group), [{"loss": "cross_entropy"}])

    def pause() -> None:
        if not hurry.exists():
            time.sleep(job.pause_s)

    def note(name: str, value: Any) -> None:
        with (folder / name).open("a", encoding="utf-8") as out:
            out.write(json.dumps(value) + "\n")

    publish, turns = exchange.publish, codistill.turns

    def noted_publish(*what: Any) -> Any:
        mark = publish(*what)
        note("published.jsonl", [mark.step, mark.sha256])
        return mark

    def noted_turns(*what: Any) -> Any:
        for number, turn in enumerate(turns(*what)):
            if number == 0:
                note("starts.jsonl", turn.index)
            yield turn

    exchange.publish, codistill.turns = noted_publish, noted_turns
    loop = Loop(
        rows, met.orders[0], ROWS, settings, job.steps, folder, Progress(quiet=True), torch.device("cpu"),
        lambda done: None, keep=dict.fromkeys(range(1, job.steps + 1), pause), exchange=met,
    )  # fmt: skip
    codistill.run([step], None, loop, part)
    ids = text_rows("judge/austen-persuasion.txt", 64).ids.long()
    with torch.no_grad():
        loss = float(step.model(ids, labels=ids).loss)
    weights = exchange.digest({m.name: m.value.detach() for m in step.masters.items})
    (folder / "result.part").write_text(json.dumps({"loss": loss, "weights": weights}))
    (folder / "result.part").replace(folder / "result.json")


def serve(job: SimpleNamespace) -> None:
    import torch

    from edgeslm.schemes.exchange_server import Desk, PeerServer

    torch.set_num_threads(1)
    rows = text_rows("learn/carroll-alice.txt", 600)
    desk = Desk(place_of(job.shared), RECIPE, student(0), rows, 2, job.share["k"], ROWS, ROWS)
    with PeerServer(("0.0.0.0", job.port), desk):
        while True:
            time.sleep(1.0)


def files(job: SimpleNamespace) -> None:
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    own = Path(job.shared) / f"group-{job.group}"
    ThreadingHTTPServer(("0.0.0.0", job.port), partial(SimpleHTTPRequestHandler, directory=own)).serve_forever()


def mirror(job: SimpleNamespace) -> None:
    """Files of the other group, by HTTP, straight to where they are read: a stop leaves half of one, as a bucket that
    is mounted or a plain copy would. What the other host has removed goes here too."""
    host, port = job.servers[1 - job.group]
    place = Path(job.shared) / f"group-{1 - job.group}"
    place.mkdir(parents=True, exist_ok=True)
    whole: set[str] = set()
    while True:
        try:
            page = b"".join(_pieces(f"http://{host}:{port}/")).decode()
            names = sorted(re.findall(r'href="(step-\d+\.safetensors)"', page), reverse=True)
            for name in names[:1]:
                if name not in whole:
                    with (place / name).open("wb") as out:
                        for piece in _pieces(f"http://{host}:{port}/{name}"):
                            out.write(piece)
                            out.flush()
                            time.sleep(0.02)
                    whole.add(name)
            for path in place.iterdir():
                if path.name not in names:
                    path.unlink()
        except OSError:
            pass
        time.sleep(0.2)


def _pieces(url: str) -> Iterator[bytes]:
    with urllib.request.urlopen(url, timeout=1.0) as answer:
        while piece := answer.read(1 << 14):
            yield piece


def enter(namespace: str) -> None:
    """This process, which has one thread, sees that network from now on."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as place:
        if libc.setns(place.fileno(), 0x40000000):  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), "setns")


def main() -> None:
    import tiny  # noqa: F401
    import torch

    from edgeslm.schemes import codistill, exchange_server  # noqa: F401

    torch.set_num_threads(1)
    sys.path += filter(None, [os.environ.get("EDGESLM_PROOF_PACKAGES")])  # of a store's client, behind our own
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that end
    roles = {"train": train, "serve": serve, "files": files, "mirror": mirror}
    for line in iter(sys.stdin.readline, ""):
        job = SimpleNamespace(**json.loads(line))
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                os.dup2(os.open(job.errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 2)
                if job.namespace:
                    enter(job.namespace)
                roles[job.role](job)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
            finally:
                os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
