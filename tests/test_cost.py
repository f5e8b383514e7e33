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


CEILINGS = cost.Ceilings(read_bytes_per_s=10e9, flops_f32_per_s=100e9, ops_int8_per_s=400e9)
LOAD = cost.Load(SMOLLM2, weights_bytes=90e6, int8=True, buffers_bytes=30e6)


def by_metric(predictions: list[cost.Prediction]) -> dict[str, cost.Prediction]:
    return {one.metric: one for one in predictions}


def test_decode_is_predicted_from_bytes_while_memory_is_the_limit() -> None:
    found = by_metric(cost.predict(CEILINGS, LOAD, depths=[512]))["predicted_decode"]
    moved = 90e6 + 512 * 2 * 30 * 3 * 64 * 2
    assert found.value == pytest.approx(10e9 / moved) and found.limited_by == "memory"
    assert "the bound itself" in found.formula and found.unit == "tokens/s"
    assert cost.predict(CEILINGS, LOAD, depths=[4096])[0].value < found.value
    wide = cost.Ceilings(1e12, 100e9, 400e9)
    slow = by_metric(cost.predict(wide, LOAD, depths=[0]))["predicted_decode"]
    assert slow.limited_by == "arithmetic"
    assert slow.value == pytest.approx(400e9 / (2 * cost.counts(SMOLLM2).per_token))


def test_prefill_counts_every_block_for_every_token_and_the_head_once() -> None:
    n = cost.counts(SMOLLM2)
    found = by_metric(cost.predict(CEILINGS, LOAD, lengths=[512]))["predicted_prefill"]
    linear = 2 * (512 * n.linear + 49152 * 576)
    attention = 4 * 30 * 9 * 64 * 512 * 513 / 2  # every position sees those up to itself
    assert found.value == pytest.approx(512 / (linear / 400e9 + attention / 100e9))
    floats = cost.Load(SMOLLM2, 538e6)
    slower = by_metric(cost.predict(CEILINGS, floats, lengths=[512]))["predicted_prefill"]
    assert slower.value == pytest.approx(512 / ((linear + attention) / 100e9))
    one = by_metric(cost.predict(CEILINGS, LOAD, lengths=[1]))["predicted_prefill"]
    assert one.limited_by == "memory" and one.value == pytest.approx(
        10e9 / 90e6
    )  # a short prompt reads all weights too


def test_memory_is_a_sum_and_needs_measured_buffers() -> None:
    found = by_metric(cost.predict(CEILINGS, LOAD, context=1024))["predicted_memory"]
    assert found.value == 90e6 + cost.kv_bytes(SMOLLM2, 1024) + 30e6 and found.limited_by == ""
    assert cost.predict(CEILINGS, cost.Load(SMOLLM2, 90e6), context=1024) == []


def test_what_no_ceiling_decides_is_not_predicted() -> None:
    assert cost.predict(cost.Ceilings(), LOAD, depths=[0], lengths=[128]) == []
    only_memory = cost.predict(cost.Ceilings(read_bytes_per_s=10e9), LOAD, depths=[0], lengths=[128])
    assert [one.metric for one in only_memory] == ["predicted_decode"]
    without_int8 = cost.Ceilings(10e9, 100e9)
    assert [one.metric for one in cost.predict(without_int8, LOAD, lengths=[128])] == []


def test_an_efficiency_is_measured_named_and_gives_back_its_measurement() -> None:
    share = cost.efficiency(80.0, CEILINGS, LOAD, "decode", 128, "SmolLM2 Q4_0, llama.cpp b1, this machine")
    assert share is not None and 0 < share.value < 1
    (again,) = cost.predict(CEILINGS, LOAD, depths=[128], efficiencies={"decode": share})
    assert again.value == pytest.approx(80.0) and "SmolLM2 Q4_0, llama.cpp b1" in again.formula
    assert again.error(80.0) == pytest.approx(0.0) and again.error(64.0) == pytest.approx(0.25)
    assert cost.efficiency(80.0, cost.Ceilings(), LOAD, "decode", 128, "nothing") is None


@pytest.mark.parametrize("ceiling", ["read_bytes_per_s", "flops_f32_per_s", "ops_int8_per_s"])
def test_a_better_device_is_never_predicted_to_be_slower(ceiling: str) -> None:
    better = cost.Ceilings(**{**vars(CEILINGS), ceiling: 2 * vars(CEILINGS)[ceiling]})
    for mine, theirs in zip(
        cost.predict(CEILINGS, LOAD, depths=[0, 512], lengths=[1, 16, 512]),
        cost.predict(better, LOAD, depths=[0, 512], lengths=[1, 16, 512]),
        strict=True,
    ):
        assert theirs.value >= mine.value
