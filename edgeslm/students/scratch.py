"""Students that are not cut from a teacher: any shape of a family, weights anew, by muP, or some layers the teacher's.

`teacher`: the j-th layer starts as the teacher's layers[j], null as new; embedding, head and last norm are the
teacher's (DistilBERT, arXiv:1910.01108, takes every other layer). Widths have to be the teacher's then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edgeslm.design import families
from edgeslm.errors import ModelError
from edgeslm.models.arch.base import plain
from edgeslm.models.blocks import layers_of
from edgeslm.models.turned import straighten
from edgeslm.students import mup

WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")


def config_of(part: Any, teacher: Mapping[str, Any]) -> Any:
    """The student's transformers config; `teacher`: its config as a dict. Raises ModelError."""
    try:
        keys = families.config_of(part.wanted, teacher, part.tied, part.positions, part.rope_theta)
        return AutoConfig.for_model(keys.pop("model_type"), **keys)
    except ValueError as error:
        raise ModelError(f"student: {error}") from error


def build(part: Any, teacher: Any, seed: int) -> tuple[Any, dict[str, Any]]:
    """(float32 student on the teacher's device, what to tell of it). Raises ModelError for layers that do not fit."""
    config = config_of(part, plain(teacher.config))
    student = straighten(AutoModelForCausalLM.from_config(config, dtype=torch.float32)).eval()
    mup.initialise(student, getattr(part.init, "base_width", None), part.init.std, seed)
    facts: dict[str, Any] = {"method": f"scratch_{part.init.kind}", "family": config.model_type}
    if part.init.kind == "teacher":
        facts["from_teacher"] = take_layers(student, teacher, part.init.layers)
    return student.to(next(teacher.parameters()).device), facts


def check_layers(layers: tuple[int | None, ...], config: Mapping[str, Any], teacher: Mapping[str, Any]) -> None:
    """What can be said before any model is made. Raises ModelError."""
    if missing := [x for x in layers if x is not None and x >= int(teacher["num_hidden_layers"])]:
        raise ModelError(
            f"student.init.layers names layer {missing[0]}, but the teacher has {teacher['num_hidden_layers']}, from 0"
        )
    for key in ("model_type", *WIDTHS):
        if config.get(key) != (teacher.get(key) or config.get(key)):
            raise ModelError(
                f"student.init: layers of a teacher whose {key} is {teacher[key]} do not fit a student of "
                f"{config.get(key)}; give the student the teacher's family, widths and heads"
            )


@torch.no_grad()
def take_layers(student: Any, teacher: Any, layers: tuple[int | None, ...]) -> dict[str, Any]:
    """Copies what is named, in place. Raises ModelError when layers are not there or have other shapes."""
    ours, theirs = layers_of(student), layers_of(teacher)
    check_layers(layers, plain(student.config), plain(teacher.config))
    pairs = [(ours[at], theirs[x], f"layer {x}") for at, x in enumerate(layers) if x is not None]
    pairs += [(student.get_input_embeddings(), teacher.get_input_embeddings(), "the embedding")]
    pairs += [(mup.final_norm(student), mup.final_norm(teacher), "the last norm")]
    if not student.config.tie_word_embeddings:
        pairs += [(student.get_output_embeddings(), teacher.get_output_embeddings(), "the head")]
    copied = 0
    for mine, other, what in pairs:
        given = dict(other.named_parameters())
        for name, parameter in mine.named_parameters():
            if name not in given or given[name].shape != parameter.shape:
                shape = list(given[name].shape) if name in given else "nothing"
                raise ModelError(
                    f"student.init: {what} of the teacher has {shape} where the student's {name} has "
                    f"{list(parameter.shape)}; give the student the teacher's family, widths and heads"
                )
            parameter.copy_(given[name].float().cpu())
            copied += parameter.numel()
    return {"layers": list(layers), "weights": copied}
