"""What `edgeslm eval` does: files and options -> one evaluation, its report, its gate."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeslm.cli.actions import tokenizer_of
from edgeslm.cli.eval_files import files_of, read_document, run_folder
from edgeslm.errors import DataError, ModelError
from edgeslm.measurement import Measurement
from edgeslm.models.stop import begin_id
from edgeslm.progress import Progress

OWN_TEXT = "package:text/judge/*.txt"
OWN_PROMPTS = "package:chat/instructions.jsonl"
FIGURES = ("perplexity", "kl", "top1_agreement", "top5_agreement", "rms_delta_p", "perplexity_ratio")


@dataclass(frozen=True)
class Options:
    """As the command line names them."""

    text: tuple[str, ...] = (OWN_TEXT,)
    context: int = 512
    windows: int = 8
    tasks: tuple[str, ...] = ()
    data: Path | None = None
    limit: int | None = None
    shots: int | None = None
    max_length: int | None = None
    chat: bool = False
    prompts: tuple[str, ...] = ()
    new: int = 128
    churn: bool = False
    threads: int = 0
    keep: bool = True


@dataclass(frozen=True)
class Bound:
    """`figure` at least (or at most) `value`, for every student."""

    figure: str
    value: float
    least: bool

    def holds(self, found: float) -> bool:
        return found >= self.value if self.least else found <= self.value

    def __str__(self) -> str:
        return f"{self.figure} {'at least' if self.least else 'at most'} {self.value:g}"


def bounds(at_least: Sequence[str], at_most: Sequence[str]) -> list[Bound]:
    """`name=number` texts. Raises DataError."""
    found = []
    for texts, least in ((at_least, True), (at_most, False)):
        for text in texts:
            name, _, number = text.partition("=")
            try:
                value = float(number)
            except ValueError:
                value = math.nan
            if not name or math.isnan(value):
                flag = "--at-least" if least else "--at-most"
                raise DataError(f"{flag} {text}: is no NAME=NUMBER, such as retention=0.95")
            found.append(Bound(name, value, least))
    return found


def refuse_unknown_figures(wanted: Sequence[Bound], options: Options, tasks: Sequence[str]) -> None:
    """A gate on a figure that this evaluation will not give would never hold. Raises DataError."""
    from edgeslm.evaluate.prompted import DUELS
    from edgeslm.evaluate.prompted import FIGURES as ANSWERS

    known = set(FIGURES if options.windows else ())
    known |= {"retention", *tasks, *(f"retention.{task}" for task in tasks)} if tasks else set()
    known |= {f"answers.{figure}" for figure in (*ANSWERS, *DUELS)} if options.prompts else set()
    for bound in wanted:
        if bound.figure not in known:
            raise DataError(
                f"the gate names '{bound.figure}', which this evaluation does not give; it gives "
                f"{', '.join(sorted(known)) or 'nothing'}"
            )


def positions(path: Path) -> int:
    """The longest context a file was made for. Raises ModelError when it does not say."""
    if path.suffix == ".gguf":
        from edgeslm.models.gguf_file import read

        metadata = read(path).metadata
        found = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    else:
        found = read_document(path / "genai_config.json", "export it again").get("model", {}).get("context_length")
    if not isinstance(found, int) or found < 2:
        raise ModelError(f"{path.name}: does not say how long its context is; export it again")
    return found


def evaluate(
    models: Sequence[str], teacher: str | None, options: Options, progress: Progress, wanted: Sequence[Bound] = ()
) -> dict[str, Any]:
    """The document of edgeslm.evaluate.study. Everything that can be refused is refused first."""
    from edgeslm.devices.local import LocalDevice
    from edgeslm.evaluate import prompted
    from edgeslm.evaluate.harness.run import Tasks
    from edgeslm.evaluate.store import default_folder
    from edgeslm.evaluate.study import Asked, Bench, study
    from edgeslm.models.agreement import vocabulary_difference
    from edgeslm.pipeline.stage import available_cores
    from edgeslm.recipe import expand

    reference, students, paths = files_of(models, teacher, options.churn)
    tokenizers = dict(zip([reference.name, *(s.name for s in students)], map(tokenizer_of, paths), strict=True))
    tokenizer = tokenizers[reference.name]
    for student in students:
        if difference := vocabulary_difference(tokenizer, tokenizers[student.name]):
            raise ModelError(f"{student.name} and {reference.name} cannot be compared: {difference}")
    limits = {name: positions(path) for name, path in zip(tokenizers, paths, strict=True)}
    if options.max_length is not None:
        limits = {name: min(limit, options.max_length) for name, limit in limits.items()}
    prompts = prompted.read(expand(options.prompts, Path.cwd())) if options.prompts else []
    if prompts or options.chat:
        _refuse_templates(tokenizers, reference.name)
    prompted.refuse_too_long(prompts, tokenizer, options.new, min(limits.values()))
    chosen, judged = _windows(options, tokenizer, min(limits.values()))
    tasks = Tasks(options.tasks, options.data, options.shots, options.limit) if options.tasks else None
    refuse_unknown_figures(wanted, options, list(tasks.tasks) if tasks else [])
    with tempfile.TemporaryDirectory() as work:
        return study(
            reference,
            students,
            Asked(chosen, judged, begin_id(tokenizer), tasks, prompts, options.new, options.churn, options.chat),
            tokenizers,
            limits,
            Bench(
                LocalDevice(),
                Path(work),
                options.threads or available_cores(),
                default_folder() if options.keep else None,
                progress,
            ),
        )


def _windows(options: Options, tokenizer: Any, limit: int) -> tuple[list[list[int]], dict[str, Any]]:
    """(windows to judge by, what they were cut from), both empty when text is left out. Raises DataError."""
    from edgeslm.data.text import documents
    from edgeslm.evaluate.closeness import even_windows
    from edgeslm.pipeline.stage import digest
    from edgeslm.recipe import expand

    if not options.windows:
        return [], {}
    if options.context > limit:
        raise DataError(f"--context {options.context}: the files were made for {limit} positions")
    found = expand(options.text, Path.cwd())
    chosen = even_windows(documents(found, tokenizer), options.context, options.windows)
    judged = {"files": [p.name for p in found], "windows": len(chosen), "context": options.context}
    return chosen, judged | {"digest": digest(chosen)}


def _refuse_templates(tokenizers: dict[str, Any], reference: str) -> None:
    """Raises ModelError for a file without a chat template, or whose template puts the same turns differently."""
    from edgeslm.data.chat import template_ids

    turns = [{"role": "user", "content": "Hello  there."}, {"role": "assistant", "content": "Hi!"}]
    for name, tokenizer in tokenizers.items():
        if not tokenizer.chat_template:
            raise ModelError(f"{name}: has no chat template, so nothing can be put to it as a chat; leave prompts out")
        for messages in (turns[:1], [*turns, {"role": "user", "content": "Bye."}]):
            if template_ids(tokenizer, messages, answer=True) != template_ids(
                tokenizers[reference], messages, answer=True
            ):
                raise ModelError(
                    f"{name}: its chat template does not put turns as {reference}'s does; export it again with the "
                    "teacher's tokenizer"
                )


def gate(document: dict[str, Any], wanted: Sequence[Bound]) -> list[str]:
    """One sentence for each bound that a student does not keep; a figure that is missing is not kept."""
    from edgeslm.evaluate.study import gate_figures

    broken = []
    for student in (s["name"] for s in document["students"]):
        figures = gate_figures(document, student)
        for bound in wanted:
            found = figures.get(bound.figure)
            if found is None:
                broken.append(f"{student}: {bound.figure} is not known, so {bound} does not hold")
            elif not bound.holds(found):
                broken.append(f"{student}: {bound.figure} is {found:.4g}, which is not {bound}")
    return broken


def finish(
    document: dict[str, Any], wanted: Sequence[Bound], models: Sequence[str], out: Path | None, as_json: bool
) -> str:
    """Puts the gate into the document, writes the report (to runs/eval-<first model> by default), and returns what the
    command prints."""
    from edgeslm.report.evaluation import render
    from edgeslm.report.page import strict

    document["gate"] = {"bounds": [str(b) for b in wanted], "broken": gate(document, wanted)}
    named = Path(run_folder(models[0])).resolve()
    files = render(document, out or Path("runs") / f"eval-{named.stem if named.suffix == '.gguf' else named.name}")
    if as_json:
        return json.dumps(strict(document), indent=1, allow_nan=False)
    return "\n".join([*lines(document), "", *map(str, files)])


def lines(document: dict[str, Any]) -> list[str]:
    """The document for a terminal, figures first."""
    out = []
    for m in map(Measurement.from_json, document.get("measurements", [])):
        error = m.extra.get("standard_error")
        spread = f" ± {error:.2g}" if error is not None and m.metric != "rms_delta_p" else ""
        out.append(f"{m.where.artifact:32} {m.metric:18} {m.median:.4g}{spread}")
    for student, kept in document.get("retention", {}).items():
        out.append("")
        out.append(f"{student:32} {'teacher':>9} {'student':>9} {'chance':>8}  retention")
        for row in kept["tasks"]:
            kept_share = row["why"] or f"{row['value']:.3f} ± {row['standard_error']:.3f}"
            difference = "" if row["difference"] == "none" else f"  {row['difference']} (p {row['p']:.2g})"
            out.append(
                f"  {row['task']:30} {row['teacher']:9.3f} {row['student']:9.3f} {row['chance']:8.3f}  "
                f"{kept_share}  n {row['items']}{difference}"
            )
        if kept["mean"] is not None:
            counted = sum(row["value"] is not None for row in kept["tasks"])
            mean = f"{kept['mean']:.3f} ± {kept['standard_error']:.3f}"
            words = f"mean of {counted} of {len(kept['tasks'])} tasks"
            out.append(f"  {words:58}  {mean}")
    for name, figures in document.get("generation", {}).items():
        shown = [f"{key} {value:.3g}" for key, value in figures.items() if isinstance(value, int | float)]
        out += ["", f"{name}: answers", "  " + ", ".join(shown)]
    for row in document.get("churn", []):
        out += ["", f"{row['one']} beside {row['other']}"]
        if "text" in row:
            out.append("  text: " + ", ".join(f"{key} {value:.4g}" for key, value in row["text"].items()))
        for task in row.get("tasks", []):
            choice = task["choice_changes"]
            changes = "" if choice is None else f"choices {100 * choice:.1f} % differ, "
            out.append(f"  {task['task']}: {changes}scores {100 * task['score_changes']:.1f} % differ")
    return out
