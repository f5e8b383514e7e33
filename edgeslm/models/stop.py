"""Which id begins a text, and which end an answer."""

from __future__ import annotations

from typing import Any

END_OF_TURN = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "</s>")


def stop_ids(tokenizer: Any) -> list[int]:
    """End of sequence, and end of turn where the vocabulary has one."""
    vocabulary = tokenizer.get_vocab()
    found = {tokenizer.eos_token_id, *(vocabulary.get(name) for name in END_OF_TURN)}
    return sorted(i for i in found if i is not None)


def begin_id(tokenizer: Any) -> int | None:
    """The id that the model has seen before every text (GGUF's `add_bos_token`): what the tokenizer puts there when it
    is let. None where it puts none, whatever it names its begin token."""
    plain, begun = (tokenizer("a", add_special_tokens=flag)["input_ids"] for flag in (False, True))
    return begun[0] if len(begun) > len(plain) and begun[0] == tokenizer.bos_token_id else None


def begun(ids: list[int], tokenizer: Any) -> list[int]:
    """A document as the model reads one: after its begin token, once, where it has one."""
    first = begin_id(tokenizer)
    return ids if first is None or ids[:1] == [first] else [first, *ids]
