"""What can be known of a model without its weights: tensor shapes for a config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def parameter_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """{transformers name: shape} of every parameter of a model with this config (`to_dict`), a tied one once."""
    plain = json.loads(json.dumps(dict(config), default=str))
    built = AutoConfig.for_model(plain.pop("model_type"), **{k: v for k, v in plain.items() if k != "dtype"})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(built)
    return {name: tuple(p.shape) for name, p in model.named_parameters()}
