"""Students to begin with: fewer layers of a teacher, or new weights of another shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgeslm.encoders.model import Encoder, filled
from edgeslm.errors import RecipeError

VOCABULARY = "vocab_size"


def build(part: Any, teacher: Encoder, outputs: int, seed: int, attention: str) -> Encoder:
    """`teacher`: the one the student starts from. `outputs` as in a plan; a student of similarity whose width differs
    from the teacher's gets a head of the teacher's width."""
    plan = shape(part, teacher, outputs)
    outputs = plan["outputs"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Encoder(plan, attention)
    weights = dict(model.named_parameters())
    inherited = {k: v for k, v in _inherited(part, teacher).items() if k in weights and v.shape == weights[k].shape}
    if outputs and "head.weight" not in inherited:
        generator = torch.Generator().manual_seed(seed)
        inherited["head.weight"] = torch.randn(outputs, model.sizes.hidden, generator=generator) * 0.02
        inherited["head.bias"] = torch.zeros(outputs)
    return filled(plan, {**weights, **inherited}, attention)


def shape(part: Any, teacher: Encoder, outputs: int) -> dict[str, Any]:
    """The student's plan (edgeslm.encoders.model.Encoder). Raises RecipeError."""
    made = _plan(part, teacher)
    if teacher.plan["task"] == "similarity":
        outputs = 0 if made["hidden"] == teacher.sizes.hidden else teacher.sizes.hidden
    plan = {"body": made["body"], "config": made["config"], "outputs": outputs}
    return plan | {key: teacher.plan[key] for key in ("pool", "task")}


def kept(part: Any, depth: int) -> list[int]:
    """Which of a teacher's layers stay, counted from 0. Raises RecipeError for more than there are."""
    if part.layers > depth:
        raise RecipeError([f"student.layers: the teacher has {depth} layers, {part.layers} are asked for"])
    if part.keep == "first":
        return list(range(part.layers))
    return [round((i + 1) * depth / part.layers) - 1 for i in range(part.layers)]


def _plan(part: Any, teacher: Encoder) -> dict[str, Any]:
    own = teacher.plan["config"]
    if part.kind == "depth":
        config = own | {"num_hidden_layers": len(kept(part, teacher.depth))}
        return {"body": "bert", "config": config, "hidden": own["hidden_size"]}
    if part.kind == "scratch":
        config = own | _shape(part)
        return {"body": "bert", "config": config, "hidden": part.hidden}
    if part.kind == "bilstm":
        width = own["hidden_size"] if part.embedding == "teacher" else part.width
        config = {"vocabulary": own[VOCABULARY], "width": width, "units": part.units}
        return {"body": "bilstm", "config": config, "hidden": 2 * part.units}
    bert = own | _shape(part) | {VOCABULARY: 1, "max_position_embeddings": part.columns}
    return {"body": "pixels", "config": {"patch": part.patch, "bert": bert}, "hidden": part.hidden}


def _shape(part: Any) -> dict[str, int]:
    return {
        "num_hidden_layers": part.layers,
        "hidden_size": part.hidden,
        "num_attention_heads": part.heads,
        "intermediate_size": part.ffn,
    }


def _inherited(part: Any, teacher: Encoder) -> dict[str, Tensor]:
    """Weights of the teacher by the student's names."""
    weights: dict[str, Tensor] = dict(teacher.named_parameters())
    if part.kind == "bilstm" and part.embedding == "teacher":
        return {"body.embedding.weight": weights["body.bert.embeddings.word_embeddings.weight"]}
    if part.kind != "depth":
        return {}
    found = {k: v for k, v in weights.items() if ".encoder.layer." not in k}
    for new, old in enumerate(kept(part, teacher.depth)):
        head = f"body.bert.encoder.layer.{old}."
        found |= {k.replace(head, f"body.bert.encoder.layer.{new}."): v for k, v in weights.items() if head in k}
    return found
