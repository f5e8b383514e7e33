"""Tokenizers between GGUF metadata (`tokenizer.ggml.*`) and transformers, with llama.cpp's ids in both directions.

Two kinds exist here: "gpt2", byte-pair merges over bytes spelled as characters, cut first by one of PRE; and "llama",
sentencepiece's pairs merged by score over the whole text. Special tokens are found in text as llama.cpp finds them
with `parse_special` on. What a tokenizer.json cannot hold (the pre-tokenizer's name, the size of the embedding, token
types and scores that do not follow from the rest) is kept in the tokenizer's own config under "gguf".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from edgeslm.errors import ModelError
from edgeslm.models.pre_tokenizers import PRE, build, name_of, steps_of
from edgeslm.models.stop import begin_id
from edgeslm.models.token_types import (
    ADDED,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    merges_by_score,
    scores_of,
    types_of,
)

IDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
SPACE = "▁"
KEY = "tokenizer.ggml."


def padding_token(index: int) -> str:
    """What converters write for a row of the embedding that no token uses."""
    return f"[PAD{index}]"


def tokenizer_from_metadata(metadata: Mapping[str, Any], where: str = "the GGUF file") -> PreTrainedTokenizerFast:
    """Build the tokenizer a GGUF file describes. Raises ModelError for a kind or pre-tokenizer that is not known."""
    kind = metadata.get(f"{KEY}model")
    if kind not in ("gpt2", "llama"):
        raise ModelError(f"{where}: its tokenizer is of kind {kind!r}; only 'gpt2' and 'llama' can be read")
    tokens, types = _tokens(metadata, where)
    used = {t: i for i, t in enumerate(tokens) if not (types[i] == UNUSED and t == padding_token(i))}
    merges: list[tuple[str, str]] = []
    if kind == "gpt2":
        made, add_bos = _byte_pairs(metadata, used, where)
    else:
        merges = merges_by_score(used, _file_scores(metadata, tokens, where))
        made, add_bos = _scored_pairs(metadata, tokens, used, merges, where), True
    made.add_special_tokens(_added(tokens, types, (CONTROL, UNKNOWN)))
    made.add_tokens(_added(tokens, types, (USER_DEFINED,)))
    special = _special_tokens(metadata, tokens, where)
    _begin_and_end(made, metadata, special, add_bos, where)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        clean_up_tokenization_spaces=False,
        chat_template=_value(metadata, "tokenizer.chat_template", str, where),
        model_max_length=_value(
            metadata, f"{metadata.get('general.architecture')}.context_length", int, where, 1 << 30
        ),
        gguf={"pre": metadata.get(f"{KEY}pre"), "vocab_size": len(tokens)},
        **special,
    )
    exceptions = _exceptions(metadata, tokens, types, used, merges, special)
    if exceptions:
        fast.init_kwargs["gguf"]["exceptions"] = exceptions
    return fast


def _value(metadata: Mapping[str, Any], key: str, kind: type, where: str, default: Any = None) -> Any:
    """A metadata value of `kind`, or the default where there is none. Raises ModelError for another kind."""
    value = metadata.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ModelError(f"{where}: '{key}' is a {type(value).__name__}, not a {kind.__name__}; the file is damaged")
    return value


def _list(metadata: Mapping[str, Any], key: str, kind: type, where: str, default: list[Any] | None = None) -> list[Any]:
    """A metadata array whose elements are all of `kind`. Raises ModelError."""
    values = _value(metadata, key, list, where, default)
    if values is None or (values and {type(value) for value in values} != {kind}):
        raise ModelError(f"{where}: '{key}' is missing or no array of {kind.__name__}; the file is damaged")
    return list(values)


def _tokens(metadata: Mapping[str, Any], where: str) -> tuple[list[str], list[int]]:
    tokens = _list(metadata, f"{KEY}tokens", str, where)
    if not tokens:
        raise ModelError(f"{where}: '{KEY}tokens' is empty; the file holds no vocabulary")
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]  # as llama.cpp names them
    if len(set(tokens)) != len(tokens):
        raise ModelError(f"{where}: '{KEY}tokens' holds a token twice; the file is damaged")
    types = _list(metadata, f"{KEY}token_type", int, where, [NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise ModelError(f"{where}: '{KEY}token_type' does not give one type for each of the {len(tokens)} tokens")
    return tokens, types


def _byte_pairs(metadata: Mapping[str, Any], vocab: dict[str, int], where: str) -> tuple[Tokenizer, bool]:
    """The "gpt2" kind, and whether llama.cpp puts a begin token by default."""
    name = _value(metadata, f"{KEY}pre", str, where, "default")
    if name not in PRE:
        raise ModelError(f"{where}: pre-tokenizer {name!r} is not known; known are {', '.join(PRE)}")
    merges = []
    for merge in _list(metadata, f"{KEY}merges", str, where):
        cut = merge.find(" ", 1)
        merges.append((merge[:cut], merge[cut + 1 :]))
    if not merges:
        raise ModelError(f"{where}: '{KEY}merges' is missing; the vocabulary cannot be used without its merges")
    try:
        model = models.BPE(vocab=vocab, merges=merges, ignore_merges=PRE[name].ignore_merges)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise ModelError(f"{where}: the merges do not fit the vocabulary ({error}); the file is damaged") from error
    made = Tokenizer(model)
    made.pre_tokenizer = build(PRE[name].steps)
    made.decoder = decoders.ByteLevel()
    return made, PRE[name].add_bos


def _file_scores(metadata: Mapping[str, Any], tokens: list[str], where: str) -> list[float]:
    scores = _list(metadata, f"{KEY}scores", float, where)
    if len(scores) != len(tokens):
        raise ModelError(f"{where}: '{KEY}scores' does not give one score for each of the {len(tokens)} tokens")
    return scores


def _scored_pairs(
    metadata: Mapping[str, Any],
    tokens: list[str],
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    where: str,
) -> Tokenizer:
    """The "llama" kind (sentencepiece BPE with bytes for what it does not know)."""
    unknown = _value(metadata, f"{KEY}unknown_token_id", int, where, 0)
    if not 0 <= unknown < len(tokens):
        raise ModelError(f"{where}: '{KEY}unknown_token_id' is {unknown!r}, no id of its {len(tokens)} tokens")
    model = models.BPE(
        vocab=vocab,
        merges=merges,
        unk_token=tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    made = Tokenizer(model)
    prefix = _value(metadata, f"{KEY}add_space_prefix", bool, where, True)
    replace = normalizers.Replace(" ", SPACE)
    made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace] if prefix else [replace])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return made


def _added(tokens: list[str], types: list[int], wanted: tuple[int, ...]) -> list[AddedToken]:
    special = USER_DEFINED not in wanted
    return [AddedToken(t, normalized=False, special=special) for t, k in zip(tokens, types, strict=True) if k in wanted]


def _special_tokens(metadata: Mapping[str, Any], tokens: list[str], where: str) -> dict[str, AddedToken]:
    """{"bos_token": ..., ...} for the ids the file names. Raises ModelError for an id outside the vocabulary."""
    found = {}
    for name, key in IDS.items():
        index = _value(metadata, f"{KEY}{key}_token_id", int, where)
        if index is None:
            continue
        if not 0 <= index < len(tokens):
            raise ModelError(f"{where}: '{KEY}{key}_token_id' is {index!r}, no id of its {len(tokens)} tokens")
        found[f"{name}_token"] = AddedToken(tokens[index], normalized=False, special=True)
    return found


def _begin_and_end(
    made: Tokenizer, metadata: Mapping[str, Any], special: dict[str, AddedToken], add_bos: bool, where: str
) -> None:
    ends = []
    for name, default in (("bos", add_bos), ("eos", False)):
        if _value(metadata, f"{KEY}add_{name}_token", bool, where, default):
            if f"{name}_token" not in special:
                raise ModelError(f"{where}: wants a {name} token on every text but names none; the file is damaged")
            token = special[f"{name}_token"].content
            ends.append((name, token, made.token_to_id(token)))
    if ends:
        before = "".join(f"{token} " for name, token, _ in ends if name == "bos")
        after = "".join(f" {token}" for name, token, _ in ends if name == "eos")
        made.post_processor = processors.TemplateProcessing(
            single=f"{before}$A{after}",
            pair=f"{before}$A{after} {before}$B{after}",
            special_tokens=[(token, index) for _, token, index in ends],
        )


def _exceptions(
    metadata: Mapping[str, Any],
    tokens: list[str],
    types: list[int],
    vocab: Mapping[str, int],
    merges: list[tuple[str, str]],
    special: Mapping[str, AddedToken],
) -> dict[str, list[Any]]:
    """{token: [type, score]} of those that `metadata_from_tokenizer` would not find again by itself."""
    named = {vocab[token.content] for token in special.values() if token.content in vocab}
    added = {i: kind != USER_DEFINED or i in named for i, kind in enumerate(types) if kind in ADDED or i in named}
    scored = metadata[f"{KEY}model"] == "llama"
    derived_types = types_of(tokens, vocab, added, scored, metadata.get(f"{KEY}unknown_token_id"))
    none = [None] * len(tokens)
    scores = metadata[f"{KEY}scores"] if scored else none
    derived_scores = scores_of(tokens, derived_types, merges) if scored else none
    found = zip(tokens, types, scores, derived_types, derived_scores, strict=True)
    return {token: [k, s] for token, k, s, other, made in found if (k, s) != (other, made)}


def metadata_from_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int | None = None) -> dict[str, Any]:
    """The `tokenizer.*` keys of a GGUF file for this tokenizer, from a GGUF file or from a hub folder.

    `vocab_size` is the number of rows of the embedding (by default what the tokenizer remembers or has); rows
    beyond the tokens get padding tokens, as converters do. Raises ModelError for a tokenizer llama.cpp cannot mimic.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(f"a tokenizer of class {type(tokenizer).__name__} has no tokenizer.json, which is needed")
    state = json.loads(backend.to_str())
    remembered = tokenizer.init_kwargs.get("gguf") or {}
    vocab: dict[str, int] = tokenizer.get_vocab()
    highest = max(vocab.values()) + 1
    size = max(highest, int(remembered.get("vocab_size", highest))) if vocab_size is None else vocab_size
    if size < highest:
        raise ModelError(
            f"the tokenizer has ids up to {highest - 1} but the embedding only {size} rows; they do not match"
        )
    if state["model"]["type"] != "BPE":
        raise ModelError(f"a tokenizer of kind {state['model']['type']} cannot be written to GGUF; only BPE can")
    tokens: list[str | None] = [None] * size
    for token, index in vocab.items():
        tokens[index] = token
    spelled = [padding_token(i) if token is None else token for i, token in enumerate(tokens)]
    scored = bool(state["model"]["byte_fallback"])
    added = {token["id"]: token["special"] for token in state["added_tokens"]}
    types = types_of(spelled, vocab, added, scored, tokenizer.unk_token_id)
    keys: dict[str, Any] = {f"{KEY}model": "llama" if scored else "gpt2"}
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ", 1)) for m in state["model"]["merges"]]
    if scored:
        keys |= {f"{KEY}pre": "default", f"{KEY}add_space_prefix": _space_prefix(state)}
        scores = scores_of(spelled, types, merges)
    else:
        _plain_normalizer(state)
        ignore_merges = bool(state["model"].get("ignore_merges"))
        keys[f"{KEY}pre"] = name_of(steps_of(state["pre_tokenizer"]), ignore_merges, remembered.get("pre"))
        keys[f"{KEY}add_space_prefix"] = False
        keys[f"{KEY}merges"], scores = [f"{left} {right}" for left, right in merges], None
    for token, (kind, score) in remembered.get("exceptions", {}).items():
        if token in vocab:
            types[vocab[token]] = kind
            if scores is not None:
                scores[vocab[token]] = score
    keys |= {f"{KEY}tokens": spelled, f"{KEY}token_type": types}
    if scores is not None:
        keys[f"{KEY}scores"] = scores
    return keys | _ids_and_template(tokenizer)


