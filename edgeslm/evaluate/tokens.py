"""Where a student differs: by position in the window, by class of token, and the worst tokens with what led to them.

Letters: T scored tokens, in the order of the windows. `first`: the position from which a window is scored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeslm.evaluate.closeness import Scores, mean_and_error
from edgeslm.evaluate.retention import expected_calibration_error

POSITIONS = 16  # buckets of a window
LED = 40  # ids of context shown
CJK = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


@dataclass(frozen=True)
class Scored:
    """One scored token: the window it is in, its position there, its id."""

    window: int
    position: int
    token: int


def scored(windows: Sequence[Sequence[int]], first: int) -> list[Scored]:
    """What the arrays of a score hold, in their order: position p predicts the id at p + 1."""
    return [Scored(w, p, ids[p + 1]) for w, ids in enumerate(windows) for p in range(first, len(ids) - 1)]


def token_class(piece: str, text: str) -> str:
    """`piece` as the vocabulary spells it (its mark of a leading space counts), `text` as it decodes."""
    bare = text.strip()
    if CJK.search(text):
        return "Chinese character"
    if not bare:
        return "white space"
    if "\ufffd" in bare:
        return "part of a character"
    if bare.isdigit():
        return "number"
    if not any(c.isalnum() for c in bare):
        return "punctuation"
    begins = piece[:1] in "Ġ▁ " or text[:1].isspace()
    return "word, its beginning" if begins else "word, further on"


def summary(
    scores: Scores, windows: Sequence[Sequence[int]], first: int, tokenizer: Any, worst: int = 20
) -> dict[str, Any]:
    """Plain data for a report: `by_position`, `by_class`, `worst`, `calibration` of the next token."""
    places = scored(windows, first)
    arrays = scores.arrays
    ids = sorted({p.token for p in places})
    pieces = dict(zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True))
    texts = dict(zip(ids, tokenizer.batch_decode([[i] for i in ids]), strict=True))
    classes = [token_class(str(pieces[p.token]), texts[p.token]) for p in places]
    right = (arrays["top1"] == [p.token for p in places]).astype(float)
    found: dict[str, Any] = {"calibration": expected_calibration_error(list(arrays["confidence"]), list(right))}
    if "kl" not in arrays:
        return found
    span = max(len(w) for w in windows) - 1 - first
    width = max(1, -(-span // POSITIONS))
    buckets = [(p.position - first) // width for p in places]
    found["by_position"] = [
        {"from": first + b * width + 1, "to": min(first + (b + 1) * width, first + span)} | _part(arrays, buckets, b)
        for b in sorted(set(buckets))
    ]
    order = sorted(set(classes), key=lambda c: (-classes.count(c), c))
    found["by_class"] = [{"class": c} | _part(arrays, classes, c) for c in order]
    ranked = sorted(range(len(places)), key=lambda i: -arrays["kl"][i])[:worst]
    found["worst"] = [_worst(i, places[i], arrays, windows, tokenizer) for i in ranked]
    return found


def _part(arrays: dict[str, Any], marks: Sequence[Any], mark: Any) -> dict[str, Any]:
    import numpy as np

    inside = np.array([m == mark for m in marks])
    kl, error = mean_and_error(arrays["kl"][inside])
    agree = float((arrays["top1"] == arrays["reference_top1"])[inside].mean())
    return {"tokens": int(inside.sum()), "kl": kl, "standard_error": error, "top1_agreement": agree}


def _worst(
    i: int, place: Scored, arrays: dict[str, Any], windows: Sequence[Sequence[int]], tokenizer: Any
) -> dict[str, Any]:
    ids = windows[place.window]
    led = ids[max(0, place.position + 1 - LED) : place.position + 1]
    return {
        "kl": float(arrays["kl"][i]),
        "window": place.window,
        "position": place.position + 1,
        "context": tokenizer.decode(led),
        "token": tokenizer.decode([place.token]),
        "teacher": tokenizer.decode([int(arrays["reference_top1"][i])]),
        "student": tokenizer.decode([int(arrays["top1"][i])]),
        "delta_p": float(arrays["delta_p"][i]),
    }
