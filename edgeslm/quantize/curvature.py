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


def left_over(curve: Curvature, together: int = 1) -> float:
    """What feedback leaves of the loss, 0 .. 1, if errors are of one size in every column and know nothing of each
    other; measured on text that the curvature has not seen it is more. `together`: so many columns do not learn of each
    other (rows, where `curve` is that of outputs)."""
    total = float(curve.hessian.diagonal().sum(dtype=torch.float64))
    if together == 1:
        return float(curve.root.diagonal().square().reciprocal().sum(dtype=torch.float64)) / total
    eye = torch.eye(together, device=curve.root.device)
    lost = 0.0
    for at in range(0, len(curve.root), together):
        own = curve.root[at : at + together, at : at + together]
        inverse = torch.linalg.solve_triangular(own, eye[: len(own), : len(own)], upper=True)
        lost += float(inverse.square().sum(dtype=torch.float64))
    return lost / total
