"""The `student` part of a recipe: what it is cut from, what stays, and which words it keeps. Free of torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from edgeslm.recipe.parts import Part, Positive
from edgeslm.recipe.scratch import ScratchStudent

Choose = Literal["influence", "loss", "greedy", "even", "first"]


class VocabularyPart(Part):
    """The ids that text uses, seen `min_count` times or more once rarer ones are spelled in them, `keep` of them that
    leave it the shortest; every byte, every special token, and what kept ones are merged from stay in any case, so that
    all text can be written. Text is that of `data.sources` and more `text` files. Teacher and student both read the
    text in the tokens that are left. What the teacher gives to `removed` ids goes to the `first_piece` that such a
    token is now written with, or is shared out among the others as its own probabilities are (`renormalise`): then a
    student that has lost nothing else begins as its teacher and learns nothing from it. How a word goes on that is new
    in pieces only the text says: give the objective some cross_entropy. With `own_tokens` the teacher reads the text in
    all its tokens, as it learned to, and gives as with `first_piece`; inside a token that the student spells the text
    stands for it, as a teacher that is certain."""

    keep: Positive | None = None
    min_count: Annotated[int, Field(ge=0)] = 1
    text: tuple[str, ...] = ()
    removed: Literal["renormalise", "first_piece", "own_tokens"] = "first_piece"

    @property
    def folds(self) -> bool:
        """Whether the whole teacher stands beside the student."""
        return self.removed != "renormalise"


class AnyStudent(Part):
    """`vocabulary`: fewer tokens than the teacher has (edgeslm.models.subset)."""

    vocabulary: VocabularyPart | None = None


class Cut(AnyStudent):
    """What students that are cut from a model share. `origin`: the model they are cut from where it is not the teacher
    itself, which teaches on: `run:NAME` of an earlier student makes pruning iterative, a step a recipe.
    `choose` layers (edgeslm.students.depth) by block influence, by the loss without each, `greedy` (the loss again
    after each that goes), or by position: `even`, `first`, or a list of those that stay, from 0. `contiguous`: what
    goes is one run of layers."""

    origin: str | None = None
    choose: Choose | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = "influence"
    contiguous: bool = False

    @model_validator(mode="before")
    @classmethod
    def _as_many_as_named(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("choose"), list) and "layers" not in given:
            return {**given, "layers": len(given["choose"])}
        return given

    @model_validator(mode="after")
    def _a_choice(self) -> Cut:
        if not isinstance(self.choose, str) and sorted(set(self.choose)) != list(self.choose):
            raise ValueError("choose: layers are named once each, in order")
        if not isinstance(self.choose, str) and getattr(self, "layers", None) != len(self.choose):
            raise ValueError(f"choose: names {len(self.choose)} layers; leave layers out or make it the same")
        if self.contiguous and self.choose not in ("influence", "loss"):
            raise ValueError("contiguous: is for choose: influence or loss; leave it out")
        return self


class DepthStudent(Cut):
    """Copy of the teacher with the layers that matter least left out. `compare`: other choices whose loss before any
    training is measured as well."""

    kind: Literal["depth"]
    layers: Positive
    importance_tokens: Positive = 4096
    compare: tuple[Choose, ...] = ()


class WidthStudent(Cut):
    """The teacher with fewer hidden channels, feed-forward units or layers, and with heads of any number
    (edgeslm.students.width); what is left out stays as the teacher has it. 256 divides every row of the student when it
    divides `hidden`, `ffn` and heads times their dimensions."""

    kind: Literal["width"]
    hidden: Positive | None = None
    ffn: Positive | None = None
    heads: Positive | None = None
    kv_heads: Positive | None = None
    layers: Positive | None = None
    method: Literal["importance", "pca"] = "importance"
    importance_tokens: Positive = 8192


class CopyStudent(AnyStudent):
    """The teacher's own shape and weights; distilling it only moves it onto the grid."""

    kind: Literal["copy"]


class ExistingStudent(AnyStudent):
    """Another model of the teacher's vocabulary, smaller and trained before (its embedding may be padded to another
    size): Qwen2.5-0.5B under Qwen2.5-1.5B. Models are named as teachers are."""

    kind: Literal["existing"]
    model: str
    sha256: str | None = None
    tokenizer: str | None = None


class FromScratch(AnyStudent, ScratchStudent):
    pass


Student = Annotated[
    DepthStudent | WidthStudent | CopyStudent | ExistingStudent | FromScratch, Field(discriminator="kind")
]
