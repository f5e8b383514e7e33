"""A random two-layer Llama in every container, made in seconds; the same float32 weights in all of them."""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgeslm.artifact import Artifact, path_bytes, path_sha256

# no matrix but the head may have VOCABULARY rows: onnxruntime-genai's builder takes any that has for the head
VOCABULARY, HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, CONTEXT = 96, 64, 160, 2, 4, 2, 256
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def model(seed: int = 0, scale: float = 0.15, head_dim: int = HIDDEN // HEADS) -> Any:
    """transformers' LlamaForCausalLM, float32, tied head, logits wide enough to make distributions uneven."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=head_dim,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    net = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, scale)
    return net


def write_gguf(net: Any, path: Path) -> Path:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(net.config.head_dim)
    if net.config.head_dim != HIDDEN // HEADS:
        writer.add_key_length(net.config.head_dim)
        writer.add_value_length(net.config.head_dim)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("none")
    for name, tensor in net.state_dict().items():
        data = tensor.numpy().astype(np.float32)
        if name == "lm_head.weight":
            continue
        if name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            kind = GGUF_NAMES[rest.removesuffix(".weight")]
            if kind in ("attn_q", "attn_k"):  # llama.cpp rotates neighbouring pairs, transformers two halves
                heads = HEADS if kind == "attn_q" else KV_HEADS
                data = data.reshape(heads, 2, -1, HIDDEN).swapaxes(1, 2).reshape(data.shape)
            target = f"blk.{layer}.{kind}.weight"
        else:
            target = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
        writer.add_tensor(target, np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_folder(net: Any, folder: Path) -> Path:
    """transformers' layout, with a word-level tokenizer `w0 w1 ...`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    net.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="w1", eos_token="w2").save_pretrained(folder)
    return folder


def write_onnx(folder: Path, out: Path) -> Path:
    """onnxruntime-genai's own builder, float32 (a few seconds)."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += ["-m", str(folder), "-o", str(out), "-p", "fp32", "-e", "cpu", "-c", str(out) + "-cache"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def artifact(path: Path, kind: str, name: str = "") -> Artifact:
    parameters = VOCABULARY * HIDDEN + LAYERS * (HIDDEN * HIDDEN * 3 + 3 * HIDDEN * FFN + 2 * HIDDEN) + HIDDEN
    return Artifact(
        name or path.name, path, kind, path_sha256(path), path_bytes(path), 4 * parameters, parameters, "f32",
        shape={
            "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS, "head_dim": HIDDEN // HEADS, "vocab_size": VOCABULARY,
        },
    )  # fmt: skip


def ids(count: int, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(3, VOCABULARY, count)]


_KEPT: list[tempfile.TemporaryDirectory[str]] = []  # lives as long as the test run


@functools.cache
def built() -> Path:
    """A folder with teacher.gguf, teacher-hf/, teacher-onnx/ (one set of weights) and near.gguf (those, disturbed)."""
    import torch

    _KEPT.append(tempfile.TemporaryDirectory(prefix="tiny-models-"))
    folder = Path(_KEPT[0].name)
    net = model()
    write_gguf(net, folder / "teacher.gguf")
    write_onnx(write_folder(net, folder / "teacher-hf"), folder / "teacher-onnx")
    near = model()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in near.parameters():
            parameter += torch.randn_like(parameter) * 0.02
    write_gguf(near, folder / "near.gguf")
    write_folder(near, folder / "near-hf")
    return folder


def artifacts() -> dict[str, Artifact]:
    """The teacher for each runtime, by the runtime's name."""
    folder = built()
    return {
        "llama_cpp": artifact(folder / "teacher.gguf", "gguf"),
        "onnxruntime": artifact(folder / "teacher-onnx", "onnx"),
        "torch": artifact(folder / "teacher-hf", "torch"),
    }
