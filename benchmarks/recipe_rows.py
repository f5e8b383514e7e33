"""What benchmarks whose rows are recipes share: stages that many rows have in common, and tasks asked of the file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

TASKS = ("lambada_openai", "arc_easy")
Row = dict[str, Any]


def share_stages(runs: Path, benchmark: str, name: str) -> None:
    """Stages before training are the same for most rows: what another row of the benchmark has done is linked, and
    taken where its hash is the one looked for."""
    (runs / name).mkdir(parents=True, exist_ok=True)
    for stage in ("teacher", "data", "student"):
        for done in runs.glob(f"{benchmark}-*/{stage}-*/done.json"):
            here = runs / name / done.parent.name
            if not here.exists():
                here.symlink_to(done.parent.resolve())


def answered(root: Path, arguments: argparse.Namespace) -> dict[str, Row]:
    """{task: score of the student's file, of the teacher's, items}, through llama.cpp."""
    from edgeslm.cli import eval as cli_eval
    from edgeslm.progress import Progress

    options = cli_eval.Options(
        context=128, windows=1, tasks=TASKS, data=arguments.data, limit=arguments.limit, threads=arguments.threads
    )
    document = cli_eval.evaluate([str(root)], None, options, Progress())
    (student,) = document["students"]
    kept = document["retention"][student["name"]]["tasks"]
    return {t["task"]: {k: t[k] for k in ("student", "teacher", "chance", "items")} for t in kept}
