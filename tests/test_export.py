"""Exports of tiny random models: every bit of every weight, the runtimes' logits, and what must be refused.

Oracles: gguf's own numpy decoding, llama.cpp, onnxruntime, onnxruntime-genai, and transformers holding the decoded
weights. llama.cpp and onnxruntime-genai run in processes of their own.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from edgeslm.artifact import Artifact
from edgeslm.errors import ExportError
from edgeslm.export import EXPORTERS
from edgeslm.export import onnx as onnx_export
from edgeslm.export.onnx_weights import transformers_name
from edgeslm.export.verify import verify
from edgeslm.formats import FORMATS
from edgeslm.quantize.frozen import Frozen, FrozenTensor

IDS = [int(i) for i in np.random.default_rng(3).integers(0, 250, 24)]
EMBEDDING, HEAD, QUERY = "model.embed_tokens.weight", "lm_head.weight", "model.layers.1.self_attn.q_proj.weight"
VOCABULARY = 320

# family, tied, format of the layers, format of embedding and head
CASES = {
    "llama-tied-q4_0": ("llama", True, "q4_0", "q4_0"),
    "llama-untied-q8_0": ("llama", False, "q8_0", "q8_0"),
    "qwen2-tied-mixed": ("qwen2", True, "q4_0_portable", "q8_0"),
    "qwen2-untied-f32": ("qwen2", False, "f32", "f32"),
    "llama-tied-f32": ("llama", True, "f32", "f32"),
}

LLAMA_CPP = """
import ctypes, json, sys
import numpy as np
from llama_cpp import llama_cpp as api
lines, level = [], 0
def log(new, text, _):
    global level
    level = level if new == 5 else new
    if level in (3, 4) and text.strip():
        lines.append(text.decode("utf-8", "replace"))
callback = api.llama_log_callback(log)
api.llama_log_set(callback, ctypes.c_void_p(0))
api.llama_backend_init()
params = api.llama_model_default_params()
params.use_extra_bufts = False
model = api.llama_model_load_from_file(sys.argv[1].encode(), params)
context = api.llama_context_default_params()
context.n_ctx = 256
context.n_threads = context.n_threads_batch = 1
context.type_k = context.type_v = 0
context.flash_attn_type = 0
ctx = api.llama_init_from_model(model, context)
ids = json.loads(sys.argv[2])
batch = api.llama_batch_init(len(ids), 0, 1)
batch.n_tokens = len(ids)
for i, token in enumerate(ids):
    batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, 1
status = api.llama_decode(ctx, batch)
size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
np.save(sys.argv[3], np.ctypeslib.as_array(api.llama_get_logits(ctx), (len(ids), size)))
print(json.dumps({"status": status, "complaints": lines}))
"""

ONNXRUNTIME = """
import json, sys
from pathlib import Path
import numpy as np
import onnxruntime as ort
import onnxruntime_genai as og
folder, ids = Path(sys.argv[1]), json.loads(sys.argv[2])
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
shape = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
empty = np.zeros((1, shape["num_key_value_heads"], 0, shape["head_size"]), np.float32)
feed = {i.name: empty for i in session.get_inputs() if i.name.startswith("past")}
feed |= {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}
plain = session.run(["logits"], feed)[0][0]
model = og.Model(str(folder))
search = og.GeneratorParams(model)
search.set_search_options(max_length=len(ids) + 4, do_sample=False)
generator = og.Generator(model, search)
generator.append_tokens(np.array(ids, np.int32))
whole = generator.get_output("logits")[0]
text = og.Tokenizer(model).encode("the cat")
np.savez(sys.argv[3], plain=plain, genai=whole, text=np.array(text))
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bytes and a few merges, cut as GPT-2 cuts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("c", "a"), ("ca", "t")]
    tokens = [*alphabet, *(a + b for a, b in merges), "<EOT>"]  # the last looks special and is a common token here
    made = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("tokenizer")
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{{ messages[0]['content'] }}"
    fast.save_pretrained(folder)
    return folder


