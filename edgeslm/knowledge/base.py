"""What a loss is: a pure function from tensors to one number per token or per row, and data about it.

Shape letters: N tokens, V vocabulary, B rows, T positions, D hidden width, H heads, d head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

# weights of a loss's own (projections, discriminators), trained with the student and never shipped
Params = dict[str, Tensor]
# fn(student_logits [N, V], teacher_logits [N, V] or None, targets [N], **options) -> nats [N]
ResponseFn = Callable[..., Tensor]
# the same arguments -> (nats [N], d nats / d student_logits [N, V])
FusedFn = Callable[..., tuple[Tensor, Tensor]]
# fn(student, teacher, mask [B, T], **options) -> values [B, T] or [B]
FeatureFn = Callable[..., Tensor]


@dataclass(frozen=True)
class Response:
    """A loss on the output distribution. `fused`, where present, is the same function with its gradient written out;
    a test holds it to autograd of `fn`. `needs_teacher` says whether the teacher must be run at all. `coarse`: an
    f-divergence, so that it also has meaning between distributions whose small outcomes are put in one (recorded
    targets). `init(vocabulary, generator) -> Params` where it has weights; it then takes them as `params=`. `judge`,
    of an adversary, is the loss of those weights themselves, with the arguments of `fn`; `fn` then trains the student
    only."""

    fn: ResponseFn
    needs_teacher: bool
    source: str
    fused: FusedFn | None = None
    coarse: bool = False
    init: Callable[..., Params] | None = None
    judge: ResponseFn | None = None


@dataclass(frozen=True)
class Layer:
    """What is read at one layer of a model; None where no loss needs it. Positions of queries and keys are before
    rotation; key and value heads are repeated to the number of query heads."""

    hidden: Tensor | None = None  # [B, T, D], what the layer gives to the next
    attention: Tensor | None = None  # [B, H, T, T] probabilities
    query: Tensor | None = None  # [B, H, T, d]
    key: Tensor | None = None
    value: Tensor | None = None


@dataclass(frozen=True)
class Sizes:
    """Of the layers a loss reads in one model. `layers`: how many a joint loss reads."""

    hidden: int
    heads: int
    head_width: int
    layers: int = 1


@dataclass(frozen=True)
class Feature:
    """A loss on what layers hold. `reads` names fields of `Layer`. `fn(student: Layer, teacher: Layer, mask,
    **options)` is called for every pair of mapped layers and the pairs are averaged; a `joint` one is called once, with
    two lists of layers. `layers`: its map when the recipe gives none. `init(student: Sizes, teacher: Sizes, generator,
    **options)` and `judge` as in `Response`."""

    fn: FeatureFn
    reads: tuple[str, ...]
    source: str
    layers: str = "uniform"
    joint: bool = False
    init: Callable[..., Params] | None = None
    judge: FeatureFn | None = None


Loss = Response | Feature
