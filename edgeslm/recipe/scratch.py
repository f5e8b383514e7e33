"""The `student` of a recipe that is not cut from its teacher: sizes, knobs and how its weights start. Free of torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgeslm.design import families
from edgeslm.recipe.parts import Part, Positive

Deviation = Annotated[float, Field(gt=0, le=1)]
Family = Literal["llama", "qwen3", "qwen2", "smollm3", "gemma3_text", "starcoder2", "gpt2"]


class NormalInit(Part):
    """Normal with deviation `std`, as GPT-2: what writes into the residual stream is divided by sqrt(2 layers)."""

    kind: Literal["normal"] = "normal"
    std: Deviation = 0.02


class MupInit(Part):
    """Maximal update parametrisation (arXiv:2203.03466, edgeslm.students.mup): a learning rate found at `base_width`
    is the right one at any width. `std` is that of the base width. Learning rates of weights follow by themselves."""

    kind: Literal["mup"]
    base_width: Positive = 256
    std: Deviation = 0.02


class TeacherInit(Part):
    """The j-th layer starts as the teacher's layers[j], counted from 0, null as new; embedding, head and last norm are
    the teacher's. Widths and family have to be the teacher's."""

    kind: Literal["teacher"]
    layers: Annotated[tuple[Annotated[int, Field(ge=0)] | None, ...], Field(min_length=1)]
    std: Deviation = 0.02


class ScratchStudent(Part):
    """A student of any shape that speaks the teacher's vocabulary. `family` names an architecture (edgeslm.design.
    families); without it the first one is taken that has the feed-forward (`gated` or not), `activation`, `norm` and
    `attention` asked for (mha: every head has its own keys and values, mqa: all share them, gqa: four at a time)."""

    kind: Literal["scratch"]
    hidden: Positive
    layers: Positive
    heads: Positive
    family: Family | None = None
    kv_heads: Positive | None = None
    attention: Literal["mha", "gqa", "mqa", "mla"] | None = None
    head_dim: Positive | None = None
    ffn: Positive | None = None
    ffn_ratio: Annotated[float, Field(gt=0, le=16)] | None = None  # units / hidden; 8/3 gated and 4 plain when absent
    gated: bool | None = None
    activation: Literal["silu", "gelu"] | None = None
    norm: Literal["rms", "layer"] | None = None
    tied: bool = True
    positions: Positive | None = None  # the teacher's when absent
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0
    init: Annotated[NormalInit | MupInit | TeacherInit, Field(discriminator="kind")] = NormalInit()

    @property
    def wanted(self) -> families.Wanted:
        names = families.Wanted.__dataclass_fields__
        return families.Wanted(**{name: getattr(self, name) for name in names})

    @model_validator(mode="after")
    def _a_model(self) -> ScratchStudent:
        families.check(self.wanted)
        family = families.family_of(self.wanted)
        if self.init.kind == "mup" and not families.FAMILIES[family].mup:
            raise ValueError(f"init: '{family}' scales its inputs by its width, which muP does not; use another family")
        if self.init.kind == "teacher" and len(self.init.layers) != self.layers:
            raise ValueError(f"init.layers: names {len(self.init.layers)} layers for a student of {self.layers}")
        return self
