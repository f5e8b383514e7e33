"""A headless Chromium that a test drives: the few calls of its debugging protocol that the page's tests need."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from typing import Any

from edgeslm.devices import chromium

PATIENCE_S = 90.0
AS_3_AND_4 = "import os, sys; down, up, *argv = sys.argv[1:]; os.dup2(int(down), 3); os.dup2(int(up), 4)"
AS_3_AND_4 += "; os.execv(argv[0], argv)"


class Driven:
    """One page. Messages are JSON, ended by a zero byte, over file descriptors 3 and 4 of the browser."""

    def __init__(self, size: tuple[int, int] = (1280, 800)):
        self._profile, self._lock = chromium.home()
        down, self._out = os.pipe()
        self._in, up = os.pipe()
        flags = [*chromium.FLAGS, f"--user-data-dir={self._profile}", f"--window-size={size[0]},{size[1]}"]
        flags += ["--remote-debugging-pipe", "--hide-scrollbars", "--no-sandbox"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", AS_3_AND_4, str(down), str(up), chromium.find(), *flags],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
            start_new_session=True, pass_fds=(down, up),
            env=os.environ | dict.fromkeys(chromium.HOMES, str(self._profile)),
        )  # fmt: skip
        os.close(down)
        os.close(up)
        self._number, self._rest, self.session, self.events = 0, b"", "", []  # type: int, bytes, str, list[Any]
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for room in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{room}.enable")

    def __enter__(self) -> Driven:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)
        os.close(self._in)
        chromium.end(self._process)
        shutil.rmtree(self._profile, ignore_errors=True)
        os.close(self._lock)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                more = os.read(self._in, 1 << 20)
                assert more, "the browser is gone"
                self._rest += more
            one, _, self._rest = self._rest.partition(b"\0")
            said = json.loads(one)
            if said.get("id") == self._number:
                assert "error" not in said, said
                result: dict[str, Any] = said["result"]
                return result
            self.events.append(said)

    def of(self, expression: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str) -> Any:
        """Its value once it is true. Raises AssertionError after PATIENCE_S."""
        end = time.monotonic() + PATIENCE_S
        while not (value := self.of(expression)):
            assert time.monotonic() < end, (
                f"never true: {expression}; the page shows: {self.of('document.body.innerText')}"
            )
            time.sleep(0.1)
        return value

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def addresses(self) -> list[str]:
        """Of every request so far."""
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """Errors in the console, refused requests among them."""
        logged = [e["params"]["entry"]["text"] for e in self.events if e["method"] == "Log.entryAdded"]
        return logged + [str(e["params"]) for e in self.events if e["method"] == "Runtime.exceptionThrown"]
