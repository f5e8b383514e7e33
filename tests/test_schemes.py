"""The step against plain autograd, on outputs and on layers, and what must not change it: chunk size, micro-batches,
ties. What is read of layers against what transformers itself gives; which layer follows which."""

from __future__ import annotations

import copy
import gc
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM
from transformers.models.llama.modeling_llama import repeat_kv

from edgeslm.data.batch import Batch
from edgeslm.errors import ModelError, RecipeError
from edgeslm.knowledge import LOSSES
from edgeslm.knowledge.base import Feature, Layer
from edgeslm.models.blocks import layers_of, reading
from edgeslm.quantize.masters import attach
from edgeslm.quantize.plan import Plan
from edgeslm.schemes import head_loss as head_module
from edgeslm.schemes.layer_map import MAPS, resolve
from edgeslm.schemes.objective import Objective, masked_mean
from edgeslm.schemes.schedule import SCHEDULES
from edgeslm.schemes.step import Diverged, Step, StepSettings
from edgeslm.teachers.base import Need
from edgeslm.teachers.live import LiveTeacher

KL = [{"loss": "forward_kl"}]
MIXED = [{"loss": "forward_kl", "temperature": 2.0, "weight": 0.7}, {"loss": "cross_entropy", "weight": 0.3}]


def settings(micro_rows: int = 4, refit_every: int = 1) -> StepSettings:
    return StepSettings(micro_rows, clip=1e9, weight_decay=0.0, betas=(0.9, 0.99), refit_every=refit_every)


def batch(rows: int = 4) -> Batch:
    g = torch.Generator().manual_seed(3)
    mask = (torch.rand(rows, 16, generator=g) > 0.2).float()
    return Batch(torch.randint(0, 288, (rows, 16), generator=g), mask)


def plain_loss(student, teacher, data: Batch, terms) -> torch.Tensor:
    """What a reader would write: whole logits, one formula."""
    logits = student(data.ids).logits[:, :-1].reshape(-1, 288)
    wanted = teacher(data.ids).logits[:, :-1].reshape(-1, 288).detach()
    targets, mask = data.ids[:, 1:].reshape(-1), data.mask[:, 1:].reshape(-1)
    total = torch.zeros(())
    for term in Objective.build(terms).terms:
        values = term.loss.fn(logits, wanted, targets, **term.options)
        total = total + term.weight * masked_mean(values, mask, mask.sum())
    return total


@pytest.mark.parametrize("terms", [KL, MIXED])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("micro_rows", [4, 1])
def test_gradients_equal_plain_autograd(terms, tied, micro_rows, monkeypatch):
    monkeypatch.setattr(head_module, "CHUNK_TOKENS", 11)  # several uneven chunks
    monkeypatch.setattr(head_module, "SLICE_BYTES", 5 * 4 * 288)
    teacher, student, data = tiny.llama(seed=1), tiny.llama(seed=2, tied=tied), batch()
    oracle = copy.deepcopy(student)
    wanted = plain_loss(oracle, teacher, data, terms)
    wanted.backward()
    masters = attach(student, Plan.uniform("f32").assign(shapes(student)), torch.float32)
    step = Step(student, masters, Objective.build(terms), settings(micro_rows))
    grads = {}
    step.optimiser.step = lambda: grads.update({m.name: m.value.grad.clone() for m in masters.items})
    log = step(data, LiveTeacher(teacher), lr=0.0, grid=False, index=0)
    assert log.loss == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert set(grads) == {n for n, _ in oracle.named_parameters()}
    for name, parameter in oracle.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_teacher_is_not_called_when_no_term_needs_it():
    student = tiny.llama()
    masters = attach(student, Plan.uniform("f32").assign(shapes(student)), torch.float32)
    step = Step(student, masters, Objective.build([{"loss": "cross_entropy"}]), settings())

    def never(ids):
        raise AssertionError("called")

    assert step(batch(), never, lr=1e-3, grid=False, index=0).loss > 0


