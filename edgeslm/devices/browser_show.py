"""The page for people: models of this machine to talk with in a browser of this machine, until Ctrl-C."""

from __future__ import annotations

import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeslm.devices.browser_server import PageServer
from edgeslm.errors import DeviceError


def show(
    page: Path,
    models: list[Path],
    open_browser: bool = True,
    say: Callable[[str], None] = lambda text: None,
    until: Callable[[], object] = threading.Event().wait,
) -> None:
    """Serve `page`, a folder with page.html, and the models it may offer, until `until` returns or Ctrl-C; `say` gets
    the address, which is a secret: whoever has it on this machine can read these models. Raises DeviceError."""
    shared, offered = {"page/page": page}, []
    for number, path in enumerate(models):
        offered.append(offer(path, f"model-{number}"))
        shared[str(offered[-1]["path"])] = path.resolve()
    with PageServer(shared, answers={"models": lambda: offered}) as server:
        address = server.url("page/page/page.html")
        say(address)
        if open_browser:
            webbrowser.open(address)
        try:
            until()
        except KeyboardInterrupt:
            return


def offer(path: Path, key: str) -> dict[str, Any]:
    """What the page is told of a model. Raises DeviceError for what no browser runs."""
    if path.is_file() and path.suffix == ".gguf":
        kind, size = "gguf", path.stat().st_size
    elif (path / "genai_config.json").is_file():
        kind, size = "onnx", sum(part.stat().st_size for part in path.rglob("*") if part.is_file())
    else:
        raise DeviceError(f"{path}: is neither a .gguf file nor a folder with genai_config.json; give one of these")
    return {"name": path.resolve().name, "path": f"{key}/{path.resolve().name}", "format": kind, "bytes": size}
