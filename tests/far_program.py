"""Stands in for the programs `ssh` and `adb`: runs the command in a shell of this machine that plays the device.

    far_program.py ssh STATE [options] -- LOGIN COMMAND        far_program.py adb STATE -s SERIAL shell -T COMMAND | ...

STATE holds `home` (the device's HOME), `bin` (first on its PATH), `log` (a JSON line for each command that ended:
bytes of stdin), and what tests write: `cut` ("BYTES DOWN": after so many bytes of one command's stdin every connection
goes and DOWN are refused next), `down` (so many are refused next), `refused` (with these words), `phones` (JSON, serial
-> state), `reachable` (addresses that `adb connect` finds). `epoch` counts cuts: a program that sees it move has lost
its connection.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

CUT = "client_loop: send disconnect: Broken pipe\n"


def read(path: Path, otherwise: str = "") -> str:
    return path.read_text() if path.exists() else otherwise


def leave(code: int, words: str) -> None:
    sys.stderr.write(words)
    sys.stderr.flush()
    os._exit(code)


def adb(state: Path, argv: list[str]) -> str:
    """The command of `shell`; answers everything else."""
    phones = json.loads(read(state / "phones", "{}"))
    if argv == ["devices"]:
        lines = "".join(f"{serial}\t{status}\n" for serial, status in phones.items())
        sys.stdout.write(f"List of devices attached\n{lines}\n")
        sys.exit(0)
    if argv[0] == "connect":
        if argv[1] not in read(state / "reachable").split():
            sys.stdout.write(f"failed to connect to '{argv[1]}': Connection refused\n")
        else:
            (state / "phones").write_text(json.dumps(phones | {argv[1]: "device"}))
            sys.stdout.write(f"connected to {argv[1]}\n")
        sys.exit(0)
    assert argv[0] == "-s" and argv[2:4] == ["shell", "-T"] and len(argv) == 5, argv
    status = phones.get(argv[1])
    if status is None:
        leave(1, f"error: device '{argv[1]}' not found\n")
    if status != "device":
        leave(1, f"error: device {status}.\n")
    return argv[4]


def main() -> None:
    kind, state, argv = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    command = adb(state, argv) if kind == "adb" else argv[argv.index("--") + 2]
    down = int(read(state / "down", "0") or 0)
    if down > 0:
        (state / "down").write_text(str(down - 1))
        leave(255, read(state / "refused", "ssh: connect to host far port 22: No route to host\n"))
    epoch = read(state / "epoch", "0")
    env = {**os.environ, "HOME": str(state / "home"), "PATH": f"{state / 'bin'}:{os.environ['PATH']}"}
    child = subprocess.Popen(
        ["sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True, env=env,
    )  # fmt: skip
    passed = 0

    def copy(source: int, target: int) -> None:
        nonlocal passed
        limit, _, refuse = (read(state / "cut") if target not in (1, 2) else "").partition(" ")
        while chunk := os.read(source, 65536):
            if limit and passed + len(chunk) > int(limit):
                os.write(target, chunk[: int(limit) - passed])
                time.sleep(0.1)  # what was sent arrives
                (state / "cut").unlink()
                (state / "down").write_text(refuse or "0")
                (state / "epoch").write_text(str(int(epoch) + 1))
                return time.sleep(60)
            written = 0
            while written < len(chunk):
                written += os.write(target, chunk[written:])
            passed += len(chunk) if target not in (1, 2) else 0
        if target not in (1, 2):
            child.stdin.close()

    def quietly(source: int, target: int) -> None:
        with contextlib.suppress(OSError):
            copy(source, target)

    pipes = [(0, child.stdin.fileno()), (child.stdout.fileno(), 1), (child.stderr.fileno(), 2)]
    threads = [threading.Thread(target=quietly, args=pair, daemon=True) for pair in pipes]
    for thread in threads:
        thread.start()
    while child.poll() is None or threads[1].is_alive() or threads[2].is_alive():
        if read(state / "epoch", "0") != epoch:
            leave(255 if kind == "ssh" else 1, CUT if kind == "ssh" else "")
        time.sleep(0.01)
    with (state / "log").open("a") as log:
        log.write(json.dumps({"bytes": passed}) + "\n")
    os._exit(child.returncode if child.returncode >= 0 else 255)


if __name__ == "__main__":
    main()