def tiny(family: str, tied: bool, hidden: int = 64, layers: int = 2, width: int = 160) -> torch.nn.Module:
    """Grouped heads; norms and biases far from what they are initialised to."""
    torch.manual_seed(11)
    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    }[family]
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=261,
        eos_token_id=262,
        initializer_range=1.6 / hidden**0.5,
    )
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def freeze(model: torch.nn.Module, family: str, form: str, ends: str, tokenizer: Path) -> Frozen:
    tensors = {}
    for name, parameter in model.named_parameters():
        w = parameter.detach()
        used = "f32" if w.dim() == 1 else ends if name in (EMBEDDING, HEAD) else form
        grid = FORMATS[used]
        blocks = grid.to_blocks(w, name)
        scales = grid.fit(blocks)
        tensors[name] = FrozenTensor(used, tuple(w.shape), grid.encode(blocks, scales), scales)
    if form.startswith("q4_0"):
        awkward_zeros(tensors[QUERY])
    metadata = {"recipe": "name: tiny\n", "recipe_hash": "0123abcd", "license": "mit", "base_model": "tiny/base"}
    return Frozen(family, model.config.to_dict(), tensors, tokenizer, "tiny", metadata)


def awkward_zeros(tensor: FrozenTensor) -> None:
    """Blocks whose weights are 0.0 or -0.0: zero codes under a negative scale, and scales of both zeros."""
    for block, (d, code) in enumerate(((-0.5, 8), (-0.0, 3), (-0.0, 12), (0.0, 3), (0.25, 8))):
        tensor.scales["d"][block], tensor.codes[block] = d, code


@dataclass
class Case:
    frozen: Frozen
    gguf: Artifact
    onnx: Artifact
    logits: np.ndarray  # [T, V] of transformers with the decoded weights


