"""Tokenizers from and to GGUF metadata: llama.cpp's ids for every pre-tokenizer, and nothing lost on the way back."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from edgeslm.errors import ModelError
from edgeslm.models import gguf_file, gguf_vocab, load, spm
from edgeslm.models.agreement import PROBES, first_disagreement, vocabulary_difference
from edgeslm.models.pre_tokenizers import PRE
from edgeslm.models.source import DEFAULT_TEACHER, resolve
from edgeslm.models.token_types import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from edgeslm.recipe import ASSETS

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
MODELS = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edgeslm" / "dev-models"
REAL = ("SmolLM2-135M-Instruct.Q4_1.gguf", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf")
KEY = gguf_vocab.KEY

# text that no file of ours need provide: prose, digits, code, several scripts, runs of spaces and newlines
CORPUS = [
    *PROBES,
    "It's the 1984 edition; they'll say we've 12 345 reasons, I'd 007.\n\n\tif (a >= b) { return a - b; } // done\n",
    "Größe, façade, Ελληνικά, русский текст, 日本語のテキスト, עברית, हिन्दी भाषा 42%.   \n   \n  end",
    "<|user|>hi<|end|> <tool>x</tool><|end|>\n<|user|> it'S   IT'S",
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \nx",
]

LLAMA_CPP = """
import json, sys
import llama_cpp
texts, out = json.load(open(sys.argv[1], encoding="utf-8")), {}
for path in sys.argv[2:]:
    vocabulary = llama_cpp.Llama(model_path=path, vocab_only=True, verbose=False)
    out[path] = [vocabulary.tokenize(t.encode(), add_bos=False, special=True) if t else [] for t in texts]
json.dump(out, open(sys.argv[1] + ".out", "w"))
"""


def llama_cpp_ids(folder: Path, texts: list[str], files: list[Path]) -> dict[str, list[list[int]]]:
    """Ids by llama.cpp, in a process of its own: a native runtime that crashes must fail one test only."""
    pytest.importorskip("llama_cpp")
    query = folder / "texts.json"
    query.write_text(json.dumps(texts), encoding="utf-8")
    argv = [sys.executable, "-c", LLAMA_CPP, str(query), *map(str, files)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "texts.json.out").read_text(encoding="utf-8"))


def write_vocab(path: Path, metadata: dict[str, Any]) -> Path:
    """A GGUF file of a vocabulary and no tensors, written by another implementation (gguf-py)."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@cache
def byte_pairs() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tokens and merges trained here, words crossing every cut so that a wrong one shows."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[^\n]+\n*|\n+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    plain = [text for text in CORPUS if "<|" not in text]
    made.train_from_iterator([*plain, *(c * n for c in (" ", "\n", "7", "!") for n in range(2, 9))], trainer)
    state = json.loads(made.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].__getitem__)
    return tuple(tokens), tuple(" ".join(m) for m in state["merges"])


def byte_pair_metadata(pre: str) -> dict[str, Any]:
    tokens, merges = byte_pairs()
    extra = ["<|end|>", "<|user|>", "<tool>", "</tool>", f"[PAD{len(tokens) + 4}]"]
    return {
        f"{KEY}model": "gpt2",
        f"{KEY}pre": pre,
        f"{KEY}tokens": [*tokens, *extra],
        f"{KEY}token_type": [NORMAL] * len(tokens) + [CONTROL, CONTROL, USER_DEFINED, USER_DEFINED, UNUSED],
        f"{KEY}merges": list(merges),
        f"{KEY}bos_token_id": len(tokens) + 1,
        f"{KEY}eos_token_id": len(tokens),
        f"{KEY}padding_token_id": len(tokens),
        f"{KEY}add_bos_token": False,
        "tokenizer.chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }


def scored_metadata() -> dict[str, Any]:
    """A sentencepiece-like vocabulary: Llama's special and byte tokens, then pieces by falling score, then letters."""
    text = " ".join(CORPUS).replace(" ", "▁")
    letters = sorted(set(text) - set("日本語עברית"))  # some letters are left to the byte tokens
    pairs = sorted(
        {text[i : i + n] for n in (2, 3, 4) for i in range(0, 1500, 2)} - set(letters), key=lambda p: (len(p), p)
    )
    pieces = [p for p in pairs if all(c in letters for c in p)]
    vocab, kept = set(letters), []
    for piece in pieces:  # only pieces that two kept ones make
        if any(piece[:i] in vocab and piece[i:] in vocab for i in range(1, len(piece))):
            vocab.add(piece)
            kept.append(piece)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *kept, *letters]
    return {
        f"{KEY}model": "llama",
        f"{KEY}pre": "default",
        f"{KEY}tokens": tokens,
        f"{KEY}token_type": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(tokens) - 259),
        f"{KEY}scores": [0.0] * 259 + [float(-i) for i in range(len(tokens) - 259)],
        f"{KEY}bos_token_id": 1,
        f"{KEY}eos_token_id": 2,
        f"{KEY}unknown_token_id": 0,
        f"{KEY}add_bos_token": True,
        f"{KEY}add_space_prefix": True,
    }


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


