"""Width pruning: fewer hidden channels and feed-forward units, heads of any number.

What is lost is chosen from activations on real text (Minitron, Muralidharan et al., arXiv:2407.14679), and what is
kept reads a least-squares estimate of what was lost: a matrix W that read x reads y = R x through W E[x y'] E[y y']^-1,
from second moments of the teacher's activations. No gradient, nothing trained.

Hidden channels: `importance` keeps those whose norm outputs are largest over all layers; `pca` turns the residual
stream into its principal directions and keeps the first (SliceGPT, Ashkboos et al., arXiv:2401.15024). The final
norm's weight w cannot be turned with a tied embedding, so it is first split evenly between embedding and head:
R = P' diag(w)^1/2. The student's norms divide by the root mean square of R x, not of x: one factor a norm makes up
for the difference.

Heads: whole key-value groups are dropped, query heads within their group. Where more are wanted than the teacher has, a
head's output columns are split among copies of it, and copies read copies of their group's keys and values: no logit
changes, and o_proj gets rows that blocks divide.

Legend: D hidden width before, d after; F feed-forward units; R [d, D] writes, B [D, d] reads: x ~ B R x.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgeslm.models.shapes import pruned
from edgeslm.students.depth import Told, nobody, same_weights

RIDGE = 1e-4  # of the mean second moment: keeps a least-squares estimate from fitting a few thousand tokens
MOMENT_BYTES = 1 << 31  # feed-forward moments [F, F] held at a time; the rest takes another pass over the text
TABLE_ROWS = 1 << 16  # of an embedding or a head that are in float64 at a time
SMALLEST_GAIN = 0.1  # of a norm's mean weight: no channel of the student starts all but switched off


@torch.no_grad()
def prune(
    teacher: Any, sizes: dict[str, int | None], method: str, ids: Tensor, rows: int = 4, on_tokens: Told = nobody
) -> tuple[Any, dict]:
    """(student, what was chosen) from a float32 teacher; `sizes` by keys of models.shapes.SIZES, but for layers. ids
    [R, T], `rows` run together. Raises ModelError for sizes that cannot be had."""
    config = teacher.config.to_dict()
    shape = pruned(config, sizes)
    student, facts = copy.deepcopy(teacher, same_weights(teacher)), dict[str, Any]()  # cuts replace weights
    layers, whole = list(zip(teacher.base_model.layers, student.base_model.layers, strict=True)), pruned(config, {})
    if shape["intermediate_size"] < whole["intermediate_size"]:
        held = _held(config)
        facts["ffn_kept"] = []
        for at in range(0, len(layers), held):
            part = layers[at : at + held]
            found = second_moments(teacher, ids, [old.mlp.down_proj for old, _ in part], rows, on_tokens)
            facts["ffn_kept"] += [
                _cut_units(new.mlp, moment, shape["intermediate_size"])
                for (_, new), moment in zip(part, found, strict=True)
            ]
    heads, groups = shape["num_attention_heads"], shape["num_key_value_heads"]
    if (heads, groups) != (whole["num_attention_heads"], whole["num_key_value_heads"]):
        found = second_moments(teacher, ids, [old.self_attn.o_proj for old, _ in layers], rows, on_tokens)
        facts["heads"] = [
            _cut_heads(new.self_attn, moment, whole, heads, groups)
            for (_, new), moment in zip(layers, found, strict=True)
        ]
    if shape["hidden_size"] < whole["hidden_size"]:
        found = second_moments(teacher, ids, _norms(teacher), rows, on_tokens)
        facts |= _cut_hidden(teacher, student, shape["hidden_size"], method, found)
    for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"):
        setattr(student.config, key, shape[key])
    _own(student, teacher)
    return student, facts


def passes(teacher: Any, sizes: dict[str, int | None]) -> int:
    """How often `prune` reads its text."""
    config = teacher.config.to_dict()
    shape, whole = pruned(config, sizes), pruned(config, {})
    cut = {key for key in whole if shape[key] != whole[key]}
    units = -(-config["num_hidden_layers"] // _held(config)) if "intermediate_size" in cut else 0
    return units + bool(cut & {"num_attention_heads", "num_key_value_heads"}) + ("hidden_size" in cut)


def _held(config: dict[str, Any]) -> int:
    """Layers whose feed-forward moments are held at a time."""
    return max(1, MOMENT_BYTES // (4 * config["intermediate_size"] ** 2))


def _own(student: nn.Module, teacher: nn.Module) -> None:
    """What no cut replaced becomes the student's own; weights that are tied stay so."""
    copies, theirs = dict[int, nn.Parameter](), {id(weight) for weight in teacher.parameters()}
    for module in student.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if id(weight) not in theirs:
                continue
            if id(weight) not in copies:
                copies[id(weight)] = nn.Parameter(weight.detach().clone(), weight.requires_grad)
            setattr(module, name, copies[id(weight)])