def _space_prefix(state: Mapping[str, Any]) -> bool:
    """Whether a sentencepiece tokenizer puts a space before the text. Raises ModelError when it does something else."""
    prepend, replace = {"type": "Prepend", "prepend": SPACE}, {"type": "Replace", "content": SPACE}
    normalizer, pre = state["normalizer"], state["pre_tokenizer"]
    parts = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    parts = [{k: v for k, v in part.items() if k != "pattern"} for part in parts if part]
    if pre is None and parts in ([prepend, replace], [replace]):
        return len(parts) == 2
    if pre and pre["type"] == "Metaspace" and not parts and pre["replacement"] == SPACE and not pre.get("split", True):
        return bool(pre.get("prepend_scheme", "always") != "never")
    raise ModelError(
        f"the tokenizer changes text by {normalizer} and {pre}, which llama.cpp's 'llama' kind does not do"
    )


def _plain_normalizer(state: Mapping[str, Any]) -> None:
    """NFC is let pass as llama.cpp's own converter does: it changes nothing in text that is composed already."""
    normalizer = state["normalizer"]
    if normalizer is not None and normalizer["type"] != "NFC":
        raise ModelError(f"the tokenizer changes text by {normalizer} before cutting it, which llama.cpp does not do")


def _ids_and_template(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for name, key in IDS.items():
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            keys[f"{KEY}{key}_token_id"] = int(index)
    plain, ended = (tokenizer("a", add_special_tokens=flag)["input_ids"] for flag in (False, True))
    keys[f"{KEY}add_bos_token"] = begin_id(tokenizer) is not None
    keys[f"{KEY}add_eos_token"] = len(ended) > len(plain) and ended[-1] == tokenizer.eos_token_id
    template = tokenizer.chat_template
    if isinstance(template, Mapping):  # named templates: a GGUF file has one that is used unasked
        template = template.get("default")
    if template:
        keys["tokenizer.chat_template"] = str(template)
    return keys
