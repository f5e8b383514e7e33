"""Chromium: found, started without a window, ended with all it started and all it wrote."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from edgeslm.errors import DeviceError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
LEAVING_S = 3.0
ENOUGH_SHARED_BYTES = 1 << 30
FLAGS = (
    "--headless=new",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-sync",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-background-networking",
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    "--disable-backgrounding-occluded-windows",
    "--mute-audio",
    "--password-store=basic",
    "--enable-precise-memory-info",
    "--enable-blink-features=ForceEagerMeasureMemory",  # memory is told when asked, not at the next collection
)
# The pipe of the debugging protocol is never spoken on: Chromium leaves when its other end closes, so that it does not
# outlive a program that was killed.
TIED = 'exec "$@" 3<&0 0</dev/null 4>/dev/null'
PREFIX = "edgeslm-browser-"
LONGEST_TMP = 24  # a socket that Chromium makes below it may have a path of 107 bytes
SETTLED_S = 60.0
HOMES = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")


def find(browser: str = "") -> str:
    """The browser's path. Raises DeviceError when there is none."""
    for name in (browser,) if browser else BROWSERS:
        if program := shutil.which(name):
            return program
    raise DeviceError(f"{browser or 'Chromium'} is not installed, so nothing can run in a browser here; install it")


def version(program: str) -> str:
    """As `--version` says it, e.g. "Chromium 150.0.7871.100". Raises DeviceError when it says nothing of the kind."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(f"{program} --version gives no answer ({error}); install Chromium again") from error
    if not (said := re.search(r"[A-Z][A-Za-z ]*? \d+(?:\.\d+)+", done.stdout)):
        raise DeviceError(f"{program} --version says no version; install Chromium again")
    return said[0]


def home(tmp: str = "") -> tuple[Path, int]:
    """A folder for what browsers write, and the descriptor whose lock marks it as used. Folders that nobody uses any
    more, left by programs that were killed, go now."""
    top = tmp or tempfile.gettempdir()
    top = top if len(os.fsencode(top)) <= LONGEST_TMP else "/tmp"
    for old in Path(top).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > SETTLED_S:
                os.close(_locked(old))
                shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=top))
    return folder, _locked(folder)


def _locked(folder: Path) -> int:
    """A descriptor of the folder with its lock. Raises OSError when another process has that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def start(program: str, profile: Path, address: str) -> subprocess.Popen[str]:
    """A headless browser at `address`; whatever it writes goes into `profile`. Raises DeviceError."""
    root = ("--no-sandbox",) if hasattr(os, "geteuid") and os.geteuid() == 0 else ()  # root has no sandbox to keep
    tied = ["--remote-debugging-pipe", f"--user-data-dir={profile}", *root, *_without_shared_memory()]
    try:
        return subprocess.Popen(
            ["/bin/sh", "-c", TIED, "sh", program, *FLAGS, *tied, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # its own group: it dies with all its processes
            env=os.environ | dict.fromkeys(HOMES, str(profile)),
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise DeviceError(f"cannot start {program}: {error.strerror}; install Chromium again") from error


def _without_shared_memory() -> tuple[str, ...]:
    """In a container /dev/shm may be too small for a browser: then it takes files of its own."""
    try:
        return () if shutil.disk_usage("/dev/shm").free >= ENOUGH_SHARED_BYTES else ("--disable-dev-shm-usage",)
    except OSError:
        return ("--disable-dev-shm-usage",)


def end(process: subprocess.Popen[str]) -> None:
    """The browser and every process of its group: asked first, by closing its pipe, so that it clears up."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(LEAVING_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for _ in range(100):  # its children write into the profile until they are gone
            os.killpg(process.pid, 0)
            time.sleep(0.02)
    process.wait()
