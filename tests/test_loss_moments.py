"""What the loss feels: moments against gradients made token by token, and rows that learn of each other."""

from __future__ import annotations

import pytest
import tiny
import torch

from edgeslm.formats import FORMATS
from edgeslm.quantize import feedback
from edgeslm.quantize.curvature import curvature, left_over
from edgeslm.quantize.feedback import layer_error, round_model, round_with_feedback
from edgeslm.quantize.loss_moments import loss_moments, moment_sizes

DOWN, HEAD = "model.layers.0.mlp.down_proj.weight", "model.embed_tokens.weight"
Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def model():
    return tiny.llama(layers=2)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(0, 288, (5, 12), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def drawn(monkeypatch) -> list[torch.Tensor]:
    """The labels that are drawn from now on."""
    labels: list[torch.Tensor] = []
    multinomial = torch.multinomial
    monkeypatch.setattr(torch, "multinomial", lambda *a, **k: labels.append(multinomial(*a, **k)) or labels[-1])
    return labels


def matrices(model) -> list[str]:
    return [n for n, p in model.named_parameters() if p.dim() == 2]


def test_moments_are_those_of_gradients_made_one_by_one(model, ids, drawn):
    """The labels that were drawn, in the order of the text; each layer's output by itself, by another path."""
    found = loss_moments(model, ids, [Q, DOWN, HEAD], rows=2)
    labels = torch.cat(drawn).view_as(ids)
    for name, module in ((Q, model.model.layers[1].self_attn.q_proj), (DOWN, model.model.layers[0].mlp.down_proj)):
        x, g = [], []
        for row, label in zip(ids, labels, strict=True):
            kept = []
            hook = module.register_forward_hook(lambda m, a, out, kept=kept: kept.extend((a[0], out)))
            loss = torch.nn.functional.cross_entropy(model(input_ids=row[None]).logits[0], label, reduction="sum")
            hook.remove()
            x.append(kept[0][0].detach())
            g.append(torch.autograd.grad(loss, kept[1])[0][0])
        xs, gs = torch.cat(x), torch.cat(g)
        weigh = gs.square().sum(1)
        inputs = (xs * weigh[:, None]).T @ xs / weigh.sum()
        assert torch.allclose(found.inputs[name], inputs, rtol=1e-3, atol=1e-5 * float(inputs.max()))
        outputs = gs.T @ gs / len(gs)
        assert torch.allclose(found.outputs[name], outputs, rtol=1e-3, atol=1e-5 * float(outputs.max()))
    assert HEAD in found.inputs and HEAD not in found.outputs


def at_the_end(model, ids) -> tuple[torch.Tensor, torch.Tensor]:
    """The final states, and how open each token is."""
    with torch.no_grad():
        x = model.model(input_ids=ids).last_hidden_state.reshape(-1, 64)
        return x, 1 - torch.softmax(model.lm_head(x), -1).square().sum(1)


def test_the_heads_tokens_count_by_how_open_they_are_and_the_embeddings_by_their_gradients(ids, drawn):
    for tied in (False, True):
        model = tiny.llama(layers=2, tied=tied)
        drawn.clear()
        found = loss_moments(model, ids, [HEAD] if tied else [HEAD, "lm_head.weight"]).inputs
        given = model.model.embed_tokens(ids).detach().requires_grad_()
        logits = model(inputs_embeds=given).logits.flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, torch.cat(drawn).flatten(), reduction="sum")
        g = torch.autograd.grad(loss, given)[0].reshape(-1, 64)
        x, weigh = at_the_end(model, ids)
        head, embedding = (x * weigh[:, None]).T @ x, g.T @ g
        wanted = {HEAD: (head + embedding) / weigh.sum()} if tied else {HEAD: embedding / 60}
        wanted |= {} if tied else {"lm_head.weight": head / weigh.sum()}
        for name, moment in wanted.items():
            assert torch.allclose(found[name], moment, rtol=1e-3, atol=1e-5 * float(moment.max())), name


