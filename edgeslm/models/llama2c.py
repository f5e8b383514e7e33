"""llama2.c's `.bin` (version 0): seven numbers, then all weights in float32 in a fixed order.

    i32 x 7   dim D | hidden H | layers L | heads h | key-value heads g | vocab V | context T
    f32       token_embedding [V, D] | rms_att [L, D] | wq [L, D, D] | wk, wv [L, g d, D] | wo [L, D, D]
              rms_ffn [L, D] | w1 [L, H, D] | w2 [L, D, H] | w3 [L, H, D] | rms_final [D]
              freq_cis real, imaginary [T, d/2] | head [V, D], only where the header has -V

Rows of wq and wk lie in Meta's order, which is GGUF's: `row_order` of the llama architecture undoes it.
Source: llama2.c, export.py `legacy_export` and run.c `memory_map_weights`.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeslm.errors import ModelError
from edgeslm.models import spm

HEADER = struct.Struct("<7i")
LIMIT = 1 << 24  # no dimension of such a model is larger; a bigger number means another kind of file
EPSILON, ROPE_BASE = 1e-5, 10000.0  # constants of run.c
TOKENIZERS = ("tokenizer.model", "tokenizer.bin")


@dataclass(frozen=True)
class Llama2cFile:
    """A file whose size is exactly what its header says. `metadata` is as a GGUF file would have it."""

    path: Path
    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]  # GGUF tensor name -> torch shape
    offsets: dict[str, int]  # bytes from the start of the file
    data: mmap.mmap

    def load(self, name: str) -> Tensor:
        """float32 of the tensor's shape, rows in GGUF's order."""
        shape = self.shapes[name]
        flat = torch.frombuffer(self.data, dtype=torch.float32, count=math.prod(shape), offset=self.offsets[name])
        return flat.reshape(shape).clone()


def read(path: Path) -> Llama2cFile:
    """Read and check a llama2.c file. Raises ModelError when it is anything else or cut off."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as a llama2.c file ({error}); check the path") from error
    if len(data) < HEADER.size:
        raise ModelError(f"{path}: ends inside its header; it is no llama2.c model or incomplete")
    dim, hidden, layers, heads, kv_heads, vocab, context = HEADER.unpack_from(data, 0)
    shared, vocab = vocab > 0, abs(vocab)
    numbers = (dim, hidden, layers, heads, kv_heads, vocab, context)
    if not all(0 < n < LIMIT for n in numbers) or dim % heads or heads % kv_heads or (dim // heads) % 2:
        raise ModelError(f"{path}: its header {numbers} is that of no llama2.c model; give a float32 .bin of version 0")
    shapes, offsets, at = {}, {}, HEADER.size
    for name, shape in _layout(dim, hidden, layers, kv_heads * (dim // heads), vocab, context * dim // heads, shared):
        if name:
            shapes[name], offsets[name] = shape, at
        at += 4 * math.prod(shape)
    if at != len(data):
        raise ModelError(f"{path}: should be {at} bytes by its header but is {len(data)}; fetch it again")
    metadata = {
        "general.architecture": "llama",
        "llama.vocab_size": vocab,
        "llama.embedding_length": dim,
        "llama.feed_forward_length": hidden,
        "llama.block_count": layers,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.context_length": context,
        "llama.attention.layer_norm_rms_epsilon": EPSILON,
        "llama.rope.freq_base": ROPE_BASE,
        "llama.rope.dimension_count": dim // heads,
    }
    return Llama2cFile(path, metadata, shapes, offsets, data)


def _layout(
    dim: int, hidden: int, layers: int, kv: int, vocab: int, freqs: int, shared: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(GGUF name, shape) in file order; "" for what is stored but not needed."""
    yield "token_embd.weight", (vocab, dim)
    for name, shape in (
        ("attn_norm", (dim,)),
        ("attn_q", (dim, dim)),
        ("attn_k", (kv, dim)),
        ("attn_v", (kv, dim)),
        ("attn_output", (dim, dim)),
        ("ffn_norm", (dim,)),
        ("ffn_gate", (hidden, dim)),
        ("ffn_down", (dim, hidden)),
        ("ffn_up", (hidden, dim)),
    ):
        for layer in range(layers):
            yield f"blk.{layer}.{name}.weight", shape
    yield "output_norm.weight", (dim,)
    yield "", (freqs,)  # freq_cis: real and imaginary halves of d/2 each
    if not shared:
        yield "output.weight", (vocab, dim)


def tokenizer_metadata(path: Path, tokenizer: Path | None, vocab_size: int) -> dict[str, Any]:
    """The tokenizer given, or the one beside the model. Raises ModelError when there is none."""
    found = tokenizer or next((path.with_name(n) for n in TOKENIZERS if path.with_name(n).is_file()), None)
    if found is None:
        raise ModelError(f"{path}: a .bin holds no tokenizer; put its tokenizer.model beside it or name one")
    return spm.metadata_from_file(found, vocab_size)