def fuzz(count: int, seed: int = 0) -> list[str]:
    source = random.Random(seed)
    ranges = ((32, 127), (9, 14), (0xA0, 0x250), (0x370, 0x500), (0x3040, 0x3100), (0x4E00, 0x4E80), (0x600, 0x66A))
    letters = [chr(c) for low, high in (*ranges, (0x2000, 0x2070), (0x1F600, 0x1F640)) for c in range(low, high)]
    words = [
        "<|end|>",
        "<|user|>",
        "<tool>",
        "<s>",
        "</s>",
        " ",
        "  ",
        "   ",
        "\n",
        "\n\n",
        "'s",
        "'LL",
        "123",
        "2024",
        "ab",
    ]
    picks = (words, letters)
    return ["".join(source.choice(source.choice(picks)) for _ in range(source.randint(1, 30))) for _ in range(count)]


def test_every_pre_tokenizer_cuts_as_llama_cpp_does(tmp_path: Path) -> None:
    """The law of the table PRE, and the sentencepiece kind, with one trained vocabulary under every name."""
    files = {name: write_vocab(tmp_path / f"{name}.gguf", byte_pair_metadata(name)) for name in PRE}
    files["(sentencepiece)"] = write_vocab(tmp_path / "spm.gguf", scored_metadata())
    assert len(files) == len(PRE) + 1 > 20
    texts = CORPUS + fuzz(300)
    expected = llama_cpp_ids(tmp_path, texts, list(files.values()))
    cuts = set()
    for name, path in files.items():
        tokenizer = gguf_vocab.tokenizer_from_metadata(gguf_file.read(path).metadata)
        for text, ours, theirs in zip(texts, encode(tokenizer, texts), expected[str(path)], strict=True):
            assert ours == theirs, (name, text, tokenizer.convert_ids_to_tokens(ours))
        cuts.add(str(expected[str(path)]))
    assert len(cuts) >= 6, "the texts do not tell the pre-tokenizers apart"


