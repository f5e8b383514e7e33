"""Fewer tokens of the same tokenizer: which ids are enough for some text, and the tokenizer of those ids alone.

Byte-pair merges are only ever added to, never undone, and always the first possible one of the list is made next. So a
word that a tokenizer writes in kept tokens is written in the same tokens by a tokenizer of the kept tokens' merges
alone, provided that whatever a kept token is merged from is kept too: every merge that happened is still there, and
none came before it in the list that was not there. That is the law here: *text whose tokens are all kept is tokenised
as before*. Every byte and every special token stays, so other text can be written too, in more tokens.

It holds for byte-level merges (GPT-2) and for sentencepiece's pairs merged by score, which are ranked merges as well.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from edgeslm.errors import ModelError
from edgeslm.models.gguf_vocab import KEY, SPACE, metadata_from_tokenizer
from edgeslm.models.pieces import BYTE_TOKEN, byte_alphabet

NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
POST = ("ByteLevel", "TemplateProcessing", "Sequence")


class Merges:
    """A tokenizer's ranked merges, asked about single tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        """Raises ModelError for a tokenizer that does not merge bytes, or that has no tokenizer.json."""
        state = _state(tokenizer)
        self.scored = bool(state["model"].get("byte_fallback"))
        self.vocabulary: dict[str, int] = tokenizer.get_vocab()
        self.added = {token["content"] for token in state["added_tokens"]}
        self.rank = {pair: place for place, pair in reversed(list(enumerate(_pairs(state))))}

    def split(self, token: str) -> tuple[str, ...]:
        """The two that it is merged from in the end; none for one that no merge makes."""
        pieces, last = list(token), tuple[str, ...]()
        while len(pieces) > 1:
            best, at = min((self.rank.get(pair, len(self.rank)), i) for i, pair in enumerate(pairwise(pieces)))
            if best == len(self.rank):
                return ()
            last = pieces[at], pieces[at + 1]
            pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        return last

    def indispensable(self) -> set[int]:
        """Ids of bytes and special tokens (and of sentencepiece's space, which no bytes stand for). SmolLM2 lacks 21
        bytes, most of which are in no UTF-8 text; what a tokenizer never could write it cannot write now either."""
        if self.scored:
            plain = {t for t in self.vocabulary if BYTE_TOKEN.fullmatch(t)} | ({SPACE} & self.vocabulary.keys())
        else:
            plain = byte_alphabet().keys() & self.vocabulary.keys()
        return {self.vocabulary[token] for token in plain | self.added}


def choose(
    tokenizer: PreTrainedTokenizerBase, counts: Mapping[int, int], most: int | None = None, min_count: int = 1
) -> list[int]:
    """Ids to keep, ascending: those that leave the counted text the shortest, `most` in all, bytes and special tokens
    and what kept ones are merged from among them.

    The rarest token that no other is merged from goes first, of equals the higher id; the text then spells it as the
    two that it is merged from, which are seen so much oftener from then on (a character that no merge makes, of
    sentencepiece's, as bytes, whose number is not weighed). That goes on until `most` are left and no such token is
    seen less than `min_count` times. Raises ModelError where bytes and special tokens alone are more.
    """
    merges = Merges(tokenizer)
    kept, vocabulary = merges.indispensable(), merges.vocabulary
    most = len(vocabulary) if most is None else most
    if len(kept) > most:
        raise ModelError(
            f"student.vocabulary.keep is {most} but bytes and special tokens alone are {len(kept)}; keep more"
        )
    halves = {
        index: [vocabulary[half] for half in merges.split(token)]
        for token, index in vocabulary.items()
        if index not in kept
    }
    seen, users = Counter(counts), Counter(half for split in halves.values() for half in split)
    rarest = [(seen[index], -index) for index in halves if not users[index]]
    heapify(rarest)
    while rarest and (len(kept) + len(halves) > most or rarest[0][0] < min_count):
        _, index = heappop(rarest)
        for half in halves.pop(-index):
            seen[half] += seen[-index]
            users[half] -= 1
            if half in halves and not users[half]:
                heappush(rarest, (seen[half], -half))
    return sorted(kept | halves.keys())


def counts_of(documents: Sequence[Sequence[int]]) -> Counter[int]:
    found: Counter[int] = Counter()
    for ids in documents:
        found.update(ids)
    return found


