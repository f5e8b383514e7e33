"""Scales that input channels of matrices take over from what feeds them, so that the weights that matter most are
rounded most finely. The float model stays the same function, and a file needs nothing that it did not hold before.

A channel's factor s can be moved wherever nothing but a product lies between its source and its readers: from the
weight of a norm into the layers that read the norm, from rows of the values into columns of the attention's output,
from rows of `up` into columns of `down` where the feed-forward part is gated (Nagel et al., cross-layer equalization,
arXiv:1906.04721; Xiao et al., SmoothQuant, arXiv:2211.10438). Which s is best for weights, and not for activations, is
AWQ's question (Lin et al., arXiv:2306.00978): the rounding error of a weight is as large as the step of its block,
which grows with the root mean square of the s_j w_j in it, and counts h_j / s_j^2, h_j what the loss feels of channel
j. The sum is least for s_j = (h_j / w_j^2)^(1/4), w_j^2 the mean square of the column, if all channels were in one
block and rounded apart. Error feedback makes later columns pay for earlier ones and wants less, some sites none: how
much of that exponent is tried out, site by site, with feedback and on text that had no part in it.
Shape letters: K channels, O rows of a reader, c copies of a channel (query heads that read one value head).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeslm.errors import ModelError
from edgeslm.formats import FORMATS
from edgeslm.models.blocks import ATTENTIONS, layers_name, layers_of
from edgeslm.quantize.curvature import LOSS_DAMPENING, Curvature, curvature
from edgeslm.quantize.feedback import SLICE_WEIGHTS, layer_error, round_with_feedback
from edgeslm.quantize.loss_moments import LossMoments

STRENGTHS = 0.0, 0.25, 0.5, 0.75, 1.0
GAIN = 0.03  # of a site's loss, that other scales must spare: smaller differences are noise of the sample
PROBE, PROBE_ROWS = "iq4_nl", 64
FLOOR = 1e-6  # of the mean: channels that carry nothing
INPUT_NORMS = ("input_layernorm", "ln_1")
FEED_FORWARD_NORMS = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2")
ATTENTION = tuple(f"{place}.{name}" for place, *names in ATTENTIONS for name in names)
VALUES = tuple(f"{place}.{names[-1]}" for place, *names in ATTENTIONS)
OUTPUTS = ("self_attn.o_proj", "attn.c_proj")
FEED_FORWARD = ("mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj", "mlp.c_fc")
UP, DOWN, GATES = ("mlp.up_proj", "mlp.gate_up_proj"), ("mlp.down_proj",), ("mlp.gate_proj", "mlp.gate_up_proj")


@dataclass(frozen=True)
class Site:
    """`channels` channels from row `first` of the module `source` (a norm, or a linear layer) to the columns of
    `readers`, which hold every group of `group` channels `copies` times, copies beside each other."""

    source: str
    readers: tuple[str, ...]
    channels: int
    first: int = 0
    group: int = 1
    copies: int = 1

    def to_columns(self, s: Tensor) -> Tensor:
        """[K] -> [c K], as readers order their columns."""
        return s.view(-1, 1, self.group).expand(-1, self.copies, -1).reshape(-1)

    def of_columns(self, values: Tensor) -> Tensor:
        """[c K] -> [K], summed over copies."""
        return values.view(-1, self.copies, self.group).sum(1).reshape(-1)


def sites(model: Any) -> list[Site]:
    """Of a transformers causal model, in the order of its layers. Raises ModelError where there is none."""
    base, config = model.base_model, model.config
    prefix = f"{model.base_model_prefix}."
    found: list[Site | None] = []
    for index, layer in enumerate(layers_of(model)):
        place = f"{prefix}{layers_name(model)}.{index}."
        found += [_norm(layer, place, INPUT_NORMS, ATTENTION), _values(layer, place, config)]
        found += [_norm(layer, place, FEED_FORWARD_NORMS, FEED_FORWARD), _units(layer, place)]
    head = model.get_output_embeddings()
    norm = next((name for name in ("norm", "ln_f") if hasattr(base, name)), None)
    if norm and head.weight is not model.get_input_embeddings().weight:
        found.append(Site(prefix + norm, (_name_of(model, head),), head.weight.shape[1]))
    there = [site for site in found if site]
    if not there:
        raise ModelError(
            f"quantize.equalise: knows no channels of a '{config.model_type}' model whose scale could be moved; set it "
            "to false"
        )
    return there


def _named(layer: nn.Module, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: module for name, module in layer.named_modules() if name in names}


def _norm(layer: nn.Module, place: str, norms: tuple[str, ...], readers: tuple[str, ...]) -> Site | None:
    own, reading = _named(layer, norms), _named(layer, readers)
    if not own or not reading:
        return None
    source = next(name for name in norms if name in own)
    channels = next(iter(own.values())).weight.shape[0]
    return Site(place + source, tuple(place + name for name in reading), int(channels))


def _values(layer: nn.Module, place: str, config: Any) -> Site | None:
    values, outputs = _named(layer, VALUES), _named(layer, OUTPUTS)
    if not values or not outputs:
        return None
    (source, value), (reader, output) = next(iter(values.items())), next(iter(outputs.items()))
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    dim = int(output.weight.shape[1]) // heads
    channels = groups * dim
    first = int(value.weight.shape[0]) - channels  # where q, k and v are one, v comes last
    return Site(place + source, (place + reader,), channels, first, dim, heads // groups)


def _units(layer: nn.Module, place: str) -> Site | None:
    up, down = _named(layer, UP), _named(layer, DOWN)
    if not up or not down or not _named(layer, GATES):  # without a gate an activation lies between the two
        return None
    (source, rows), (reader, columns) = next(iter(up.items())), next(iter(down.items()))
    channels = int(columns.weight.shape[1])
    return Site(place + source, (place + reader,), channels, int(rows.weight.shape[0]) - channels)


def _name_of(model: Any, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


@dataclass(frozen=True)
class Chosen:
    """`scales` s [K] of geometric mean 1; `left`: the share of rounding's loss that they leave, by `strength`."""

    scales: Tensor
    strength: float
    left: float


