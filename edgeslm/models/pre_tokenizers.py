r"""How text is cut before byte-pair merges: llama.cpp's names (`tokenizer.ggml.pre`) and what each of them means.

A cut is a sequence of steps, each applied inside the pieces of the one before:

    ("split", REGEX)   every match is a piece of its own, what lies between matches too
    ("digits", "")     every character of \p{N} is a piece of its own
    ("bytes", "gpt2")  GPT-2's own regex, then bytes spelled as visible characters
    ("bytes", "")      bytes spelled as visible characters, no regex

The same table serves both directions, so a tokenizer whose steps are not in it is refused, never guessed.
Source: llama.cpp, llama-vocab.cpp (`llm_tokenizer_bpe`, whose regexes these are) and `convert_hf_to_gguf`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, pre_tokenizers

from edgeslm.errors import ModelError

Steps = tuple[tuple[str, str], ...]

_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_HUB_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ONE_DIGIT, _THREE_DIGITS = _WORDS % r"\p{N}", _WORDS % r"\p{N}{1,3}"

QWEN2: Steps = (("split", _CONTRACTIONS + _ONE_DIGIT), ("bytes", ""))
LLAMA3: Steps = (("split", _CONTRACTIONS + _THREE_DIGITS), ("bytes", ""))
GPT2: Steps = (("bytes", "gpt2"),)
SMOLLM: Steps = (("digits", ""), ("bytes", "gpt2"))
DEFAULT: Steps = (
    ("split", r"[\p{P}\$\+<=>\^~\|]+"),
    ("split", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
    ("split", r"\p{N}+"),
    ("split", r"[0-9][0-9][0-9]"),
    ("bytes", ""),
)

# hub tokenizers spell the same cut with a case-insensitive group; on all but a few letters (the long s) it is the same
SPELLINGS = {
    _HUB_CONTRACTIONS + _ONE_DIGIT: _CONTRACTIONS + _ONE_DIGIT,
    _HUB_CONTRACTIONS + _THREE_DIGITS: _CONTRACTIONS + _THREE_DIGITS,
}


@dataclass(frozen=True)
class Pre:
    """What one name of llama.cpp means. `ignore_merges`: a piece that is a token is taken whole, merges or not."""

    steps: Steps
    ignore_merges: bool = False
    add_bos: bool = False  # llama.cpp's default where the file does not say


# of several names for one meaning the first is what is written for a tokenizer that does not come from a GGUF file
PRE: dict[str, Pre] = {
    "smollm": Pre(SMOLLM),
    "starcoder": Pre(SMOLLM),
    "refact": Pre(SMOLLM),
    "command-r": Pre(SMOLLM),
    "codeshell": Pre(SMOLLM),
    "qwen2": Pre(QWEN2),
    "deepseek-r1-qwen": Pre(QWEN2),
    "stablelm2": Pre(QWEN2),
    "megrez": Pre(QWEN2),
    "gpt-2": Pre(GPT2),
    "phi-2": Pre(GPT2),
    "mpt": Pre(GPT2),
    "olmo": Pre(GPT2),
    "jais": Pre(GPT2),
    "llama-bpe": Pre(LLAMA3, ignore_merges=True, add_bos=True),
    "llama3": Pre(LLAMA3, ignore_merges=True, add_bos=True),
    "llama-v3": Pre(LLAMA3, ignore_merges=True, add_bos=True),
    "falcon3": Pre(LLAMA3, ignore_merges=True, add_bos=True),
    "pixtral": Pre(LLAMA3, ignore_merges=True, add_bos=True),
    "lfm2": Pre(LLAMA3, ignore_merges=True, add_bos=True),
    "smaug-bpe": Pre(LLAMA3),
    "dbrx": Pre(LLAMA3),
    "default": Pre(DEFAULT),
}


def build(steps: Steps) -> pre_tokenizers.PreTokenizer:
    made: list[pre_tokenizers.PreTokenizer] = []
    for kind, argument in steps:
        if kind == "split":
            made.append(pre_tokenizers.Split(Regex(argument), behavior="isolated"))
        elif kind == "digits":
            made.append(pre_tokenizers.Digits(individual_digits=True))
        else:
            made.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=argument == "gpt2"))
    return made[0] if len(made) == 1 else pre_tokenizers.Sequence(made)


def _step(state: dict[str, Any]) -> tuple[str, str]:
    """One pre-tokenizer of a tokenizer.json. Raises ModelError for one that no step expresses."""
    kind = state["type"]
    if kind == "Split" and state["behavior"] == "Isolated" and not state["invert"] and "Regex" in state["pattern"]:
        regex = state["pattern"]["Regex"]
        return "split", SPELLINGS.get(regex, regex)
    if kind == "Digits" and state["individual_digits"]:
        return "digits", ""
    if kind == "ByteLevel" and not state["add_prefix_space"]:
        return "bytes", "gpt2" if state.get("use_regex", True) else ""
    raise ModelError(f"the tokenizer cuts text with {json.dumps(state)}, which no GGUF pre-tokenizer of ours expresses")


def steps_of(state: dict[str, Any] | None) -> Steps:
    """The `pre_tokenizer` of a tokenizer.json -> steps. Raises ModelError."""
    if state is None:
        raise ModelError(
            "the tokenizer cuts text nowhere before its merges, which no GGUF pre-tokenizer of ours expresses"
        )
    parts = state["pretokenizers"] if state["type"] == "Sequence" else [state]
    return tuple(_step(part) for part in parts)


def name_of(steps: Steps, ignore_merges: bool, remembered: str | None = None) -> str:
    """llama.cpp's name for a cut; the one the tokenizer remembers where it means just that. Raises ModelError."""
    fits = [name for name, pre in PRE.items() if pre.steps == steps and pre.ignore_merges == ignore_merges]
    if remembered in fits:
        return str(remembered)
    if not fits:
        raise ModelError(
            f"the tokenizer cuts text by {steps} (ignore_merges {ignore_merges}), which has no known GGUF name; "
            f"known are {', '.join(PRE)}"
        )
    return fits[0]