@pytest.mark.parametrize("name", [*PRE, "(sentencepiece)"])
def test_round_trip_gives_the_files_own_lists(tmp_path: Path, name: str) -> None:
    metadata = scored_metadata() if name == "(sentencepiece)" else byte_pair_metadata(name)
    first = gguf_vocab.tokenizer_from_metadata(metadata)
    load.write_tokenizer(first, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    again = AutoTokenizer.from_pretrained(tmp_path)
    for tokenizer in (first, again):
        written = gguf_vocab.metadata_from_tokenizer(tokenizer)
        assert {key: written.get(key) for key in metadata} == metadata
    texts = CORPUS + fuzz(50)
    assert encode(again, texts) == encode(first, texts)
    assert vocabulary_difference(first, again) is None


def test_types_and_scores_that_do_not_follow_from_the_rest_survive(tmp_path: Path) -> None:
    metadata = scored_metadata()
    metadata[f"{KEY}token_type"][0] = CONTROL  # as newer converters write <unk>
    metadata[f"{KEY}scores"][:3] = [-1000.0] * 3
    metadata[f"{KEY}scores"][300] = -1e9  # merged after all others, as Llama's runs of spaces
    tokenizer = gguf_vocab.tokenizer_from_metadata(metadata)
    load.write_tokenizer(tokenizer, tmp_path)
    written = gguf_vocab.metadata_from_tokenizer(AutoTokenizer.from_pretrained(tmp_path))
    assert {key: written.get(key) for key in metadata} == metadata
    assert len(tokenizer.init_kwargs["gguf"]["exceptions"]) < 10


def test_text_comes_back_and_special_tokens_are_kept() -> None:
    for metadata in (byte_pair_metadata("smollm"), scored_metadata()):
        tokenizer = gguf_vocab.tokenizer_from_metadata(metadata)
        for text in CORPUS:
            if "</tool>" not in text and "<|" not in text:
                assert tokenizer.decode(encode(tokenizer, [text])[0]) == text
        assert tokenizer.eos_token_id == metadata[f"{KEY}eos_token_id"]
        assert tokenizer.bos_token_id == metadata[f"{KEY}bos_token_id"]
        begins = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
        assert begins == metadata[f"{KEY}add_bos_token"]
    tokenizer = gguf_vocab.tokenizer_from_metadata(byte_pair_metadata("smollm"))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "hello"


def hub_tokenizer(pre: Any, normalizer: Any = None, ignore_merges: bool = False) -> PreTrainedTokenizerFast:
    """As a hub folder would hold it: special tokens outside the model's vocabulary, nothing of ours in its config."""
    tokens, merges = byte_pairs()
    model = models.BPE(
        {t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ", 1)) for m in merges], ignore_merges=ignore_merges
    )
    made = Tokenizer(model)
    made.pre_tokenizer, made.decoder = pre, decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", extra_special_tokens=["<|user|>"])


HUB_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split_then_bytes(regex: str) -> Any:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), byte_level])


def hub_cases() -> dict[str, PreTrainedTokenizerFast]:
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    digits = pre_tokenizers.Digits(individual_digits=True)
    return {
        "gpt-2": hub_tokenizer(gpt2),
        "smollm": hub_tokenizer(pre_tokenizers.Sequence([digits, gpt2])),
        "qwen2": hub_tokenizer(split_then_bytes(HUB_QWEN), normalizers.NFC()),
        "llama-bpe": hub_tokenizer(split_then_bytes(HUB_QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")), None, True),
    }


def test_hub_tokenizers_get_the_right_name_and_llama_cpp_reads_them(tmp_path: Path) -> None:
    files, texts = {}, [t for t in CORPUS + fuzz(100) if "ſ" not in t]
    for name, tokenizer in hub_cases().items():
        metadata = gguf_vocab.metadata_from_tokenizer(tokenizer, vocab_size=1000)
        assert metadata[f"{KEY}pre"] == name
        assert len(metadata[f"{KEY}tokens"]) == len(metadata[f"{KEY}token_type"]) == 1000
        assert metadata[f"{KEY}tokens"][-1] == "[PAD999]"
        assert metadata[f"{KEY}token_type"][tokenizer.eos_token_id] == CONTROL
        metadata.setdefault(f"{KEY}bos_token_id", tokenizer.eos_token_id)
        files[name] = write_vocab(tmp_path / f"{name}.gguf", metadata)
    expected = llama_cpp_ids(tmp_path, texts, list(files.values()))
    for name, tokenizer in hub_cases().items():
        composed = [
            t
            for t in texts
            if tokenizer.backend_tokenizer.normalizer is None or normalizers.NFC().normalize_str(t) == t
        ]
        wanted = dict(zip(texts, expected[str(files[name])], strict=True))
        assert len(composed) > 60
        assert encode(tokenizer, composed) == [wanted[t] for t in composed], name


@pytest.mark.parametrize(
    "tokenizer",
    [
        hub_tokenizer(pre_tokenizers.Whitespace()),
        hub_tokenizer(split_then_bytes(r"\w+|\s+")),
        hub_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        hub_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.Lowercase()),
        hub_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False), None, ignore_merges=True),
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordPiece({"a": 0}, unk_token="a"))),
    ],
    ids=["whitespace", "regex", "prefix", "lowercase", "ignore_merges", "wordpiece"],
)
def test_a_tokenizer_llama_cpp_cannot_mimic_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ModelError):
        gguf_vocab.metadata_from_tokenizer(tokenizer)