def test_an_embedding_that_is_scaled_has_the_moment_of_its_own_rows(ids):
    """Gemma's embedding gives 8 times its rows here; twice the rows under half the scale feel half the gradient."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    model = Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=288, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, tie_word_embeddings=False, attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    embedding = model.get_input_embeddings()
    assert embedding.scalar_embed_scale == 8.0
    before = loss_moments(model, ids, [HEAD]).inputs[HEAD]
    embedding.weight.data *= 2
    embedding.scalar_embed_scale = 4.0
    embedding.embed_scale.fill_(4.0)
    after = loss_moments(model, ids, [HEAD]).inputs[HEAD]
    assert torch.allclose(after, before / 4, rtol=1e-3, atol=1e-6 * float(before.max()))


def test_some_names_each_give_what_all_at_once_would(model, ids):
    whole = loss_moments(model, ids, matrices(model), seed=7)
    for names in ([Q], [DOWN, HEAD]):
        part = loss_moments(model, ids, names, seed=7)
        assert set(part.inputs) == set(names)
        for name in names:
            assert torch.equal(part.inputs[name], whole.inputs[name])
            assert name == HEAD or torch.equal(part.outputs[name], whole.outputs[name])
    assert not torch.equal(loss_moments(model, ids, [Q], seed=8).outputs[Q], whole.outputs[Q])


def test_nothing_is_left_behind(ids):
    model = tiny.llama(layers=2, tied=False)
    found = loss_moments(model, ids, matrices(model))
    assert set(found.inputs) == set(matrices(model)) and not {HEAD, "lm_head.weight"} & set(found.outputs)
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    sizes = moment_sizes(model, matrices(model))
    assert sizes[DOWN] == 4 * (96**2 + 64**2) and sizes[HEAD] == sizes["lm_head.weight"] == 4 * 64**2


def spread(channels: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(channels, channels, generator=g) @ torch.diag(torch.logspace(0, -1.5, channels))
    return mix @ mix.T / channels


def both(w: torch.Tensor, q: torch.Tensor, inputs: torch.Tensor, outputs: torch.Tensor) -> float:
    """tr(H_O (W - Q) H_I (W - Q)^T)"""
    lost = w - q
    return float(((outputs @ lost @ inputs) * lost).sum(dtype=torch.float64))


@pytest.mark.parametrize("name", ["q4_0", "q5_1", "q3_k", "iq3_s"])
def test_rows_that_learn_of_each_other_lose_less_together(name, monkeypatch):
    monkeypatch.setattr(feedback, "ROWS", 16)
    form, columns = FORMATS[name], 256
    g = torch.Generator().manual_seed(1)
    w, inputs, outputs = torch.randn(64, columns, generator=g) * 0.05, spread(columns, 2), spread(64, 3)
    curve = curvature(inputs, 0.03)
    alone = round_with_feedback(w, curve, form)
    found = round_with_feedback(w, curve, form, across=curvature(outputs, 0.01))
    less = both(w, found.weight, inputs, outputs) / both(w, alone.weight, inputs, outputs)
    print(f"{name}: {less:.3f} of what rows by themselves lose")
    assert less < 0.85
    assert layer_error(w, alone.weight, inputs) < layer_error(w, found.weight, inputs)  # each row by itself pays for it
    assert torch.equal(found.weight, form.decode(found.codes, found.scales).reshape(w.shape))


def test_outputs_that_do_not_hear_of_each_other_leave_rows_alone():
    g = torch.Generator().manual_seed(1)
    w, curve = torch.randn(200, 64, generator=g) * 0.05, curvature(spread(64, 2))
    apart = curvature(torch.diag(torch.rand(200, generator=g) + 0.1), 0.0)
    plain = round_with_feedback(w, curve, FORMATS["q4_0"])
    assert (round_with_feedback(w, curve, FORMATS["q4_0"], across=apart).weight == plain.weight).float().mean() > 0.999


def test_a_model_is_rounded_by_both_moments(model, ids, monkeypatch):
    monkeypatch.setattr(feedback, "ROWS", 16)
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    assigned = {n: "q4_0" if p.dim() == 2 else "f32" for n, p in parameters.items()}
    found = loss_moments(model, ids, matrices(model))
    with_rows = dict(round_model(parameters, found.inputs, assigned, outputs=found.outputs))
    without = dict(round_model(parameters, found.inputs, assigned))
    assert set(with_rows) == set(without) == set(matrices(model))
    assert torch.equal(with_rows[HEAD].weight, without[HEAD].weight)
    assert not torch.equal(with_rows[Q].weight, without[Q].weight)


def test_what_feedback_leaves_is_told_by_the_curvature_alone():
    """Of errors as fine rounding makes them, of one size and independent: those of 8 bits nearly are."""
    g = torch.Generator().manual_seed(1)
    w = torch.rand(512, 64, generator=g) - 0.5
    curve = curvature(spread(64, 2), 0.03)
    form = FORMATS["q8_0"]
    plain = feedback.round_plainly(w, form).weight
    left = layer_error(w, round_with_feedback(w, curve, form, sweeps=0).weight, curve.hessian)
    left /= layer_error(w, plain, curve.hessian)
    expected = left_over(curve, curve.hessian)
    print(f"{left:.3f} of the loss is left, {expected:.3f} was expected")
    assert expected == pytest.approx(left, rel=0.3) and left < 0.5


def test_rows_that_are_rounded_together_leave_more():
    curve = curvature(spread(64, 2), 0.03)
    left = [left_over(curve, curve.hessian, together) for together in (1, 16, 48, 64)]
    assert left == sorted(left) and left[0] < 0.6 and left[-1] == pytest.approx(1, rel=1e-3)
    alone = curvature(torch.diag(torch.rand(8) + 0.1), 0.0)
    assert left_over(alone, alone.hessian) == pytest.approx(1, rel=1e-5)


def test_on_text_that_made_no_curvature_more_is_left_and_as_much_as_foretold():
    """96 tokens of 64 channels say what helps on them; on others of the same kind most of that is gone."""
    g = torch.Generator().manual_seed(3)
    mix = torch.linalg.cholesky(spread(64, 2))
    drawn = [torch.randn(tokens, 64, generator=g) @ mix.T for tokens in (96, 20000)]
    known, unseen = (x.T @ x / len(x) for x in drawn)
    w, form = torch.rand(512, 64, generator=g) - 0.5, FORMATS["q8_0"]
    curve = curvature(known, 0.03)
    fed, plain = round_with_feedback(w, curve, form, sweeps=0).weight, feedback.round_plainly(w, form).weight
    for moment in (known, unseen):
        left = layer_error(w, fed, moment) / layer_error(w, plain, moment)
        print(f"{left:.3f} is left, {left_over(curve, moment):.3f} was expected")
        assert left_over(curve, moment) == pytest.approx(left, rel=0.3)
    assert left_over(curve, unseen) > 1.3 * left_over(curve, known)
