"""Adapters: merged as peft itself merges them, a spec wherever a model is one, trained alone, and shipped exactly."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from edgeslm import recipe as recipes
from edgeslm.errors import EdgeSLMError, ModelError
from edgeslm.models import adapter
from edgeslm.models.load import describe, load
from edgeslm.models.source import resolve
from edgeslm.models.tokenizer import load_tokenizer
from edgeslm.pipeline import lora
from edgeslm.pipeline.check import check
from edgeslm.pipeline.run import run
from edgeslm.pipeline.stage import Context
from edgeslm.progress import Progress
from edgeslm.quantize.frozen import Frozen
from edgeslm.recipe.sft import LoraPart

peft = pytest.importorskip("peft")

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q_proj", "v_proj"]},
    "every": {"target_modules": "all-linear", "lora_alpha": 5},
    "rank-stabilised": {"target_modules": ["o_proj", "down_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "gate_proj"],
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 3, "gate_proj": 7},
    },
}
IDS = torch.arange(3, 63).reshape(2, 30)


def made(folder: Path, family: str = "llama", **options: Any) -> Any:
    """peft's model with an adapter that does something, written to folder/adapter; its base is folder/base."""
    torch.manual_seed(5)
    tiny.teacher_folder(folder / "base", family)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 16, "task_type": "CAUSAL_LM", **options})
    model = peft.get_peft_model(tiny.FAMILIES[family](), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    renamed(folder / "adapter", base_model_name_or_path="../base")
    return model


def renamed(folder: Path, **change: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    made(folder)
    return folder


# ---- merging, held to peft


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
@pytest.mark.parametrize("kind", list(KINDS))
@torch.no_grad()
def test_a_merged_model_is_pefts_own(tmp_path, kind, family):
    model = made(tmp_path, family, **KINDS[kind])
    loaded = load(resolve("adapter", tmp_path), torch.float32).model
    plain = tiny.FAMILIES[family]()(IDS).logits
    theirs, ours = model(IDS).logits, loaded(IDS).logits
    assert (theirs - plain).abs().max() > 0.1  # the adapter matters
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    merged = dict(model.merge_and_unload().named_parameters())
    assert all(torch.equal(parameter, merged[name]) for name, parameter in loaded.named_parameters())


def test_a_turned_model_is_merged_the_right_way_round(tmp_path):
    """GPT-2 in transformers' layout, whose matrices lie turned (fan_in_fan_out), and straight in ours."""
    from transformers import GPT2Config, GPT2LMHeadModel

    def gpt2() -> GPT2LMHeadModel:
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(vocab_size=288, n_embd=32, n_layer=2, n_head=2, n_positions=64)).eval()

    gpt2().save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    model = peft.get_peft_model(gpt2(), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
        model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
        ours = load(resolve("base+adapter", tmp_path), torch.float32).model(IDS).logits
        theirs = model(IDS).logits
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


# ---- a spec


def test_an_adapter_is_found_described_and_read_like_any_model(folder):
    by_name, given = resolve("adapter", folder), resolve("base+adapter", folder)
    assert by_name.kind == "adapter" and by_name.base is not None and by_name.base.path == (folder / "base").resolve()
    assert by_name.sha256 == given.sha256 != by_name.base.sha256
    summary = describe(by_name)
    assert summary.arch == "llama" and "merged with the adapter adapter: LoRA on 8 matrices" in summary.notes
    half = load(by_name, torch.bfloat16).model
    exact = load(by_name, torch.float32).model
    assert all(torch.equal(p, q.bfloat16()) for p, q in zip(half.parameters(), exact.parameters(), strict=True))
    assert half.model.rotary_emb.inv_freq.dtype == torch.float32
    assert load_tokenizer(by_name).get_vocab() == tiny.tokenizer().get_vocab()


def test_an_adapters_own_tokenizer_comes_first(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    other = tiny.tokenizer()
    other.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    other.save_pretrained(tmp_path / "adapter")
    assert load(resolve("adapter", tmp_path), torch.float32).tokenizer.chat_template == other.chat_template
    other.add_tokens([f"<more {i}>" for i in range(40)])
    other.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="they do not belong together"):
        load(resolve("adapter", tmp_path), torch.float32)


def test_weights_of_either_change_the_identity(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    before = resolve("adapter", tmp_path).sha256
    assert before == resolve("adapter", folder).sha256
    with pytest.raises(ModelError, match="it is another file"):
        resolve("adapter", tmp_path, "0" * 64)
    weights = load_file(tmp_path / "adapter" / adapter.WEIGHTS)
    save_file({name: w + 1 for name, w in weights.items()}, tmp_path / "adapter" / adapter.WEIGHTS)
    changed = resolve("adapter", tmp_path).sha256
    tiny.llama(seed=9).save_pretrained(tmp_path / "base")
    assert len({before, changed, resolve("adapter", tmp_path).sha256}) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, r"has use_dora: True, so that it is no plain LoRA; merge it with peft"),
        ({"bias": "all"}, "has bias: all"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights: pissa_niter_16, which changes the base too"),
        ({"peft_type": "IA3"}, "of type IA3, not LORA"),
        ({"lora_alpha": None}, "gives no lora_alpha"),
        ({"base_model_name_or_path": None}, r"does not say which model it adapts; name it, as in BASE\+ADAPTER"),
        ({"base_model_name_or_path": "."}, "names another adapter as its model"),
        ({"base_model_name_or_path": "../none"}, "the model that it adapts is not here"),
    ],
)
def test_what_is_no_plain_adapter_is_refused(folder, tmp_path, change, words):
    import shutil

    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    renamed(tmp_path / "adapter", **change)
    with pytest.raises(ModelError, match=words):
        describe(resolve("adapter", tmp_path))


def test_weights_that_do_not_fit_are_refused(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    at = tmp_path / "adapter" / adapter.WEIGHTS
    weights = load_file(at)
    tiny.qwen2(layers=1).save_pretrained(tmp_path / "small")
    tiny.tokenizer().save_pretrained(tmp_path / "small")
    with pytest.raises(ModelError, match=r"adapts 'model.layers.1.*its base small has no such matrix"):
        describe(resolve("small+adapter", tmp_path))
    first = next(iter(weights))
    for name, words in (("base_model.model.lm_head.weight", "more than LoRA on linear layers"), (None, "do not fit")):
        save_file({**weights, name or first: torch.zeros(3, 5)}, at)
        with pytest.raises(ModelError, match=words):
            describe(resolve("adapter", tmp_path))
    at.unlink()
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(b"no")
    with pytest.raises(ModelError, match="its weights are pickled, which can run code"):
        describe(resolve("base+adapter", tmp_path))
    with pytest.raises(ModelError, match=r"no adapter|neither a file or folder"):
        resolve("base+small", tmp_path)


def test_an_adapted_head_that_is_the_embedding_is_refused(tmp_path):
    made(tmp_path, target_modules=["lm_head"])
    with pytest.raises(ModelError, match=r"adapts .*lm_head"):
        load(resolve("adapter", tmp_path), torch.float32)


def test_it_becomes_the_file_that_chat_runs(folder, tmp_path, monkeypatch):
    """`edgeslm chat ADAPTER` and `edgeslm eval --teacher ADAPTER` run what this makes."""
    from edgeslm.cli.actions import as_gguf, tokenizer_of

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = as_gguf(resolve(str(folder / "adapter"), Path.cwd()), "f32")
    back = load(resolve(str(file), Path.cwd()), torch.float32).model
    merged = dict(load(resolve("adapter", folder), torch.float32).model.named_parameters())
    assert all(torch.equal(parameter, merged[name]) for name, parameter in back.named_parameters())
    assert tokenizer_of(file).chat_template == tiny.TEMPLATE


# ---- trained in a recipe

CHAT = [{"prompt": f"Say the {w} word {i}.", "response": f"The {w}, {i}!"} for i, w in enumerate(["or", "in"] * 8)]
ASKED = [
    "threads=1",
    "sft={steps: 4, batch_tokens: 128, micro_rows: 2, lr: 0.01, checkpoint_every: 1, apart: 2,"
    " lora: {rank: 4, targets: [q, v, down_proj], dropout: 0.1, keep: true}}",
    "data={sequence: 64, sources: [{kind: text, paths: [learn.txt]}, {kind: chat, paths: [chat.jsonl]}]}",
    "distill.train.steps=2",
    "quantize.start=0",
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    tiny.recipe(folder)
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, CHAT)), encoding="utf-8")
    return folder


