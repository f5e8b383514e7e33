"""What can be known of a model without its weights: tensor shapes for a config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edgeslm.errors import ModelError
from edgeslm.models.arch import ARCHS
from edgeslm.models.turned import straighten

SIZES = {  # recipe key -> (config key, what it counts)
    "hidden": ("hidden_size", "hidden channels"),
    "ffn": ("intermediate_size", "feed-forward units"),
    "heads": ("num_attention_heads", "attention heads"),
    "kv_heads": ("num_key_value_heads", "key-value heads"),
    "layers": ("num_hidden_layers", "layers"),
}

PER_LAYER = ("layer_types", "no_rope_layers")  # keys that list something for every layer


def parameter_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """{transformers name: shape} of every parameter of a model with this config (`to_dict`), a tied one once.
    Raises ModelError for a config that transformers makes no model of."""
    plain = json.loads(json.dumps(dict(config), default=str))
    try:
        built = AutoConfig.for_model(plain.pop("model_type"), **{k: v for k, v in plain.items() if k != "dtype"})
        with torch.device("meta"):
            model = straighten(AutoModelForCausalLM.from_config(built))
    except Exception as error:  # what its validation raises shares no base but Exception
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"transformers makes no {config.get('model_type')} model of this shape ({reason}); choose another student"
        ) from error
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def pruned(config: Mapping[str, Any], sizes: Mapping[str, int | None]) -> dict[str, Any]:
    """The config of a student of the given sizes (keys of SIZES, None or absent: the teacher's own). A head keeps its
    dimensions, and only heads may become more than the teacher has. Raises ModelError, naming the key."""
    shape = dict(config)
    heads = int(config["num_attention_heads"])
    shape["num_key_value_heads"] = config.get("num_key_value_heads") or heads
    shape["head_dim"] = config.get("head_dim") or config["hidden_size"] // heads
    asked = {key for key in SIZES if sizes.get(key) is not None and key != "layers"}
    arch = ARCHS.get(str(config.get("model_type")))
    if asked and arch is not None and "width" not in arch.cuts:
        raise ModelError(
            f"student.{sorted(asked)[0]}: '{arch.name}' students can lose layers, but are not cut in width; use "
            "student: {kind: depth}"
        )
    for key, (name, what) in SIZES.items():
        wanted = sizes.get(key)
        if wanted is None:
            continue
        if wanted > shape[name] and key not in ("heads", "kv_heads"):
            raise ModelError(f"student.{key} is {wanted} but the teacher has {shape[name]} {what}")
        shape[name] = wanted
    if shape["num_attention_heads"] % shape["num_key_value_heads"]:
        raise ModelError(
            f"student.heads: {shape['num_attention_heads']} heads cannot be shared evenly by "
            f"{shape['num_key_value_heads']} key-value heads; choose a multiple"
        )
    if shape["hidden_size"] % shape["num_attention_heads"]:
        raise ModelError(  # though a head has dimensions of its own
            f"student.heads: transformers refuses {shape['num_attention_heads']} heads for a hidden width of "
            f"{shape['hidden_size']}, which is no multiple; choose a divisor"
        )
    for key in PER_LAYER:
        if shape.get(key):
            shape[key] = list(shape[key])[: shape["num_hidden_layers"]]
    if "n_layer" in shape:  # GPT-2's own name for it
        shape["n_layer"] = shape["num_hidden_layers"]
    return shape
