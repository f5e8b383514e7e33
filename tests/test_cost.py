"""Costs against transformers' own counts and hand-made numbers."""

from __future__ import annotations

import pytest

from edgeslm import cost

SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


def test_smollm2_has_the_parameters_it_is_known_for() -> None:
    assert cost.counts(SMOLLM2).total == 134_515_008


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_counts_equal_transformers(kind: str, tied: bool) -> None:
    import torch
    import transformers

    shape = {
        "model_type": kind,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "vocab_size": 100,
        "tie_word_embeddings": tied,
    }
    classes = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    }
    config, network = classes[kind]
    with torch.device("meta"):
        net = network(config(**{k: v for k, v in shape.items() if k != "model_type"}))
    assert cost.counts(shape).total == sum(p.numel() for p in {id(p): p for p in net.parameters()}.values())


def test_bytes() -> None:
    n = cost.counts(SMOLLM2)
    assert cost.weight_bytes(SMOLLM2, 32, 32) == 4 * n.total
    assert cost.weight_bytes(SMOLLM2, 4.5, 8.5) == round((n.linear * 4.5 + n.embedding * 8.5 + n.small * 32) / 8)
    assert cost.kv_bytes(SMOLLM2, 100) == 2 * 30 * 3 * 64 * 2 * 100


def test_operations() -> None:
    base = cost.forward_flops(SMOLLM2, 0)
    assert base == 2 * (cost.counts(SMOLLM2).linear + 49152 * 576)
    assert cost.forward_flops(SMOLLM2, 1024) - base == 4 * 30 * 9 * 64 * 512
    assert cost.backward_flops(SMOLLM2, 64) == 2 * cost.forward_flops(SMOLLM2, 64)


def test_bounds() -> None:
    assert cost.decode_bound(cost.decode_bytes(90e6, 100.0, 1000.0, unread=10e6), 10e9) == pytest.approx(10e9 / 80.1e6)
    assert cost.prefill_bound(SMOLLM2, 0, 2e11) == pytest.approx(2e11 / cost.forward_flops(SMOLLM2, 0))
    alone = cost.training_bound(SMOLLM2, 128, 1e11)
    assert cost.training_bound(SMOLLM2, 128, 1e11, SMOLLM2) == pytest.approx(alone * 3 / 4)


def test_bits() -> None:
    assert cost.bits_per_weight({"a": 4.5, "b": 8.5}, {"a": 300, "b": 100}) == 5.5
