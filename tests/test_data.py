"""Rows, order, sources, and the teacher's own writing against transformers' generate."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny
import torch

from edgeslm.data import chat, text
from edgeslm.data.order import order
from edgeslm.data.rows import Rows, pack
from edgeslm.data.written import WriteSettings, prompts_from, sample, write
from edgeslm.errors import DataError


def rows(name: str, count: int, start: int = 0) -> Rows:
    return pack([list(range(start, start + count * 8 - 1))], 8, 0, name)


def test_pack_loses_and_invents_nothing():
    packed = pack([[5, 6, 7], [8], [9] * 10], 8, 0, "s")
    flat = packed.ids.reshape(-1)[packed.mask.reshape(-1).bool()]
    assert flat.tolist() == [5, 6, 7, 0, 8, 0, *[9] * 10, 0]
    assert packed.ids.shape == (3, 8) and int(packed.mask.sum()) == 17


def test_row_ids_are_stable_and_unique():
    a, b = rows("a", 5), rows("b", 3, 100)
    joined, repeated = Rows.join([a, b]), Rows.join([a, a])
    assert joined.row_ids()[:5] == a.row_ids() and joined.row_ids()[5:] == b.row_ids()
    assert len(set(repeated.row_ids())) == 10
    assert joined.source.tolist() == [0] * 5 + [1] * 3 and joined.sources == ("a", "b")


def test_rows_survive_the_disk(tmp_path):
    joined = Rows.join([rows("a", 5), rows("b", 3, 100)])
    joined.save(tmp_path / "rows.safetensors")
    back = Rows.load(tmp_path / "rows.safetensors")
    assert torch.equal(back.ids, joined.ids) and torch.equal(back.mask, joined.mask)
    assert torch.equal(back.source, joined.source) and back.sources == joined.sources


def test_order_keeps_shares_everywhere_and_reads_all_before_repeating():
    joined = Rows.join([rows("a", 10), rows("b", 5, 1000)])
    picked = order(joined, [0.75, 0.25], 80, seed=1)
    first = (picked < 10).astype(int)
    assert first.sum() == 60
    for start in range(0, 80, 20):
        assert 13 <= first[start : start + 20].sum() <= 17
    from_a = picked[picked < 10]
    assert np.bincount(from_a, minlength=10).tolist() == [6] * 10
    assert (order(joined, [0.75, 0.25], 80, seed=1) == picked).all()
    assert (order(joined, [0.75, 0.25], 80, seed=2) != picked).any()


def test_text_that_is_not_utf8_says_where(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf" + b"\xe9 au lait")
    with pytest.raises(DataError, match=r"latin\.txt: byte 3 is not UTF-8"):
        text.read(path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "JSON object"),
        ('{"prompt": "x"}', "'prompt' and 'response'"),
        ('{"messages": [1]}', "'role'"),
    ],
)
def test_chat_rows_that_are_wrong_name_their_line(tmp_path, line, words):
    path = tmp_path / "chat.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n' + line, encoding="utf-8")
    with pytest.raises(DataError, match="2") as error:
        chat.documents([path], tiny.tokenizer())
    assert words in str(error.value)


def test_chat_rows_are_the_template_of_the_tokenizer(tmp_path):
    tokenizer = tiny.tokenizer()
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"prompt": "a", "response": "b"}), encoding="utf-8")
    (ids,) = chat.documents([path], tokenizer)
    assert tokenizer.decode(ids) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"


def test_no_template_no_chat():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        chat.template_ids(tokenizer, [{"role": "user", "content": "x"}])


def test_greedy_writing_equals_transformers_generate():
    """Uneven prompts in one batch, rows leaving it as they end, against generate() one by one."""
    model, stop = tiny.llama(seed=4), 2
    prompts = [[7, 8, 9, 10], [50, 60], [5], [100, 101, 102, 103, 104, 105]]
    settings = WriteSettings(rows=4, max_new=12, batch=3, temperature=0.0, top_k=0, top_p=1.0, seed=0)
    written = write(model, prompts, settings, [stop])
    for prompt, got in zip(prompts, written, strict=True):
        wanted = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=stop, pad_token_id=0
        )
        assert got == wanted[0].tolist()


def test_writing_is_the_same_again_and_differs_by_seed():
    model, prompts = tiny.llama(seed=4), [[7, 8], [9]]

    def once(seed):
        settings = WriteSettings(rows=5, max_new=10, batch=2, temperature=1.0, top_k=0, top_p=0.95, seed=seed)
        return write(model, prompts, settings, [2])

    assert once(1) == once(1) and once(1) != once(2)


def test_nucleus_sampling_never_leaves_the_nucleus():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(2000, 1)
    seen = sample(logits, 1.0, 0, 0.7, torch.Generator().manual_seed(0))
    assert set(seen.tolist()) == {0, 1}
    share = (seen == 0).float().mean()
    assert abs(share - 0.625) < 0.04
    assert set(sample(logits, 1.0, 1, 1.0, torch.Generator()).tolist()) == {0}


def test_seeds_need_a_prompt_or_a_text(tmp_path):
    path = tmp_path / "seeds.jsonl"
    path.write_text('{"prompt": "Hi"}\n{"text": "Once"}\n', encoding="utf-8")
    tokenizer = tiny.tokenizer()
    asked, started = prompts_from([path], tokenizer)
    assert tokenizer.decode(asked).endswith("assistant\n") and tokenizer.decode(started) == "Once"
    path.write_text('{"question": "Hi"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="a seed holds"):
        prompts_from([path], tokenizer)


def test_an_empty_seeds_file_is_one_sentence(tmp_path):
    (tmp_path / "seeds.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="no seed"):
        prompts_from([tmp_path / "seeds.jsonl"], tiny.tokenizer())


def test_lines_end_at_newlines_only(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"prompt": "a\u2028b", "response": "c\x85d"}\n', encoding="utf-8")
    assert len(chat.documents([tmp_path / "c.jsonl"], tiny.tokenizer())) == 1


def begun_tokenizer(first: str = "<|endoftext|>"):
    """Begins every text with a token, as Llama's does."""
    from tokenizers import processors

    tokenizer = tiny.tokenizer()
    tokenizer.bos_token = first
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, tokenizer.convert_tokens_to_ids(first))]
    )
    return tokenizer