def ids_in(whole: PreTrainedTokenizerBase, part: PreTrainedTokenizerBase) -> list[int] | None:
    """For each id of `part` the same token's in `whole`; None where one is missing or the order is another."""
    theirs, ours = whole.get_vocab(), part.get_vocab()
    found = [theirs.get(token, -1) for token in sorted(ours, key=lambda token: ours[token])]
    whole_range = sorted(ours.values()) == list(range(len(ours)))
    return found if whole_range and found == sorted(found) and found[:1] != [-1] else None


def subset(tokenizer: PreTrainedTokenizerBase, kept: Sequence[int]) -> PreTrainedTokenizerFast:
    """The tokenizer of these ids (ascending), numbered anew in their order. Raises ModelError."""
    state = _state(tokenizer)
    new = {old: number for number, old in enumerate(kept)}
    vocabulary = {token: new[old] for token, old in tokenizer.get_vocab().items() if old in new}
    model = state["model"]
    model["vocab"] = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    model["merges"] = [[a, b] for a, b in _pairs(state) if {a, b, a + b} <= vocabulary.keys()]
    state["added_tokens"] = [{**token, "id": new[token["id"]]} for token in state["added_tokens"]]
    _renumber(state["post_processor"], new)
    remembered = dict(tokenizer.init_kwargs.get("gguf") or {})
    exceptions = {t: e for t, e in remembered.pop("exceptions", {}).items() if t in vocabulary}
    own = {"gguf": remembered | {"vocab_size": len(kept)}} if remembered else {}
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        clean_up_tokenization_spaces=False,
        chat_template=tokenizer.chat_template,
        model_max_length=tokenizer.model_max_length,
        **{f"{n}_token": t for n in NAMED if (t := getattr(tokenizer, f"{n}_token", None)) is not None},
        **own,
    )
    if exceptions:
        made.init_kwargs["gguf"]["exceptions"] = _exceptions(made, vocabulary, exceptions)
    return made


def first_pieces(tokenizer: PreTrainedTokenizerBase, part: PreTrainedTokenizerBase, kept: Sequence[int]) -> list[int]:
    """For each id of the whole vocabulary the kept one (numbered anew) that its spelling now begins with."""
    new = {old: number for number, old in enumerate(kept)}
    inner = part.backend_tokenizer.model  # type: ignore[attr-defined]  # merges alone: a token is not cut by spaces
    found = [0] * (max(tokenizer.get_vocab().values()) + 1)
    for token, index in tokenizer.get_vocab().items():
        found[index] = new[index] if index in new else inner.tokenize(token)[0].id
    return found


def _exceptions(
    made: PreTrainedTokenizerFast, vocabulary: Mapping[str, int], exceptions: Mapping[str, list[Any]]
) -> dict[str, list[Any]]:
    """What the new tokenizer still has to remember: token types. Scores follow from the new ranks."""
    keys = metadata_from_tokenizer(made)
    types, scores = keys[f"{KEY}token_type"], keys.get(f"{KEY}scores")
    return {
        token: [kind, None if scores is None else scores[vocabulary[token]]]
        for token, (kind, _) in exceptions.items()
        if types[vocabulary[token]] != kind
    }


def _state(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError("student.vocabulary: the tokenizer has no tokenizer.json; leave student.vocabulary out")
    state: dict[str, Any] = json.loads(backend.to_str())
    model = state["model"]
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ModelError(
            f"student.vocabulary: the tokenizer is of kind {model['type']}, and only plain byte-pair merges can be "
            "made fewer; leave student.vocabulary out"
        )
    return state


def _pairs(state: Mapping[str, Any]) -> list[tuple[str, str]]:
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ", 1)) for m in state["model"]["merges"]]
    return [(left, right) for left, right in merges]


def _renumber(post: dict[str, Any] | None, new: Mapping[int, int]) -> None:
    """Ids that a post-processor puts around text. Raises ModelError for one that is not known."""
    if post is None:
        return
    if post["type"] not in POST:
        raise ModelError(
            f"student.vocabulary: the tokenizer ends with {post['type']}, whose ids are not known; leave it out"
        )
    for inner in post.get("processors", ()):
        _renumber(inner, new)
    for special in post.get("special_tokens", {}).values() if post["type"] == "TemplateProcessing" else ():
        special["ids"] = [new[index] for index in special["ids"]]
