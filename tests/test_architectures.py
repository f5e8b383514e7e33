"""Every family through export and back: each bit of each tensor, llama.cpp's and onnxruntime's logits, students cut
from a teacher, hub folders. The tiny random models are those of test_models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_export import LLAMA_CPP, ONNXRUNTIME, divergence, program
from test_models import CONFIGS, TEXT, at, tiny_model, tiny_tokenizer

from edgeslm import cost
from edgeslm.artifact import Artifact
from edgeslm.errors import ExportError, ModelError
from edgeslm.export import EXPORTERS
from edgeslm.export.verify import verify
from edgeslm.formats import FORMATS
from edgeslm.models import load, turned
from edgeslm.models.arch import ARCHS
from edgeslm.models.arch.base import plain
from edgeslm.models.blocks import layers_of, reading
from edgeslm.models.shapes import parameter_shapes, pruned
from edgeslm.quantize.frozen import Frozen, FrozenTensor
from edgeslm.quantize.plan import Plan
from edgeslm.students import depth, pattern

NEW = [name for name in CONFIGS if name.split()[0] not in ("llama", "qwen2") or name == "llama 3"]
CASES = [
    (name, form) for form in ("f32", "q4_0") for name in NEW if form == "f32" or name in ARCHS or name == "llama 3"
]
IDS = tiny_tokenizer()(TEXT)["input_ids"][:24]


def frozen(model: Any, form: str, tokenizer: Path) -> Frozen:
    """`form` for the layers' matrices, q8_0 for tables and head."""
    tensors = {}
    for name, parameter in model.named_parameters():
        w = parameter.detach()
        used = "f32" if w.dim() == 1 or form == "f32" else "q8_0" if len(w) in (320, 256) else form
        blocks = FORMATS[used].to_blocks(w, name)
        scales = FORMATS[used].fit(blocks)
        tensors[name] = FrozenTensor(used, tuple(w.shape), FORMATS[used].encode(blocks, scales), scales)
    return Frozen(model.config.model_type, model.config.to_dict(), tensors, tokenizer, "tiny", {})


def logits(model: Any, ids: list[int] = IDS) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    load.write_tokenizer(tiny_tokenizer(), folder)
    return folder


@dataclass
class Case:
    model: Any  # with the decoded weights
    frozen: Frozen
    gguf: Artifact


@pytest.fixture(scope="module")
def cases(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Case]:
    made = {}
    for name, form in CASES:
        model = tiny_model(name)
        student = frozen(model, form, tokenizer)
        model.load_state_dict({n: t.decode() for n, t in student.tensors.items()}, strict=False)
        model.tie_weights()
        out = tmp_path_factory.mktemp("gguf") / f"{name.replace(' ', '-')}-{form}.gguf"
        made[name, form] = Case(model, student, EXPORTERS["gguf"](student, out))
    return made


@pytest.mark.parametrize(("name", "form"), CASES)
def test_every_bit_comes_back(cases: dict[tuple[str, str], Case], name: str, form: str) -> None:
    case = cases[name, form]
    found = verify(case.gguf, case.frozen)
    factors = ARCHS[case.frozen.arch].constants(case.frozen.config)
    assert found["exact"] == found["tensors"] == len(case.frozen.tensors) + len(factors)
    assert found["first_mismatch"] is None
    assert found["planned"] == found["planned_exact"] and bool(found["planned"]) == (form != "f32")
    again = load.load(at(case.gguf.path), torch.float32)
    assert np.array_equal(logits(again.model), logits(case.model))
    assert again.arch.name == name.split()[0]


def test_llama_cpp_reads_them_without_a_complaint(cases: dict[tuple[str, str], Case], tmp_path: Path) -> None:
    """ggml's gelu looks its values up in float16, which is what the looser bound of those families is for."""
    for (name, form), case in cases.items():
        out = tmp_path / "logits.npy"
        done = program(LLAMA_CPP, str(case.gguf.path), json.dumps(IDS), str(out))
        said = json.loads(done.stdout.splitlines()[-1])
        # the program keeps whole caches for sliding windows, which is said and costs memory only
        assert not [line for line in said["complaints"] if "full-size SWA cache" not in line], name
        assert said["status"] == 0
        ours, theirs = logits(case.model), np.load(out)
        if form == "f32":
            assert np.abs(ours - theirs).max() < (5e-3 if name in ("gpt2", "gemma3_text", "starcoder2") else 1e-3), name
        else:
            assert divergence(ours, theirs) < 0.0015 * len(layers_of(case.model)), name


