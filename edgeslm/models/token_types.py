"""What `tokenizer.ggml.*` says of each token beside its spelling: its type, and for sentencepiece its score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
ADDED = (UNKNOWN, CONTROL, USER_DEFINED)  # token types that are found in text before it is cut
LAST = -1e9  # sentencepiece's score of a piece that is merged after all others
LAST_STEP = 64.0  # neighbouring float32 numbers near LAST


def merges_by_score(vocab: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, best score first: what merging by score does, as ranked merges."""
    found = []
    for token, index in vocab.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                found.append((-scores[index], index, cut, left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def types_of(
    tokens: list[str], vocab: Mapping[str, int], added: Mapping[int, bool], scored: bool, unknown: int | None
) -> list[int]:
    """Token types that follow from a tokenizer. `added`: {id: special} of the tokens found before the text is cut."""
    types = [NORMAL if token in vocab else UNUSED for token in tokens]
    if scored:
        for byte in range(256):
            if (index := vocab.get(f"<0x{byte:02X}>")) is not None:
                types[index] = BYTE
    for index, special in added.items():
        types[index] = CONTROL if special else USER_DEFINED
    if scored and unknown is not None:
        types[unknown] = UNKNOWN
    return types


def scores_of(tokens: list[str], types: list[int], merges: Sequence[tuple[str, ...]]) -> list[float]:
    """Scores that order merges as their ranks do; sentencepiece's own -(id) where ids follow the ranks.

    Pieces that come after all others although their id is low (Llama's two spaces) score LAST and below, as there.
    """
    rank: dict[str, int] = {}
    for left, right in merges:
        rank.setdefault(left + right, len(rank))
    late, lowest = [], len(rank)
    for index in reversed(range(len(tokens))):
        place = rank.get(tokens[index])
        if place is not None and place > lowest:
            late.append(index)
        elif place is not None:
            lowest = place
    in_order = len(rank) - len(late)
    if any(rank[tokens[index]] < in_order for index in late):
        return [-float(rank.get(t, len(rank))) if k == NORMAL else 0.0 for t, k in zip(tokens, types, strict=True)]
    first = next((i for i, kind in enumerate(types) if kind == NORMAL), 0)
    scores = [float(first - i) if kind == NORMAL else 0.0 for i, kind in enumerate(types)]
    for index in late:
        scores[index] = LAST - LAST_STEP * (rank[tokens[index]] - in_order)
    return scores