@torch.no_grad()
def choose(model: Any, site: Site, known: LossMoments, unseen: LossMoments) -> Chosen:
    """The strength that loses least when a sample of every reader's rows is rounded with feedback by the moments
    `known`, on text with the moments `unseen`; none where it gains less than GAIN. Tried with PROBE, whatever the
    recipe's formats are: a plan comes later. Readers of one input count by what the loss feels of each."""
    names = [f"{name}.weight" for name in site.readers]
    weights = [model.get_parameter(name).detach() for name in names]
    felt: Any = sum(known.felt[n] * known.inputs[n].diagonal().double() for n in names)
    size: Any = sum(_column_squares(w) for w in weights)
    exponents = (_floored(site.of_columns(felt)) / _floored(site.of_columns(size))).log() / 4
    exponents = (exponents - exponents.mean()).float()
    none = Chosen(torch.ones_like(exponents), 0.0, 1.0)
    if any(weight.shape[1] % FORMATS[PROBE].block for weight in weights) or not all(known.felt[n] for n in names):
        return none  # no grid takes such rows, or a layer of which the loss feels nothing
    losses = dict.fromkeys(STRENGTHS, 0.0)
    for name, weight in zip(names, weights, strict=True):
        rows = torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))[:PROBE_ROWS]
        some, curve = weight[rows.to(weight.device)].float(), curvature(known.inputs[name], LOSS_DAMPENING)
        for strength in STRENGTHS:
            s = site.to_columns((strength * exponents).exp())
            # columns times s: H is divided by s on both sides, and H^-1 = U^T U has U S for U
            scaled = Curvature(curve.hessian / s / s[:, None], curve.root * s)
            found = round_with_feedback(some * s, scaled, FORMATS[PROBE], sweeps=0, name=name).weight / s
            share = known.felt[name] / len(some)  # |g|^2 is already summed over the rows
            losses[strength] += share * layer_error(some, found, unseen.inputs[name])
    best = min(losses, key=lambda strength: losses[strength])
    left = losses[best] / losses[0.0] if losses[0.0] else 1.0
    if left > 1 - GAIN:
        return none
    return Chosen((best * exponents).exp(), best, left)


def _column_squares(weight: Tensor) -> Tensor:
    """[O, K] -> float64 [K], without a copy of a whole head."""
    found = weight.new_zeros(weight.shape[1], dtype=torch.float64)
    for part in weight.split(max(1, SLICE_WEIGHTS // weight.shape[1])):
        found += part.double().square().sum(0)
    return found


def _floored(values: Tensor) -> Tensor:
    mean = values.mean()
    return values.clamp(min=FLOOR * float(mean)) if mean > 0 else torch.ones_like(values)


@torch.no_grad()
def move(
    model: Any, found: list[Site], chosen: Mapping[str, Tensor], offset: Callable[[str], float] = lambda name: 0.0
) -> None:
    """Divides sources and multiplies readers, in place. `offset`: what a norm of that name adds to its weight."""
    for site in found:
        source, s = model.get_submodule(site.source), chosen[site.source]
        s = s.to(source.weight.device)
        rows = slice(site.first, site.first + site.channels)
        if source.weight.dim() == 1:
            more = offset(f"{site.source}.weight")
            source.weight.copy_((source.weight.float() + more) / s - more)
        else:
            source.weight[rows] = source.weight[rows].float() / s[:, None]
        if getattr(source, "bias", None) is not None:
            source.bias[rows] = source.bias[rows].float() / s
        for name in site.readers:
            reader = model.get_submodule(name)
            reader.weight.copy_(reader.weight.float() * site.to_columns(s))
