"""Maximal update parametrisation (Yang et al., arXiv:2203.03466): weights start and learn so that activations and
their changes keep their size whatever the width, and the best learning rate with them.

For Adam, at m = width / base width (Table 3 of the paper, hidden widths growing in proportion):

    embedding, positions, norms, biases   start as at the base width      learning rate x 1
    matrices between hidden widths        standard deviation x m^-1/2     learning rate x 1/m
    a head of its own                     standard deviation x 1/m        learning rate x 1/m
    a tied head                           is an embedding, so the model's output has to be multiplied by 1/m: the final
                                          norm's weight (and bias) does that, with a learning rate x 1/m

No module changes: exported files need nothing new. Heads keep their dimensions; their number grows with the width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from edgeslm.errors import ModelError
from edgeslm.models.blocks import layers_of

STD = 0.02
WRITERS = ("o_proj.weight", "down_proj.weight", "c_proj.weight")  # matrices that write into the residual stream


def final_norm(model: Any) -> nn.Module:
    base = model.base_model
    found = getattr(base, "norm", None) or getattr(base, "ln_f", None)
    if found is None:
        raise ModelError(f"{type(model).__name__}: its last norm is not where edgeslm.students.mup looks for it")
    return found


def roles(model: Any) -> dict[str, str]:
    """{weight: "table", "vector", "hidden", "head" or "final"}; a tied head is a table."""
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    last = {id(p) for p in final_norm(model).parameters()}
    inside = {id(p) for layer in layers_of(model) for p in layer.parameters()}
    found = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in last:
            found[name] = "final"
        elif parameter.dim() == 1:
            found[name] = "vector"
        elif id(parameter) in inside:
            found[name] = "hidden"
        else:
            found[name] = "head" if parameter is head and parameter is not table else "table"
    return found


def growth(model: Any, base_width: int) -> float:
    """m = width / base width."""
    return float(model.config.hidden_size) / base_width


def shares(model: Any, base_width: int) -> dict[str, float]:
    """{weight: its share of the learning rate} of those whose share is not 1."""
    m, tied = growth(model, base_width), bool(model.config.tie_word_embeddings)
    small = {"hidden", "head"} | ({"final"} if tied else set())
    return {name: 1 / m for name, role in roles(model).items() if role in small and m != 1}


@torch.no_grad()
def initialise(model: Any, base_width: int | None, std: float = STD, seed: int = 0) -> None:
    """Every weight anew, drawn on the CPU; without a base width as GPT-2 starts: normal, and what writes into the
    residual stream divided by the square root of twice the layers."""
    m, tied = growth(model, base_width) if base_width else 1.0, bool(model.config.tie_word_embeddings)
    writer = 1 / math.sqrt(2 * model.config.num_hidden_layers)
    generator = torch.Generator().manual_seed(seed)
    scale = {"table": 1.0, "hidden": m**-0.5, "head": 1 / m}
    ones = {"vector": 1.0, "final": 1 / m if tied else 1.0}
    offset = 1.0 if model.config.model_type == "gemma3_text" else 0.0  # its norms multiply by 1 + weight
    for name, role in roles(model).items():
        parameter = model.get_parameter(name)
        if role in ones:
            parameter.fill_(0.0 if name.endswith("bias") else ones[role] - offset)
            continue
        deviation = std * scale[role] * (writer if name.endswith(WRITERS) and role == "hidden" else 1.0)
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
