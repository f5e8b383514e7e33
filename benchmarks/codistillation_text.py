"""Text of `benchmarks.codistillation`: a folder of .txt and .gz files -> a small byte-pair vocabulary, training rows,
and held-out windows of documents that training never sees.

Letters: R rows, T tokens of a row.
"""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SAMPLE_BYTES = 8_000_000  # that the vocabulary is made from
PIECE = 1 << 16  # characters tokenised at once
TAIL = 0.02  # of a .gz file, from the next page on, is held out
PAGE = b"<page>"
END = "<|endoftext|>"


@dataclass(frozen=True)
class Files:
    """Bytes of documents to learn from and to judge by."""

    learn: list[bytes]
    judge: list[bytes]


def read(folder: Path, judge: str) -> Files:
    """Text files whose names match `judge` (patterns, comma-separated) are held out whole; of a .gz file the last
    pages."""
    learn, held = list[bytes](), list[bytes]()
    for path in sorted(folder.iterdir()):
        if path.suffix == ".txt":
            mine = any(fnmatch.fnmatch(path.name, pattern) for pattern in judge.split(","))
            (held if mine else learn).append(path.read_bytes())
        elif path.suffix == ".gz":
            data = gzip.decompress(path.read_bytes())
            at = data.find(PAGE, int(len(data) * (1 - TAIL)))
            cut = at if at > 0 else int(len(data) * (1 - TAIL))
            learn.append(data[:cut])
            held.append(data[cut:])
    if not learn or not held:
        raise SystemExit(f"--text {folder}: needs .txt files some of which match --judge {judge}, or a .gz file")
    return Files(learn, held)


def vocabulary(files: Files, size: int) -> Any:
    """Byte-level BPE of `size` tokens, from pieces all over the training text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    pieces = [p for text in files.learn for p in _pieces(text)]
    every = max(1, sum(map(len, pieces)) // SAMPLE_BYTES)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(pieces[::every], trainer)
    return made


def _pieces(text: bytes) -> list[str]:
    words = text.decode("utf-8", errors="replace")
    return [words[at : at + PIECE] for at in range(0, len(words), PIECE)]


def encode(tokenizer: Any, text: bytes) -> Any:
    """Ids as one int32 array."""
    import numpy as np

    found = tokenizer.encode_batch_fast(_pieces(text))
    return np.concatenate([np.asarray(piece.ids, dtype=np.int32) for piece in found])


def prepare(folder: Path, judge: str, size: int, length: int, windows: int, out: Path) -> dict[str, Any]:
    """Writes rows.safetensors and judged.safetensors into `out`; says what they hold. The windows are taken evenly from
    the held-out text: the even ones choose learning rates, the odd ones are reported."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from edgeslm.data.rows import Rows

    files = read(folder, judge)
    tokenizer = vocabulary(files, size)
    separator = np.asarray([tokenizer.token_to_id(END)], dtype=np.int32)
    stream = np.concatenate([part for text in files.learn for part in (encode(tokenizer, text), separator)])
    count = len(stream) // length
    ids = torch.from_numpy(stream[: count * length].reshape(count, length))
    rows = Rows(ids, torch.ones(count, length, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64), ("0:text",))
    rows.save(out / "rows.safetensors")
    held = np.concatenate([encode(tokenizer, text) for text in files.judge])
    many = len(held) // length
    chosen = np.linspace(0, many - 1, min(windows, many)).astype(int)
    judged = torch.from_numpy(held[: many * length].reshape(many, length)[chosen].astype(np.int64))
    save_file({"tune": judged[::2].contiguous(), "report": judged[1::2].contiguous()}, out / "judged.safetensors")
    digest = hashlib.sha256()
    for text in (*files.learn, *files.judge):
        digest.update(text)
    return {
        "files": [p.name for p in sorted(folder.iterdir()) if p.suffix in (".txt", ".gz")],
        "sha256": digest.hexdigest(),
        "vocabulary": tokenizer.get_vocab_size(),
        "training_tokens": int(count * length),
        "rows": count,
        "judged_tokens": int(judged[1::2].numel()),
        "held_out": judge if any(p.suffix == ".txt" for p in folder.iterdir()) else "the last pages",
    }
