"""A tiny BERT with its tokenizer, and recipes around it, for tests of encoders."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = ["good", "bad", "fine", "poor", "film", "story", "actor", "plot", "is", "the"]
WORDS += ["a", "very", "not", "and", "it", "was", "ship", "sea", "whale", "man"]


def tokenizer() -> PreTrainedTokenizerFast:
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *letters[1:], *(f"##{c}" for c in letters), *".,'|\""]
    vocabulary = {name: at for at, name in enumerate(dict.fromkeys(names))}
    inner = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


def folder(place: Path, seed: int = 0) -> Path:
    """A BERT of two layers in hub layout."""
    torch.manual_seed(seed)
    made = tokenizer()
    config = BertConfig(
        vocab_size=len(made), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.1,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(place)
    made.save_pretrained(place)
    return place


def texts(place: Path, count: int = 60) -> None:
    """learn.jsonl and judge.jsonl: sentences whose label is a word in them; plain.txt without labels."""
    rng = random.Random(0)
    rows = []
    for i in range(count):
        label = i % 2
        body = " ".join(rng.choice(WORDS[4:]) for _ in range(rng.randint(3, 9)))
        rows.append(
            {"text": f"{body} {'good' if label else 'bad'} {'abcdefgh'[i % 8]}{'bcdefghi'[i // 8]}", "label": label}
        )
    (place / "learn.jsonl").write_text("\n".join(map(json.dumps, rows[: count - 20])), encoding="utf-8")
    (place / "judge.jsonl").write_text("\n".join(map(json.dumps, rows[count - 20 :])), encoding="utf-8")
    plain = [" ".join(rng.choice(WORDS) for _ in range(8)).capitalize() + "." for _ in range(60)]
    (place / "plain.txt").write_text("\n\n".join(plain), encoding="utf-8")


def recipe(place: Path, **changes: Any) -> Path:
    """A whole recipe of a classification beside its teacher and text; `changes` replace top keys."""
    folder(place / "teacher")
    texts(place)
    told: dict[str, Any] = {
        "family": "encoder",
        "name": "tiny",
        "task": "classify",
        "length": 16,
        "threads": 1,
        "teachers": [{"model": "teacher", "tune": {"steps": 6, "batch_rows": 8, "lr": 0.001}}],
        "tasks": [
            {
                "name": "mood",
                "classes": 2,
                "train": [{"kind": "table", "paths": ["learn.jsonl"]}],
                "transfer": [{"kind": "sentences", "paths": ["plain.txt"], "rows": 20, "characters": [4, 90]}],
                "judge": [{"kind": "table", "paths": ["judge.jsonl"]}],
            }
        ],
        "student": {"kind": "depth", "layers": 1},
        "distill": {
            "phases": [
                {"objective": [{"loss": "hidden", "layers": "last"}], "rows": "transfer"},
                {"objective": [{"loss": "forward_kl"}, {"loss": "cross_entropy"}]},
            ],
            "train": {"steps": 8, "batch_rows": 8, "micro_rows": 4, "lr": 0.002, "checkpoint_every": 2},
        },
        "benchmark": {"processes": 1, "warmups": 1, "repeats": 2},
        **changes,
    }
    path = place / "tiny.yaml"
    path.write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
    return path


def similarity(place: Path, student: dict[str, Any], terms: list[dict[str, Any]]) -> Path:
    plain = {"kind": "sentences", "paths": ["plain.txt"], "characters": [4, 90]}
    task = {
        "name": "near",
        "transfer": [{**plain, "rows": 30, "part": [0.0, 0.7]}],
        "judge": [{**plain, "rows": 12, "part": [0.7, 1.0]}],
    }
    train = {"steps": 4, "batch_rows": 8, "lr": 0.002}
    return recipe(
        place,
        task="similarity",
        teachers=[{"model": "teacher"}],
        tasks=[task],
        student=student,
        distill={"phases": [{"objective": terms}], "train": train},
    )
