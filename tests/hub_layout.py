"""Models of the hub as its cache lays them out, with the hyper-parameters they were published with: config, a tokenizer
(a tiny one), and weight files whose headers name every tensor and whose bytes are holes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import tiny
from transformers import AutoConfig

from edgeslm.models.arch import ARCHS
from edgeslm.models.arch.base import plain
from edgeslm.models.shapes import parameter_shapes

REVISION = "0123456789abcdef0123456789abcdef01234567"
SHARD_BYTES = 5e9  # of a weight file at most, as the hub's own tools cut them
SCALED = {
    "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}  # fmt: skip


def llama(hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, vocab: int, **more: Any) -> dict[str, Any]:
    """The keys that all families here have, as config.json names them."""
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": ffn,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "vocab_size": vocab, "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, **more,
    }  # fmt: skip


def qwen2(*sizes: int, **more: Any) -> dict[str, Any]:
    family = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "max_position_embeddings": 32768}
    return llama(*sizes, **(family | {"rope_theta": 1e6, "rms_norm_eps": 1e-6} | more))


def qwen3(*sizes: int) -> dict[str, Any]:
    family = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "max_position_embeddings": 40960}
    return llama(*sizes, **family, head_dim=128, rope_theta=1e6, rms_norm_eps=1e-6)


def llama32(*sizes: int, head_dim: int) -> dict[str, Any]:
    scaled = {"rope_theta": 500000.0, "rope_scaling": SCALED, "max_position_embeddings": 131072}
    return llama(*sizes, **scaled, head_dim=head_dim)


PUBLISHED = {
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": llama(
        2048, 8192, 24, 32, 32, 49152, max_position_embeddings=8192, rope_theta=130000
    ),
    "HuggingFaceTB/SmolLM2-360M-Instruct": llama(
        960, 2560, 32, 15, 5, 49152, max_position_embeddings=8192, rope_theta=100000
    ),
    "Qwen/Qwen3-1.7B": qwen3(2048, 6144, 28, 16, 8, 151936),
    "Qwen/Qwen3-0.6B": qwen3(1024, 3072, 28, 16, 8, 151936),
    "meta-llama/Llama-3.2-3B-Instruct": llama32(3072, 8192, 28, 24, 8, 128256, head_dim=128),
    "meta-llama/Llama-3.2-1B-Instruct": llama32(2048, 8192, 16, 32, 8, 128256, head_dim=64),
    "Qwen/Qwen2.5-Coder-1.5B-Instruct": qwen2(1536, 8960, 28, 12, 2, 151936),
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": qwen2(896, 4864, 24, 14, 2, 151936),
    "Qwen/Qwen2.5-7B-Instruct": qwen2(3584, 18944, 28, 28, 4, 152064, tie_word_embeddings=False),
    "Qwen/Qwen2.5-1.5B-Instruct": qwen2(1536, 8960, 28, 12, 2, 151936),
}


def cached(cache: Path, repo: str) -> Path:
    """`repo` in a hub cache, as a download leaves it: refs/main names the snapshot."""
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(REVISION, encoding="utf-8")
    (snapshot / "config.json").write_text(json.dumps(PUBLISHED[repo]), encoding="utf-8")
    tiny.tokenizer().save_pretrained(snapshot)
    config = plain(AutoConfig.from_pretrained(snapshot))
    shapes = parameter_shapes(config)
    assert set(shapes) == set(ARCHS[config["model_type"]].names(config))
    _weights(snapshot, shapes)
    return snapshot


def _weights(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """bfloat16 files of at most SHARD_BYTES; disks that know holes store their headers only."""
    files: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes.items():
        held = sum(2 * math.prod(s) for s in files[-1].values())
        if files[-1] and held + 2 * math.prod(shape) > SHARD_BYTES:
            files.append({})
        files[-1][name] = shape
    for number, some in enumerate(files, start=1):
        whole = len(files) == 1
        _holes(folder / ("model.safetensors" if whole else f"model-{number:05}-of-{len(files):05}.safetensors"), some)


def _holes(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """8 bytes of length, a header as JSON, and the room for what it names."""
    header, at = dict[str, Any](), 0
    for name, shape in shapes.items():
        end = at + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
