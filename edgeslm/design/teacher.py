"""A teacher's shape from its headers: GGUF metadata or config.json, without transformers and without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgeslm.errors import ModelError

# GGUF key -> config key
KEYS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
}
FAMILIES = {"gemma3": "gemma3_text"}  # GGUF's name -> transformers', where they differ
GPT2 = {"n_embd": "hidden_size", "n_inner": "intermediate_size", "n_layer": "num_hidden_layers"}
GPT2 |= {"n_head": "num_attention_heads", "n_positions": "max_position_embeddings"}
TIED = ("gemma3_text", "smollm3", "gpt2")  # families whose configs do not say so
WIDTH = ("llama", "qwen2", "qwen3", "smollm3")  # families that are cut in width
NO_HEAD_DIM = ("qwen2", "smollm3")  # a head is hidden / heads
NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def shape_of(spec: str) -> dict[str, Any]:
    """The keys that `edgeslm.cost` reads. Raises ModelError for a model whose headers do not say them."""
    path = Path(spec).expanduser()
    if not path.exists() or (path / "adapter_config.json").is_file():
        from edgeslm.models.source import resolve

        source = resolve(spec, Path.cwd())
        path = (source.base or source).path
    found = _of_folder(path) if path.is_dir() else _of_gguf(path)
    if missing := [key for key in NEEDED if not isinstance(found.get(key), int)]:
        raise ModelError(f"{spec}: does not say its {missing[0]}; give a GGUF file or a folder of a known family")
    found["num_key_value_heads"] = found.get("num_key_value_heads") or found["num_attention_heads"]
    found["head_dim"] = found.get("head_dim") or found["hidden_size"] // found["num_attention_heads"]
    return found


def _of_gguf(path: Path) -> dict[str, Any]:
    from edgeslm.models.gguf_file import read

    if path.suffix != ".gguf":
        raise ModelError(f"{path}: is neither a GGUF file nor a folder; a shape is read from those")
    file = read(path)
    arch = file.arch
    found = {ours: file.metadata.get(f"{arch}.{theirs}") for theirs, ours in KEYS.items()}
    tokens = file.metadata.get("tokenizer.ggml.tokens") or ()
    found["vocab_size"] = file.metadata.get(f"{arch}.vocab_size") or len(tokens)
    tied = "output.weight" not in file.tensors
    return found | {"model_type": FAMILIES.get(arch, arch), "tie_word_embeddings": tied}


def _of_folder(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: holds no config.json that can be read; give a model folder") from error
    kind = config.get("model_type")
    found = {key: config.get(key) for key in (*KEYS.values(), "vocab_size", "attention_bias", "use_bias")}
    if kind == "gpt2":
        found |= {ours: config.get(theirs) for theirs, ours in GPT2.items()}
        found["intermediate_size"] = found["intermediate_size"] or 4 * (found["hidden_size"] or 0)
    return found | {"model_type": kind, "tie_word_embeddings": config.get("tie_word_embeddings", kind in TIED)}