def test_an_embedding_with_too_few_rows_is_refused() -> None:
    with pytest.raises(ModelError, match="do not match"):
        gguf_vocab.metadata_from_tokenizer(hub_cases()["smollm"], vocab_size=100)


DAMAGE: dict[str, Any] = {
    "kind": {f"{KEY}model": "bert"},
    "pre": {f"{KEY}pre": "kimi-k2"},
    "no tokens": {f"{KEY}tokens": None},
    "number tokens": {f"{KEY}tokens": [1, 2]},
    "token twice": {f"{KEY}tokens": ["a", "a"]},
    "short types": {f"{KEY}token_type": [1]},
    "no merges": {f"{KEY}merges": []},
    "foreign merges": {f"{KEY}merges": ["zzzz yyyy"]},
    "merge of one": {f"{KEY}merges": ["a"]},
    "bos outside": {f"{KEY}bos_token_id": 10**6},
    "bos wanted, none named": {f"{KEY}bos_token_id": None, f"{KEY}add_bos_token": True},
    "merges of numbers": {f"{KEY}merges": [1, 2]},
    "scores of nothing": {f"{KEY}model": "llama"},
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_metadata_is_refused_in_one_sentence(name: str) -> None:
    metadata = {k: v for k, v in (byte_pair_metadata("smollm") | DAMAGE[name]).items() if v is not None}
    with pytest.raises(ModelError) as caught:
        gguf_vocab.tokenizer_from_metadata(metadata, "broken.gguf")
    assert "broken.gguf" in str(caught.value) and "\n" not in str(caught.value)


def test_disagreement_is_found() -> None:
    left = gguf_vocab.tokenizer_from_metadata(byte_pair_metadata("smollm"))
    same = gguf_vocab.tokenizer_from_metadata(byte_pair_metadata("starcoder"))
    other_cut = gguf_vocab.tokenizer_from_metadata(byte_pair_metadata("qwen2"))
    swapped = byte_pair_metadata("smollm")
    tokens = swapped[f"{KEY}tokens"]
    tokens[40], tokens[41] = tokens[41], tokens[40]
    other_ids = gguf_vocab.tokenizer_from_metadata(swapped)
    longer = gguf_vocab.tokenizer_from_metadata(byte_pair_metadata("smollm"))
    longer.add_tokens(["<new>"])
    assert vocabulary_difference(left, same) is None
    for other, what in ((other_cut, "differs"), (other_ids, "has id"), (longer, "<new>")):
        assert what in str(vocabulary_difference(left, other))
    assert first_disagreement(lambda t: [1, 2], lambda t: [1, 2, 3], ["x"]) is not None


def test_sentencepiece_files_of_stories15m_agree(tmp_path: Path) -> None:
    """tokenizer.model and tokenizer.bin hold the same vocabulary; sentencepiece itself is the oracle for its ids."""
    folder = DATA / "stories15m"
    if not folder.is_dir():
        pytest.skip("shared data (stories15m tokenizer) is not on this machine")
    sentencepiece = pytest.importorskip("sentencepiece")
    proto = spm.metadata_from_file(folder / "tokenizer.model", 32000)
    assert proto == spm.metadata_from_file(folder / "tokenizer.bin", 32000)
    tokenizer = gguf_vocab.tokenizer_from_metadata(proto)
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    texts = [t for t in CORPUS if "<" not in t] + [
        (DATA / "text" / "carroll-alice.txt").read_text(encoding="utf-8")[:20000]
    ]
    assert encode(tokenizer, texts) == [oracle.encode(t) for t in texts]
    written = gguf_vocab.metadata_from_tokenizer(tokenizer)
    assert {key: written[key] for key in proto} == proto
    data = (folder / "tokenizer.model").read_bytes()
    for cut in range(1, len(data), len(data) // 40):
        (tmp_path / "cut.model").write_bytes(data[:cut])
        with pytest.raises(ModelError):
            spm.metadata_from_file(tmp_path / "cut.model", 32000)
    data = (folder / "tokenizer.bin").read_bytes()
    for cut in range(0, len(data), len(data) // 40):
        (tmp_path / "cut.bin").write_bytes(data[:cut])
        with pytest.raises(ModelError):
            spm.metadata_from_file(tmp_path / "cut.bin", 32000)


def real_file(name: str) -> Path:
    if "SmolLM2" in name:  # the embedded default: fetched where it is not in the cache yet, never skipped
        return resolve(DEFAULT_TEACHER, Path.cwd()).path
    path = MODELS / name
    if not path.is_file():
        pytest.skip(f"{name} is not in the cache of this machine")
    return path


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def shared_texts(characters: int | None) -> list[str]:
    """Every text of the shared data; with `characters`, about that many, taken evenly from all files."""
    if not DATA.is_dir():
        if characters is None:
            pytest.skip("shared data is not on this machine")
        return [p.read_text(encoding="utf-8") for p in sorted(ASSETS.rglob("*.txt"))]  # what ships is always there
    found: list[list[str]] = []
    for path in sorted((DATA / "text").glob("*.txt")):
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            found.append([file.read()])
    for path in sorted([*(DATA / "instruct").glob("*.jsonl"), *(DATA / "tasks").glob("*.jsonl")]):
        lines = path.read_text(encoding="utf-8").splitlines()
        found.append([text for line in lines for text in strings(json.loads(line))])
    assert len(found) > 20
    if characters is None:
        return [text for texts in found for text in texts]
    share, out = characters // len(found), []
    for texts in found:
        joined = "\n".join(texts)
        start = len(joined) // 3
        out.append(joined[start : start + share])
    return out


def check_real(name: str, texts: list[str], folder: Path) -> int:
    path = real_file(name)
    tokenizer = gguf_vocab.tokenizer_from_metadata(gguf_file.read(path).metadata)
    expected = llama_cpp_ids(folder, texts, [path])[str(path)]
    for text, ours, theirs in zip(texts, encode(tokenizer, texts), expected, strict=True):
        assert ours == theirs, (name, first_disagreement(lambda t: ours, lambda t: theirs, [text]))  # noqa: B023
    return sum(map(len, expected))


@pytest.mark.parametrize("name", REAL)
def test_real_vocabularies_agree_with_llama_cpp_on_a_sample(tmp_path: Path, name: str) -> None:
    """`</s>` is left out: Qwen has it as plain text, which llama.cpp takes for a control token by its looks."""
    chat = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<tool_call>{}</tool_call><|endoftext|>"
    texts = [*shared_texts(600_000), *PROBES, chat, *(t for t in fuzz(500) if "</s>" not in t)]
    assert check_real(name, texts, tmp_path) > 75_000


@pytest.mark.proof
@pytest.mark.parametrize("name", REAL)
def test_real_vocabularies_agree_with_llama_cpp_on_all_text(tmp_path: Path, name: str) -> None:
    assert check_real(name, shared_texts(None), tmp_path) > 5_000_000


@pytest.mark.parametrize("name", REAL)
def test_real_vocabularies_come_back_from_a_saved_folder(tmp_path: Path, name: str) -> None:
    metadata = gguf_file.read(real_file(name)).metadata
    load.write_tokenizer(gguf_vocab.tokenizer_from_metadata(metadata), tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    written = gguf_vocab.metadata_from_tokenizer(again)
    wanted = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    assert {key: written.get(key) for key in wanted} == wanted
    assert again.chat_template == metadata["tokenizer.chat_template"]


@pytest.mark.parametrize("name", REAL)
def test_these_models_begin_their_texts_with_nothing(name: str) -> None:
    """SmolLM2 and Qwen2.5 name a begin token but do not put it: what is trained and judged stays as it is."""
    from edgeslm.models.stop import begin_id, begun

    tokenizer = gguf_vocab.tokenizer_from_metadata(gguf_file.read(real_file(name)).metadata, name)
    assert begin_id(tokenizer) is None and begun([5, 6], tokenizer) == [5, 6]


def test_sentencepiece_models_begin_their_texts() -> None:
    from edgeslm.models.stop import begin_id

    metadata = scored_metadata()
    tokenizer = gguf_vocab.tokenizer_from_metadata(metadata)
    assert begin_id(tokenizer) == metadata[f"{KEY}bos_token_id"]
    silent = gguf_vocab.tokenizer_from_metadata(metadata | {f"{KEY}add_bos_token": False})
    assert begin_id(silent) is None