ONNX = {
    "llama 3": "q4_0",
    "qwen3": "q4_0",
    "qwen3 untied": "f32",
    "smollm3": "q4_0",
    "phi3": "q4_0",
    "phi3 partial": "f32",
}


@pytest.mark.parametrize("name", ONNX)
def test_onnxruntime_and_genai_agree(cases: dict[tuple[str, str], Case], name: str, tmp_path: Path) -> None:
    """Fused matrices go into the graph in parts, each on its own rows of the grid."""
    case = cases[name, ONNX[name]]
    artifact = EXPORTERS["onnx"](case.frozen, tmp_path / "student")
    found = verify(artifact, case.frozen)
    assert found["exact"] == found["tensors"] >= len(case.frozen.tensors)
    assert bool(found["planned_exact"]) == (ONNX[name] != "f32") and found["planned_exact"] == found["planned"]
    program(ONNXRUNTIME, str(artifact.path), json.dumps(IDS), str(tmp_path / "logits.npz"))
    arrays, expected = np.load(tmp_path / "logits.npz"), logits(case.model)
    assert np.abs(arrays["plain"] - expected).max() < 1e-3
    assert np.abs(arrays["genai"].reshape(-1, 320)[-1] - expected[-1]).max() < 1e-3


@pytest.mark.parametrize("name", [name for name in NEW if name not in ONNX])
def test_what_has_no_onnx_graph_is_refused_in_a_sentence(
    cases: dict[tuple[str, str], Case], name: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"(builder|onnxruntime).*; export to gguf"):
        EXPORTERS["onnx"](cases[name, "f32"].frozen, tmp_path / "no")
    assert list(tmp_path.iterdir()) == []


def test_a_changed_rotary_factor_is_found(cases: dict[tuple[str, str], Case], tmp_path: Path) -> None:
    case = cases["llama 3", "f32"]
    broken = {**case.frozen.config, "rope_parameters": {**case.frozen.config["rope_parameters"], "factor": 4.0}}
    other = Frozen("llama", broken, case.frozen.tensors, case.frozen.tokenizer, "tiny", {})
    assert "rope_freqs.weight: row" in verify(case.gguf, other)["first_mismatch"]


def test_llama_3_factors_are_those_transformers_turns_by() -> None:
    from edgeslm.models import rotary

    model = tiny_model("llama 3")
    rope = model.config.rope_parameters
    plain_frequencies = 1 / rope["rope_theta"] ** (torch.arange(0, 16, 2) / 16)
    factors = rotary.llama3_factors(rope, 16)
    assert torch.allclose(plain_frequencies / factors, model.model.rotary_emb.inv_freq, rtol=1e-6)
    assert factors[0] == 1 and factors[-1] == 8 and len(set(factors.tolist())) > 2
    release = rope | {"factor": 32.0, "original_max_position_embeddings": 8192, "rope_theta": 5e5}
    found = rotary.llama3_parameters(rotary.llama3_factors(release, 64).tolist(), 5e5, None)
    assert found == release
    with pytest.raises(ModelError, match="none of Llama 3"):
        rotary.llama3_parameters([1.0, 2.0, 3.0], 5e5, [0.0])


@pytest.mark.parametrize("name", NEW)
def test_shapes_are_known_without_weights(name: str) -> None:
    model = tiny_model(name)
    assert cost.counts(plain(model.config)).total == sum(p.numel() for p in model.parameters())
    assert parameter_shapes(plain(model.config)) == {n: tuple(p.shape) for n, p in model.named_parameters()}


@pytest.mark.parametrize("name", NEW)
def test_a_student_of_fewer_layers_is_a_model_of_the_family(name: str, tokenizer: Path, tmp_path: Path) -> None:
    teacher = tiny_model(name)
    ids = torch.tensor([IDS, IDS[::-1]])
    count = len(layers_of(teacher)) - 1
    choice = depth.choose(teacher, ids, count, "influence")
    student = depth.prune(teacher, choice.kept)
    shape = pruned(plain(teacher.config), {"layers": count})
    assert parameter_shapes(shape) == {n: tuple(p.shape) for n, p in student.named_parameters()}
    artifact = EXPORTERS["gguf"](frozen(student, "f32", tokenizer), tmp_path / "student.gguf")
    assert np.array_equal(logits(load.load(at(artifact.path), torch.float32).model), logits(student))