def test_every_document_begins_as_the_models_texts_begin(tmp_path):
    (tmp_path / "a.txt").write_text("the story", encoding="utf-8")
    (tmp_path / "chat.jsonl").write_text('{"prompt": "a", "response": "b"}\n', encoding="utf-8")
    (tmp_path / "seeds.jsonl").write_text('{"prompt": "a"}\n{"text": "the"}\n', encoding="utf-8")

    def all_of(tokenizer) -> list[list[int]]:
        files = [tmp_path / name for name in ("a.txt", "chat.jsonl", "seeds.jsonl")]
        made = text.documents(files[:1], tokenizer) + chat.documents(files[1:2], tokenizer)
        return made + prompts_from(files[2:], tokenizer)

    plain = all_of(tiny.tokenizer())
    assert all_of(begun_tokenizer()) == [[0, *ids] for ids in plain] and all(ids[0] != 0 for ids in plain)
    marker = all_of(begun_tokenizer("<|im_start|>"))  # what the chat template writes by itself is not doubled
    assert [ids[:2].count(1) for ids in marker] == [1, 1, 1, 1]
    assert marker[1:3] == plain[1:3]


def test_rows_that_are_mostly_padding_are_not_whole():
    ids = torch.ones(3, 8, dtype=torch.int32)
    mask = torch.ones(3, 8, dtype=torch.uint8)
    mask[1, 2:] = 0
    mask[2, 4:] = 0
    rows = Rows(ids, mask, torch.zeros(3, dtype=torch.int32), ("text",))
    assert rows.whole().tolist() == [True, False, True]
