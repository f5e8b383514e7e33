"""What `edgeslm learned` does: runs and options -> one document, its page, lines for the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeslm.cli.eval import OWN_TEXT
from edgeslm.errors import DataError
from edgeslm.progress import Progress


@dataclass(frozen=True)
class Options:
    """As the command line names them."""

    text: tuple[str, ...] = ()  # none: the text to judge by that ships with edgeslm
    layers: str = ""
    windows: int = 8
    length: int = 64
    margin: float = 0.2
    seed: int = 0
    threads: int = 0


def learned(runs: Sequence[str], options: Options, progress: Progress, out: Path | None, as_json: bool) -> str:
    """Writes the page (to runs/learned by default); returns what the command prints. Raises EdgeSLMError."""
    from edgeslm.report.learned import render, table_lines
    from edgeslm.report.page import strict

    document = looked_at(runs, options, progress)
    files = render(document, out or Path("runs") / "learned")
    if as_json:
        return json.dumps(strict(document), allow_nan=False)
    return "\n".join([*table_lines(document), "", *map(str, files)])


def looked_at(runs: Sequence[str], options: Options, progress: Progress) -> dict[str, Any]:
    """The document of edgeslm.pipeline.learned. Raises EdgeSLMError."""
    import torch

    from edgeslm.insight.entropy import Descent
    from edgeslm.pipeline.learned import Question, study
    from edgeslm.pipeline.stage import available_cores
    from edgeslm.recipe import expand

    files = tuple(expand(options.text or (OWN_TEXT,), Path.cwd()))
    how = Descent(seed=options.seed)
    asked = Question(files, options.length, options.windows, layers(options.layers), options.margin, how)
    torch.set_num_threads(options.threads or available_cores())
    return study([Path(run) for run in runs], asked, progress)


def layers(text: str) -> tuple[int, ...]:
    """`2,4,6` -> (2, 4, 6). Raises DataError."""
    try:
        return tuple(sorted({int(part) for part in text.split(",")})) if text else ()
    except ValueError:
        raise DataError(f"--layers {text}: is no list of numbers, such as 2,4,6") from None