def test_training_on_the_grid_keeps_weights_on_the_grid_and_learns():
    teacher, student, data = tiny.llama(seed=1), tiny.llama(seed=1), batch(8)
    masters = attach(student, Plan.uniform("q4_0").assign(shapes(student)), torch.float32)
    masters.set_weights(grid=True, refit=True)
    step = Step(student, masters, Objective.build(KL), settings(8, refit_every=5))
    losses = [step(data, LiveTeacher(teacher), lr=2e-3, grid=True, index=i).loss for i in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    for master in masters.items:
        if master.on_grid:
            decoded = master.format.decode(master.codes(), master.scales).reshape(master.value.shape)
            assert torch.equal(decoded, master.weight.data), master.name
            assert not torch.equal(master.value.data, master.weight.data), master.name


def test_a_tied_head_is_one_master():
    student = tiny.llama(tied=True)
    masters = attach(student, Plan.uniform("q4_0").assign(shapes(student)), torch.float32)
    assert "lm_head.weight" not in [m.name for m in masters.items]
    masters.set_weights(grid=True, refit=True)
    assert student.lm_head.weight.data_ptr() == student.model.embed_tokens.weight.data_ptr()


def test_rotary_frequencies_stay_float32_in_bfloat16():
    student = tiny.llama()
    before = student.model.rotary_emb.inv_freq.clone()
    attach(student, Plan.uniform("q4_0").assign(shapes(student)), torch.bfloat16)
    assert student.model.embed_tokens.weight.dtype == torch.bfloat16
    assert torch.equal(student.model.rotary_emb.inv_freq, before)


def test_a_loss_that_is_not_finite_stops_with_a_sentence():
    student = tiny.llama()
    masters = attach(student, Plan.uniform("f32").assign(shapes(student)), torch.float32)
    student.model.norm.weight.data.fill_(float("nan"))
    step = Step(student, masters, Objective.build([{"loss": "cross_entropy"}]), settings())
    with pytest.raises(Diverged, match="step 4"):
        step(batch(), None, lr=1e-3, grid=False, index=4)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_schedules_warm_up_and_come_down(name):
    factors = [SCHEDULES[name](i, 100, 10, 40) for i in range(100)]
    assert factors[0] == pytest.approx(0.1) and max(factors) == pytest.approx(1.0)
    assert factors[-1] < 0.15 and all(0 < f <= 1 for f in factors)
    assert factors[10:] == sorted(factors[10:], reverse=True)


def shapes(model) -> dict:
    return {n: tuple(p.shape) for n, p in model.named_parameters()}


# Layers -------------------------------------------------------------------------------------------------------------

EVERYTHING = frozenset({"hidden", "attention", "query", "key", "value"})


def by_transformers(model, ids) -> tuple[dict[int, Layer], torch.Tensor]:
    """Every layer, with gradients, and the logits, from what transformers gives when asked; queries, keys and values
    from a block's own input and projections. The last hidden state is wanted before the final norm, which is left out
    of the forward and put on the logits' side."""
    base, norm = model.model, model.model.norm
    base.norm = nn.Identity()
    try:
        out = base(ids, use_cache=False, output_hidden_states=True, output_attentions=True)
    finally:
        base.norm = norm
    layers = {0: Layer(hidden=out.hidden_states[0])}
    for index, block in enumerate(base.layers, start=1):
        x, attention = block.input_layernorm(out.hidden_states[index - 1]), block.self_attn
        repeats = attention.num_key_value_groups
        query, key, value = (
            projection(x).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        maps = out.attentions[index - 1]
        layers[index] = Layer(out.hidden_states[index], maps, query, repeat_kv(key, repeats), repeat_kv(value, repeats))
    return layers, model.lm_head(norm(out.last_hidden_state))


def eager(model):
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_layers_read_are_what_transformers_gives(family):
    model, data = eager(tiny.FAMILIES[family]()), batch()
    expected, _ = by_transformers(model, data.ids)
    wants = {0: frozenset({"hidden"}), **dict.fromkeys(range(1, 5), EVERYTHING)}
    with reading(model, wants) as found:
        last = model.model(data.ids, use_cache=False).last_hidden_state
    plain = model(data.ids, use_cache=False, output_hidden_states=True)
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert all(torch.equal(found[layer].hidden, plain.hidden_states[layer]) for layer in range(4))
    assert torch.equal(model.model.norm(found[4].hidden), last) and torch.equal(last, plain.hidden_states[4])
    for layer in range(1, 5):
        for field in EVERYTHING:
            assert torch.equal(getattr(found[layer], field), getattr(expected[layer], field)), (layer, field)
    assert not torch.allclose(found[2].hidden, found[3].hidden, atol=0.1)  # a layer too far would be seen


def test_heads_of_keys_and_values_are_repeated_to_those_of_queries():
    model = tiny.llama()
    with reading(model, {2: frozenset({"query", "key", "value"})}) as found:
        model.model(batch().ids, use_cache=False)
    layer = found[2]
    assert layer.query.shape == layer.key.shape == layer.value.shape == (4, 4, 16, 16)
    for field in (layer.key, layer.value):
        assert torch.equal(field[:, 0], field[:, 1]) and torch.equal(field[:, 2], field[:, 3])
        assert not torch.allclose(field[:, 1], field[:, 2], atol=0.1)


def hooks(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_nothing_is_kept_that_is_not_wanted():
    model, data = tiny.llama(), batch()
    with reading(model, {1: frozenset({"value"}), 3: frozenset({"hidden"})}) as found:
        model.model(data.ids, use_cache=False)
    held = {index: {f for f in EVERYTHING if getattr(layer, f) is not None} for index, layer in found.items()}
    assert held == {1: {"value"}, 3: {"hidden"}}
    assert hooks(model) == 0
    signals = LiveTeacher(model)(data, Need(True, {1: {2: frozenset({"hidden"})}}))
    assert signals.layers == {}  # what is asked of another teacher
    with reading(model, {}) as found:
        assert hooks(model) == 0
    with pytest.raises(RuntimeError, match="stop"), reading(model, {1: EVERYTHING}):
        raise RuntimeError("stop")
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("wants", "words"),
    [
        ({5: {"hidden"}}, "layer 5 is asked for, but the model has layers 0 to 4"),
        ({-1: {"hidden"}}, "layer -1 is asked for"),
        ({0: {"hidden", "query"}}, "layer 0 is the embedding"),
        ({2: {"attention"}}, "attention: eager"),
    ],
)
def test_what_a_model_cannot_show_is_refused(wants, words):
    model = tiny.llama()
    with pytest.raises(ModelError, match=words), reading(model, {k: frozenset(v) for k, v in wants.items()}):
        model.model(batch().ids, use_cache=False)
    assert hooks(model) == 0


def test_layers_of_an_encoder_are_read_too():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=288, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    model, ids = eager(BertForMaskedLM(config).eval()), batch().ids
    with reading(model, {0: frozenset({"hidden"}), 2: EVERYTHING}) as found:
        out = model(ids, output_hidden_states=True, output_attentions=True)
    assert torch.equal(found[0].hidden, out.hidden_states[0]) and torch.equal(found[2].hidden, out.hidden_states[2])
    assert torch.equal(found[2].attention, out.attentions[1]) and found[2].query.shape == (4, 4, 16, 8)
    with pytest.raises(ModelError, match="its layers are not where edgeslm"):
        layers_of(SimpleNamespace(base_model=nn.Linear(1, 1)))


def written_out(student, teacher, data: Batch, step: Step) -> torch.Tensor:
    """The objective from transformers' own outputs: each term a mean over what it has values for."""
    ours, logits = by_transformers(student, data.ids)
    with torch.no_grad():
        theirs, wanted = by_transformers(teacher, data.ids)
    logits, wanted = (x[:, :-1].reshape(-1, x.shape[-1]) for x in (logits, wanted))
    targets, counts = data.ids[:, 1:].reshape(-1), data.mask[:, 1:].reshape(-1)
    total = torch.zeros(())
    for term in step.objective.terms:
        if not isinstance(term.loss, Feature):
            own = {"params": fixed(term.params[0])} if term.params else {}
            values = term.loss.fn(logits, wanted, targets, **own, **term.options)
            total = total + term.weight * (values * counts).sum() / counts.sum()
            continue
        pairs = [(ours[s], mean_of([theirs[t] for t in many])) for s, many in term.pairs]
        params = term.params or ({},) * len(pairs)
        if term.loss.judge is not None:
            params = [fixed(p) for p in params]
        if term.loss.joint:
            given = [([s for s, _ in pairs], [t for _, t in pairs], params[0])]
        else:
            given = [(s, t, p) for (s, t), p in zip(pairs, params, strict=True)]
        for s, t, p in given:
            values = term.loss.fn(s, t, data.mask, **({"params": p} if p else {}), **term.options)
            mean = values.mean() if values.dim() == 1 else (values * data.mask).sum() / data.mask.sum()
            total = total + term.weight * mean / len(given)
    return total


def fixed(params):
    return {name: value.detach() for name, value in params.items()}


def mean_of(layers: list[Layer]) -> Layer:
    fields = ("hidden", "attention", "query", "key", "value")
    held = {f: [getattr(x, f) for x in layers] for f in fields}
    return Layer(**{f: None if x[0] is None else sum(x) / len(x) for f, x in held.items()})


OBJECTIVES = {
    "projected, many to one": [{"loss": "hidden", "layers": [[1, 2], [3, [3, 4]]], "weight": 0.5}, *KL],
    "unit vectors, embedding too": [*KL, {"loss": "cosine", "layers": "all"}, {"loss": "cross_entropy", "weight": 0.1}],
    "queries, keys, values": [{"loss": "minilm"}],
    "values alone": [{"loss": "minilm", "relations": ["value"], "layers": [[2, 3]]}, *KL],
    "attention maps": [{"loss": "attention_maps", "layers": "uniform", "weight": 2.0}],
    "joint": [{"loss": "fsp", "layers": [[1, 2], [2, 3], [3, 4]]}, *KL],
    "joint with a pair of its own": [{"loss": "cross_layer"}],
    "per row": [{"loss": "attention_transfer"}, {"loss": "rkd_distance", "over": "tokens", "tokens": 6}],
    "same loss twice": [{"loss": "hidden", "layers": "last"}, {"loss": "hidden", "layers": "middle", "weight": 3.0}],
}


def pair(family: str = "llama"):
    """A student that is narrower and shallower than its teacher."""
    make = tiny.FAMILIES[family]
    return eager(make(layers=3, seed=2, hidden=32)), eager(make(layers=4, seed=1))


def stirred(step: Step) -> Step:
    """Weights of losses away from where they start, which is special: identities and zeros."""
    generator = torch.Generator().manual_seed(5)
    for value in step.own.named.values():
        value.data += 0.3 * torch.randn(value.shape, generator=generator)
    return step


@pytest.mark.parametrize("micro_rows", [4, 3, 1])
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_gradients_of_layers_equal_plain_autograd_whatever_the_micro_batch(name, micro_rows):
    """Weights of the student and weights of the losses."""
    family = "qwen2" if "queries" in name else "llama"
    student, teacher = pair(family)
    data, oracle = batch(), copy.deepcopy(student)
    step = stirred(tiny.step_of(student, OBJECTIVES[name], [teacher], micro_rows=micro_rows))
    wanted = written_out(oracle, teacher, data, step)
    named = dict(oracle.named_parameters()) | step.own.named
    expected = dict(zip(named, torch.autograd.grad(wanted, list(named.values()), allow_unused=True), strict=True))
    total, grads, own = tiny.gradients(step, data, LiveTeacher(teacher))
    assert total == pytest.approx(float(wanted.detach()), rel=1e-5)
    for key, grad in (grads | own).items():
        if expected[key] is None:
            assert grad is None or not grad.any(), key
        else:
            torch.testing.assert_close(grad, expected[key], rtol=2e-4, atol=1e-6, msg=lambda text, key=key: key + text)
    assert any(g is not None and g.any() for g in grads.values())
    assert bool(own) == any(LOSSES[t["loss"]].init is not None for t in OBJECTIVES[name])


def test_a_mean_over_the_micro_batch_would_be_seen(monkeypatch):
    """The test above can fail: means taken over a micro-batch alone give other gradients."""
    student, teacher = pair()
    data = batch()
    step = stirred(tiny.step_of(student, OBJECTIVES["projected, many to one"], [teacher], micro_rows=1))
    _, right, _ = tiny.gradients(step, data, LiveTeacher(teacher))
    counted = Step._forward

    def wrong(self, part, teacher, objective, counts):
        return counted(self, part, teacher, objective, {k: v / 4 for k, v in self._counts(part).items()})

    monkeypatch.setattr(Step, "_forward", wrong)
    _, other, _ = tiny.gradients(step, data, LiveTeacher(teacher))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(right[name], other[name], rtol=1e-2)


ADVERSARIES = [
    {"loss": "feature_discriminator", "layers": [[1, 2], [3, 4]], "weight": 0.7},
    {"loss": "logit_discriminator", "weight": 0.4},
]


@pytest.mark.parametrize("micro_rows", [4, 1])
def test_an_adversary_and_the_student_each_move_only_their_own_weights(micro_rows):
    student, teacher = pair()
    data, oracle = batch(), copy.deepcopy(student)
    step = stirred(tiny.step_of(student, ADVERSARIES, [teacher], micro_rows=micro_rows))
    own = step.own.named
    total, grads, judged = tiny.gradients(step, data, LiveTeacher(teacher))
    wanted = written_out(oracle, teacher, data, step)  # the discriminators held fixed
    assert total == pytest.approx(float(wanted.detach()), rel=1e-5)
    names = dict(oracle.named_parameters())
    for name, grad in zip(names, torch.autograd.grad(wanted, list(names.values())), strict=True):
        torch.testing.assert_close(grads[name], grad, rtol=2e-4, atol=1e-6)
    ours, logits = by_transformers(oracle, data.ids)
    with torch.no_grad():
        theirs, given = by_transformers(teacher, data.ids)
    told = torch.zeros(())
    for term in step.objective.terms:  # the judges' own losses, unweighted, the student held fixed
        if term.name == "logit_discriminator":
            flat = [x[:, :-1].reshape(-1, 288).detach() for x in (logits, given)]
            values = term.loss.judge(*flat, data.ids[:, 1:].reshape(-1), params=term.params[0])
            counts = data.mask[:, 1:].reshape(-1)
            told = told + (values * counts).sum() / counts.sum()
            continue
        for (s, (t,)), params in zip(term.pairs, term.params, strict=True):
            values = term.loss.judge(Layer(ours[s].hidden.detach()), theirs[t], data.mask, params=params)
            told = told + (values * data.mask).sum() / data.mask.sum() / len(term.pairs)
    for name, grad in zip(own, torch.autograd.grad(told, list(own.values()), allow_unused=True), strict=True):
        assert (grad is None) == (judged[name] is None) == name.endswith("reduce")  # which is never trained
        if grad is not None:
            torch.testing.assert_close(judged[name], grad, rtol=2e-4, atol=1e-6)


def test_weights_of_losses_learn_at_a_rate_of_their_own():
    student, teacher = pair()
    terms = [{"loss": "hidden", "layers": "last"}, *ADVERSARIES]
    step = tiny.step_of(student, terms, [teacher], own_share=0.0)
    before = {name: value.detach().clone() for name, value in step.own.named.items()}
    weight = student.model.layers[0].mlp.up_proj.weight.detach().clone()
    step(batch(), LiveTeacher(teacher), lr=1e-3, grid=False, index=0)
    assert all(torch.equal(value, before[name]) for name, value in step.own.named.items())
    assert not torch.equal(student.model.layers[0].mlp.up_proj.weight, weight)
    student, teacher = pair()
    step = tiny.step_of(student, terms, [teacher], own_share=20.0)
    logs = [step(batch(), LiveTeacher(teacher), lr=1e-3, grid=False, index=i) for i in range(12)]
    assert {len(o.param_groups[0]["params"]) for o in step.own.optimisers} == {1, 14}  # one side, the other side
    still = [n for n, value in step.own.named.items() if torch.equal(value, before[n])]
    assert still and all(name.endswith("reduce") for name in still)
    assert logs[-1].terms["hidden"] < 0.8 * logs[0].terms["hidden"]
    assert list(logs[0].terms) == ["logit_discriminator", "hidden", "feature_discriminator"]


def test_a_step_leaves_no_activation_behind():
    """Tensors that are alive between steps are as many after the fourth as after the second."""
    student, teacher = pair()
    step = tiny.step_of(student, [*OBJECTIVES["joint"], *ADVERSARIES, {"loss": "minilm"}], [teacher], micro_rows=2)
    alive = []
    for index in range(4):
        step(batch(), LiveTeacher(teacher), lr=1e-3, grid=False, index=index)
        gc.collect()
        alive.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))
    assert alive[1] == alive[3]


