"""A second moment as rounding with feedback needs it: dampened, and the triangular root of its inverse."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeslm.errors import FormatError

DAMPENING = 0.1  # of inputs: best on held-out text of 0.01 .. 0.3, for 8,192 tokens of SmolLM2-135M
LOSS_DAMPENING = 0.03  # of inputs weighed token by token, which leaves out the outliers: best of 0.01 .. 0.3
DAMPENING_ACROSS = 0.1  # of outputs


@dataclass(frozen=True)
class Curvature:
    """`hessian` [K, K], dampened, and `root` U [K, K] with H^-1 = U^T U; float32. Shared by weights of one input."""

    hessian: Tensor
    root: Tensor


def curvature(moment: Tensor, dampening: float = DAMPENING) -> Curvature:
    """`dampening`: share of the mean diagonal added to the diagonal, which also bears channels that are always 0.

    Raises FormatError for a moment that is not finite or all zero.
    """
    hessian = moment.double()
    mean = hessian.diagonal().mean()
    if not torch.isfinite(hessian).all() or mean <= 0:
        raise FormatError(
            "second moment of a layer's inputs or gradients: is not finite or all zero; gather it on real text, and "
            "take rounding: nearest for a model in which a layer does nothing"
        )
    hessian = hessian + torch.eye(hessian.shape[0], dtype=hessian.dtype, device=hessian.device) * (dampening * mean)
    # H = R R^T with R upper triangular is the Cholesky factor of H in reverse order, and U = R^-1
    reverse = torch.linalg.cholesky(hessian.flip(0, 1)).flip(0, 1)
    eye = torch.eye(hessian.shape[0], dtype=hessian.dtype, device=hessian.device)
    root = torch.linalg.solve_triangular(reverse, eye, upper=True)
    return Curvature(hessian.float(), root.float())


def left_over(curve: Curvature, seen: Tensor, together: int = 1) -> float:
    """What feedback by `curve` leaves of the loss, 0 .. 1, where inputs have the moment `seen` [K, K], if errors are of
    one size in every column and know nothing of each other. `together`: so many columns do not learn of each other
    (rows, where `curve` is that of outputs).

    Feedback makes independent errors E [O, K] into E F U, F the inverses of U's diagonal blocks of `together` columns,
    so that tr(F U seen U' F') is lost where each column by itself would lose tr(seen). On the curve's own moment that
    is the sum of the blocks' squared inverses; on other text it is more, and the more so the fewer tokens made it.
    """
    total = float(seen.diagonal().sum(dtype=torch.float64))
    through, lost = curve.root @ seen.to(curve.root), 0.0
    for at in range(0, len(through), together):
        part = slice(at, at + together)
        spread = through[part] @ curve.root[part].T  # U seen U', of which no other blocks are needed
        eye = torch.eye(len(spread), device=spread.device)
        inverse = torch.linalg.solve_triangular(curve.root[part, part], eye, upper=True)
        lost += float(((inverse @ spread) * inverse).sum(dtype=torch.float64))
    return min(1.0, lost / total) if total > 0 else 1.0
