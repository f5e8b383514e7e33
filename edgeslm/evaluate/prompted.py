"""Greedy answers to the same prompts, side by side, with what a program can say of them.

Of each answer: length, how it ended, repetition, role marks and other special tokens that leaked into it, instructions
followed, and how probable the teacher finds it. The teacher's own answer stands beside each for a win, a tie or a loss
by that measure.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeslm.artifact import Artifact
from edgeslm.data.chat import json_lines, template_ids
from edgeslm.errors import DataError, EdgeSLMError
from edgeslm.evaluate.checks import checked, followed
from edgeslm.evaluate.generate import Request, Written, generate
from edgeslm.evaluate.likelihood import likelihoods

GRAM = 4  # ids of a repeated piece
LOOPING = 0.5  # share of repeated pieces from which an answer is called a loop
TIE = 0.1  # nats a token by the teacher's likelihood that are no difference
# of every file, and of students, as `totals` gives them
FIGURES = ("answers", "mean_tokens", "stopped", "repetition", "loops", "clean", "prompts_followed",
           "instructions_followed", "instructions")  # fmt: skip
DUELS = ("wins", "ties", "losses")


@dataclass(frozen=True)
class Prompt:
    text: str
    messages: list[dict[str, str]]
    checks: list[dict[str, Any]]


def read(paths: Sequence[Path]) -> list[Prompt]:
    """JSON lines `{"prompt", "system"?, "checks"?}`. Raises DataError with file and row for anything else."""
    found = []
    for path in paths:
        for number, row in enumerate(json_lines(path), start=1):
            where = f"{path}: prompt {number}"
            if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
                raise DataError(f"{where}: has no text 'prompt'")
            if unknown := sorted(set(row) - {"prompt", "system", "checks"}):
                raise DataError(f"{where}: has an unknown key '{unknown[0]}'; known are prompt, system, checks")
            messages = [{"role": "user", "content": row["prompt"]}]
            if "system" in row and not isinstance(row["system"], str):
                raise DataError(f"{where}: 'system' must be a text")
            if "system" in row:
                messages.insert(0, {"role": "system", "content": row["system"]})
            found.append(Prompt(row["prompt"], messages, checked(row.get("checks", []), where)))
    if not found:
        raise DataError(f"{', '.join(map(str, paths))}: hold no prompt")
    return found


def refuse_too_long(prompts: Sequence[Prompt], tokenizer: Any, new: int, limit: int) -> None:
    """Raises DataError for a prompt that with its answer does not fit the positions a file was made for: beyond them a
    runtime may write on, but nothing was trained there."""
    for number, prompt in enumerate(prompts, start=1):
        length = len(template_ids(tokenizer, prompt.messages, answer=True))
        if length + new > limit:
            raise DataError(
                f"prompt {number} has {length} tokens, which with {new} new ones is more than the {limit} positions of "
                "the model; give shorter prompts or answers"
            )


def repetition(ids: Sequence[int]) -> float:
    """Share of the answer's pieces of GRAM ids that stood in it before: 0 for none, near 1 for a loop."""
    pieces = [tuple(ids[i : i + GRAM]) for i in range(len(ids) - GRAM + 1)]
    return 1 - len(set(pieces)) / len(pieces) if pieces else 0.0


def compare(
    teacher: Artifact,
    students: Sequence[Artifact],
    prompts: Sequence[Prompt],
    tokenizer: Any,
    *,
    new: int,
    where: Callable[[Artifact], dict[str, Any]],
    on_progress: Callable[[str, int, int], None] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """([{"prompt", "checks", "answers": [{"artifact", ...}]}], problems), the teacher's answer first. `where(artifact)`
    gives the keyword arguments of generate and likelihoods for it. A student that fails becomes a problem and is left
    out; without its teacher nothing can be said, so that raises RuntimeFailure, DeviceError."""
    asked = [Request(template_ids(tokenizer, p.messages, answer=True), new) for p in prompts]
    special = set(tokenizer.all_special_ids)
    rows: list[dict[str, Any]] = [{"prompt": p.text, "checks": p.checks, "answers": []} for p in prompts]
    problems: list[dict[str, str]] = []
    for artifact in (teacher, *students):
        tell = None if on_progress is None else (lambda d, t, name=artifact.name: on_progress(name, d, t))
        try:
            written = generate(artifact, tokenizer, asked, on_progress=tell, **where(artifact))
            nats = _by_teacher(teacher, asked, written, where)
        except EdgeSLMError as error:
            if artifact is teacher:
                raise
            problems.append({"artifact": artifact.name, "what": str(error)})
            continue
        for row, prompt, one, value in zip(rows, prompts, written, nats, strict=True):
            row["answers"].append(
                {
                    "artifact": artifact.name,
                    "text": one.text,
                    "tokens": len(one.ids),
                    "ended": one.ended,
                    "repetition": repetition(one.ids),
                    "leaked": sorted(
                        {tokenizer.convert_ids_to_tokens(i) for i in one.ids if i in special}
                        | {mark for mark in tokenizer.all_special_tokens if mark in one.text}
                    ),
                    "followed": followed(one.text, prompt.checks),
                    "teacher_nats_per_token": value,
                }
            )
    return rows, problems


def _by_teacher(
    teacher: Artifact, asked: Sequence[Request], written: Sequence[Written], where: Any
) -> list[float | None]:
    """Mean log-probability a token of each answer to the teacher; None for an empty one."""
    full = [i for i, one in enumerate(written) if one.ids]
    found = likelihoods(teacher, [(asked[i].ids, written[i].ids) for i in full], **where(teacher))
    nats: list[float | None] = [None] * len(written)
    for i, likelihood in zip(full, found, strict=True):
        nats[i] = likelihood.nats / len(written[i].ids)
    return nats


def totals(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """{artifact: figures over all prompts}; wins, ties and losses are against the teacher's answers, by its own
    likelihood a token, so a win says that the student wrote what the teacher finds more probable, not better."""
    names = [answer["artifact"] for answer in rows[0]["answers"]] if rows else []
    found: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names):
        given = [row["answers"][number] for row in rows]
        tests = [all(a["followed"]) for a in given if a["followed"]]
        single = [f for a in given for f in a["followed"]]
        found[name] = {
            "answers": len(given),
            "mean_tokens": statistics.fmean(a["tokens"] for a in given),
            "stopped": statistics.fmean(a["ended"] == "stop" for a in given),
            "repetition": statistics.fmean(a["repetition"] for a in given),
            "loops": statistics.fmean(a["repetition"] > LOOPING for a in given),
            "clean": statistics.fmean(not a["leaked"] and a["tokens"] > 0 for a in given),
            "prompts_followed": statistics.fmean(tests) if tests else None,
            "instructions_followed": statistics.fmean(single) if single else None,
            "instructions": len(single),
            **(_duels(rows, number) if number else {}),
        }
    return found


def _duels(rows: Sequence[dict[str, Any]], number: int) -> dict[str, int]:
    count = {"wins": 0, "ties": 0, "losses": 0}
    for row in rows:
        left, right = row["answers"][number]["teacher_nats_per_token"], row["answers"][0]["teacher_nats_per_token"]
        if left is None or right is None:
            count["losses" if left is None and right is not None else "ties"] += 1
        else:
            count["ties" if abs(left - right) <= TIE else "wins" if left > right else "losses"] += 1
    return count