# Which layer follows which ------------------------------------------------------------------------------------------


def test_layer_maps_by_name():
    found = {name: resolve(name, 3, 4, "here") for name in MAPS}
    assert found == {
        "uniform": [(1, (1,)), (2, (3,)), (3, (4,))],
        "last": [(3, (4,))],
        "middle": [(1, (1,))],
        "embedding": [(0, (0,))],
        "all": [(0, (0,)), (1, (1,)), (2, (3,)), (3, (4,))],
        "groups": [(1, (1,)), (2, (2, 3)), (3, (4,))],
    }
    assert resolve("middle", 6, 12, "here") == [(3, (6,))]


@pytest.mark.parametrize("name", list(MAPS))
@pytest.mark.parametrize(("student", "teacher"), [(1, 1), (1, 9), (3, 4), (4, 4), (6, 30), (5, 24), (8, 3)])
def test_layer_maps_fit_any_two_models(name, student, teacher):
    pairs = resolve(name, student, teacher, "here")
    ours, theirs = [s for s, _ in pairs], [t for _, many in pairs for t in many]
    assert ours == sorted(set(ours)) and theirs == sorted(theirs)
    assert all(0 <= s <= student for s in ours) and all(0 <= t <= teacher for t in theirs)
    assert 0 not in ours or name in ("embedding", "all")
    if name in ("uniform", "last", "all", "groups"):
        assert (ours[-1], theirs[-1]) == (student, teacher)
    if name == "groups" and student <= teacher:
        assert theirs == list(range(1, teacher + 1))  # each is taught, once


def test_layers_spelled_out():
    assert resolve([(1, 2), (3, (3, 4)), (0, 0)], 3, 4, "here") == [(1, (2,)), (3, (3, 4)), (0, (0,))]


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("evenly", "here.layers: unknown map 'evenly'; known: uniform, last"),
        ([(4, 1)], "here.layers: the student has layers 0 to 3, not 4"),
        ([(1, 1), (2, (3, 5))], "here.layers: the teacher has layers 0 to 4, not 5"),
        ([(-1, 1)], "not -1"),
        ([], "here.layers: names no pair"),
        ([(1, ())], "here.layers: names no layer of the teacher for the student's 1"),
    ],
)
def test_layers_that_are_not_there_are_refused(layers, words):
    with pytest.raises(RecipeError, match=words):
        resolve(layers, 3, 4, "here")