def second_moments(
    model: Any, ids: Tensor, modules: Sequence[nn.Module], rows: int, on_tokens: Told = nobody
) -> list[Tensor]:
    """Mean over tokens of x x' [k, k], on the CPU; x is a module's input, for a norm what its weight multiplies."""
    sums: dict[int, Tensor] = {}

    def adder(index: int):
        def add(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            x = inputs[0].reshape(-1, inputs[0].shape[-1])
            epsilon = getattr(module, "variance_epsilon", None)
            if epsilon is not None:
                x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)
            product = x.T @ x
            sums[index] = sums[index].add_(product) if index in sums else product

        return add

    hooks = [module.register_forward_hook(adder(index)) for index, module in enumerate(modules)]
    try:
        for at in range(0, ids.shape[0], rows):
            model.base_model(input_ids=ids[at : at + rows], use_cache=False)
            on_tokens(ids[at : at + rows].numel())
    finally:
        for hook in hooks:
            hook.remove()
    return [(sums[index] / ids.numel()).cpu() for index in range(len(modules))]


# Feed-forward units and heads: columns of down_proj and o_proj


def _cut_units(mlp: Any, moment: Tensor, count: int) -> list[int]:
    """Keeps the units whose part of down_proj's output has the most energy."""
    energy = moment.diagonal().double() * _double(mlp.down_proj.weight).pow(2).sum(0)
    kept = _largest(energy, count)
    _set(mlp.down_proj, _without(_double(mlp.down_proj.weight), moment.double(), kept))
    for linear in (mlp.gate_proj, mlp.up_proj):
        _take_rows(linear, kept)
    return kept


class Slot(NamedTuple):
    """A query head of the student: the teacher's `head`, its copy number `copy` of `copies`."""

    head: int
    copy: int
    copies: int