@pytest.fixture(scope="module")
def cases(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    made = {}
    for name, (family, tied, form, ends) in CASES.items():
        folder = tmp_path_factory.mktemp(name)
        model = tiny(family, tied)
        frozen = freeze(model, family, form, ends, tokenizer)
        model.load_state_dict({n: t.decode() for n, t in frozen.tensors.items()}, strict=False)
        model.tie_weights()
        with torch.no_grad():
            logits = model(torch.tensor([IDS])).logits[0].numpy()
        paths = {"gguf": folder / "student.gguf", "onnx": folder / "student-onnx"}
        made[name] = Case(frozen, *(EXPORTERS[kind](frozen, paths[kind]) for kind in ("gguf", "onnx")), logits)
    return made


def program(source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-c", source, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def divergence(reference: np.ndarray, other: np.ndarray) -> float:
    """Mean KL(reference || other) in nats per position."""
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (reference, other))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("container", ["gguf", "onnx"])
def test_every_bit_of_every_tensor(cases: dict[str, Case], name: str, container: str) -> None:
    case = cases[name]
    artifact = getattr(case, container)
    planned = sum(FORMATS[t.format].block > 1 for t in case.frozen.tensors.values())
    total = len(case.frozen.tensors)
    assert planned or name.endswith("f32")
    expected = {"tensors": total, "exact": total, "planned": planned, "planned_exact": planned, "first_mismatch": None}
    assert verify(artifact, case.frozen) == {"artifact": artifact.name} | expected


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_reads_it_without_a_complaint_and_agrees(cases: dict[str, Case], name: str, tmp_path: Path) -> None:
    case, found = cases[name], tmp_path / "logits.npy"
    done = program(LLAMA_CPP, str(case.gguf.path), json.dumps(IDS), str(found))
    assert json.loads(done.stdout.splitlines()[-1]) == {"status": 0, "complaints": []}
    logits = np.load(found)
    if name.endswith("f32"):
        assert np.abs(logits - case.logits).max() < 1e-3
    else:  # llama.cpp rounds activations to 8 bits per block of 32 (q8_0), which these wide random weights amplify
        assert divergence(case.logits, logits) < 0.003
        assert np.abs(logits - case.logits).max() < 0.06 * np.abs(case.logits).max()


@pytest.mark.parametrize("name", CASES)
def test_onnxruntime_and_genai_agree(cases: dict[str, Case], name: str, tmp_path: Path) -> None:
    case, found = cases[name], tmp_path / "logits.npz"
    program(ONNXRUNTIME, str(case.onnx.path), json.dumps(IDS), str(found))
    arrays = np.load(found)
    assert np.abs(arrays["plain"] - case.logits).max() < 1e-3
    assert arrays["genai"].shape[-2] in (1, len(IDS))
    assert np.abs(arrays["genai"].reshape(-1, VOCABULARY)[-1] - case.logits[-1]).max() < 1e-3
    assert len(arrays["text"]) == 3  # "the", a space, "cat": the merges survived


def data_at(path: Path, tensor: str) -> tuple[Path, int, int]:
    """File, offset and length of a stored tensor's bytes."""
    if path.is_file():
        found = next(t for t in gguf.GGUFReader(path).tensors if t.name == tensor)
        return path, int(found.data_offset), int(found.n_bytes)
    model = onnx.load(path / "model.onnx", load_external_data=False)
    found = next(t for t in model.graph.initializer if t.name == tensor)
    entry = {e.key: e.value for e in found.external_data}
    return path / entry["location"], int(entry["offset"]), int(entry["length"])


@pytest.mark.parametrize(
    ("container", "stored", "tensor"),
    [
        ("gguf", "blk.1.attn_q.weight", QUERY),
        ("gguf", "token_embd.weight", EMBEDDING),
        ("gguf", "output_norm.weight", "model.norm.weight"),
        ("onnx", f"{QUERY}.codes", QUERY),
        ("onnx", f"{EMBEDDING}.codes", EMBEDDING),
        ("onnx", f"{EMBEDDING}.scales", EMBEDDING),
        ("onnx", "model.norm.weight", "model.norm.weight"),
    ],
)
def test_one_flipped_bit_is_found(
    cases: dict[str, Case], container: str, stored: str, tensor: str, tmp_path: Path
) -> None:
    case = cases["llama-tied-q4_0"]
    artifact = getattr(case, container)
    copy = tmp_path / artifact.path.name
    (shutil.copytree if artifact.path.is_dir() else shutil.copy)(artifact.path, copy)
    file, offset, length = data_at(copy, stored)
    for place in np.random.default_rng(5).integers(length // 2, length, 4):  # the second half has no zero blocks
        data = bytearray(file.read_bytes())
        data[offset + place] ^= 4
        file.write_bytes(data)
        found = verify(replace(artifact, path=copy), case.frozen)
        assert found["exact"] == found["tensors"] - 1
        assert found["first_mismatch"].startswith(f"{tensor}: row ")
        data[offset + place] ^= 4
        file.write_bytes(data)
    assert verify(replace(artifact, path=copy), case.frozen)["first_mismatch"] is None


def as_floats(frozen: Frozen) -> Frozen:
    return replace(
        frozen,
        tensors={n: FrozenTensor("f32", t.shape, t.decode().reshape(-1, 1), {}) for n, t in frozen.tensors.items()},
    )


def test_a_planned_weight_that_ships_as_float_is_no_pass(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["llama-tied-q4_0"]
    found = verify(EXPORTERS["gguf"](as_floats(case.frozen), tmp_path / "a.gguf"), case.frozen)
    assert found["planned"] > 0 and found["planned_exact"] == 0
    assert "is stored as f32 instead of q4_0" in found["first_mismatch"]


def test_a_cut_file_is_an_error(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["llama-tied-q4_0"]
    short = tmp_path / "short.gguf"
    short.write_bytes(case.gguf.path.read_bytes()[:-1000])
    with pytest.raises(ExportError, match="cannot be read back"):
        verify(replace(case.gguf, path=short), case.frozen)
    folder = tmp_path / "short-onnx"
    shutil.copytree(case.onnx.path, folder)
    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1000])
    with pytest.raises(ExportError, match="cannot be read back"):
        verify(replace(case.onnx, path=folder), case.frozen)


def test_external_data_outside_the_folder_is_not_read(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["llama-tied-q4_0"]
    folder = tmp_path / "student-onnx"
    shutil.copytree(case.onnx.path, folder)
    shutil.copy(folder / "model.onnx.data", tmp_path / "secret")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../secret" if entry.key == "location" else entry.value
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="outside the folder"):
        verify(replace(case.onnx, path=folder), case.frozen)


def test_what_the_gguf_file_says_about_itself(cases: dict[str, Case]) -> None:
    reader = gguf.GGUFReader(cases["llama-tied-q4_0"].gguf.path)
    said = {key: field.contents() for key, field in reader.fields.items()}
    assert said["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_0
    assert said["general.quantization_version"] == gguf.GGML_QUANT_VERSION
    assert (said["general.name"], said["general.license"]) == ("tiny", "mit")
    assert said["general.base_model.0.name"] == "tiny/base"
    assert (said["edgeslm.recipe"], said["edgeslm.recipe_hash"]) == ("name: tiny\n", "0123abcd")
    assert said["tokenizer.ggml.pre"] and said["tokenizer.chat_template"]
    assert len(said["tokenizer.ggml.tokens"]) == VOCABULARY
    assert said["tokenizer.ggml.token_type"][said["tokenizer.ggml.tokens"].index("<EOT>")] == gguf.TokenType.CONTROL
    assert "output.weight" not in {t.name for t in reader.tensors}
    norms = [t for t in reader.tensors if len(t.shape) == 1]
    assert norms and all(t.tensor_type == gguf.GGMLQuantizationType.F32 for t in norms)
    mixed = gguf.GGUFReader(cases["qwen2-tied-mixed"].gguf.path)
    assert mixed.get_field("general.file_type").contents() == gguf.LlamaFileType.MOSTLY_Q4_0


def test_a_tied_embedding_is_one_pair_of_initializers(cases: dict[str, Case]) -> None:
    case = cases["llama-tied-q4_0"]
    model = onnx.load(case.onnx.path / "model.onnx", load_external_data=False)
    lookup = next(n for n in model.graph.node if n.op_type == "GatherBlockQuantized")
    head = next(n for n in model.graph.node if n.name == "/lm_head/MatMul")
    scales = next(n for n in model.graph.node if lookup.input[2] in n.output)
    assert head.op_type == "MatMulNBits" and head.output[0] == "logits"
    assert (lookup.input[0], scales.input[0]) == (head.input[1], head.input[2])
    assert [t.name for t in model.graph.initializer if VOCABULARY in t.dims] == [head.input[1], head.input[2]]
    assert not [n for n in model.graph.node if n.op_type in ("MatMul", "Transpose")]
    level = {
        a.i for n in model.graph.node if n.op_type == "MatMulNBits" for a in n.attribute if a.name == "accuracy_level"
    }
    assert level == {0}
    assert {p.key: p.value for p in model.metadata_props}["edgeslm.recipe_hash"] == "0123abcd"


def test_artifacts_say_what_they_are(cases: dict[str, Case]) -> None:
    case, mixed = cases["llama-tied-q4_0"], cases["qwen2-tied-mixed"]
    assert (case.gguf.format, case.gguf.name, case.gguf.grid) == ("gguf", "student.gguf", "q4_0")
    assert (case.onnx.format, case.onnx.name, case.onnx.grid) == ("onnx", "student-onnx", "q4_0")
    assert mixed.gguf.grid == "mixed" and case.gguf.recipe_hash == "0123abcd"
    assert 4.5 < case.gguf.bits_per_weight < 4.7 and 5.0 < case.onnx.bits_per_weight < 5.2
    assert case.gguf.weight_bytes == sum(t.n_bytes for t in gguf.GGUFReader(case.gguf.path).tensors)
    floats = cases["llama-tied-f32"]
    assert floats.gguf.bits_per_weight == floats.onnx.bits_per_weight == 32
    assert floats.onnx.bytes == sum(p.stat().st_size for p in floats.onnx.path.iterdir())


def test_int8_activations_are_a_choice(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["llama-tied-q4_0"]
    artifact = onnx_export.export(case.frozen, tmp_path / "fast", accuracy_level=4)
    assert artifact.note == "accuracy_level 4"
    assert verify(artifact, case.frozen)["first_mismatch"] is None
    program(ONNXRUNTIME, str(artifact.path), json.dumps(IDS), str(tmp_path / "logits.npz"))
    logits = np.load(tmp_path / "logits.npz")["plain"]
    assert 0 < divergence(case.logits, logits) < 0.003


def test_q4_1_is_refused_for_onnx_before_any_work(
    cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = cases["llama-tied-f32"].frozen
    grid, old = FORMATS["q4_1"], frozen.tensors[QUERY]
    blocks = grid.to_blocks(old.decode())
    scales = grid.fit(blocks)
    affine = FrozenTensor("q4_1", old.shape, grid.encode(blocks, scales), scales)
    student = replace(frozen, tensors={**frozen.tensors, QUERY: affine})
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("work was begun"))
    with pytest.raises(ExportError, match=r"q_proj.weight: .*cannot hold q4_1 exactly.*gguf"):
        EXPORTERS["onnx"](student, tmp_path / "no")
    assert list(tmp_path.iterdir()) == []
    assert verify(EXPORTERS["gguf"](student, tmp_path / "yes.gguf"), student)["first_mismatch"] is None


def test_what_else_is_refused(cases: dict[str, Case], tmp_path: Path) -> None:
    frozen = cases["llama-tied-q4_0"].frozen
    with pytest.raises(ExportError, match="accuracy_level 3"):
        onnx_export.export(frozen, tmp_path / "a", accuracy_level=3)
    with pytest.raises(ExportError, match=r"lacks model\.norm\.weight"):
        rest = {n: t for n, t in frozen.tensors.items() if n != "model.norm.weight"}
        EXPORTERS["gguf"](replace(frozen, tensors=rest), tmp_path / "b")
    with pytest.raises(ExportError, match=r"has extra\.weight"):
        EXPORTERS["gguf"](
            replace(frozen, tensors={**frozen.tensors, "extra.weight": frozen.tensors[QUERY]}), tmp_path / "c"
        )
    for kind in EXPORTERS:
        with pytest.raises(ExportError, match=r"holds no tokenizer\.json"):
            EXPORTERS[kind](replace(frozen, tokenizer=tmp_path), tmp_path / "d")
    with pytest.raises(ExportError, match="unknown weight"):
        transformers_name("model.rotary.weight")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_builder_is_one_sentence(cases: dict[str, Case], tmp_path: Path) -> None:
    frozen = cases["llama-tied-q4_0"].frozen
    broken = replace(frozen, config={**frozen.config, "num_key_value_heads": "two"})
    with pytest.raises(ExportError, match=r"model builder failed for llama: .+") as caught:
        EXPORTERS["onnx"](broken, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_refused_first(
    cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    for kind in EXPORTERS:
        with pytest.raises(ExportError, match=r"needs .* and its disk has 1\.0 kB free"):
            EXPORTERS[kind](cases["llama-tied-q4_0"].frozen, tmp_path / kind)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", EXPORTERS)
def test_a_write_that_stops_half_way_leaves_the_old_file(cases: dict[str, Case], kind: str, tmp_path: Path) -> None:
    """The process may write 60 kB to a file at most: the write stops in the middle, as on a disk that has filled."""
    case = cases["llama-tied-f32"]
    out = tmp_path / "student"
    out.write_text("the old one")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        with pytest.raises(ExportError, match="could not be written"):
            EXPORTERS[kind](case.frozen, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["student"]
    assert out.read_text() == "the old one"


def test_exporting_again_replaces_and_gives_the_same_bytes(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["llama-tied-q4_0"]
    (tmp_path / "gguf").write_text("an older file")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "older").write_text("a file of an older export")
    for kind in EXPORTERS:
        said: list[str] = []
        again = EXPORTERS[kind](case.frozen, tmp_path / kind, on_progress=said.append)
        before = getattr(case, kind)
        files = sorted(p for p in (tmp_path / kind).rglob("*")) if kind == "onnx" else []
        differ = [
            p.name for p in files if p.read_bytes() != (before.path / p.relative_to(tmp_path / kind)).read_bytes()
        ]
        assert again.sha256 == before.sha256, (kind, differ)
        assert said
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(EXPORTERS)


def test_an_untied_input_table_is_not_read_by_decoding(cases: dict[str, Case]) -> None:
    """What the exporters say of it, and what a file says by itself, on the command line too."""
    from edgeslm.cli.actions import artifact_of

    untied, floats = cases["llama-untied-q8_0"], cases["qwen2-untied-f32"]
    weights = VOCABULARY * 64
    assert untied.gguf.unread_bytes == weights // 32 * 34
    assert untied.onnx.unread_bytes == weights // 32 * (32 + 4)  # float32 scales
    assert floats.gguf.unread_bytes == floats.onnx.unread_bytes == 4 * weights
    assert cases["llama-tied-q4_0"].gguf.unread_bytes == cases["llama-tied-q4_0"].onnx.unread_bytes == 0
    for case in cases.values():
        for made in (case.gguf, case.onnx):
            assert artifact_of(str(made.path)).unread_bytes == made.unread_bytes