def test_layers_of_several_kinds_keep_their_pattern() -> None:
    scores = [0.1, 0.9, 0.8, 0.2, 0.3, 0.7, 0.6, 0.2]
    of_kind = [0, 0, 0, 1, 0, 0, 0, 1]
    kept = pattern.most_influence(scores, 5, of_kind)
    assert [of_kind[i] for i in kept] == of_kind[:5] and len(kept) == 5
    best = max(
        (sum(scores[i] for i in some), some)
        for bits in range(256)
        if len(some := [i for i in range(8) if bits >> i & 1]) == 5 and [of_kind[i] for i in some] == of_kind[:5]
    )
    assert kept == best[1]
    assert pattern.most_influence(scores, 3, [0] * 8) == [1, 2, 5]
    assert pattern.kinds(tiny_model("smollm3").config)[3] == ("full_attention", 0)


@pytest.mark.parametrize("name", ["gemma3_text", "phi3", "gpt2", "starcoder2"])
def test_a_width_that_cannot_be_cut_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"student\.hidden: .* not cut in width"):
        pruned(plain(tiny_model(name).config), {"hidden": 32})


@pytest.mark.parametrize("name", NEW)
def test_queries_keys_and_values_are_read_where_they_are(name: str) -> None:
    model = tiny_model(name)
    model.set_attn_implementation("eager")
    wants = {1: frozenset({"hidden", "query", "key", "value", "attention"})}
    with reading(model, wants) as found, torch.no_grad():
        model(torch.tensor([IDS]))
    layer, heads = found[1], model.config.num_attention_heads
    assert layer.query is not None and layer.attention is not None and layer.key is not None
    assert layer.value is not None and layer.value.shape == layer.key.shape == layer.query.shape
    assert layer.query.shape[:3] == (1, heads, len(IDS)) and layer.attention.shape[1:] == (heads, len(IDS), len(IDS))
    projection = next(m for n, m in layers_of(model)[0].named_modules() if n.endswith(("v_proj", "qkv_proj", "c_attn")))
    last = projection.weight.detach()[-layer.value.shape[-1] :]
    seen: list[torch.Tensor] = []
    handle = projection.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    with torch.no_grad():
        model(torch.tensor([IDS]))
    handle.remove()
    bias = 0.0 if projection.bias is None else projection.bias.detach()[-len(last) :]
    assert torch.allclose(layer.value[0, -1], seen[0][0] @ last.T + bias, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen3", "smollm3", "gemma3_text", "phi3", "gpt2", "starcoder2"])
def test_a_step_of_distillation_moves_every_weight(name: str) -> None:
    from tiny import step_of

    from edgeslm.data.batch import Batch
    from edgeslm.teachers.live import LiveTeacher

    teacher = tiny_model(name)
    student = depth.prune(teacher, [0, 1])
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    step = step_of(student, [{"loss": "forward_kl"}], [teacher], "q8_0")
    ids = torch.tensor([IDS, IDS[::-1]])
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    log = step(Batch(ids, torch.ones(ids.shape), None), LiveTeacher(teacher), lr=3e-2, grid=True, index=0)
    assert log.loss > 0
    still = [n for n, p in student.named_parameters() if torch.equal(p, before[n])]
    assert not still


def test_a_hub_folder_of_gpt2_is_read_and_written_turned_as_the_hub_has_it(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    model = tiny_model("gpt2")
    turned.save(model, tmp_path / "a")
    load.write_tokenizer(tiny_tokenizer(), tmp_path / "a")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    assert theirs.transformer.h[0].mlp.c_fc.weight.shape == (64, 96)  # inputs first
    assert np.allclose(logits(theirs), logits(model), atol=1e-5)
    state = load_file(tmp_path / "a" / "model.safetensors")
    released = {name.removeprefix("transformer."): w for name, w in state.items()}  # as the first release names them
    released["h.0.attn.bias"] = torch.ones(1, 1, 256, 256)
    save_file(released, tmp_path / "a" / "model.safetensors", {"format": "pt"})
    loaded = load.load(at(tmp_path / "a", "folder"), torch.float32)
    assert np.array_equal(logits(loaded.model), logits(model))
    assert loaded.summary.parameters == sum(p.numel() for p in model.parameters())
    assert loaded.summary.config["hidden_size"] == 64 and loaded.summary.config["num_hidden_layers"] == 2


def test_rows_that_blocks_do_not_divide_are_named(tokenizer: Path) -> None:
    shapes = parameter_shapes(plain(tiny_model("gpt2").config))
    assert set(Plan.uniform("q4_0").assign(shapes).values()) == {"q4_0", "f32"}
    with pytest.raises(Exception, match="rows of 64 are no multiple of the 256-weight blocks of q4_k"):
        Plan.uniform("q4_k").assign(shapes)