def head_slots(energy: Tensor, groups: int, heads: int, kv_heads: int) -> tuple[list[Slot], list[int]]:
    """(query heads in the student's order, the teacher's group behind each key-value head). energy [H] of the teacher's
    query heads, group by group. The strongest groups are kept or, where more are wanted, given again to other copies
    of their query heads; the strongest query heads of a group likewise."""
    by_group = energy.reshape(groups, -1)
    slots, sources = list[Slot](), list[int]()
    for group, times in enumerate(_copies(by_group.sum(1), kv_heads)):
        counts = _copies(by_group[group], times * heads // kv_heads)
        sources += [group] * times
        first = group * by_group.shape[1]
        slots += [Slot(first + i, number, n) for i, n in enumerate(counts) for number in range(n)]
    return slots, sources


def _copies(energy: Tensor, wanted: int) -> list[int]:
    """How often each of some things is taken so that `wanted` are: evenly, and of what is left over the strongest."""
    strongest = set(_largest(energy, wanted % len(energy)))
    return [wanted // len(energy) + (i in strongest) for i in range(len(energy))]


def _cut_heads(attention: Any, moment: Tensor, whole: dict[str, Any], heads: int, groups: int) -> dict[str, list[int]]:
    dim, out, moment = whole["head_dim"], _double(attention.o_proj.weight), moment.double()
    spans = torch.arange(whole["num_attention_heads"] * dim).reshape(-1, dim)  # [H, dim] columns of o_proj
    energy = torch.stack([((out[:, span] @ moment[span][:, span]) * out[:, span]).sum() for span in spans])
    slots, sources = head_slots(energy, whole["num_key_value_heads"], heads, groups)
    kept = sorted({slot.head for slot in slots})
    columns = _without(out, moment, spans[kept].reshape(-1).tolist()).reshape(len(out), len(kept), dim)
    # Copies read alike and would be trained alike for ever if each had a share of every column: each gets its own ones.
    shares = [columns[:, kept.index(s.head)] * (torch.arange(dim) % s.copies == s.copy) for s in slots]
    _set(attention.o_proj, torch.cat(shares, dim=1))
    _take_rows(attention.q_proj, spans[[slot.head for slot in slots]].reshape(-1).tolist())
    for linear in (attention.k_proj, attention.v_proj):
        _take_rows(linear, spans[sources].reshape(-1).tolist())
    attention.num_key_value_groups = heads // groups
    return {"heads": [slot.head for slot in slots], "kv_heads": sources}


def _without(weight: Tensor, moment: Tensor, kept: list[int]) -> Tensor:
    """Columns `kept` of `weight` [n, k], which also give what the others gave, as far as inputs foretell each other."""
    if len(kept) == len(moment):
        return weight
    lost = sorted(set(range(len(moment))) - set(kept))
    foretold = torch.linalg.solve(_ridged(moment[kept][:, kept]), moment[kept][:, lost])  # [kept, lost]
    return weight[:, kept] + weight[:, lost] @ foretold.T


# Hidden channels: every matrix, the norms and the embedding


class Reader(NamedTuple):
    """How one norm of the student and the matrices behind it see the teacher's normed stream x: its norm gives about
    `gain * R x`, and `gain * R x` times `columns` [D, d] is about x."""

    gain: Tensor
    columns: Tensor


def _norms(model: Any) -> list[Any]:
    """In the order of computation."""
    base = model.base_model
    return [n for layer in base.layers for n in (layer.input_layernorm, layer.post_attention_layernorm)] + [base.norm]


def _cut_hidden(teacher: Any, student: Any, width: int, method: str, found: list[Tensor]) -> dict[str, Any]:
    """`found`: second moments [D, D] before each norm's weight."""
    old, new = teacher.base_model, student.base_model
    moments = [moment.double() for moment in found]
    gains = [_double(norm.weight) for norm in _norms(teacher)]
    tied = bool(teacher.config.tie_word_embeddings)
    write, facts = _basis(method, width, moments, gains, tied)
    for index, layer in enumerate(new.layers):
        attention, mlp = layer.self_attn, layer.mlp
        behind = [attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]
        for at, norm in enumerate((layer.input_layernorm, layer.post_attention_layernorm)):
            reader = _reader(write, moments[2 * index + at], gains[2 * index + at])
            norm.weight = _parameter(reader.gain, norm.weight)
            for linear in behind[at]:
                _set(linear, _double(linear.weight) * gains[2 * index + at] @ reader.columns)
        for linear in (attention.o_proj, mlp.down_proj):
            _set(linear, write @ _double(linear.weight))
            if linear.bias is not None:
                linear.bias = _parameter(write @ _double(linear.bias), linear.bias)
    _set(new.embed_tokens, _turned(old.embed_tokens.weight, write.T))
    new.embed_tokens.embedding_dim = width
    reader = _reader(write, moments[-1], gains[-1])
    gain = reader.gain
    if tied:
        gain = _tied_gain(write, moments[-1], gains[-1], _double(old.embed_tokens.weight))
        student.lm_head.weight, student.lm_head.in_features = new.embed_tokens.weight, width
    else:
        _set(student.lm_head, _turned(student.lm_head.weight, gains[-1][:, None] * reader.columns))
    new.norm.weight = _parameter(gain, new.norm.weight)
    return facts


def _turned(table: Tensor, by: Tensor) -> Tensor:
    """table [V, D] times `by` [D, d], computed in float64."""
    return torch.cat([(_double(part) @ by).to(table) for part in table.split(TABLE_ROWS)])


def _basis(
    method: str, width: int, moments: list[Tensor], gains: list[Tensor], tied: bool
) -> tuple[Tensor, dict[str, Any]]:
    """R [d, D] and what to tell of it."""
    if method == "importance":
        scores = torch.stack([m.diagonal().sqrt() * g.abs() for m, g in zip(moments, gains, strict=True)]).sum(0)
        kept = _largest(scores, width)
        return torch.eye(len(scores), dtype=torch.float64)[kept], {"hidden_kept": kept}
    final = gains[-1] if tied else torch.ones_like(gains[-1])
    split = final.abs().sqrt()
    seen = torch.stack([m / m.trace() for m in (m * torch.outer(split, split) for m in moments)]).mean(0)
    # a weight's sign cannot be split: channels of unlike sign are not mixed, and the student's norm keeps the sign
    energy, directions = torch.linalg.eigh(seen * (torch.outer(final, final) > 0))
    return directions.flip(1)[:, :width].T * split, {"hidden_energy": float(energy.flip(0)[:width].sum())}


def _reader(write: Tensor, moment: Tensor, gain: Tensor) -> Reader:
    inner = write @ moment @ write.T
    columns = torch.linalg.solve(_ridged(inner), write @ moment).T  # x ~ columns @ (R x)
    # the student's norm divides by the root mean square of R x where the teacher's divided by that of x
    factor = _factor(inner)
    size = (write.pow(2) @ gain.pow(2) / write.pow(2).sum(1)).sqrt()  # the teacher's weights, turned
    size = size.clamp(min=SMALLEST_GAIN * float(size.mean()))
    return Reader(size * factor, columns / size)


def _factor(inner: Tensor) -> float:
    return float((inner.trace() / len(inner)).sqrt())


def _tied_gain(write: Tensor, moment: Tensor, gain: Tensor, embedding: Tensor) -> Tensor:
    """The final norm's weight [d] with which the embedding as written, used as head, gives the teacher's logits best:
    least squares of E diag(gain) x - E R' diag(s) R x over s, with ridge towards the weight as turned."""
    inner, head = write @ moment @ write.T, embedding @ write.T
    matrix = (head.T @ head) * inner
    target = ((head.T @ (embedding * gain)) * (write @ moment)).sum(1)
    start = write.pow(2) @ gain / write.pow(2).sum(1).pow(2)
    ridge = 1e-3 * float(matrix.diagonal().mean()) * torch.eye(len(matrix), dtype=matrix.dtype)
    return (start + torch.linalg.solve(matrix + ridge, target - matrix @ start)) * _factor(inner)


def _ridged(moment: Tensor) -> Tensor:
    return moment + RIDGE * float(moment.diagonal().mean()) * torch.eye(len(moment), dtype=moment.dtype)


def _largest(scores: Tensor, count: int) -> list[int]:
    """Indices of the largest, in order; of equals the first."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))[:count])


def _double(weight: Tensor) -> Tensor:
    return weight.detach().cpu().double()


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(like.device, like.dtype).contiguous(), requires_grad=like.requires_grad)


def _set(module: Any, weight: Tensor) -> None:
    module.weight = _parameter(weight, module.weight)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape


def _take_rows(linear: Any, rows: list[int]) -> None:
    _set(linear, linear.weight.detach()[rows])
    if linear.bias is not None:
        linear.bias = _parameter(linear.bias.detach()[rows], linear.bias)