def stage(folder: Path, runs: Path, *overrides: str, until: str = "sft") -> Path:
    loaded = recipes.load(folder / "tiny.yaml", [*ASKED, *overrides])
    root = run(loaded, folder, runs, Progress(quiet=True), until=until)
    return root / json.loads((root / "run.json").read_text())["stages"][until]


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> Path:
    return stage(recipe, tmp_path_factory.mktemp("whole"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_only_what_was_asked_for_moves_and_the_adapter_is_kept_in_pefts_layout(whole):
    base, merged = weights(whole / "base"), weights(whole / "model")
    moved = {name for name, w in merged.items() if not torch.equal(w, base[name])}
    assert {name.split(".")[-2] for name in moved} == {"q_proj", "v_proj", "down_proj"} and len(moved) == 9
    facts = json.loads((whole / "sft.json").read_text())
    assert facts["lora"]["matrices"] == 9 and facts["points"][-1]["loss"] < facts["points"][0]["loss"]
    kept = load_file(whole / "adapter" / adapter.WEIGHTS)
    assert facts["lora"]["parameters"] == sum(w.numel() for w in kept.values())
    config = json.loads((whole / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "../base" and config["target_modules"] == [
        "down_proj",
        "q_proj",
        "v_proj",
    ]


@torch.no_grad()
def test_what_is_kept_is_the_same_model_to_peft(whole):
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(whole / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, whole / "adapter").eval()(IDS).logits
    ours = AutoModelForCausalLM.from_pretrained(whole / "model", dtype=torch.float32).eval()(IDS).logits
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    again = load(resolve(str(whole / "adapter"), Path.cwd()), torch.float32).model
    merged = weights(whole / "model")
    assert all(torch.equal(p, merged[n]) for n, p in again.named_parameters() if n in merged)


def test_stopped_and_gone_on_with_is_the_same_dropout_and_all(recipe, whole, tmp_path):
    with tiny.stopping_at(2):
        stage(recipe, tmp_path)
    again = stage(recipe, tmp_path, "sft.lora.keep=true")
    ours, theirs = weights(whole / "model"), weights(again / "model")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_dropout_drops_and_judging_does_not(recipe, whole, tmp_path):
    """Without it other weights come out; a judged loss is the same whatever is dropped in training."""
    plain = stage(recipe, tmp_path, "sft.lora.dropout=0", "sft.lora.keep=false")
    facts = [json.loads((folder / "sft.json").read_text()) for folder in (whole, plain)]
    assert facts[0]["points"][0] == facts[1]["points"][0] and facts[0]["weights"] != facts[1]["weights"]
    assert not (plain / "adapter").exists() and not (plain / "base").exists()


def test_a_student_trained_so_ships_exactly(recipe, tmp_path):
    """On a grid like any other: what is shipped decodes to what was frozen, which was the merged model."""
    if not list(Path(sys.prefix).glob("lib/python*/site-packages/llama_cpp")):
        pytest.skip("needs llama-cpp-python: python -m edgeslm.runtimes.native")
    exported = stage(recipe, tmp_path, "distill.train.steps=0", until="export")
    (checked,) = [e for e in json.loads((exported / "exact.json").read_text()) if e["artifact"] == "student.gguf"]
    assert checked["exact"] == checked["tensors"] > 10
    (fine,), (trained,) = exported.parent.glob("sft-*"), exported.parent.glob("distill-*")
    frozen, merged = Frozen.load(trained / "frozen"), weights(fine / "model")
    shipped = dict(load(resolve(str(exported / "student.gguf"), Path.cwd()), torch.float32).model.named_parameters())
    for name, tensor in frozen.tensors.items():
        assert torch.equal(shipped[name], tensor.decode())
        if tensor.format == "f32":
            assert torch.equal(tensor.decode(), merged[name])
        else:
            assert (tensor.decode() - merged[name]).abs().mean() < 0.1 * merged[name].abs().mean()


def test_an_adapter_teaches_and_begins_a_student(recipe, folder, tmp_path):
    """As `teacher.model` and as `student: {kind: existing}`; the shipped file names no folder of this machine."""
    spec = str(folder / "adapter")
    asked = [f"teacher.model={spec}", f"student={{kind: existing, model: {spec}}}", "sft=null", "distill.train.steps=0"]
    trained = stage(recipe, tmp_path, *asked, "quantize={plan: [{pattern: '*', format: f32}]}", until="distill")
    frozen = Frozen.load(trained / "frozen")
    merged = dict(load(resolve("adapter", folder), torch.float32).model.named_parameters())
    assert all(torch.equal(tensor.decode(), merged[name]) for name, tensor in frozen.tensors.items())
    assert json.loads((trained / "heldout.json").read_text())["points"][0]["kl"] == pytest.approx(0, abs=1e-6)
    assert frozen.metadata["base_model"] == "adapter" and str(folder) not in json.dumps(frozen.metadata)


def test_a_given_base_is_named_without_its_folder(recipe, folder, tmp_path):
    from edgeslm.pipeline.origin import base_model

    loaded = recipes.load(recipe / "tiny.yaml", [f"teacher.model={folder / 'base'}+{folder / 'adapter'}"])
    assert base_model(Context(loaded, recipe, tmp_path, Progress(quiet=True))) == "base+adapter"


def test_check_counts_what_is_trained_and_refuses_what_cannot_be(recipe, tmp_path, monkeypatch):
    def found(*overrides: str) -> Any:
        loaded = recipes.load(recipe / "tiny.yaml", [*ASKED, *overrides])
        return check(Context(loaded, recipe, tmp_path, Progress(quiet=True)))

    plan = dict(found().plan)
    assert plan["sft: LoRA"].startswith("rank 4 on 9 matrices: 4") and "frozen weights" in plan["sft: LoRA"]
    more = dict(found("sft.lora=null").plan)
    assert "sft: LoRA" not in more and more["sft: memory (an estimate)"] != plan["sft: memory (an estimate)"]
    (problem,) = found("sft.lora.targets=[q, w]").problems
    assert "no linear layer is called 'w'; there are down_proj, gate_proj" in problem
    monkeypatch.setattr(lora, "installed", lambda: False)
    assert found().problems == [lora.INSTALL]


def test_targets_are_the_blocks_own_matrices():
    shapes = {name: tuple(p.shape) for name, p in tiny.qwen2(layers=2, tied=False).named_parameters()}
    every = lora.targets(LoraPart(), shapes)
    assert every == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert lora.parameters(LoraPart(targets=("q",), rank=2), shapes) == (2, 2 * 2 * (64 + 64))
    with pytest.raises(EdgeSLMError, match="'lm_head'"):
        lora.targets(LoraPart(targets=("lm_head",)), shapes)
