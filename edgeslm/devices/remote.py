"""What devices behind a link have in common: pushing by content, running, pulling, and leaving nothing behind.

A push goes to ROOT/KEY/NAME, KEY being the first 16 digits of its sha256: sent once, checked by its hash on the device,
resumed when the connection breaks. A job's results lie beside its job file and are gone before it is pushed again.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from edgeslm.devices import endings, probe, state
from edgeslm.devices import facts as machine
from edgeslm.devices.base import Completed
from edgeslm.devices.links import ConnectionLost, Link, ask
from edgeslm.devices.local import LocalDevice
from edgeslm.devices.payload import Payload
from edgeslm.devices.pushing import SMALL_BYTES, OnPush, Store
from edgeslm.devices.scripts import END, NOT_THERE, PULL, RUN, filled, unwrapped, wrapped
from edgeslm.devices.session import GRACE_S, Session
from edgeslm.devices.wheels import site
from edgeslm.errors import DeviceError

ASLEEP = (
    "is asleep, which slows it down; wake it and keep its screen on (`svc power stayon true` in its shell, or 'Stay "
    "awake' among its developer options), then run again"
)


class RemoteDevice:
    """A device behind `link`. The first push or run opens a session there, `close` ends it; `keep` leaves what was
    large (models) for the next one. `on_push` hears how a push gets on."""

    def __init__(self, link: Link, keep: bool = False, on_push: OnPush | None = None, grace_s: int = GRACE_S):
        self.link, self.keep, self.on_push, self.grace_s = link, keep, on_push, grace_s
        self.name = link.name
        self.pauses = (0.0, 2.0, 5.0)  # seconds before each try to reach it again when a push was cut
        self._here = LocalDevice(facts={})
        self._session: Session | None = None
        self._store: Store | None = None
        self._cut: frozenset[str] = frozenset()  # tokens of our sessions whose connection was lost
        self._hashed: dict[object, Payload] = {}
        self._runs = 0
        self._lock = threading.RLock()  # a recorder may run beside a worker
        self._copied: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> RemoteDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing of ours is on the device when this returns, or as soon as it notices that the connection is cut."""
        if self._session is not None:
            self._session.close()
            self._session = self._store = None
        self.link.close()
        if self._copied is not None:
            self._copied.cleanup()
            self._copied = None

    def begin(self) -> None:
        """Reach it and take it, before anything is computed. Raises DeviceError."""
        if state.asleep(self.tree):
            raise DeviceError(f"{self.name} {ASLEEP}")
        self._opened()

    @cached_property
    def root(self) -> Path | None:
        """A copy of its small files and of what its commands say, as of the last `refresh`: for facts and sensors."""
        return self.tree

    @property
    def tree(self) -> Path:
        return self.refresh() if self._copied is None else Path(self._copied.name)

    def refresh(self) -> Path:
        """Look at the device again, in one round trip. Raises DeviceError."""
        began = time.time()
        answer = ask(self.link, f"root={self.link.root}; export root; exec sh", [probe.SCRIPT.encode()])
        if self._copied is None:
            self._copied = tempfile.TemporaryDirectory(prefix="edgeslm-tree-")
        probe.write_tree(answer.out, Path(self._copied.name), self.name, (began, time.time()))
        return Path(self._copied.name)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """As of the first look."""
        return machine.facts(self.tree) | probe.facts(self.tree)

    @cached_property
    def hosts(self) -> tuple[str, ...]:
        """ "native" where the processor is known; "python" where its packages are there or can be put there."""
        able = {"native": bool(self.facts.get("machine")), "python": probe.interpreter(self.tree).usable}
        return tuple(host for host, yes in able.items() if yes)

    @cached_property
    def python(self) -> str:
        return "python3" if "python" in self.hosts else ""

    def push(self, path: Path) -> str:
        """Goes on by itself when the connection was cut and comes back."""
        payload = self._payload(Path(path))
        arrived, pauses = -1, list(self.pauses)
        while True:
            try:
                with self._lock:
                    return self._opened().push(payload)
            except ConnectionLost as error:
                if self._session is None and not self._cut:
                    raise  # it was never there
                sent = self._store.sent if self._store is not None else 0
                self._drop()
                if sent > arrived:  # it gets on: as patient as at first
                    arrived, pauses = sent, list(self.pauses)
                if not pauses:
                    raise ConnectionLost(_cut_while_pushing(self.name, payload, self.grace_s, error)) from error
                time.sleep(pauses.pop(0))

    def pull(self, remote: str, local: Path) -> None:
        part = Path(local).with_name(Path(local).name + ".part")
        try:
            with part.open("wb") as file:
                answer = ask(self.link, filled(PULL, file=remote), out=file)
            if answer.code == NOT_THERE:
                raise DeviceError(
                    f"{remote} is not on the device; the command that should have written it did not finish"
                )
            if answer.code or Payload(part).sha256 != answer.err.partition(" ")[0].strip():
                raise DeviceError(f"{remote} could not be read from {self.name} undamaged; run the same command again")
            os.replace(part, local)
        finally:
            part.unlink(missing_ok=True)

    def run(
        self,
        argv: list[str],
        timeout_s: float,
        on_line: Callable[[str], None] | None = None,
        stdin: Iterable[str] | None = None,
    ) -> Completed:
        """Raises DeviceError when the command cannot be started there, ConnectionLost when the connection is cut: the
        device then ends it and removes its files by itself."""
        before = self._before(argv)
        with self._lock:
            self._opened()
            assert self._session is not None
            self._runs += 1
            values: dict[str, str | int] = {"root": self._session.root, "token": self._session.token, "n": self._runs}
        script = f"{before}set -- {shlex.join(argv)}; {filled(RUN, **values)}"
        try:
            done = self._here.run(self.link.argv(wrapped(script)), timeout_s, on_line, stdin)
        except BaseException:
            self._end(values)
            raise
        code, stderr = unwrapped(done.stderr_tail)
        if done.timed_out:
            self._end(values)
            return replace(done, stderr_tail=stderr)
        if code is None:
            raise self._cut_while_running(argv, self.link.why(done.returncode, stderr))
        if said := endings.not_started(argv[0], code, stderr, self.name):
            raise DeviceError(said)
        number = endings.signal_of(code)
        if number is not None:
            code, stderr = -number, endings.without_shells_words(stderr)
        return replace(done, returncode=code, stderr_tail=stderr, signal=number, oom=number == 9)

    def _before(self, argv: list[str]) -> str:
        """What the shell does first; refuses a program for another processor."""
        program = self._store.there.get(argv[0]) if self._store is not None else None
        if program is not None and program.is_file():
            said = endings.wrong_kind(program, str(self.facts.get("machine", "")), self.name)
            if said:
                raise DeviceError(said)
        interpreter = probe.interpreter(self.tree)
        if argv[0] != self.python or not interpreter.missing:
            return ""
        return f"PYTHONPATH={shlex.quote(self.push(site(interpreter, self.name)))}; export PYTHONPATH; "

    def _end(self, values: dict[str, str | int]) -> None:
        """Whatever still runs there of that command. Where the connection is gone the device does it by itself."""
        with contextlib.suppress(DeviceError):
            ask(self.link, filled(END, **values), stall_s=15.0)

    def _cut_while_running(self, argv: list[str], why: str) -> ConnectionLost:
        self._drop()
        what = argv[1] if argv[0] == self.python and len(argv) > 1 else argv[0]
        return ConnectionLost(
            f"the connection to {self.name} was cut while {PurePosixPath(what).name} ran there, which ends it; "
            + (why or "connect it again and run the same command again")
        )

    def _opened(self) -> Store:
        """A session's store: the running one's, or a new one's."""
        if self._session is not None and not self._session.alive:
            self._drop()
        if self._session is None or self._store is None:
            self._session = Session(self.link, self.keep, self.grace_s, self._cut)
            self._store = Store(self.link, self._session.root, self.on_push)
        return self._store

    def _drop(self) -> None:
        """The connection is gone; what is there is looked at anew when it is back."""
        with self._lock:
            if self._session is not None:
                self._cut |= {self._session.token}
                self._session.abandon()
            self._session = self._store = None

    def _payload(self, path: Path) -> Payload:
        """With its hash, which for what is large is computed once while the files stay as they are."""
        if not path.exists():
            raise DeviceError(f"{path} does not exist; export it again or correct the path")
        payload = Payload(path if path.name else path.resolve())
        if payload.is_folder or payload.size > SMALL_BYTES:
            return self._hashed.setdefault(payload.signature, payload)
        return payload


def _cut_while_pushing(name: str, payload: Payload, grace_s: int, error: Exception) -> str:
    return (
        f"the connection to {name} was cut while {payload.name} was sent and did not come back ({error}); what arrived "
        f"stays there for {grace_s // 60} minutes, within which the same command goes on from it"
    )
