"""An encoder: a body, a pooled sentence vector, and a head. Its plan is plain data, from which it is built anew.

Layers of an encoder with L blocks: 0 the embedding, 1 to L the blocks, L + 1 the sentence vector.
Shape letters: B rows, T positions, D hidden width, S width of the sentence vector, V outputs of the head.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgeslm.encoders import BODIES
from edgeslm.errors import ModelError
from edgeslm.knowledge.base import Sizes

WEIGHTS, PLAN = "model.safetensors", "encoder.json"


class Encoder(nn.Module):
    """`plan`: {body, config, pool, task, outputs}. `outputs`: classes of all tasks together, 2 for spans (first and
    last token), the width of the vector for similarity (0: the body's own, no head)."""

    def __init__(self, plan: dict[str, Any], attention: str = "sdpa"):
        super().__init__()
        self.plan = plan
        body: Any = BODIES[plan["body"]](plan["config"], attention)
        self.body: Any = body
        width = body.sizes.hidden
        self.head = nn.Linear(width, plan["outputs"]) if plan["outputs"] else None
        self.sentence = nn.Identity()  # a place to read the vector at

    @property
    def base_model(self) -> Encoder:
        """edgeslm.models.blocks looks here for `layers`."""
        return self

    @property
    def layers(self) -> nn.ModuleList:
        return nn.ModuleList([*self.body.blocks, self.sentence])

    @property
    def depth(self) -> int:
        return len(self.body.blocks)

    @property
    def sizes(self) -> Sizes:
        """Of blocks."""
        return self.body.sizes

    @property
    def sentence_sizes(self) -> Sizes:
        similar = self.plan["task"] == "similarity" and self.plan["outputs"]
        return replace(self.sizes, hidden=self.plan["outputs"]) if similar else self.sizes

    def forward(self, *inputs: Tensor) -> Tensor:
        """The body's inputs, in the order of its `reads` -> logits [B, V] of classes, [B, 2, T] of spans with padding
        out of reach, or a vector of length 1 [B, S]."""
        hidden, mask = self.body(*inputs)
        task = self.plan["task"]
        if task == "span":
            assert self.head is not None
            self.sentence(self._pooled(hidden, mask))
            return self.head(hidden).transpose(1, 2) + (mask.to(hidden.dtype)[:, None] - 1) * OUT_OF_REACH
        vector = self._pooled(hidden, mask)
        if task == "similarity":
            vector = self.sentence(vector if self.head is None else self.head(vector))[:, 0]
            return vector / vector.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        assert self.head is not None
        return self.head(self.sentence(vector)[:, 0])

    def _pooled(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """[B, 1, D]"""
        if self.plan["pool"] == "first":
            return hidden[:, :1]
        weight = mask.to(hidden.dtype)[..., None]
        return (hidden * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True).clamp_min(1)


OUT_OF_REACH = 1e4  # finite, so that 0 times a difference of two such logits is 0


def save(model: Encoder, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: p.detach().contiguous() for n, p in model.named_parameters()}, folder / WEIGHTS)
    (folder / PLAN).write_text(json.dumps(model.plan, indent=1) + "\n", encoding="utf-8")


def load(folder: Path, attention: str = "sdpa") -> Encoder:
    plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    return filled(plan, load_file(folder / WEIGHTS), attention)


def filled(plan: dict[str, Any], weights: dict[str, Tensor], attention: str = "sdpa") -> Encoder:
    """An encoder of this plan with these weights. Raises ModelError where they do not fit."""
    with torch.random.fork_rng(devices=[]):  # making what is overwritten must not move the caller's numbers
        model = Encoder(plan, attention)
    _fill(model, weights)
    return model.eval()


def _fill(model: nn.Module, weights: dict[str, Tensor]) -> None:
    own = dict(model.named_parameters())
    for name, parameter in own.items():
        if name not in weights or weights[name].shape != parameter.shape:
            raise ModelError(f"{name}: is missing or of another shape in the weights of this encoder")
        parameter.data.copy_(weights[name])


def read_bert(folder: Path, pool: str, task: str, outputs: int, seed: int, attention: str) -> Encoder:
    """A model folder in hub layout as an encoder with a new head. Raises ModelError: only BERT's own architecture
    (MiniLM and TinyBERT have it too), only safetensors."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder.name}: its config.json cannot be read ({error}); give a model folder") from error
    if config.get("model_type") != "bert":
        raise ModelError(f"{folder.name}: is a '{config.get('model_type')}'; encoders of the type bert are known")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder.name}: holds no .safetensors; convert its weights first, pickles are not read")
    held = {key: value.float() for file in files for key, value in load_file(file).items()}
    weights = {f"body.bert.{key.removeprefix('bert.')}": value for key, value in held.items()}
    plan = {"body": "bert", "config": config, "pool": pool, "task": task, "outputs": outputs}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Encoder(plan, attention)
    if model.head is not None:
        weights |= {"head.weight": _head(model, seed), "head.bias": torch.zeros(outputs)}
    _fill(model, weights)
    return model.eval()


def _head(model: Encoder, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(model.plan["outputs"], model.sizes.hidden, generator=generator) * 0.02
