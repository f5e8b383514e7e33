"""Whether two tokenizers are one: the same spelling for each id, and the same ids for the same text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from transformers import PreTrainedTokenizerBase

Encode = Callable[[str], Sequence[int]]

# spaces, digits, contractions, scripts, marks, symbols: where ways of cutting text are known to differ
PROBES = (
    "Hello  world 123 4567 it's I'LL don't\n\n  x = y\t\t+1;\r\n",
    " leading and trailing   ",
    "naïve Straße été Ω≈ç ½ ² Ⅷ ١٢٣ 三百 3.14e-10 1,000,000",
    "🚀 (normal) 😶‍🌫️ нещо на Български កាន់តែ ひらがな한국어 ''''''```",
    "def f(a_b, *c):\n    return {'k': a_b[0] != c} # <x> </y>",
)


def first_disagreement(left: Encode, right: Encode, texts: Iterable[str]) -> str | None:
    """A sentence about the first text that the two encode differently; None when they agree on all."""
    for text in texts:
        ours, theirs = list(left(text)), list(right(text))
        if ours != theirs:
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), -1)
            at = min(len(ours), len(theirs)) if at < 0 else at
            return f"token {at} of {text[:60]!r} differs: {ours[at : at + 3]} and {theirs[at : at + 3]}"
    return None


def vocabulary_difference(left: PreTrainedTokenizerBase, right: PreTrainedTokenizerBase) -> str | None:
    """A sentence about how two tokenizers differ, None when models using them can be compared token by token.

    Tokens that only one of them has beyond the other's last id count: they would be targets the other cannot predict.
    """
    ours, theirs = left.get_vocab(), right.get_vocab()
    for token, index in ours.items():
        if theirs.get(token) != index:
            return f"token {token!r} has id {index} in one vocabulary and {theirs.get(token, 'none')} in the other"
    if len(theirs) != len(ours):
        extra = next(token for token in theirs if token not in ours)
        return f"one vocabulary has {len(ours)} tokens, the other {len(theirs)}, among them {extra!r}"

    def encode(tokenizer: PreTrainedTokenizerBase) -> Encode:
        return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]

    return first_disagreement(encode(left), encode(right), PROBES)
