"""Fewer tokens: text of kept tokens is tokenised as before, all other text can still be written, llama.cpp agrees on
every id, and a model of fewer tokens is the same model given that the next token is a kept one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from test_depth import stages
from test_tokenizer import (
    CORPUS,
    DATA,
    byte_pair_metadata,
    encode,
    fuzz,
    llama_cpp_ids,
    real_file,
    scored_metadata,
    shared_texts,
    write_vocab,
)
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from edgeslm import recipe as recipes
from edgeslm.data.batch import Batch
from edgeslm.errors import ModelError
from edgeslm.models import gguf_vocab, load, spm
from edgeslm.models.pieces import byte_alphabet
from edgeslm.models.subset import Merges, choose, counts_of, first_pieces, ids_in, subset
from edgeslm.pipeline.check import check
from edgeslm.pipeline.run import run
from edgeslm.pipeline.stage import Context
from edgeslm.pipeline.vocabulary import bits_per_byte
from edgeslm.progress import Progress
from edgeslm.schemes.head_loss import HeadInput, head_loss
from edgeslm.schemes.objective import Objective
from edgeslm.students.vocabulary import cut
from edgeslm.teachers.base import Dense, Need
from edgeslm.teachers.folded import Folded, FoldedTeacher, OwnTokensTeacher
from edgeslm.teachers.live import LiveTeacher

METADATA = {"smollm": byte_pair_metadata("smollm"), "llama-bpe": byte_pair_metadata("llama-bpe")}
METADATA |= {"llama": scored_metadata()}


def whole(name: str) -> PreTrainedTokenizerFast:
    return gguf_vocab.tokenizer_from_metadata(METADATA[name])


def halved(name: str, most: int | None = None) -> tuple[Any, Any, list[int], list[str]]:
    """(the whole tokenizer, the smaller one, its ids, the text that decided)."""
    full, texts = whole(name), CORPUS[:3]
    kept = choose(full, counts_of(encode(full, texts)), most)
    return full, subset(full, kept), kept, texts


@pytest.mark.parametrize("name", METADATA)
def test_text_of_kept_tokens_is_tokenised_as_before(name: str) -> None:
    full, part, kept, texts = halved(name)
    assert 260 < len(kept) == len(part) < len(full)
    new = {old: number for number, old in enumerate(kept)}
    found = encode(full, [*texts, *CORPUS, *fuzz(300)])
    same = [all(i in new for i in ids) for ids in found]
    ours = encode(part, [*texts, *CORPUS, *fuzz(300)])
    assert all(same[: len(texts)]) and not all(same)
    assert all(b == [new[i] for i in a] for a, b, kept_only in zip(found, ours, same, strict=True) if kept_only)


@pytest.mark.parametrize("name", METADATA)
def test_whatever_could_be_written_can_still_be_written(name: str) -> None:
    full, part, _, _ = halved(name, 320)
    texts = [*CORPUS, *fuzz(200, 1)]
    spelled = [[t.decode(ids) for ids in encode(t, texts)] for t in (full, part)]
    assert spelled[0] == spelled[1]
    longer = sum(len(a) - len(b) for a, b in zip(encode(part, texts), encode(full, texts), strict=True))
    assert longer > 0


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("most", [None, 300])
def test_what_is_kept_is_closed_under_merges(name: str, most: int | None) -> None:
    full, _, kept, _ = halved(name, most)
    merges, ids = Merges(full), set(kept)
    spelled = full.convert_ids_to_tokens(kept)
    assert len(kept) <= (most or len(full)) and merges.indispensable() <= ids and len(set(spelled)) == len(kept)
    assert all(merges.vocabulary[p] in ids for token in spelled for p in merges.split(token))
    assert len(kept) == min(most or len(full), len(halved(name)[2]))


def test_a_token_is_split_as_it_is_merged_in_the_end() -> None:
    vocabulary = {c: i for i, c in enumerate(["a", "b", "c", "ab", "bc", "abc", "Ġ", "lone"])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")]))
    merges = Merges(PreTrainedTokenizerFast(tokenizer_object=inner))
    assert merges.split("abc") == ("a", "bc") and merges.split("ab") == ("a", "b")
    assert merges.split("a") == merges.split("lone") == ()


def test_the_tokens_that_go_are_those_whose_loss_adds_least_to_the_text() -> None:
    """`abc` goes before `de` where it is rarer; then `bc`, which `abc` was merged from, is as common as both were."""
    letters = [c for c in byte_alphabet() if c not in "abcde"]
    vocabulary = {c: i for i, c in enumerate([*"abcde", *letters, "bc", "abc", "de"])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[("b", "c"), ("a", "bc"), ("d", "e")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    bytes_alone = set(range(256))
    bc, abc, de = (vocabulary[token] for token in ("bc", "abc", "de"))

    def kept(most: int, **counts: int) -> set[int]:
        return set(choose(tokenizer, {vocabulary[t]: n for t, n in counts.items()}, most)) - bytes_alone

    assert kept(259, bc=1, abc=3, de=5) == {bc, abc, de}
    assert kept(258, bc=1, abc=3, de=5) == {bc, de}
    assert kept(257, bc=1, abc=3, de=5) == {de} and kept(257, bc=3, abc=3, de=5) == {bc}
    assert kept(259, bc=0, abc=3, de=0) == {bc, abc} and kept(259, bc=5) == {bc}


@pytest.mark.parametrize("name", METADATA)
def test_llama_cpp_gives_the_same_ids(tmp_path: Path, name: str) -> None:
    """Of every kept token alone, of text that decided and of text that did not; also after a folder and back."""
    _, part, _, _ = halved(name, 330)
    alone = [part.decode([i]) for i in range(len(part))]
    texts = [*CORPUS, *fuzz(200, 2), *(t for t in alone if "�" not in t)]
    keys = gguf_vocab.metadata_from_tokenizer(part)
    file = write_vocab(tmp_path / "part.gguf", keys)
    (ids,) = llama_cpp_ids(tmp_path, texts, [file]).values()
    assert ids == encode(part, texts)
    load.write_tokenizer(part, tmp_path / "folder")
    again = AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert gguf_vocab.metadata_from_tokenizer(again) == keys and encode(again, texts) == ids
    assert again.chat_template == part.chat_template and again.eos_token == part.eos_token


@pytest.mark.parametrize("name", METADATA)
def test_special_tokens_keep_their_names_and_places_in_text(name: str) -> None:
    full, part, kept, _ = halved(name, 300)
    for special in ("bos", "eos", "pad", "unk"):
        before, after = (getattr(t, f"{special}_token_id") for t in (full, part))
        assert (after is None) if before is None else kept[after] == before
    begun = [t("e")["input_ids"] for t in (full, part)]
    assert [kept[i] for i in begun[1]] == begun[0]


def test_an_earlier_students_tokens_are_found_again() -> None:
    full, part, kept, _ = halved("smollm")
    assert ids_in(full, part) == kept and ids_in(part, full) is None and ids_in(full, whole("llama")) is None


def test_what_cannot_be_made_smaller_is_refused() -> None:
    full = whole("smollm")
    least = len(Merges(full).indispensable())
    assert len(choose(full, {}, least)) == least
    with pytest.raises(ModelError, match=rf"keep is 100 but bytes and special tokens alone are {least}"):
        choose(full, {}, 100)
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(ModelError, match="of kind WordLevel"):
        choose(words, {}, 100)


def test_unused_tokens_fill_up_in_their_own_order_where_they_may() -> None:
    full = whole("smollm")
    stay = Merges(full).indispensable()
    least, others = len(stay), sorted(set(full.get_vocab().values()) - stay)
    assert choose(full, {}, least + 40, min_count=1) == choose(full, {}, least)
    assert choose(full, {}, least + 40, min_count=0) == sorted(stay | set(others[:40]))


# The model


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_of_fewer_tokens_is_the_model_given_that_one_of_them_comes(family: str, tied: bool) -> None:
    model, kept = tiny.FAMILIES[family](2, tied=tied), [0, 1, 2, *range(7, 250, 3)]
    ids = torch.randint(0, len(kept), (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        p = torch.softmax(model(torch.tensor(kept)[ids]).logits, -1)[..., kept]
        cut(model, kept)
        ours = torch.softmax(model(ids).logits, -1)
    assert torch.allclose(ours, p / p.sum(-1, keepdim=True), atol=1e-6)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert model.config.vocab_size == len(kept) == model.lm_head.out_features
    before = [p.clone() for p in model.parameters()]
    cut(model, kept)  # a second time: nothing
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    with pytest.raises(ModelError, match="token 400 is to be kept"):
        cut(model, [0, 400])


def test_special_ids_are_numbered_anew() -> None:
    model = tiny.llama(1)
    model.config.eos_token_id = [2, 9]
    cut(model, [1, 9, 30])
    assert model.config.bos_token_id == 0 and model.config.eos_token_id == [1] and model.config.pad_token_id is None


def test_mass_of_removed_tokens_goes_to_their_first_pieces() -> None:
    teacher, kept = tiny.llama(2), [0, 1, 2, *range(10, 200)]
    into = torch.tensor([kept.index(i) if i in kept else i % len(kept) for i in range(288)])
    ids = torch.randint(0, len(kept), (2, 6), generator=torch.Generator().manual_seed(0))
    given = FoldedTeacher(LiveTeacher(teacher), torch.tensor(kept), into)(Batch(ids, torch.ones(2, 6)), Need())
    assert given.output is not None
    logs = given.output.rows(slice(0, 10), ids[:, 1:].reshape(-1))
    assert isinstance(logs, torch.Tensor)
    with torch.no_grad():
        p = torch.softmax(teacher(torch.tensor(kept)[ids]).logits[:, :-1].reshape(10, -1), -1)
    expected = torch.stack([p[:, into == i].sum(1) for i in range(len(kept))], 1)
    assert torch.allclose(logs.exp(), expected, atol=1e-6) and torch.allclose(logs.exp().sum(1), torch.ones(10))


@pytest.mark.parametrize("name", METADATA)
def test_a_teacher_of_its_own_tokens_is_heard_where_one_ends(name: str) -> None:
    """It gives there what it gives of the text as it reads it, special tokens among it; elsewhere the text itself."""
    full, part, kept, _ = halved(name, 320)
    model, special = tiny.llama(1), part.all_special_ids[-1]
    model.resize_token_embeddings(len(full))
    runs = [encode(tokenizer, ["remarkable weather", " indeed, wonderful"]) for tokenizer in (full, part)]
    theirs, ours = ([*first, ids, *second] for (first, second), ids in zip(runs, (kept[special], special), strict=True))
    assert len(ours) > len(theirs)
    into = torch.tensor(first_pieces(full, part, kept))
    batch = Batch(torch.tensor([ours]), torch.ones(1, len(ours)))
    output = OwnTokensTeacher(model, full, part, 0, torch.tensor(kept), into)(batch, Need()).output
    assert isinstance(output, Folded) and output.heard is not None and int(output.heard.sum()) == len(theirs) - 1
    targets = batch.ids[0, 1:]
    logs = output.rows(slice(0, len(targets)), targets)
    with torch.no_grad():
        p = torch.softmax(model(torch.tensor([theirs])).logits[0, :-1], -1)
    expected = torch.zeros(len(p), len(kept)).index_add_(1, into, p)
    assert isinstance(logs, torch.Tensor)
    assert torch.allclose(logs[output.heard].exp(), expected, atol=1e-6)
    inside = ~output.heard
    assert torch.equal(logs[inside].argmax(1), targets[inside]) and torch.all(logs[inside].exp().sum(1) == 1)


def test_where_a_teacher_is_not_heard_its_divergence_is_that_of_the_text() -> None:
    torch.manual_seed(0)
    hidden, head, targets = torch.randn(4, 8), torch.randn(6, 8), torch.tensor([0, 3, 5, 1])
    heard, every = torch.tensor([True, False, True, False]), torch.arange(6)
    found = {}
    for loss, given in (("forward_kl", heard), ("forward_kl", None), ("cross_entropy", None)):
        states = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
        teacher = Folded(Dense(states, head), every, every, given)
        states = hidden.clone().requires_grad_()
        terms = Objective.build([{"loss": loss}]).terms
        head_loss(states, head, HeadInput(targets, torch.ones(4), 4.0, teacher), terms)[0].backward()
        assert states.grad is not None
        found[loss, given is None] = states.grad
    mixed = torch.where(heard[:, None], found["forward_kl", True], found["cross_entropy", True])
    assert torch.allclose(found["forward_kl", False], mixed, atol=1e-7)


def test_first_pieces_are_what_spelling_begins_with() -> None:
    full, part, kept, _ = halved("smollm", 300)
    into = first_pieces(full, part, kept)
    for token, index in full.get_vocab().items():
        if token.isascii() and token.isalpha():
            assert part.convert_ids_to_tokens(into[index]) == part.tokenize(token)[0]
    assert [into[i] for i in kept] == list(range(len(kept)))


def test_bits_per_byte_do_not_depend_on_how_text_is_spelled() -> None:
    """A model that gives every one of 16 bytes the same probability needs four bits a byte."""
    model = tiny.llama(1, tied=False)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    cut(model, list(range(16)))
    told = bits_per_byte(model, _Letters(), ["abcd" * 30, "dcba"], 0)
    assert told == {"bits_per_byte": pytest.approx(4), "tokens_per_byte": 1.0, "bytes": 124}


class _Letters:
    bos_token_id = None

    def __call__(self, text: str, **_: Any) -> Any:
        return {"input_ids": [ord(c) % 16 for c in text]}


# Recipes

KEEP = "student.vocabulary={keep: 260, min_count: 0}"  # of 263: bytes and special tokens are 259; "the" is cut up


def test_a_recipe_in_fewer_tokens_ships_what_llama_cpp_reads(tmp_path: Path) -> None:
    path, runs = tiny.recipe(tmp_path), tmp_path / "runs"
    short = ("distill.train.steps=2", "quantize.start=0", "quantize.plan=[{pattern: '*', format: f32}]")
    short += ("evaluate.prompts=[]", "benchmark=null")
    loaded = recipes.load(path, (*short, "name=fewer", KEEP, "student.kind=width", "student.ffn=64"))
    found = check(Context(loaded, tmp_path, runs / "fewer", Progress(quiet=True)))
    assert found.problems == [] and "260 of 263 tokens stay" in dict(found.plan)["vocabulary"]
    root = run(loaded, tmp_path, runs, Progress(quiet=True))
    told = json.loads((stages(root)["student"] / "importance.json").read_text())["vocabulary"]
    assert told["kept"] == 260 and 0 < told["share_spelled_anew"] < 1
    assert told["student"]["tokens_per_byte"] >= told["whole_teacher"]["tokens_per_byte"] > 0
    assert "bits_per_byte" in json.loads((stages(root)["distill"] / "summary.json").read_text())["bits"]
    assert "bits/byte" in (root / "report.md").read_text()
    part = AutoTokenizer.from_pretrained(stages(root)["teacher"] / "tokenizer")
    files = [stages(root)["export"] / name for name in ("student.gguf", "teacher-f32.gguf")]
    for ids in llama_cpp_ids(tmp_path, ["the thing", "fox → 日", "<|im_end|>"], files).values():
        assert ids == encode(part, ["the thing", "fox → 日", "<|im_end|>"])
    exact = json.loads((stages(root)["export"] / "exact.json").read_text())
    assert all(e["exact"] == e["tensors"] for e in exact)
    then = ("name=again", "student={kind: depth, layers: 2, origin: 'run:fewer', importance_tokens: 64}")
    second = recipes.load(path, (*short, *then))
    assert Context(second, tmp_path, runs / "again", Progress(quiet=True)).kept is not None
    made = run(second, tmp_path, runs, Progress(quiet=True), until="distill")
    assert json.loads((stages(made)["teacher"] / "teacher.json").read_text())["vocab_size"] == 260
    twice = recipes.load(path, (*short, *then, KEEP))
    found = check(Context(twice, tmp_path, runs / "again", Progress(quiet=True)))
    assert any("has fewer tokens already" in problem for problem in found.problems)


def test_either_way_to_treat_removed_mass_trains(tmp_path: Path) -> None:
    path = tiny.recipe(tmp_path)
    losses = {}
    spelled = "distill.objective=[{loss: forward_kl}, {loss: cross_entropy, weight: 0.5}]"
    for removed in ("renormalise", "first_piece", "own_tokens"):
        overrides = (
            f"name={removed}",
            f"student.vocabulary={{keep: 260, removed: {removed}}}",
            "distill.train.steps=2",
            spelled,
        )
        root = run(recipes.load(path, overrides), tmp_path, tmp_path / "runs", Progress(quiet=True), until="distill")
        losses[removed] = json.loads((stages(root)["distill"] / "log.jsonl").read_text().splitlines()[0])["loss"]
    assert len(set(losses.values())) == 3
    silent = ("student.vocabulary={removed: own_tokens}", "distill.objective=[{loss: forward_kl}, {loss: hidden}]")
    found = check(Context(recipes.load(path, silent), tmp_path, tmp_path / "runs" / "tiny", Progress(quiet=True)))
    said = "\n".join(found.problems)
    assert "which hidden cannot learn from; use forward_kl or soft_cross_entropy" in said
    asked = ("student.vocabulary={removed: first_piece}", "distill.on_policy={share: 0.5, prompt: 4}")
    found = check(Context(recipes.load(path, asked), tmp_path, tmp_path / "runs" / "tiny", Progress(quiet=True)))
    assert any("first_piece needs the whole teacher" in problem for problem in found.problems)


# Real vocabularies


def groups(texts: list[str], characters: int = 1 << 20) -> Iterator[list[str]]:
    """As many as fit the memory of a test together."""
    group, size = list[str](), 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size > characters or len(group) == 2000:
            yield group
            group, size = [], 0
    if group:
        yield group


def check_real(full: Any, texts: list[str], judged: list[str], folder: Path) -> None:
    counts: Counter[int] = Counter()
    for group in groups(texts):
        counts += counts_of(encode(full, group))
    kept = choose(full, counts)
    part, new = subset(full, kept), {old: number for number, old in enumerate(kept)}
    file = write_vocab(folder / "part.gguf", gguf_vocab.metadata_from_tokenizer(part))
    for group in groups(texts):
        assert encode(part, group) == [[new[i] for i in ids] for ids in encode(full, group)]
    for group in groups(judged):
        ours, theirs = encode(part, group), encode(full, group)
        assert [part.decode(ids) for ids in ours] == [full.decode(ids) for ids in theirs]
        assert list(llama_cpp_ids(folder, group, [file]).values()) == [ours]
    alone = [t for t in (part.decode([i]) for i in range(len(part))) if "�" not in t]
    assert list(llama_cpp_ids(folder, alone, [file]).values()) == [encode(part, alone)]


def real(name: str) -> Any:
    if name == "stories15m":
        if not DATA.is_dir():
            pytest.skip("../shared/data is not here")
        return gguf_vocab.tokenizer_from_metadata(
            spm.metadata_from_file(DATA / "stories15m" / "tokenizer.model", 32000)
        )
    source = SimpleNamespace(kind="gguf", path=real_file(name), tokenizer=None)
    return gguf_vocab.tokenizer_from_metadata(load.packed.open_file(source).metadata)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["stories15m", "SmolLM2-135M-Instruct.Q4_1.gguf"])
def test_real_vocabularies_made_smaller_agree_on_a_sample(tmp_path: Path, name: str) -> None:
    texts = shared_texts(4000)
    check_real(real(name), texts[: len(texts) // 2], texts, tmp_path)


@pytest.mark.proof
@pytest.mark.parametrize("name", ["stories15m", "SmolLM2-135M-Instruct.Q4_1.gguf"])
def test_real_vocabularies_made_smaller_agree_on_all_text(tmp_path: Path, name: str) -> None:
    texts = shared_texts(None)
    check_real(real(name), texts[: len(texts) // 3], texts, tmp_path)
