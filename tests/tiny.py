"""Small models, tokenizers and recipes that tests share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from edgeslm.schemes.step import Step

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

MERGES = (("t", "h"), ("th", "e"), ("i", "n"), ("o", "r"))  # llama.cpp refuses a byte-pair vocabulary without merges


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, a few merges and chat markers: 263 tokens, GPT-2's pre-tokenizer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, **{c: i + 3 for i, c in enumerate(alphabet)}}
    for pair in MERGES:
        vocabulary["".join(pair)] = len(vocabulary)
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=list(MERGES)))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", bos_token="<|im_start|>")
    made.chat_template = TEMPLATE
    return made


def llama(
    layers: int = 4, seed: int = 0, tied: bool = True, hidden: int = 64, intermediate: int = 96
) -> LlamaForCausalLM:
    return _model(LlamaConfig, LlamaForCausalLM, layers, seed, tied, hidden, intermediate)


def qwen2(layers: int = 4, seed: int = 0, tied: bool = True, hidden: int = 64) -> Qwen2ForCausalLM:
    """Biases on q, k and v, and a config that lists a type for every layer."""
    return _model(Qwen2Config, Qwen2ForCausalLM, layers, seed, tied, hidden)


FAMILIES = {"llama": llama, "qwen2": qwen2}


def _model(
    config_class: Any, model_class: Any, layers: int, seed: int, tied: bool, hidden: int, intermediate: int = 96
) -> Any:
    torch.manual_seed(seed)
    config = config_class(
        vocab_size=288,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.15,
    )
    return model_class(config).eval()


def step_of(student: Any, terms: Any, teachers: Any = (), grid: str = "f32", stages: Any = (), **how: Any) -> Any:
    """A step around `student`, all of it on `grid`, with objectives bound to it and to `teachers` (models).

    `how`: fields of StepSettings that are not plain, or `base`."""
    from edgeslm.models.blocks import sizes_of
    from edgeslm.quantize.masters import attach
    from edgeslm.quantize.plan import Plan
    from edgeslm.schemes.objective import Objective
    from edgeslm.schemes.step import Step, StepSettings

    plain = {"micro_rows": 4, "clip": 1e9, "weight_decay": 0.0, "betas": (0.9, 0.98), "refit_every": None}
    shapes = {name: tuple(p.shape) for name, p in student.named_parameters()}
    masters = attach(student, Plan.uniform(grid).assign(shapes), next(student.parameters()).dtype)
    own, theirs = sizes_of(student.config), [sizes_of(t.config) for t in teachers]
    generator = torch.Generator().manual_seed(0)

    def bound(some: Any) -> Any:
        return Objective.build(some).bound(own, theirs, student.config.vocab_size, generator)

    base = how.pop("base", None)
    settings = StepSettings(**{**plain, **how})
    return Step(student, masters, bound(terms), settings, base=base, stages=[bound(s) for s in stages])


def gradients(step: Any, batch: Any, teacher: Any, objective: Any = None) -> tuple[float, dict[str, Any], dict]:
    """(loss, gradient of each weight, of each weight of the losses) of one step, which leaves no gradient behind."""
    total, _ = step._backward(batch, teacher, objective or step.objective)
    grads = {m.name: m.value.grad for m in step.masters.items}
    own = {name: value.grad for name, value in step.own.named.items()}
    for holder in (*(m.value for m in step.masters.items), *step.own.named.values()):
        holder.grad = None
    return total, grads, own


def teacher_folder(folder: Path, family: str = "llama") -> Path:
    """A tiny teacher in hub layout."""
    FAMILIES[family]().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


RECIPE = """
name: tiny
teacher: {{model: {teacher}}}
data:
  sequence: 32
  sources:
    - {{kind: text, paths: ["{text}"], share: 0.6}}
    - {{kind: chat, paths: ["{chat}"], share: 0.2}}
    - {{kind: written, seeds: ["{chat}"], rows: 4, max_new: 24, batch: 2, share: 0.2}}
student: {{kind: depth, layers: 3, importance_tokens: 128}}
quantize: {{scales: {{kind: refit, every: 2}}, start: 0.25}}
distill:
  train: {{steps: 8, batch_tokens: 128, micro_rows: 2, lr: 0.002, checkpoint_every: 2, precision: f32}}
export: {{kinds: {kinds}, teacher: {teachers}}}
evaluate: {{paths: ["{judge}"], context: 32, windows: 4, prompts: ["Say hello."], answer_tokens: 4}}
benchmark: {{prompt_tokens: 8, new_tokens: 4, processes: 1, repeats: 2, warmups: 1}}
"""


def no_timing() -> Iterator[None]:
    """For a fixture. One matrix product is timed for an estimate; it decides nothing in tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeslm.compute.matmul_flops", lambda *_, **__: 1e9)
        yield


@contextmanager
def stopping_at(index: int) -> Iterator[None]:
    """Training inside is stopped by Ctrl-C before that update."""
    update = Step.__call__

    def stops(step: Step, *given: Any, **how: Any) -> Any:
        if how["index"] == index:
            raise KeyboardInterrupt
        return update(step, *given, **how)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Step, "__call__", stops)
        yield


def recipe(folder: Path, kinds: str = "[gguf]", teachers: str = "[gguf-f32]") -> Path:
    """A whole recipe on a tiny teacher; its data lies beside it."""
    teacher_folder(folder / "teacher")
    sentences = [f"The {w} fox number {i} jumps over the lazy dog." for i, w in enumerate(["red", "old", "sly"] * 30)]
    (folder / "learn.txt").write_text("\n".join(sentences), encoding="utf-8")
    (folder / "judge.txt").write_text(
        "A whale swam slowly past the ship at dawn, and nobody saw. " * 12, encoding="utf-8"
    )
    rows = ['{"prompt": "Say hi.", "response": "Hi!"}', '{"prompt": "Count to two.", "response": "One, two."}']
    (folder / "chat.jsonl").write_text("\n".join(rows), encoding="utf-8")
    text = RECIPE.format(
        teacher="teacher", text="learn.txt", chat="chat.jsonl", judge="judge.txt", kinds=kinds, teachers=teachers
    )
    path = folder / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    return path
