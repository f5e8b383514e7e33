"""Which ids end an answer."""

from __future__ import annotations

from typing import Any

END_OF_TURN = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "</s>")


def stop_ids(tokenizer: Any) -> list[int]:
    """End of sequence, and end of turn where the vocabulary has one."""
    vocabulary = tokenizer.get_vocab()
    found = {tokenizer.eos_token_id, *(vocabulary.get(name) for name in END_OF_TURN)}
    return sorted(i for i in found if i is not None)
