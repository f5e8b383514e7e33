"""What a response loss is: a pure function from logits to one number per token.

Shape letters: N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

# fn(student_logits [N, V], teacher_logits [N, V] or None, targets [N], **options) -> nats [N]
ResponseFn = Callable[..., Tensor]
# the same arguments -> (nats [N], d nats / d student_logits [N, V])
FusedFn = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Response:
    """A loss on the output distribution. `fused`, where present, is the same function with its gradient written out;
    a test holds it to autograd of `fn`. `needs_teacher` says whether the teacher must be run at all."""

    fn: ResponseFn
    needs_teacher: bool
    source: str
    fused: FusedFn | None = None
