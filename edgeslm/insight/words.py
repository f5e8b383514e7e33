"""Which tokens of a text carry content. Free of torch.

The paper's pictures have an object and a background; a text has neither marked. Background here is what stands in every
text alike: punctuation, white space, and the text's most frequent words, as few as together make up half of its running
words (in any language these are mostly the function words: the, of, and). All other words are content. This is a rule
of thumb that needs no list of words: a name that a story repeats all the time counts as background.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from edgeslm.evaluate.tokens import token_class

FREQUENT = 0.5  # share of the running words that is background
LETTERS = ("word, further on", "part of a character")  # go on with the word before them
ALONE = ("Chinese character", "number")  # words by themselves


@dataclass(frozen=True)
class Spelling:
    """Of every id: its class (None for marks such as the begin token) and its text."""

    classes: Mapping[int, str | None]
    texts: Mapping[int, str]


def spelling(ids: Sequence[int], tokenizer: Any) -> Spelling:
    unique = sorted(set(ids))
    texts = dict(zip(unique, tokenizer.batch_decode([[i] for i in unique]), strict=True))
    pieces = dict(zip(unique, tokenizer.convert_ids_to_tokens(unique), strict=True))
    marks = set(tokenizer.all_special_ids)
    classes = {i: None if i in marks else token_class(str(pieces[i]), texts[i]) for i in unique}
    return Spelling(classes, texts)


def words(ids: Sequence[int], spelt: Spelling) -> list[str | None]:
    """For every token the word it is part of, in lower case; None for what is no word."""
    found: list[str | None] = []
    at = 0
    while at < len(ids):
        kind, end = spelt.classes[ids[at]], at + 1
        if kind in (None, "punctuation", "white space"):
            found.append(None)
        else:
            while kind not in ALONE and end < len(ids) and spelt.classes[ids[end]] in LETTERS:
                end += 1
            found += ["".join(spelt.texts[i] for i in ids[at:end]).strip().lower()] * (end - at)
        at = end
    return found


def frequent(texts: Sequence[Sequence[int]], spelt: Spelling) -> frozenset[str]:
    """The fewest words that make up the share FREQUENT of all running words of the texts."""
    counts: Counter[str] = Counter()
    for ids in texts:
        found = words(ids, spelt)
        begins = [spelt.classes[i] not in LETTERS or not k or found[k - 1] is None for k, i in enumerate(ids)]
        counts.update(word for word, first in zip(found, begins, strict=True) if word is not None and first)
    wanted, taken = FREQUENT * counts.total(), set()
    for word, count in counts.most_common():
        if wanted <= 0:
            break
        taken.add(word)
        wanted -= count
    return frozenset(taken)


def content(ids: Sequence[int], spelt: Spelling, background: frozenset[str]) -> list[bool]:
    """For every token whether it is part of a word that is not background."""
    return [word is not None and word not in background for word in words(ids, spelt)]


def read(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """What each token adds to the text before it."""
    wholes = ["", *(tokenizer.decode(list(ids[: at + 1])) for at in range(len(ids)))]
    return [now[_alike(before, now) :] for before, now in pairwise(wholes)]


def _alike(left: str, right: str) -> int:
    """How many letters two texts begin with alike."""
    return next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
