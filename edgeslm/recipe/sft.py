"""The `sft` part of a recipe: the student is fine-tuned on the answers of dialogues before it is distilled. Free of
torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgeslm.recipe.parts import Beta, ChatSource, Fraction, Part, Positive, WrittenSource

Dialogues = Annotated[ChatSource | WrittenSource, Field(discriminator="kind")]


class LoraPart(Part):
    """Adapters of low rank (LoRA, arXiv:2106.09685) learn instead of the weights, which gain `alpha / rank` times their
    product in float32 when training ends: the student that is distilled and shipped is a plain model. They are made by
    peft (pip install 'edgeslm[lora]'). `targets`: linear layers by the end of their names, `q` or `q_proj`; all of
    the blocks' by default (arXiv:2305.14314). `keep`: the adapter stays in the stage's folder as peft lays one out, in
    `adapter`, beside the model that it belongs to, in `base`."""

    rank: Positive = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    keep: bool = False


class SftPart(Part):
    """Cross-entropy on what the assistant says, the token that ends its turn included (edgeslm.data.answers). `sources`
    as in `data`, chat and written ones; those of `data` when left out. Rows of data.sequence tokens hold whole
    dialogues. The loss on answers is measured before, in between and after on the dialogues of `judge`, or on those of
    at most `apart` prompts, and at most a fifth of all, which are then not trained on. Type of computing, attention and
    recompute are those of distill.train."""

    steps: Positive
    sources: Annotated[tuple[Dialogues, ...], Field(min_length=1)] | None = None
    judge: tuple[str, ...] = ()
    apart: Positive = 16
    batch_tokens: Positive = 2048
    micro_rows: Positive = 8
    lr: Annotated[float, Field(gt=0)] = 1e-4
    schedule: Literal["wsd", "cosine"] = "wsd"
    warmup: Fraction = 0.05
    decay: Fraction = 0.4
    clip: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    checkpoint_every: Positive = 20
    lora: LoraPart | None = None

    @model_validator(mode="after")
    def _one_phase(self) -> SftPart:
        for source in self.sources or ():
            if source.decay_share is not None:
                raise ValueError("sources: decay_share is for the sources of data; leave it out")
            if not source.share:
                raise ValueError("sources: a share of 0 would never be read; leave the source out")
        return self
