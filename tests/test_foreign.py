"""Teachers of another vocabulary: bytes of tokens, places where tokens end together, and what is taught there."""

from __future__ import annotations

import pytest
import tiny
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from edgeslm.data.batch import Batch
from edgeslm.errors import ModelError
from edgeslm.models.forward import hidden_states
from edgeslm.models.pieces import ends, pieces, shared_ends, whole_characters
from edgeslm.schemes.head_loss import HeadInput, head_loss
from edgeslm.schemes.objective import Objective
from edgeslm.teachers.base import Dense, Need
from edgeslm.teachers.foreign import ForeignTeacher

TEXT = "the thin tin of the north, naïve — 三百 in 1900"


def sentencepiece() -> PreTrainedTokenizerFast:
    """Words of its own and bytes for all else, with a space before the text, as Llama 2 spells it."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{b:02X}>" for b in range(256)),
        "▁",
        "▁th",
        "e",
        "in",
        "▁the",
        "▁thin",
        "th",
    ]
    vocabulary = {w: i for i, w in enumerate(words)}
    vocabulary.update({c: len(vocabulary) + i for i, c in enumerate("tahinorf")})
    merges = [("▁th", "e"), ("▁th", "in"), ("▁", "th")]
    merges += [("t", "h"), ("i", "n")]
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.ByteFallback()
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize(("make", "before"), [(tiny.tokenizer, b""), (sentencepiece, b" ")])
def test_pieces_spell_the_text(make, before):
    tokenizer = make()
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert b"".join(pieces(tokenizer)[i] for i in ids) == before + TEXT.encode()


def test_special_tokens_stand_for_no_bytes():
    tokenizer = tiny.tokenizer()
    assert all(pieces(tokenizer)[i] == b"" for i in tokenizer.all_special_ids)


def test_a_vocabulary_without_known_bytes_is_refused():
    inner = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    with pytest.raises(ModelError, match="neither byte-level BPE nor SentencePiece"):
        pieces(PreTrainedTokenizerFast(tokenizer_object=inner))


def test_ends_are_shared_where_both_stop():
    assert ends([0, 1, 2], [b"a", b"bc", b""]) == [1, 3, 3]
    assert shared_ends([1, 3, 6], [2, 3, 3, 6]) == [-1, 2, 3]  # the last of several that end there
    assert shared_ends([1, 3], [2, 4], shift=1) == [0, 1]


def test_a_torn_character_is_found_at_either_end():
    text = "é三𝄞a".encode()
    for first in range(len(text)):
        for last in range(first, len(text) + 1):
            torn, whole = whole_characters(text[first:last])
            assert text[first:last][torn:].startswith(whole) and whole.decode() in text.decode()
            assert torn < 4 and last - first - torn - len(whole) < 4


def test_states_are_taken_where_tokens_end_together():
    own, student = sentencepiece(), tiny.tokenizer()
    model = tiny.llama(seed=1)
    row = student(TEXT, add_special_tokens=False)["input_ids"]
    batch = Batch(torch.tensor([row]), torch.ones(1, len(row)))
    output, mask = ForeignTeacher(model, own, student, 1)(batch, Need()).foreign[1]
    theirs = own(TEXT, add_special_tokens=False)["input_ids"]
    whole = hidden_states(model, torch.tensor([theirs]))[0]
    ours, table = ends(row, pieces(student)), ends(theirs, pieces(own))
    assert 0 < mask.sum() < len(mask)
    for place, known in enumerate(mask):
        if known:
            (at,) = [i for i, end in enumerate(table) if end == ours[place] + 1][-1:]
            torch.testing.assert_close(output.states[place], whole[at], rtol=1e-4, atol=1e-5)
        else:
            assert ours[place] + 1 not in table


def test_padding_beside_a_longer_row_changes_nothing():
    own, student = sentencepiece(), tiny.tokenizer()
    teacher = ForeignTeacher(tiny.llama(seed=1), own, student, 1)
    rows = [
        student(t, add_special_tokens=False)["input_ids"][:24] for t in (TEXT, "the the the the the the the the the")
    ]
    rows = [r[: min(map(len, rows))] for r in rows]
    both = Batch(torch.tensor(rows), torch.ones(2, len(rows[0])))
    output, mask = teacher(both, Need()).foreign[1]
    alone, alone_mask = teacher(both.part(slice(0, 1)), Need()).foreign[1]
    count = len(rows[0]) - 1
    assert torch.equal(mask[:count], alone_mask)
    known = alone_mask.bool()
    torch.testing.assert_close(output.states[:count][known], alone.states[known], rtol=1e-4, atol=1e-5)


def test_a_row_cut_inside_a_character_is_taught_from_the_next_one_on():
    own, student = sentencepiece(), tiny.tokenizer()
    teacher = ForeignTeacher(tiny.llama(seed=1), own, student, 1)
    clean, torn = student(TEXT, add_special_tokens=False)["input_ids"], student("三")["input_ids"][-1]
    found = {}
    for begun in (0, 1):
        row = [torn] * begun + clean
        output, mask = teacher(Batch(torch.tensor([row]), torch.ones(1, len(row))), Need()).foreign[1]
        found[begun] = output.states[begun:], mask[begun:]
    assert found[0][1].any() and torch.equal(found[0][1], found[1][1])
    known = found[0][1].bool()
    torch.testing.assert_close(found[1][0][known], found[0][0][known], rtol=1e-4, atol=1e-5)


def test_only_known_predictions_are_taught():
    """Gradient of uld with a foreign teacher: none where its tokens do not end with the student's."""
    torch.manual_seed(0)
    hidden, head = torch.randn(6, 8, requires_grad=True), torch.randn(20, 8, requires_grad=True)
    known = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    objective = Objective.build([{"loss": "uld", "teacher": 1}])
    given = HeadInput(
        torch.zeros(6, dtype=torch.long), torch.ones(6), 6.0, None, None,
        {1: (Dense(torch.randn(6, 5), torch.randn(31, 5)), known)},
    )  # fmt: skip
    loss, _ = head_loss(hidden, head, given, objective.terms)
    loss.backward()
    moved = hidden.grad.abs().sum(1) > 0
    assert torch.equal(moved, known.bool())
