"""What a person sees while long work runs: bars with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from edgeslm import units

LINE_EVERY_S = 10.0


class Task(Protocol):
    done: float

    def advance(self, amount: float, note: str = "") -> None: ...

    def reach(self, done: float, total: float) -> None:
        """As a callback for work that tells how far it is, not how far it came since."""
        self.advance(done - self.done)


class Progress:
    """`say` prints a line; `task` measures work of known size. `quiet` does neither (for tests and --json)."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.terminal = sys.stderr.isatty() and not quiet

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[Task]:
        if self.terminal:
            with _bar(name, total, unit) as bar:
                yield bar
        else:
            yield _Lines(self, name, total, unit)


class _Lines(Task):
    """A line every ten seconds."""

    def __init__(self, progress: Progress, name: str, total: float, unit: str):
        self.progress, self.name, self.total, self.unit = progress, name, total, unit
        self.done, self.start = 0.0, time.monotonic()
        self.said = self.start

    def advance(self, amount: float, note: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.said < LINE_EVERY_S and self.done < self.total:
            return
        self.said = now
        rate = self.done / max(now - self.start, 1e-9)
        left = units.seconds(max(0.0, self.total - self.done) / rate) if rate else "?"
        self.progress.say(
            f"  {self.name}: {self.done:,.0f} of {self.total:,.0f} {self.unit}, {_rate(rate)} {self.unit}/s, "
            f"{left} left" + (f", {note}" if note else "")
        )


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


@contextmanager
def _bar(name: str, total: float, unit: str) -> Iterator[Task]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    from rich.console import Console

    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        handle = bars.add_task(name, total=total, rate="", note="")
        yield _Bar(bars, handle, unit)


class _Bar(Task):
    def __init__(self, bars, handle, unit: str):
        self.bars, self.handle, self.unit, self.done, self.start = bars, handle, unit, 0.0, time.monotonic()

    def advance(self, amount: float, note: str = "") -> None:
        self.done += amount
        rate = self.done / max(time.monotonic() - self.start, 1e-9)
        self.bars.update(self.handle, advance=amount, rate=f"{_rate(rate)} {self.unit}/s", note=note)
